"""Does training get its clips as fast as the cores can decode, and what does that cost the training process?

    python -m benchmarks.feeding [--out FILE]

Clips of 48 frames of 256 x 256 with 2048 queries, augmented, of the store of `benchmarks.reading`. In turn, in the
same run: as many processes as there are cores decode and augment one clip again and again, without reading, queries or
handing over; then `train/feed.py` with as many readers gives batches to a process that does nothing with them. Beside
it the CPU time of that process per clip, and how long the first batch takes from the start of the readers.
"""

import argparse
import json
import tempfile
import time
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.reading import write_store
from model import ModelConfig
from pipelines.cluster import cores
from pipelines.store.reader import ClipStore, decode_jpeg
from pipelines.store.writer import encode_jpeg
from pipelines.synthesize.job import write_sequence
from train.augment import Look
from train.config import DataConfig
from train.feed import Feed
from train.loop import MAX_READERS
from train.stores import open_mixture

FRAMES = 48
CLIPS_PER_STEP = (1, 8)
ROUNDS, SECONDS = 5, 3.0  # of each kind, in turn
TARGET_SHARE, TARGET_MILLISECONDS, TARGET_FIRST_SECONDS = 0.8, 3.0, 3.0


@cache
def jpeg_files(store: str) -> np.ndarray:
    return encode_jpeg(ClipStore(store)[0].video)


def decode_alone(store: str, seconds: float) -> float:
    """Clips a second of one process that decodes and augments them, and does nothing else."""
    cv2.setNumThreads(1)
    blob, rng, done = jpeg_files(store), np.random.default_rng(0), 0
    began = time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        Look.random(rng).apply(decode_jpeg(blob, FRAMES))
        done += 1
    return done / taken


def measure(store: str, clips_per_step: int, device: str) -> dict[str, float]:
    config = DataConfig(mixture={store: 1.0}, clips_per_worker=clips_per_step)
    plan, stores = open_mixture(config, ModelConfig.preset("base"), seed=0)
    count = min(cores(), MAX_READERS)
    place = {"steps": range(10**9), "first_clip": 0, "rank": 0, "world": 1}
    decoded, fed, used, taken = [], [], 0.0, 0
    with get_context("spawn").Pool(count) as pool:
        pool.starmap(decode_alone, [(store, 0.0)] * count, chunksize=1)
        began = time.perf_counter()
        with Feed(config, plan, stores, readers=count, device=device) as feed:
            batches = feed.batches(**place)
            next(batches)
            first = time.perf_counter() - began
            for _ in range(ROUNDS):
                decoded.append(sum(pool.starmap(decode_alone, [(store, SECONDS)] * count, chunksize=1)))
                for _ in islice(batches, feed.ahead):  # those that were read meanwhile
                    pass
                clips, began, began_cpu = 0, time.perf_counter(), time.process_time()
                while (seconds := time.perf_counter() - began) < SECONDS:
                    next(batches)
                    clips += clips_per_step
                fed.append(clips / seconds)
                used, taken = used + time.process_time() - began_cpu, taken + clips
    return {
        "readers": count,
        "decoding_clips_per_second": float(np.median(decoded)),
        "clips_per_second": float(np.median(fed)),
        "share": float(np.median(np.array(fed) / decoded)),
        "training_process_milliseconds": 1e3 * used / taken,
        "first_batch_seconds": first,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    arguments = parser.parse_args(argv)
    device, report = "cuda" if torch.cuda.is_available() else "cpu", {}
    with tempfile.TemporaryDirectory() as folder:
        raw = {"dataset": "tartanair", "root": f"{folder}/raw", "index": 0}
        write_sequence(raw, frames=FRAMES, size="official", seed=0)
        write_store(f"{folder}/raw", f"{folder}/store", FRAMES)
        for count in CLIPS_PER_STEP:
            report[f"{count} clips a step"] = measure(f"{folder}/store", count, device)
    print(as_text(report))
    if arguments.out:
        targets = {
            "share": TARGET_SHARE,
            "training_process_milliseconds": TARGET_MILLISECONDS,
            "first_batch_seconds": TARGET_FIRST_SECONDS,
        }
        arguments.out.write_text(json.dumps({"targets": targets, "device": device, "feeding": report}, indent=1) + "\n")


def as_text(report: dict[str, dict[str, float]]) -> str:
    titles = ("readers", "decoding", "feed", "share", "training process", "first batch")
    units = ("", "clips/s", "clips/s", "", "CPU ms/clip", "s")
    lines = [f"{'feeding':20}" + "".join(f"{title:>17}" for title in titles)]
    lines.append(f"{'':20}" + "".join(f"{unit:>17}" for unit in units))
    for name, figures in report.items():
        lines.append(f"{name:20}" + "".join(f"{figure:17.3g}" for figure in figures.values()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
