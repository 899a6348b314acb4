"""What does reading a clip cost, beside decoding the same JPEG files from memory?

    python -m benchmarks.reading [--out FILE]

As training reads: the frames of a clip and one sample of 2048 queries. Warm: of a group that was read before. Cold: of
a group that this process touches for the first time. Clips of 4, 16 and 48 frames of 256 x 256, of a synthetic flight
in TartanAir's layout and size; CPU seconds, one thread, the files in the page cache.
"""

import tempfile

import cv2

from benchmarks.figures import keep, parser_of
from benchmarks.timing import cpu_seconds_in_turn
from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS
from pipelines.raw.folder import RawFolder
from pipelines.store.groups import open_group
from pipelines.store.index import finish
from pipelines.store.layout import StoreSettings
from pipelines.store.marks import Origin
from pipelines.store.reader import Clip, ClipStore, decode_jpeg
from pipelines.store.writer import encode_jpeg, write_group
from pipelines.synthesize.job import write_sequence
from pipelines.truth.clips import build_clip, spans

FRAMES = (4, 16, 48)
GROUPS, CLIPS_PER_GROUP = 12, 8
RUNS = 7
TARGET = 0.8  # of decoding alone, at 16 frames and more


def write_store(raw: str, store: str, frames: int) -> list[Clip]:
    """The first clip of each of `GROUPS` groups."""
    settings = StoreSettings(
        dataset="tartanair",
        split="all",
        frames=frames,
        image_size=256,
        strides=(1, 1),
        hop=1,
        samples=4,
        queries=2048,
        video="jpeg",
        seed=0,
    )
    (name,) = DATASETS["tartanair"].find(RawFolder(raw))
    sequence = DATASETS["tartanair"].open(RawFolder(raw), name)
    clip = build_clip(sequence, spans(sequence, settings)[0], Catalog.load("tartanair"), settings)

    groups = []
    for number in range(GROUPS):
        origin = Origin(sequence=name, first=number, frames=(), labels={}, files={})
        groups.append(write_group(store, origin, settings, [clip] * CLIPS_PER_GROUP))
    finish(store, settings, groups, {})
    opened = ClipStore(store)
    return [opened[CLIPS_PER_GROUP * number] for number in range(GROUPS)]


def measure(clips: list[Clip]) -> dict[str, float]:
    """Milliseconds per clip, and what share of the time of reading is decoding."""
    video = clips[0].video
    blob = encode_jpeg(video)

    def read(clip: Clip) -> None:
        _ = clip.video, clip.queries(1)

    def warm() -> None:
        for _ in clips:
            read(clips[0])

    def cold() -> None:
        open_group.cache_clear()
        for clip in clips:
            read(clip)

    def decode() -> None:
        for _ in clips:
            decode_jpeg(blob, len(video))

    seconds = cpu_seconds_in_turn(decode, warm, cold, runs=RUNS)
    decoding, read_warm, read_cold = (1e3 * each / len(clips) for each in seconds)
    return {
        "decoding_milliseconds": decoding,
        "warm_milliseconds": read_warm,
        "cold_milliseconds": read_cold,
        "warm_ratio": decoding / read_warm,
        "cold_ratio": decoding / read_cold,
    }


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        write_sequence(
            {"dataset": "tartanair", "root": f"{folder}/raw", "index": 0}, frames=max(FRAMES), size="official", seed=0
        )
        for frames in FRAMES:
            report[f"{frames} frames"] = measure(write_store(f"{folder}/raw", f"{folder}/store{frames}", frames))
    print(as_text(report))
    keep({"target": TARGET, "reading": report}, arguments.out)


def as_text(report: dict[str, dict[str, float]]) -> str:
    lines = [f"{'reading a clip, CPU ms':24} {'JPEG alone':>10} {'warm':>7} {'ratio':>6} {'cold':>7} {'ratio':>6}"]
    for name, figure in report.items():
        lines.append(
            f"{name:24} {figure['decoding_milliseconds']:10.2f} {figure['warm_milliseconds']:7.2f} "
            f"{figure['warm_ratio']:6.2f} {figure['cold_milliseconds']:7.2f} {figure['cold_ratio']:6.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
