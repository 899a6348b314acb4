"""What does a video of any length cost: seconds and memory by the number of frames.

    python -m benchmarks.long_video [--out FILE]

All that `infer` does for a video with its usual tasks, without Ray: the two halves that it gives to processes of their
own are processes here too. `answer`: frames are read, the model answers window by window, what it said goes to disk.
`publish`: windows are joined, results, pictures and the page are written. The model is that of `benchmarks.inference`
(`tiny`, windows of 48 frames of 64 x 64 with 16 in common), so that what is around the model weighs more than it does
with a large one. Seconds are CPU seconds, the model on one thread. Memory is the most that a process held beyond what
it held before: without files, which the system keeps in memory as long as there is room, so results that lie on disk
do not count.

`together`: CPU seconds per clip where a model looks at several at a time, in place of one after the other.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from benchmarks.figures import keep, parser_of
from benchmarks.inference import CONFIG
from benchmarks.model_task import resident_bytes
from benchmarks.timing import cpu_seconds
from model import D4RT, Queries, recipes
from pipelines.pictures.video_file import video_file
from pipelines.results.across import Across
from pipelines.results.asked import Asked
from pipelines.results.kept import Kept
from pipelines.results.nearby import Nearby
from pipelines.results.questions import Questions
from pipelines.results.reconstruct import new_frames, publish
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, look_at
from pipelines.results.windowed import ask_window
from pipelines.whole import sizes

FPS = 30.0
SPEED = 5  # pixels per frame that the camera turns by
SAMPLE_SECONDS = 0.005  # between two looks at what is held
TOGETHER = (1, 4)  # clips
QUERIES = 4096
RUNS = 3


@dataclass(frozen=True)
class Case:
    frames: int
    width: int
    height: int
    native: bool = False
    """Whether patches are cut from the frames as they are."""


CASES = (
    Case(48, 480, 854),
    Case(150, 480, 854),
    Case(300, 480, 854),
    Case(48, 2160, 3840, native=True),
)


def film(path: Path, case: Case) -> None:
    """A camera that turns before a wall of many colours."""
    rng = np.random.default_rng(0)
    wide = case.width + SPEED * case.frames
    coarse = rng.integers(0, 256, (case.height // 20, wide // 20, 3), dtype=np.uint8)
    wall = cv2.resize(coarse, (wide, case.height), interpolation=cv2.INTER_CUBIC)
    with video_file(path, FPS) as add:
        for t in range(case.frames):
            add(np.ascontiguousarray(wall[:, SPEED * t : SPEED * t + case.width]))


@contextmanager
def cost() -> Iterator[SimpleNamespace]:
    """CPU seconds of the block, and how much memory it took at most, in GB: both are there when it has ended."""
    measured, over, before = SimpleNamespace(), threading.Event(), resident_bytes("RssAnon")
    held = [before]

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            held.append(resident_bytes("RssAnon"))

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.process_time()
    yield measured
    measured.seconds = time.process_time() - began
    over.set()
    watching.join()
    measured.gb = (max(held) - before) / 1e9


def prepared(case: Case, folder: str) -> tuple:
    torch.set_num_threads(1)
    video = look_at(Source(f"{folder}/video.mp4"), Selection(), CONFIG.image_size)
    plan = recipes.plan_windows(len(video.clip), CONFIG.clip_frames)
    questions = Questions.of(video, CONFIG.image_size, Asked(native=case.native, depth_size=CONFIG.image_size))
    return video, plan, questions, {"video": video.digest}


@torch.inference_mode()
def answer(case: Case, folder: str) -> dict:
    torch.manual_seed(0)
    model = D4RT(CONFIG).eval()
    video, plan, questions, request = prepared(case, folder)
    kept, nearby, before = Kept(f"{folder}/out", video.name, request), Nearby(video.clip), None
    parts = new_frames(plan, range(len(plan)))
    with cost() as measured:
        for number, (pixels, _) in enumerate(video.clip.parts(parts)):
            nearby.add(parts[number], pixels)
            before = ask_window(model, replace(video, clip=nearby), plan, number, questions, before)
            kept.write(number, before)
    return vars(measured)


def finish(case: Case, folder: str) -> dict:
    video, plan, questions, request = prepared(case, folder)
    with cost() as measured:
        publish(f"{folder}/out", video, plan, questions, Across({}, {}, []), {"request": request})
    return vars(measured) | {"results_gb": sum(sizes(f"{folder}/out/{video.name}").values()) / 1e9}


def measure_case(case: Case) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        film(Path(folder, "video.mp4"), case)
        halves = {}
        for name, work in (("answer", answer), ("publish", finish)):
            with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as alone:
                halves[name] = alone.submit(work, case, folder).result()
    return asdict(case) | {"windows": len(recipes.plan_windows(case.frames, CONFIG.clip_frames))} | halves


@torch.inference_mode()
def measure_together() -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, size = D4RT(CONFIG).eval(), CONFIG.image_size
    seconds = {}
    for clips in TOGETHER:
        video = torch.randint(0, 256, (clips, CONFIG.clip_frames, size, size, 3), dtype=torch.uint8)
        aspect, times = torch.ones(clips), torch.zeros(clips, QUERIES, dtype=torch.int64)
        queries = Queries(torch.rand(clips, QUERIES, 2), times, times, times)
        memory = model.encode(video, aspect)
        work = (partial(model.encode, video, aspect), partial(model.decode, memory, queries))
        encode, decode = (cpu_seconds(function, RUNS) / clips for function in work)
        seconds[str(clips)] = {"encode": encode, "decode": decode}
    return seconds


def measure() -> dict:
    return {
        "config": CONFIG.to_dict(),
        "load": os.getloadavg()[0],
        "cases": [measure_case(case) for case in CASES],
        "together": measure_together(),
    }


def table(report: dict) -> str:
    lines = [
        f"{'a whole video':>24} {'windows':>8} {'answer s':>9} {'GB':>6} {'publish s':>10} {'GB':>6} {'results GB':>11}"
    ]
    for case in report["cases"]:
        name = f"{case['frames']} of {case['width']}x{case['height']}{' native' * case['native']}"
        ask, end = case["answer"], case["publish"]
        lines.append(
            f"{name:>24} {case['windows']:8} {ask['seconds']:9.1f} {ask['gb']:6.2f} {end['seconds']:10.1f} "
            f"{end['gb']:6.2f} {end['results_gb']:11.3f}"
        )
    for clips, seconds in report["together"].items():
        lines.append(
            f"{clips} clips at a time: {seconds['encode']:.3f} s to encode one, {seconds['decode']:.3f} s to decode"
        )
    return "\n".join([*lines, f"load {report['load']:.1f}"])


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    arguments = parser.parse_args(argv)
    report = measure()
    print(table(report))
    keep(report, arguments.out)


if __name__ == "__main__":
    main()
