"""`python -m pipelines synthesize DATASET --out RAW`: analytic scenes in a dataset's raw layout, as a Ray Data job."""

import os
import shutil
import zlib
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any, Literal, get_args

from model import ModelConfig
from model.command_line import loading
from pipelines.datasets import DATASETS, DatasetKey
from pipelines.problems import counted
from pipelines.raw.place import lasting
from pipelines.synthesize import Size
from pipelines.synthesize.begun import begun
from pipelines.synthesize.scene import Scene
from pipelines.whole import sizes

# Benchmarks, in their own layouts: `python -m pipelines evaluate`.
Twin = Literal[
    "tapvid3d",
    "worldtrack",
    "hidden",
    "sintel",
    "bonn",
    "tum",
    "kitti",
    "realestate10k",
    "bonn_prepared",
    "tum_prepared",
    "kitti_prepared",
    "scannet_prepared",
]
# Other official layouts of a dataset; its key, then what tells them apart.
Variant = Literal["kubric_tfrecord", "scannet_exported", "scannet_iphone", "tartanair_v2"]
LAYOUTS: dict[str, ModuleType] = {  # a dataset that a user added need have none
    key: import_module(f"pipelines.synthesize.{key}") for key in DATASETS if find_spec(f"pipelines.synthesize.{key}")
}
VARIANTS: dict[str, ModuleType] = {name: import_module(f"pipelines.synthesize.{name}") for name in get_args(Variant)}
TWINS: dict[str, ModuleType] = {name: import_module(f"pipelines.synthesize.{name}") for name in get_args(Twin)}
ALL = LAYOUTS | VARIANTS
BENCHMARKS_OF = {
    "sintel": ["depth", "pose", "cloud"],
    "bonn": ["depth", "pose"],
    "kitti": ["depth"],
    "tum": ["pose"],
    "realestate10k": ["pose"],
    "bonn_prepared": ["depth", "pose"],
    "tum_prepared": ["pose"],
    "kitti_prepared": ["depth"],
    "scannet_prepared": ["depth", "pose"],
    "worldtrack": ["worldtrack", "cloud"],
}
Row = dict[str, Any]


def scene_for(dataset: str, seed: int, index: int, *, frames: int, size: Size) -> Scene:
    """The very scene that `synthesize` writes as sequence `index`. Different seeds, or datasets, share no scene."""
    scene_seed = (zlib.crc32(dataset.encode()) << 32) + seed * 1_000_003 + index
    return (ALL | TWINS)[dataset].scene(scene_seed, num_frames=frames, size=size)


def write_sequence(row: Row, *, frames: int, size: Size, seed: int) -> None:
    """Write {"dataset", "root", "index"}, whole or not at all."""
    layout = (ALL | TWINS)[row["dataset"]]
    root, last = Path(row["root"]), layout.folder(row["index"])
    hidden = root / f".{row['index']}.partial"
    shutil.rmtree(hidden, ignore_errors=True)
    if not (root / last).exists():  # it does when Ray runs a task twice, and when a command goes on
        scene = scene_for(row["dataset"], seed, row["index"], frames=frames, size=size)
        if hasattr(layout, "write_tree"):
            layout.write_tree(scene, hidden, row["index"])
        else:
            layout.write(scene, hidden / last)  # whose name the files may carry
        move_files(hidden, root, last)
        shutil.rmtree(hidden)


def move_files(source: Path, root: Path, last: str) -> None:
    """All files in a folder to the same places below `root`, those of the folder or file `last` at once, in the end."""
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        if path.is_file() and not place.is_relative_to(last):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, root / place)
    (root / last).parent.mkdir(parents=True, exist_ok=True)
    os.replace(source / last, root / last)


