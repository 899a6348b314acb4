"""The service as an application of Ray Serve: doors, which speak HTTP and read videos, before models, which answer.

A video is decoded in a door, so that a file that breaks the decoder ends no process that holds clips.
"""

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect

from model import ModelConfig
from pipelines.cluster import model_resources
from pipelines.models import load_model, model_version, tracking_uri
from pipelines.service.footage import FEWEST, Chosen, read_clip
from pipelines.service.limits import RETRY_SECONDS, Limits, Places, Refusal, busy, held_bytes, not_held, too_large
from pipelines.service.replica import Answerer
from pipelines.service.router import ByClip
from pipelines.service.wire import read_questions, write_answers

NAME = "d4rt"
STARTS = 3  # of a replica, before the service gives up


async def refuse(_: Request, refusal: Refusal) -> Response:
    return JSONResponse({"error": refusal.words}, refusal.status, refusal.headers)


async def refuse_parameters(_: Request, error: RequestValidationError) -> Response:
    words = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return JSONResponse({"error": words}, HTTPStatus.UNPROCESSABLE_ENTITY)


@serve.ingress()
class Door:
    """HTTP in front of the models. docs/service.md has all of it."""

    def __init__(self, models: DeploymentHandle, config: dict[str, Any], limits: Limits) -> None:
        self._models, self._config, self._limits = models, ModelConfig.from_dict(config), limits
        self._videos = Places(limits.videos, f"{limits.videos} videos are being read already")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Where Serve looks for it. Made here, in the replica: it cannot be pickled."""
        http = FastAPI(title="D4RT", description="Send a video once, ask about its pixels as often as you like.")
        http.add_exception_handler(Refusal, refuse)
        http.add_exception_handler(RequestValidationError, refuse_parameters)
        http.add_api_route("/clips", self.send, methods=["POST"])
        http.add_api_route("/clips/{clip}/answers", self.ask, methods=["POST"])
        http.add_api_route("/clips/{clip}", self.forget, methods=["DELETE"], status_code=HTTPStatus.NO_CONTENT)
        http.add_api_route("/health", self.health)
        http.add_api_route("/ready", self.ready)
        return http

    async def send(
        self,
        request: Request,
        start: Annotated[int, Query(ge=0)] = 0,
        step: Annotated[int, Query(ge=1)] = 1,
        frames: Annotated[int | None, Query(ge=FEWEST)] = None,
    ) -> dict[str, Any]:
        """The body is a video file, of which frames start, start + step, ... are taken."""
        chosen = Chosen(start, step, frames)
        with self._videos.taken():
            video = await _body(request, self._limits.video_bytes, self._limits.seconds)
            clip = chosen.clip_id(video)
            pixels, (height, width) = await asyncio.to_thread(read_clip, video, chosen, self._config)
            del video
            model = self._model_of(clip)
            if not await self._answer(model.holds.remote(clip)):
                await self._answer(model.encode.remote(clip, pixels, width / height))
        return {"clip": clip, "frames": len(pixels), "height": height, "width": width}

    async def ask(self, clip: str, request: Request) -> Response:
        """The body is a question, in JSON or MessagePack."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await _body(request, self._limits.query_bytes, self._limits.seconds)
        queries = read_questions(body, kind, self._limits.queries)
        answers = await self._answer(self._model_of(clip).ask.remote(clip, queries))
        return Response(write_answers(answers, kind), media_type=kind)

    async def forget(self, clip: str) -> None:
        model = self._model_of(clip)
        if not await self._answer(model.holds.remote(clip)):
            raise not_held(clip)
        await self._answer(model.drop.remote(clip))

    async def health(self) -> dict[str, str]:
        """This door is open."""
        return {"status": "alive"}

    async def ready(self) -> dict[str, str]:
        """And a model answers."""
        await self._answer(self._models.holds.remote(""))
        return {"status": "ready"}

    def _model_of(self, clip: str) -> DeploymentHandle:
        return self._models.options(multiplexed_model_id=clip)

    async def _answer(self, response: Awaitable[Any]) -> Any:
        """What a model says. `Refusal` if that is one, or there is no answer."""
        unavailable = HTTPStatus.SERVICE_UNAVAILABLE
        try:
            async with asyncio.timeout(self._limits.seconds):
                answer = await response
        except BackPressureError:
            raise busy("too many requests wait for the model") from None
        except (RayActorError, DeploymentUnavailableError):
            words = "the model that holds this clip has ended, another one starts: send the video again in a moment"
            raise Refusal(unavailable, words) from None
        except TimeoutError:
            words = f"no answer in {self._limits.seconds:g} seconds: try again in a moment"
            raise Refusal(unavailable, words) from None
        if isinstance(answer, Refusal):
            raise answer
        return answer


async def _body(request: Request, most: int, seconds: float) -> bytes:
    """`Refusal` (413, 408, 400) for one that is too large, too slow, or cut short. No more of it is kept than is
    allowed."""
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large("the body", most)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large("the body", most)
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"the body took more than {seconds:g} seconds") from None
    except ClientDisconnect:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body was cut short") from None
    return bytes(body)


class Settings(BaseModel):
    """What a configuration file of Ray Serve says of the service, and `python -m pipelines serve` by its options."""

    model_config = ConfigDict(extra="forbid")

    model: str
    replicas: int = 1
    memory_gb: float | None = None


def build(settings: Settings) -> serve.Application:
    """What a configuration file names (`infra/kubernetes/service`): it takes nothing but what the file says."""
    return application(*checked(settings), Limits())


def checked(settings: Settings) -> tuple[Settings, ModelConfig]:
    """The same with the version of the model that an alias means now, and its config. ValueError for a model that
    cannot be loaded, or no clip of it be held. Needs no Ray."""
    version = model_version(settings.model)
    config = load_model(version).config
    if settings.memory_gb is not None:
        held_bytes(settings.memory_gb, config, 0)
    return settings.model_copy(update={"model": version}), config


def application(settings: Settings, config: ModelConfig, limits: Limits) -> serve.Application:
    """Of what is checked; this process is connected to Ray."""
    backpressure = BackpressureConfig(status_code=HTTPStatus.TOO_MANY_REQUESTS, retry_after_s=RETRY_SECONDS)
    models = serve.deployment(
        Answerer,
        name="model",
        num_replicas=settings.replicas,
        max_ongoing_requests=limits.requests,
        max_queued_requests=limits.requests,
        max_constructor_retry_count=STARTS,
        health_check_period_s=5,
        ray_actor_options=model_resources(),
        request_router_config=RequestRouterConfig(request_router_class=ByClip),
    ).bind(settings.model, tracking_uri(), settings.memory_gb, limits)
    doors = serve.deployment(
        Door,
        name="door",
        num_replicas=settings.replicas,
        max_ongoing_requests=limits.requests,
        max_queued_requests=limits.requests,
        backpressure_config=backpressure,
        ray_actor_options={"num_cpus": 0},  # it waits for models most of the time
    )
    return doors.bind(models, config.to_dict(), limits)
