"""What do conversion and reading cost, beside the plain work that cannot be avoided?

    python -m benchmarks.data [--out FILE]

Conversion: frames/s on one core of reading, ground truth, resizing and writing clips of 16 frames with four samples of
2048 queries, beside only decoding the files it needs and resizing the images. Queries: one sample of 16,384 for a clip
of 48 frames, beside the memory traffic that its depth lookups cannot avoid. Reading: clips/s as training reads them,
beside decoding the same JPEG files from memory, and beside a plain copy of the pixels. Synthetic sequences of official
image size; CPU seconds, one thread.
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
from pipelines.datasets import DATASETS
from pipelines.raw.folder import RawFolder
from pipelines.sequence import RigidInstances
from pipelines.store.index import finish
from pipelines.store.layout import StoreSettings
from pipelines.store.marks import Origin
from pipelines.store.reader import ClipStore, decode_jpeg
from pipelines.store.writer import encode_jpeg, write_group
from pipelines.synthesize.job import write_sequence
from pipelines.synthesize.scene import Scene
from pipelines.truth.clips import build_clip, resize, spans
from pipelines.truth.ground_truth import GroundTruth
from pipelines.truth.queries import draw_queries

FRAMES = 16
# Clips of a sequence, which may have a gap in its middle. Opening it and beginning a group are shared by them.
CLIPS = 3
RUNS = 5
QUERY_FRAMES, QUERIES = 48, 16_384
LOOKUPS = 9 + 25 + 4  # depths that a query needs: around its source, for its normal, around its target


def measure_conversion(dataset: str, folder: Path) -> dict:
    """The clips of one sequence, written again and again."""
    raw = folder / dataset / "raw"
    row = {"dataset": dataset, "root": str(raw), "index": 0}
    write_sequence(row, frames=2 * FRAMES + 4, size="official", seed=0)
    layout = DATASETS[dataset]
    name = layout.find(RawFolder(str(raw)))[0]
    catalog = Catalog.load(dataset)
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

    def convert() -> str:
        sequence = layout.open(RawFolder(str(raw)), name)
        clips = [build_clip(sequence, span, catalog, settings) for span in spans(sequence, settings)[:CLIPS]]
        origin = Origin(sequence=name, first=0, frames=(), labels={}, files={})
        return write_group(str(folder / dataset / "store"), origin, settings, clips)

    sequence = layout.open(RawFolder(str(raw)), name)
    none = np.zeros(0, int)

    def decode_and_resize() -> None:
        for t in itertools.chain(*(span.frames for span in spans(sequence, settings)[:CLIPS])):
            resize(sequence.image(t), settings.image_size)
            sequence.depth(t), sequence.instance(t), sequence.normal(t, none, none)

    finish(str(folder / dataset / "store"), settings, [convert()], {})
    ours, plain = cpu_seconds(convert, RUNS), cpu_seconds(decode_and_resize, RUNS)
    return {
        "frames_per_second": CLIPS * FRAMES / ours,
        "decode_and_resize_frames_per_second": CLIPS * FRAMES / plain,
        "ratio": plain / ours,
        "bytes_per_clip": stored_bytes(folder / dataset / "store") / CLIPS,
    }


def stored_bytes(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def measure_queries() -> dict:
    """One sample for a clip of a room with moving objects at TartanAir's size."""
    intrinsics = np.array([[320.0, 0, 320], [0, 320, 240], [0, 0, 1]])
    scene = Scene.random(0, num_frames=QUERY_FRAMES, width=640, height=480, intrinsics=intrinsics)
    frames = [scene.render(t, supersample=1) for t in range(QUERY_FRAMES)]
    depth = np.stack([frame.depth for frame in frames]).astype(np.float32)
    truth = GroundTruth(
        cameras=scene.cameras,
        depth=depth,
        instance=np.stack([frame.instance for frame in frames]),
        motion=RigidInstances(world_from_instance=scene.world_from_object),
        tolerance=Catalog.load("tartanair").depth_tolerance,
    )
    rng = np.random.default_rng(0)

    def draw() -> None:
        draw_queries(truth, lambda *pixels: None, rng, samples=1, queries=QUERIES, image_size=256)

    # Every query looks at windows of neighbouring depths somewhere in the clip.
    place = rng.integers(depth.size - LOOKUPS, size=(QUERIES, 1)) + np.arange(LOOKUPS)
    ours, plain = cpu_seconds(draw, RUNS), cpu_seconds(lambda: depth.ravel().take(place), RUNS)
    return {"milliseconds": 1e3 * ours, "memory_traffic_milliseconds": 1e3 * plain}


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
    report: dict = {"frames": FRAMES, "conversion": {}, "reading": {}, "queries": measure_queries()}
    with tempfile.TemporaryDirectory() as folder:
        for dataset in DATASETS:
            report["conversion"][dataset] = measure_conversion(dataset, Path(folder))
            report["reading"][dataset] = measure_reading(f"{folder}/{dataset}/store")
    print(table(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def table(report: dict) -> str:
    lines = [f"{'conversion, frames/s on one core':34} {'ours':>9} {'decode+resize':>14} {'ratio':>6} {'kB/clip':>9}"]
    for dataset, figure in report["conversion"].items():
        ours, plain = figure["frames_per_second"], figure["decode_and_resize_frames_per_second"]
        lines.append(
            f"{dataset:34} {ours:9.1f} {plain:14.1f} {figure['ratio']:6.2f} {figure['bytes_per_clip'] / 1e3:9.0f}"
        )
    lines += ["", f"{'reading, clips/s on one core':34} {'ours':>9} {'JPEG alone':>14} {'ratio':>6} {'copy':>9}"]
    for dataset, figure in report["reading"].items():
        ours, plain = figure["clips_per_second"], figure["jpeg_decoding_clips_per_second"]
        copy = figure["memory_copy_clips_per_second"]
        lines.append(f"{dataset:34} {ours:9.1f} {plain:14.1f} {figure['ratio_to_jpeg']:6.2f} {copy:9.1f}")
    drawing = report["queries"]
    lines += ["", f"{QUERIES} queries of a {QUERY_FRAMES}-frame clip: {drawing['milliseconds']:.1f} ms"]
    lines[-1] += f", of which {drawing['memory_traffic_milliseconds']:.1f} ms are unavoidable memory traffic"
    return "\n".join(lines)


if __name__ == "__main__":
    main()
