"""What does reading cost, beside the plain work that cannot be avoided?

    python -m benchmarks.data [--out FILE]

Clips/s as training reads them, beside decoding the same JPEG files from memory, and beside a plain copy of the pixels.
Clips of 16 frames with four samples of 2048 queries of synthetic sequences of official size;
CPU seconds, one thread.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.timing import cpu_seconds
from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS, open_sequence
from pipelines.raw.folder import RawFolder
from pipelines.store.index import finish
from pipelines.store.layout import StoreSettings
from pipelines.store.marks import Origin
from pipelines.store.reader import ClipStore, decode_jpeg
from pipelines.store.writer import encode_jpeg, write_group
from pipelines.synthesize.job import write_sequence
from pipelines.truth.clips import build_clip, spans

FRAMES = 16
CLIPS = 3
RUNS = 5


def write_store(dataset: str, folder: Path) -> str:
    """The first clips of one sequence."""
    raw, store = folder / "raw", str(folder / "store")
    row = {"dataset": dataset, "root": str(raw), "index": 0}
    write_sequence(row, frames=2 * FRAMES + 4, size="official", seed=0)
    settings = StoreSettings(
        dataset=dataset,
        split="all",
        frames=FRAMES,
        image_size=256,
        strides=(1, 1),
        hop=1,
        samples=4,
        queries=2048,
        video="jpeg",
        seed=0,
    )
    sequence = open_sequence(dataset, str(raw), DATASETS[dataset].find(RawFolder(str(raw)))[0])
    catalog = Catalog.load(dataset)
    clips = [build_clip(sequence, span, catalog, settings) for span in spans(sequence, settings)[:CLIPS]]
    origin = Origin(sequence=sequence.name, first=0, frames=(), labels={}, files={})
    finish(store, settings, [write_group(store, origin, settings, clips)], {})
    return store


def measure_reading(store: str) -> dict:
    """The clips of a store, one sample each, as a training step reads them."""
    clips = ClipStore(store)
    clip = clips[0]
    video = clip.video
    blob, offsets = encode_jpeg(video)
    blob = np.frombuffer(blob, np.uint8)
    samples = itertools.cycle(range(clip.num_samples))

    def read() -> None:
        clip = clips[0]
        clip.video, clip.queries(next(samples))

    ours = cpu_seconds(lambda: [read() for _ in range(20)], RUNS) / 20
    jpeg = cpu_seconds(lambda: [decode_jpeg(blob, offsets) for _ in range(20)], RUNS) / 20
    copy = cpu_seconds(lambda: [video.copy() for _ in range(100)], RUNS) / 100
    return {
        "clips_per_second": 1 / ours,
        "jpeg_decoding_clips_per_second": 1 / jpeg,
        "memory_copy_clips_per_second": 1 / copy,
        "ratio_to_jpeg": jpeg / ours,
        "ratio_to_copy": copy / ours,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    report: dict = {"frames": FRAMES, "reading": {}}
    for dataset in DATASETS:
        with tempfile.TemporaryDirectory() as folder:
            report["reading"][dataset] = measure_reading(write_store(dataset, Path(folder)))
    print(table(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def table(report: dict) -> str:
    lines = [f"{'reading, clips/s on one core':34} {'ours':>9} {'JPEG alone':>14} {'ratio':>6} {'copy':>9}"]
    for dataset, figure in report["reading"].items():
        ours, plain = figure["clips_per_second"], figure["jpeg_decoding_clips_per_second"]
        copy = figure["memory_copy_clips_per_second"]
        lines.append(f"{dataset:34} {ours:9.1f} {plain:14.1f} {figure['ratio_to_jpeg']:6.2f} {copy:9.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
