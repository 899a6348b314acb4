"""What does the truth about a clip cost, beside the plain work that cannot be avoided?

    python -m benchmarks.truth [--out FILE]

Conversion: frames/s of building clips of 16 frames with four samples of 2048 queries, and of also opening the sequence
and writing them, beside only decoding the files they need and resizing the images. Queries: 16,384 of a clip of 48
frames with moving objects, lifted and answered, and drawn as a sample with its edges and normals, beside the memory
traffic that their lookups cannot avoid. Rest: whether 8192 points of frames of MVS-Synth's size seem to rest, beside
asking every frame for its whole label of every point, which gives the same mask. Synthetic sequences of official image
size; CPU seconds, one thread.
"""

import itertools
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.figures import keep, parser_of
from benchmarks.timing import cpu_seconds, cpu_seconds_in_turn
from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS
from pipelines.geometry import transform
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, RigidInstances, Unknown
from pipelines.store.layout import ClipData, StoreSettings
from pipelines.store.marks import Origin
from pipelines.store.writer import write_group
from pipelines.synthesize.job import write_sequence
from pipelines.synthesize.scene import Scene
from pipelines.truth.clips import build_clip, resize, spans
from pipelines.truth.depth_maps import UNKNOWN
from pipelines.truth.ground_truth import NEIGHBOURHOOD, GroundTruth, Points
from pipelines.truth.queries import draw_queries

FRAMES = 16
CLIPS = 8  # of a sequence, of which real ones have dozens; opening it and beginning a group are shared by them
RUNS = 3
QUERY_FRAMES, QUERIES = 48, 16_384
LOOKUPS = 9 + 25 + 4  # depths that a query needs: around its source, for its normal, around its target
REST_FRAMES, POINTS = (16, 48), 8192
TARGETS = {"conversion": 0.7, "mvs_synth": 0.6, "query_milliseconds": 50}
RATES = ("decode_and_resize", "built", "converted")


def measure_conversion(dataset: str, folder: Path) -> dict:
    """The first clips of one sequence, built again and again."""
    raw = folder / dataset / "raw"
    row = {"dataset": dataset, "root": str(raw), "index": 0}
    write_sequence(row, frames=4 * FRAMES + 4, size="official", seed=0)
    layout, catalog = DATASETS[dataset], Catalog.load(dataset)
    name = layout.find(RawFolder(str(raw)))[0]
    settings = StoreSettings(
        dataset=dataset,
        split="all",
        frames=FRAMES,
        image_size=256,
        strides=(1, 1),
        hop=FRAMES // 4,
        samples=4,
        queries=2048,
        video="jpeg",
        seed=0,
    )

    sequence = layout.open(RawFolder(str(raw)), name)
    chosen = spans(sequence, settings)[:CLIPS]
    times = list(itertools.chain(*(span.frames for span in chosen)))

    def build() -> list[ClipData]:
        return [build_clip(sequence, span, catalog, settings) for span in chosen]

    def convert() -> None:
        again = layout.open(RawFolder(str(raw)), name)
        clips = [build_clip(again, span, catalog, settings) for span in spans(again, settings)[:CLIPS]]
        origin = Origin(sequence=name, first=0, frames=(), labels={}, files={})
        write_group(str(folder / dataset / "store"), origin, settings, clips)

    none = np.zeros(0, int)

    def decode_and_resize() -> None:
        for t in times:
            resize(sequence.image(t), settings.image_size)
            sequence.depth(t), sequence.instance(t), sequence.normal(t, none, none)

    plain, built, converted = cpu_seconds_in_turn(decode_and_resize, build, convert, runs=RUNS)
    return {
        "decode_and_resize_frames_per_second": len(times) / plain,
        "built_frames_per_second": len(times) / built,
        "converted_frames_per_second": len(times) / converted,
        "ratio_built": plain / built,
        "ratio_converted": plain / converted,
        "target": TARGETS.get(dataset, TARGETS["conversion"]),
    }


def measure_queries() -> dict:
    """A clip of a room with moving objects at TartanAir's size."""
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
    uv = rng.random((QUERIES, 2)) * [640, 480]
    t_src, t_tgt, t_cam = rng.integers(QUERY_FRAMES, size=(3, QUERIES))

    def answer() -> None:
        truth.ask(truth.lift(uv, t_src), t_tgt, t_cam)

    def draw() -> None:
        draw_queries(truth, lambda *pixels: None, rng, samples=1, queries=QUERIES, image_size=256)

    # Every query looks at windows of neighbouring depths somewhere in the clip.
    place = rng.integers(depth.size - LOOKUPS, size=(QUERIES, 1)) + np.arange(LOOKUPS)
    answered, drawn, traffic = (cpu_seconds(f, RUNS) for f in (answer, draw, lambda: depth.ravel().take(place)))
    return {
        "answered_milliseconds": 1e3 * answered,
        "drawn_milliseconds": 1e3 * drawn,
        "memory_traffic_milliseconds": 1e3 * traffic,
        "target": TARGETS["query_milliseconds"],
    }


