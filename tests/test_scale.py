"""Conversion of many sequences of which some are broken, jobs killed without warning, long sequences."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.convert import convert
from pipelines.store.reader import ClipStore
from pipelines.synthesize.job import LAYOUTS, scene_for

ROOT = Path(__file__).parent.parent
FRAMES, SEQUENCES = 4, 40
SETTINGS = {"split": "all", "frames": FRAMES, "image_size": 32, "strides": (1, 1), "samples": 1, "queries": 64}

pytestmark = pytest.mark.slow


def truncate(folder: Path) -> None:
    image = folder / "image_left/000001_left.png"
    image.unlink()  # a hard link: the others keep theirs
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def lose_depth(folder: Path) -> None:
    (folder / "depth_left/000002_left_depth.npy").unlink()


def lose_a_pose(folder: Path) -> None:
    lines = (folder / "pose_left.txt").read_text().splitlines()
    (folder / "pose_left.txt").write_text("\n".join(["nan nan nan nan nan nan nan", *lines[1:]]))


def pickle_instead_of_depth(folder: Path) -> None:
    path = folder / "depth_left/000000_left_depth.npy"
    path.unlink()
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


BREAKS = {
    truncate: "image_left/000001_left.png",
    lose_depth: "depth_left/000002_left_depth.npy",
    lose_a_pose: "line 1 of",
    pickle_instead_of_depth: "000000_left_depth.npy",
}


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Forty trajectories of five scenes, every tenth broken in another way; which, and what names it."""
    root = tmp_path_factory.mktemp("raw")
    scenes = []
    for index in range(5):
        folder = root / f".scene{index}"
        LAYOUTS["tartanair"].write(scene_for("tartanair", 0, 2 * index, frames=FRAMES, size="small"), folder)
        scenes.append(next(path.parent for path in folder.rglob("pose_left.txt")))
    broken = {}
    for number in range(SEQUENCES):
        name = f"room{number // 20:02}/Easy/P{number:03}"
        shutil.copytree(scenes[number % 5], root / name, copy_function=os.link)
        if number % 10 == 3:
            poses = root / name / "pose_left.txt"
            content = poses.read_text()
            poses.unlink()
            poses.write_text(content)
            damage = list(BREAKS)[number // 10 % 4]
            damage(root / name)
            broken[name] = BREAKS[damage]
    for folder in root.glob(".scene*"):
        shutil.rmtree(folder)
    return root, broken


@pytest.mark.usefixtures("ray_cluster")
def test_broken_sequences_are_listed_and_a_killed_job_ends_alike(many, tmp_path):
    raw, broken = many
    with pytest.raises(ValueError, match=r"4 of 40 sequences failed.*0\.05"):
        convert("tartanair", raw=str(raw), store=str(tmp_path / "whole"), **SETTINGS)
    convert("tartanair", raw=str(raw), store=str(tmp_path / "whole"), max_failed_share=0.1, **SETTINGS)
    whole = ClipStore(str(tmp_path / "whole")).info
    assert whole["counts"] == {"sequences": 40, "clips": 36, "frames": 144, "failed": 4, "skipped": 0}
    assert whole["failed"].keys() == broken.keys()
    for name, reason in whole["failed"].items():
        assert broken[name] in reason

    store = tmp_path / "killed"
    options = {"raw": raw, "store": store, "split": "all", "frames": FRAMES, "image-size": 32, "samples": 1}
    options |= {"queries": 64, "max-failed-share": 0.1}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "pipelines", "convert", "tartanair", *words, "--strides", "1", "1"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(store.glob("data/*/*.zarr"))) < 12 and job.poll() is None:
        time.sleep(0.05)
    assert job.poll() is None, "the job ended before it could be killed"
    job.send_signal(signal.SIGKILL)
    job.wait()
    time.sleep(5)  # its workers notice that their driver is gone
    assert not (store / "store.json").exists()
    begun = len(list(store.glob("data/*/*.zarr")))
    assert 12 <= begun < 36
    convert("tartanair", raw=str(raw), store=str(store), max_failed_share=0.1, **SETTINGS)
    assert ClipStore(str(store)).info["digest"] == whole["digest"]


MEASURE = """
import re, sys
from pipelines.catalog import Catalog
from pipelines.store.layout import StoreSettings
from pipelines.conversion import Conversion, convert_group, plan_sequence
raw, store = sys.argv[1:]
settings = StoreSettings(
    dataset="tartanair", split="all", frames=48, image_size=256, strides=(1, 1), hop=48, samples=4, queries=2048,
    video="jpeg", seed=0,
)
catalog = Catalog.load("tartanair")
row = {"sequence": "room/Easy/P000"}
conversion = Conversion(raw=raw, store=store, settings=settings, catalog=catalog, allow_misfit=True)
plan = plan_sequence(row, conversion=conversion)
for place in plan.todo[-2:]:
    convert_group(row | {"group": place, "audit": plan.audit}, conversion=conversion)
# Not ru_maxrss: that of a child begins at what its parent had.
print(len(plan.todo), int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e6)
"""


def test_a_long_sequence_needs_little_memory(tmp_path):
    """5,000 frames of official size: a task holds a group of clips, never the sequence."""
    from PIL import Image

    folder = tmp_path / "raw/room/Easy/P000"
    (folder / "image_left").mkdir(parents=True)
    (folder / "depth_left").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(tmp_path / "image.png", compress_level=1)
    np.save(tmp_path / "depth.npy", np.full((480, 640), 4, np.float32))
    for t in range(5000):
        os.link(tmp_path / "image.png", folder / f"image_left/{t:06}_left.png")
        os.link(tmp_path / "depth.npy", folder / f"depth_left/{t:06}_left_depth.npy")
    (folder / "pose_left.txt").write_text("".join(f"0 {t / 1000} 0 0 0 0 1\n" for t in range(5000)))
    command = [sys.executable, "-c", MEASURE, tmp_path / "raw", tmp_path / "store"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    groups, gigabytes = done.stdout.split()
    assert int(groups) == 13  # 104 clips, 8 in a group
    assert float(gigabytes) < 2
    print(f"{gigabytes} GB")
