"""What the service takes at most, and how it says no: in words, at once, with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from model import ModelConfig
from model.config import RGB

RETRY_SECONDS = 1
FLOAT_BYTES = 4
GIGABYTE = 1e9
HELD_SHARE = 0.5  # of the memory that is free on a model's device, for clips, unless it is said


@dataclass(frozen=True)
class Limits:
    """What is more, or comes while there is more, is refused."""

    video_bytes: int = 256 << 20
    videos: int = 4
    """That a door reads and decodes, or a model encodes, at the same time."""
    query_bytes: int = 8 << 20
    queries: int = 65_536
    """Of one request."""
    waiting: int = 4 * 65_536
    """Queries that wait for one model."""
    requests: int = 64
    """That a door, and so a model, has at the same time."""
    batch: int = 8_192
    """Queries about one clip that are answered together; one request may be more."""
    seconds: float = 60
    """For a body to arrive, and for an answer to it."""


class Refusal(Exception):
    """A request that is not done: the HTTP status, and the words for whoever sent it."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(status, words)
        self.status, self.words = status, words

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, where that helps."""
        again = self.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
        return {"Retry-After": str(RETRY_SECONDS)} if again else {}


def wrong(words: str) -> Refusal:
    """What was sent cannot be used."""
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, words)


def busy(what: str) -> Refusal:
    """Too much is under way."""
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"{what}: try again in a moment")


def too_large(what: str, most: int) -> Refusal:
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{what} has more than {most} bytes: send less at once")


def not_held(clip: str) -> Refusal:
    return Refusal(HTTPStatus.NOT_FOUND, f"no clip {clip} is held, or not any more: send the video again")


class Places:
    """So many at the same time; who comes beyond that is refused, not kept waiting."""

    def __init__(self, count: int, what: str) -> None:
        self._free, self._what = count, what

    @contextmanager
    def taken(self) -> Iterator[None]:
        if self._free == 0:
            raise busy(self._what)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


def clip_bytes(config: ModelConfig) -> int:
    """What a `Memory` of one clip with all frames takes: tokens, keys and values of each layer, frames."""
    slots = -(-config.clip_frames // config.tubelet)
    tokens = slots * (config.image_size // config.patch_size) ** 2 + config.aspect_token
    numbers = tokens * config.decoder_width * (1 + 2 * config.decoder_layers)
    return numbers * FLOAT_BYTES + config.clip_frames * config.image_size**2 * RGB


def held_bytes(memory_gb: float | None, config: ModelConfig, free: int) -> int:
    """What encoded clips may take together: as said, else a share of what is free. ValueError if that is not even
    one."""
    held = int(HELD_SHARE * free if memory_gb is None else memory_gb * GIGABYTE)
    if held < (one := clip_bytes(config)):
        raise ValueError(
            f"a clip of this model takes {one / GIGABYTE:.3g} GB once it is encoded, and there are "
            f"{held / GIGABYTE:.3g} GB for clips: give more with --memory-gb, or a device with more memory"
        )
    return held