def measure_rest() -> dict:
    """Points of an open scene with moving objects, in clips of several lengths."""
    intrinsics = np.array([[580.0, 0, 480], [0, 580, 270], [0, 0, 1]])
    longest = max(REST_FRAMES)
    scene = Scene.random(5, num_frames=longest, width=960, height=540, intrinsics=intrinsics, open_top=True)
    depth = np.stack([scene.render(t, supersample=1).depth for t in range(longest)]).astype(np.float32)
    depth[np.isinf(depth)] = np.nan  # sky

    report = {}
    for frames in REST_FRAMES:
        truth = GroundTruth(
            cameras=Cameras(
                intrinsics=scene.cameras.intrinsics[:frames], world_from_cam=scene.cameras.world_from_cam[:frames]
            ),
            depth=depth[:frames],
            instance=None,
            motion=Unknown(),
            tolerance=Catalog.load("mvs_synth").depth_tolerance,
        )
        rng = np.random.default_rng(0)
        points = truth.lift(rng.random((POINTS, 2)) * [960, 540], rng.integers(frames, size=POINTS))
        report[frames] = compare_rest(truth, points)
    return report


def compare_rest(truth: GroundTruth, points: Points) -> dict:
    if not (truth.seems_to_rest(points) == rests_by_whole_labels(truth, points)).all():
        raise AssertionError("the two ways differ")
    ours = cpu_seconds(lambda: truth.seems_to_rest(points), RUNS)
    plain = cpu_seconds(lambda: rests_by_whole_labels(truth, points), RUNS)
    return {"milliseconds": 1e3 * ours, "whole_labels_milliseconds": 1e3 * plain, "times_faster": plain / ours}


def rests_by_whole_labels(truth: GroundTruth, points: Points) -> np.ndarray:
    """Every frame says of every point whether it is out, visible, occluded or unknown, and then which are looked
    through: the rule as it is stated."""
    rests = np.ones(len(points.t_src), bool)
    for step in np.array([(0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)]) * truth.width / NEIGHBOURHOOD:
        beside = truth.lift(points.uv + step, points.t_src)
        for frame in range(truth.num_frames):
            t = np.full(len(rests), frame)
            seen_from = transform(truth.cam_from_world[t], beside.xyz_world)
            _, outcome = truth.maps.look(seen_from, t, beside.instance)
            through = (outcome == UNKNOWN) & truth.maps.seen_through(seen_from, t)
            rests &= ~through | (t == points.t_src)
    return rests


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)

    report = {"frames": FRAMES, "queries": measure_queries(), "rest": measure_rest(), "conversion": {}}
    for dataset in DATASETS:
        with tempfile.TemporaryDirectory() as folder:
            report["conversion"][dataset] = measure_conversion(dataset, Path(folder))

    print(table(report))
    keep(report, arguments.out)


def table(report: dict) -> str:
    lines = [f"{'conversion, frames/s on one core':34} {'plain':>7} {'built':>7} {'whole':>7}  ratio built, whole"]
    for dataset, figure in report["conversion"].items():
        plain, built, converted = (figure[f"{name}_frames_per_second"] for name in RATES)
        lines.append(
            f"{dataset:34} {plain:7.1f} {built:7.1f} {converted:7.1f}  {figure['ratio_built']:.2f} "
            f"{figure['ratio_converted']:.2f} {_judged(figure['ratio_built'] >= figure['target'], figure)}"
        )

    queries = report["queries"]
    lines += ["", f"{QUERIES} queries of {QUERY_FRAMES} frames with moving objects, ms of one core"]
    lines += [
        f"lifted and answered {queries['answered_milliseconds']:.1f} "
        f"{_judged(queries['answered_milliseconds'] < queries['target'], queries)}, "
        f"drawn {queries['drawn_milliseconds']:.1f}, memory traffic alone {queries['memory_traffic_milliseconds']:.1f}"
    ]

    lines += ["", f"does it rest? {POINTS} points, ms of one core"]
    for frames, figure in report["rest"].items():
        ours, plain = figure["milliseconds"], figure["whole_labels_milliseconds"]
        lines.append(
            f"{frames} frames: {ours:.1f}, by whole labels {plain:.1f}, {figure['times_faster']:.1f} times faster"
        )
    return "\n".join(lines)


def _judged(met: bool, figure: dict) -> str:
    return f"(target {figure['target']:g} {'met' if met else 'MISSED'})"


if __name__ == "__main__":
    main()
