"""The query service as users meet it: over HTTP, on a real Ray Serve, with many at once and with a model that dies."""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
import ray
import requests
import torch
from ray import cloudpickle

from benchmarks.servers import free_ports
from model import D4RT, ModelConfig, checkpoints, recipes
from pipelines.pictures.video_file import write_video
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, read_video
from pipelines.service.app import NAME, Settings, application, checked
from pipelines.service.limits import Limits, clip_bytes

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import tests
pytestmark = pytest.mark.slow
PAGE = Path(__file__).parent.parent / "docs/service.md"
FRAMES, TRIES, BACK_SECONDS = 16, 40, 120
CONFIG = replace(ModelConfig.preset("tiny"), clip_frames=FRAMES, image_size=32)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@dataclass(frozen=True)
class Service:
    url: str
    model: D4RT
    video: Path

    def send(self, body: bytes | None = None, options: str = f"?frames={FRAMES}") -> requests.Response:
        return requests.post(f"{self.url}/clips{options}", data=body or self.video.read_bytes(), timeout=120)

    def ask(self, clip: str, **question: Any) -> requests.Response:
        return requests.post(f"{self.url}/clips/{clip}/answers", json=question, timeout=120)

    def expected(self) -> np.ndarray:
        """(1, T, 3): the track of the middle of the first frame, in its camera."""
        selection = Selection(num_frames=FRAMES)
        video = read_video(Source(str(self.video)), selection, CONFIG.image_size)
        height, width = video.size
        with torch.no_grad():
            return recipes.tracks(self.model, video.clip, [[0.5, 0.5]], 0, aspect=width / height, t_cam=0)


@ray.remote(num_cpus=0)
def start(settings: Settings, limits: Limits, port: int) -> None:
    """In another process: Serve pickles the router with its code, which cannot be done with what checks types here."""
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(*checked(settings), limits), name=NAME, route_prefix="/")


@pytest.fixture(scope="module")
def service(ray_cluster, tmp_path_factory) -> Iterator[Service]:
    """With little room: two clips are held, four requests are done at a time."""
    from ray import serve

    folder = tmp_path_factory.mktemp("service")
    torch.manual_seed(3)
    model = D4RT(CONFIG).eval()
    checkpoints.save(model, folder / "checkpoint")
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES + 4, 24, 40, 3), dtype=np.uint8)
    write_video(folder / "my.mp4", noise, 10.0)

    (port,) = free_ports(1)
    limits = Limits(video_bytes=1 << 20, queries=4096, waiting=8192, requests=4)
    settings = Settings(model=str(folder / "checkpoint"), memory_gb=2.5 * clip_bytes(CONFIG) / 1e9)
    ray.get(start.remote(settings, limits, port))
    yield Service(f"http://127.0.0.1:{port}", model, folder / "my.mp4")
    serve.shutdown()


