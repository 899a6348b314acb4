"""Does training get its clips as fast as the cores can decode, and what does that cost the training process?

    python -m benchmarks.feeding [--out FILE]

Clips of 48 frames of 256 x 256 with 2048 queries, augmented, of the store of `benchmarks.reading`. In turn, in the
same run: as many processes as there are cores decode and augment one clip again and again, without reading, queries or
handing over; then `train/feed.py` with as many readers gives batches to a process that does nothing with them. The
share is told twice: of clips per second, and of CPU time per clip, which other work on the machine does not disturb.
Beside it the CPU time of the training process, and how long the first batch takes from the start of the readers.
"""

import tempfile
import time
from functools import cache
from itertools import islice
from multiprocessing import get_context

import cv2
import numpy as np
import psutil
import torch

from benchmarks.figures import keep, parser_of
from benchmarks.reading import write_store
from model import ModelConfig
from pipelines.cluster import cores
from pipelines.store.reader import ClipStore, decode_jpeg
from pipelines.store.writer import encode_jpeg
from pipelines.synthesize.job import write_sequence
from train.augment import Look
from train.config import DataConfig
from train.feed import Feed
from train.resources import MAX_READERS
from train.stores import open_mixture

FRAMES = 48
CLIPS_PER_STEP = (1, 8)
ROUNDS, SECONDS = 5, 2.0  # of each kind, in turn
TARGET_SHARE, TARGET_MILLISECONDS, TARGET_FIRST_SECONDS = 0.8, 3.0, 3.0


@cache
def jpeg_files(store: str) -> np.ndarray:
    return encode_jpeg(ClipStore(store)[0].video)


def decode_alone(store: str, seconds: float) -> tuple[float, float]:
    """Clips per second, and CPU seconds per clip, of one process that decodes and augments and does nothing else."""
    cv2.setNumThreads(1)
    blob, rng, done = jpeg_files(store), np.random.default_rng(0), 0
    began, began_cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() < began + seconds:
        Look.random(rng).apply(decode_jpeg(blob, FRAMES))
        done += 1
    return done / (time.perf_counter() - began), (time.process_time() - began_cpu) / max(done, 1)


def measure(store: str, clips_per_step: int, device: str) -> dict[str, float]:
    config = DataConfig(mixture={store: 1.0}, clips_per_worker=clips_per_step)
    plan, stores = open_mixture(config, ModelConfig.preset("base"), seed=0)
    count = min(cores(), MAX_READERS)
    decoding, feeding, own_cpu, readers_cpu, taken = [], [], 0.0, 0.0, 0
    with get_context("spawn").Pool(count) as pool:
        pool.starmap(decode_alone, [(store, 0.0)] * count, chunksize=1)  # imports
        began = time.perf_counter()
        with Feed(config, plan, stores, readers=count, device=device) as feed:
            batches = feed.batches(steps=range(10**9), first_clip=0, rank=0, world=1)
            next(batches)
            first = time.perf_counter() - began
            readers = [psutil.Process(reader.process.pid) for reader in feed.readers]
            for _ in range(ROUNDS):
                decoding.append(pool.starmap(decode_alone, [(store, SECONDS)] * count, chunksize=1))
                for _ in islice(batches, feed.ahead + 1):  # those that were read meanwhile
                    pass
                clips, began, before = 0, time.perf_counter(), (time.process_time(), cpu_seconds(readers))
                while (seconds := time.perf_counter() - began) < SECONDS:
                    next(batches)
                    clips += clips_per_step
                feeding.append(clips / seconds)
                own_cpu += time.process_time() - before[0]
                readers_cpu += cpu_seconds(readers) - before[1]
                taken += clips
    rates, milliseconds = np.array(decoding)[..., 0].sum(axis=1), 1e3 * np.array(decoding)[..., 1].mean()
    return {
        "processes": count,
        "decoding_clips_per_second": float(np.median(rates)),
        "clips_per_second": float(np.median(feeding)),
        "share": float(np.median(np.array(feeding) / rates)),
        "decoding_milliseconds": milliseconds,
        "readers_milliseconds": 1e3 * readers_cpu / taken,
        "training_process_milliseconds": 1e3 * own_cpu / taken,
        "cpu_share": milliseconds * taken / (readers_cpu + own_cpu) / 1e3,
        "first_batch_seconds": first,
    }


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    arguments = parser.parse_args(argv)
    device, report = "cuda" if torch.cuda.is_available() else "cpu", {}
    with tempfile.TemporaryDirectory() as folder:
        raw = {"dataset": "tartanair", "root": f"{folder}/raw", "index": 0}
        write_sequence(raw, frames=FRAMES, size="official", seed=0)
        write_store(f"{folder}/raw", f"{folder}/store", FRAMES)
        for count in CLIPS_PER_STEP:
            report[f"{count} clips a step"] = measure(f"{folder}/store", count, device)
    print(as_text(report))
    targets = {
        "share": TARGET_SHARE,
        "training_process_milliseconds": TARGET_MILLISECONDS,
        "first_batch_seconds": TARGET_FIRST_SECONDS,
    }
    keep({"targets": targets, "device": device, "feeding": report}, arguments.out)


def as_text(report: dict[str, dict[str, float]]) -> str:
    rows = {
        "clips/s: decoding and augmenting alone": "decoding_clips_per_second",
        "clips/s: feed": "clips_per_second",
        "share": "share",
        "CPU ms/clip: decoding and augmenting alone": "decoding_milliseconds",
        "CPU ms/clip: readers": "readers_milliseconds",
        "CPU ms/clip: training process": "training_process_milliseconds",
        "share of CPU time": "cpu_share",
        "first batch, s": "first_batch_seconds",
    }
    lines = [f"{'feeding':44}" + "".join(f"{name:>16}" for name in report)]
    lines += [f"{title:44}" + "".join(f"{row[key]:16.2f}" for row in report.values()) for title, key in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