def synthesize(
    dataset: DatasetKey | Variant | Twin | Literal["all"],
    /,
    *,
    out: str,
    scenes: int = 4,
    frames: int = 16,
    size: Size = "small",
    seed: int = 0,
) -> None:
    """Write synthetic raw data. Its truth is exact, so a conversion or a model can be measured on it.

    Args:
        dataset: Whose official layout (tartanair_v2 is another one of tartanair; tapvid3d, worldtrack, hidden, sintel,
            bonn, tum, kitti and realestate10k are benchmarks, ..._prepared as evaluation codes lay them out); with
            "all", each to train on gets a folder of its name below OUT.
        out: A folder that is new or empty, on a disk that all workers share. A command that was interrupted goes on
            with it when it is run again.
        scenes: Number of scenes per dataset.
        frames: Frames per scene.
        size: Frames as large as the dataset's own, or small ones for tests and tiny models.
        seed: Different seeds give different scenes, which have the same names, since layouts demand them: keep each
            in a folder of its own.
    """
    if dataset != "all" and dataset not in ALL | TWINS:
        raise ValueError(f"there is no writer for {dataset}: pipelines/synthesize/{dataset}.py would be it")
    for option, value, least, most in (
        ("scenes", scenes, 1, 100_000),
        ("frames", frames, 1, 100_000),
        ("seed", seed, 0, 2**32 - 1),
    ):
        if not least <= value <= most:
            raise ValueError(f"--{option} {value} must be from {least} to {most}")
    if "://" in out:
        raise ValueError(f"--out {out!r} is not a local path: write to a folder, then copy it")
    out = lasting(out, "--out")
    roots = {name: str(Path(out, name)) for name in ALL} if dataset == "all" else {dataset: out}
    wanted = {name: (root, scenes) for name, root in roots.items()}
    request = {"dataset": dataset, "scenes": scenes, "frames": frames, "size": size, "seed": seed}
    with ExitStack() as stack:
        for root in roots.values():
            stack.enter_context(begun(root, request))
        written = write_scenes(wanted, frames=frames, size=size, seed=seed)
    if seed:
        print("scenes of all seeds have the same names: give these a raw folder and a store of their own")

    if dataset in TWINS:
        print(f"{out}: {counted(scenes, 'clip')} of {counted(frames, 'frame')}, {written[dataset] / 1e6:.1f} MB. Next:")
        for benchmark in BENCHMARKS_OF.get(dataset, [dataset]):
            print(
                f"  python -m pipelines evaluate {benchmark} --model MODEL --data {quote(out)} --out scores/{benchmark}"
            )
        return
    for name, root in roots.items():
        key = name if name in LAYOUTS else name.rpartition("_")[0]
        store = quote(f"clips/{Path(root).name}")
        made = f"{counted(scenes, 'scene')} of {counted(frames, 'frame')}, {written[name] / 1e6:.1f} MB"
        print(f"{root}: {made}. Next, for the preset tiny:")
        print(f"  python -m pipelines convert {key} --raw {quote(root)} --store {store} --split all {for_tiny(frames)}")


def write_scenes(wanted: dict[str, tuple[str, int]], *, frames: int, size: Size, seed: int) -> dict[str, int]:
    """Dataset, or variant -> a folder and how many scenes to write there; how many bytes each folder has."""
    loading("Ray")
    from pipelines import jobs

    rows = [
        {"dataset": name, "root": os.path.abspath(root), "index": index}
        for name, (root, scenes) in wanted.items()
        for index in range(scenes)
    ]
    work = partial(write_sequence, frames=frames, size=size, seed=seed)
    for outcome in jobs.run_tasks(work, rows, label="synthesize", unit="sequence"):
        if outcome.failed:
            raise ValueError(f"{outcome.row['root']}: {outcome.reason}")
    return {name: sum(sizes(root).values()) for name, (root, _) in wanted.items()}


def for_tiny(frames: int) -> str:
    """Options of `convert` that make clips of such sequences which the preset `tiny` takes."""
    config = ModelConfig.preset("tiny")
    return f"--frames {min(frames, config.clip_frames)} --image-size {config.image_size} --queries 512"