def test_the_client_of_the_page_is_told_what_recipes_say(service, monkeypatch, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(service.video.parent)
    exec(code.replace("http://127.0.0.1:8000", service.url), found := {})
    expected = service.expected()
    np.testing.assert_allclose(found["track"]["xyz"], expected.xyz[0].numpy(), **CLOSE)
    np.testing.assert_allclose(found["track"]["uv_norm"], expected.uv_norm[0].numpy(), **CLOSE)
    np.testing.assert_allclose(found["track"]["confidence"], expected.confidence[0].numpy(), **CLOSE)
    assert found["track"]["visible"] == expected.visible[0].tolist()
    assert len(capsys.readouterr().out.splitlines()) == FRAMES

    question = {
        "uv_norm": np.full((FRAMES, 2), 0.5, "<f4").tobytes(),
        "t_tgt": np.arange(FRAMES, dtype="<i4").tobytes(),
    }
    binary = requests.post(
        f"{service.url}/clips/{found['sent']['clip']}/answers",
        data=msgpack.packb(question | {"t_src": 0, "t_cam": 0}),
        headers={"Content-Type": "application/msgpack"},
        timeout=60,
    )
    xyz = np.frombuffer(msgpack.unpackb(binary.content)["xyz"], "<f4").reshape(-1, 3)
    np.testing.assert_allclose(xyz, expected.xyz[0].numpy(), **CLOSE)


def test_what_is_wrong_is_said_in_words(service):
    assert requests.get(f"{service.url}/ready", timeout=60).json() == {"status": "ready"}
    assert requests.get(f"{service.url}/health", timeout=60).json() == {"status": "alive"}
    clip = service.send().json()["clip"]
    good = {"uv_norm": [[0.5, 0.5]], "t_src": 0, "t_tgt": 1, "t_cam": 0}
    for response, status, words in (
        (service.send(b"no video at all"), 422, "the video cannot be read as a video"),
        (service.send(options=""), 422, f"more than the {FRAMES} frames that the model takes"),
        (service.send(options="?step=0"), 422, "step: Input should be greater than or equal to 1"),
        (service.send(bytes((1 << 20) + 1)), 413, "the body has more than 1048576 bytes"),
        (service.ask(clip, **good | {"t_tgt": FRAMES}), 422, f"t_tgt has {FRAMES}, but the clip has {FRAMES} frames"),
        (service.ask(clip, **good | {"uv_norm": [[0.5, 1.5]]}), 422, "uv_norm runs from 0.5 to 1.5"),
        (service.ask(clip, **good | {"uv_norm": [[0.5, 0.5]] * 5000}), 422, "5000 queries: from 1 to 4096"),
        (service.ask(clip, uv_norm=[[0.5, 0.5]]), 422, "a question has the fields"),
        (service.ask("0" * 32, **good), 404, "is held, or not any more: send the video again"),
    ):
        assert response.status_code == status and words in response.json()["error"], response.text

    others = [service.send(options=f"?start={start}&frames={FRAMES}").json()["clip"] for start in (1, 2)]
    assert service.ask(clip, **good).status_code == 404  # two others took its place
    assert service.ask(others[0], **good).ok
    url = f"{service.url}/clips/{others[0]}"
    assert [requests.delete(url, timeout=60).status_code for _ in range(2)] == [204, 404]


def process_of(deployment: str) -> psutil.Process:
    (process,) = [
        each
        for each in psutil.Process().children(recursive=True)
        if any(f"ServeReplica:{NAME}:{deployment}" in word for word in each.cmdline())
    ]
    return process


def test_what_was_asked_is_not_kept(service):
    """60 times 130 KB, and as much again while it travels; allocators keep some."""
    clip, door = service.send().json()["clip"], process_of("door")
    times = [0] * 4096
    with requests.Session() as session:
        for number in range(100):
            if number == 40:
                before = door.memory_full_info().uss
            question = {"uv_norm": bytes(8 * 4096), "t_src": bytes(4 * 4096), "t_tgt": times, "t_cam": 0}
            session.post(
                f"{service.url}/clips/{clip}/answers",
                data=msgpack.packb(question),
                headers={"Content-Type": "application/msgpack"},
                timeout=60,
            ).raise_for_status()
    assert door.memory_full_info().uss - before < 6e6


def right(service: Service, clip: str, xyz: np.ndarray) -> int:
    """The status of a question of 4,000 queries. AssertionError for an answer that is wrong, or a refusal without
    words."""
    times = list(range(FRAMES)) * 250
    response = service.ask(clip, uv_norm=[[0.5, 0.5]] * len(times), t_src=0, t_tgt=times, t_cam=0)
    if response.ok:
        np.testing.assert_allclose(response.json()["xyz"], np.tile(xyz, (250, 1)), **CLOSE)
    elif response.status_code in (429, 503):
        assert int(response.headers["Retry-After"]) >= 1
    else:
        assert "send the video again" in json.loads(response.text)["error"]
    return response.status_code


def test_too_many_are_refused_and_those_that_are_not_are_answered_rightly(service):
    clip, xyz = service.send().json()["clip"], service.expected().xyz[0].numpy()
    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(lambda _: right(service, clip, xyz), range(TRIES)))
    assert statuses.keys() == {200, 429} and statuses[200] >= 4, statuses
    assert right(service, clip, xyz) == 200


def test_a_model_that_is_killed_under_load_gives_no_wrong_answer_and_comes_back(service):
    clip, xyz = service.send().json()["clip"], service.expected().xyz[0].numpy()
    model = process_of("model")
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(right, service, clip, xyz) for _ in range(TRIES)]
        while not any(each.done() for each in asked):
            time.sleep(0.02)
        model.kill()
        statuses = Counter(each.result() for each in asked)
    assert statuses.keys() <= {200, 404, 429, 503} and statuses[200] and statuses.keys() & {404, 503}, statuses

    end = time.monotonic() + BACK_SECONDS
    while not (again := service.send()).ok and time.monotonic() < end:
        time.sleep(0.5)
    assert again.json()["clip"] == clip and right(service, clip, xyz) == 200
