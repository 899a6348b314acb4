"""What does the query service do as load rises, and does it grow?

    python -m benchmarks.service [--out FILE]

`tiny` with clips of 16 frames of 64 x 64 and random weights, behind HTTP on this machine, its clients beside it. Users
ask 256 queries about one clip, in MessagePack, again as soon as they are answered; one who is refused waits as long as
he is told. Loads are so many users, each for some seconds: seconds from a question to its answer, and how many are
refused. Anything but an answer (200) or a refusal (429) is an error.

Then 10,000 requests of 8 users, of which every 50th sends a video: the memory of the door, and of the model, which has
room for eight clips, after each thousand. The first two thousand warm up allocators and caches.
"""

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import msgpack
import numpy as np
import psutil

from benchmarks.figures import keep, parser_of
from model import D4RT, ModelConfig, checkpoints
from pipelines.cluster import connect
from pipelines.pictures.video_file import write_video
from pipelines.ports import require_free
from pipelines.service import app
from pipelines.service.limits import GIGABYTE, Limits, clip_bytes
from pipelines.service.wire import MSGPACK

CONFIG = replace(ModelConfig.preset("tiny"), clip_frames=16, image_size=64)
PORT = 8765
QUERIES, USERS, SECONDS = 256, (1, 4, 16, 64, 256), 10
REQUESTS, STEP, WARM_UP, VIDEO_EVERY, MEMORY_USERS, ROOM = 10_000, 1_000, 2_000, 50, 8, 8
MOST_GROWTH = 0.05  # of the memory after the warm-up


@dataclass
class Load:
    """What became of the requests of so many users."""

    statuses: Counter = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    """Seconds each."""
    refused: list[float] = field(default_factory=list)

    def figures(self, seconds: float) -> dict[str, float]:
        if unexpected := self.statuses.keys() - {200, 429}:
            raise AssertionError(f"neither answered nor refused: {unexpected}")
        middle, most = (float(np.quantile(self.answered, share)) for share in (0.5, 0.99))
        return {
            "answers_per_second": len(self.answered) / seconds,
            "queries_per_second": QUERIES * len(self.answered) / seconds,
            "median_seconds": middle,
            "p99_seconds": most,
            "refused_share": len(self.refused) / sum(self.statuses.values()),
            "longest_refusal_seconds": max(self.refused, default=0.0),
        }


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a service."""
    require_free("127.0.0.1", PORT)
    checkpoints.save(D4RT(CONFIG), folder / "checkpoint")
    settings = app.Settings(model=str(folder / "checkpoint"), memory_gb=ROOM * clip_bytes(CONFIG) / GIGABYTE)
    settings, config = app.checked(settings)
    connect()
    app.serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    app.serve.run(app.application(settings, config, Limits()), name=app.NAME, route_prefix="/")
    yield f"http://127.0.0.1:{PORT}"
    app.serve.shutdown()


def question() -> bytes:
    rng = np.random.default_rng(0)
    times = {
        name: rng.integers(0, CONFIG.clip_frames, QUERIES, "<i4").tobytes() for name in ("t_src", "t_tgt", "t_cam")
    }
    return msgpack.packb({"uv_norm": rng.random((QUERIES, 2), "<f4").tobytes()} | times)


async def send(session: aiohttp.ClientSession, video: bytes, start: int) -> str:
    url = f"/clips?start={start}&frames={CONFIG.clip_frames}"
    async with session.post(url, data=video) as response:
        return (await response.json())["clip"]


async def ask(session: aiohttp.ClientSession, clip: str, body: bytes, load: Load) -> bool:
    """Was it answered?"""
    began = time.monotonic()
    headers = {"Content-Type": MSGPACK}
    async with session.post(f"/clips/{clip}/answers", data=body, headers=headers) as response:
        await response.read()
    load.statuses[response.status] += 1
    seconds = time.monotonic() - began
    if response.status == 429:
        load.refused.append(seconds)
        await asyncio.sleep(int(response.headers["Retry-After"]))
        return False
    load.answered.append(seconds)
    return True


async def measure_load(session: aiohttp.ClientSession, video: bytes, users: int) -> dict[str, float]:
    clip, body, load = await send(session, video, 0), question(), Load()
    end = time.monotonic() + SECONDS

    async def user() -> None:
        while time.monotonic() < end:
            await ask(session, clip, body, load)

    await asyncio.gather(*(user() for _ in range(users)))
    return load.figures(SECONDS)


async def measure_memory(session: aiohttp.ClientSession, video: bytes, starts: int) -> dict[str, list[float]]:
    """Megabytes of each process after each `STEP` requests."""
    clip, body, load = await send(session, video, 0), question(), Load()
    memory = {name: [] for name in ("model", "door")}
    done = 0

    async def user() -> None:
        nonlocal done
        while done < REQUESTS:
            done += 1
            number = done
            if number % VIDEO_EVERY == 0:
                await send(session, video, 1 + number // VIDEO_EVERY % starts)
            else:
                while not await ask(session, clip, body, load):
                    pass
            if number % STEP == 0:
                for name, megabytes in memory.items():
                    megabytes.append(resident_bytes(name) / 1e6)

    await asyncio.gather(*(user() for _ in range(MEMORY_USERS)))
    load.figures(1)
    return memory


def resident_bytes(deployment: str) -> int:
    """Of its only replica, which is a process below this one."""
    (process,) = [
        each
        for each in psutil.Process().children(recursive=True)
        if any(f"ServeReplica:{app.NAME}:{deployment}" in word for word in each.cmdline())
    ]
    return process.memory_info().rss


async def measure(url: str, video: bytes, starts: int) -> dict:
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(url, connector=connector, timeout=patience) as session:
        loads = {str(users): await measure_load(session, video, users) for users in USERS}
        memory = await measure_memory(session, video, starts)
    warm = WARM_UP // STEP - 1
    growth = {name: megabytes[-1] / megabytes[warm] - 1 for name, megabytes in memory.items()}
    return {"users": loads, "memory_megabytes": memory, "growth": growth, "most_growth": MOST_GROWTH}


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    arguments = parser.parse_args(argv)
    extra = 4 * ROOM
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).integers(0, 256, (CONFIG.clip_frames + extra, 48, 64, 3), dtype=np.uint8)
        write_video(Path(folder, "video.mp4"), noise, 10.0)
        with served(Path(folder)) as url:
            before = os.getloadavg()[0]
            report = asyncio.run(measure(url, Path(folder, "video.mp4").read_bytes(), extra - 1))
    report = {"config": CONFIG.to_dict(), "queries": QUERIES, "load": before} | report
    print(as_text(report))
    keep(report, arguments.out)


def as_text(report: dict) -> str:
    lines = [
        f"{'users':>6} {'answers/s':>10} {'queries/s':>10} {'median s':>9} {'p99 s':>7} {'refused':>8} {'longest s':>9}"
    ]
    for users, figure in report["users"].items():
        lines.append(
            f"{users:>6} {figure['answers_per_second']:10.1f} {figure['queries_per_second']:10.0f} "
            f"{figure['median_seconds']:9.3f} {figure['p99_seconds']:7.3f} {figure['refused_share']:8.0%} "
            f"{figure['longest_refusal_seconds']:9.3f}"
        )
    for name, megabytes in report["memory_megabytes"].items():
        grown = report["growth"][name]
        verdict = "flat" if grown < report["most_growth"] else "GROWS"
        lines.append(
            f"{name}: {megabytes[0]:.0f} MB after the first thousand, {megabytes[-1]:.0f} after all, {verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
