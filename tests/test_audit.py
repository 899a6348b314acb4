"""The audit, from raw files on: right files pass, each planted fault is found and named, `convert` refuses misfits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.audit import audit
from pipelines.convert import convert
from pipelines.datasets import DATASETS
from pipelines.geometry import inverse, unproject
from pipelines.raw.folder import RawFolder
from pipelines.store.reader import ClipStore
from pipelines.synthesize.job import LAYOUTS, scene_for
from pipelines.truth.verdict import judge

FRAMES = 26
SMALL = {"split": "all", "frames": 8, "image_size": 32, "strides": (1, 1), "samples": 1, "queries": 128}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """One sequence of two layouts, in folders of their names."""
    root = tmp_path_factory.mktemp("raw")
    for dataset in ("tartanair", "virtual_kitti2"):
        scene = scene_for(dataset, 0, 0, frames=FRAMES, size="small")
        LAYOUTS[dataset].write(scene, root / dataset / LAYOUTS[dataset].folder(0))
    return root


@pytest.fixture
def raw(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "raw"))


def verdict(raw: Path, dataset: str):
    folder = RawFolder(str(raw / dataset))
    return judge(DATASETS[dataset].open(folder, DATASETS[dataset].find(folder)[0]))


def edit_table(path: Path, change, *, header: int = 0) -> None:
    lines = path.read_text().splitlines()
    rows = change(np.loadtxt(lines[header:]))
    body = [" ".join(f"{value:.12g}" for value in row) for row in rows]
    path.write_text("\n".join([*lines[:header], *body]) + "\n")


def edit_intrinsics(raw: Path, change) -> None:
    edit_table(next((raw / "virtual_kitti2").rglob("intrinsic.txt")), change, header=1)


def half_a_pixel(raw: Path) -> None:
    edit_intrinsics(raw, lambda rows: rows + np.array([0, 0, 0, 0, 0.5, 0.5]))


def long_focal(raw: Path) -> None:
    edit_intrinsics(raw, lambda rows: rows * [1, 1, 1.03, 1.03, 1, 1])


def inverted_poses(raw: Path) -> None:
    def change(rows: np.ndarray) -> np.ndarray:
        return np.hstack([rows[:, :2], inverse(rows[:, 2:].reshape(-1, 4, 4)).reshape(-1, 16)])

    edit_table(next((raw / "virtual_kitti2").rglob("extrinsic.txt")), change, header=1)


def edit_poses(raw: Path, change) -> None:
    for path in (raw / "tartanair").rglob("pose_left.txt"):
        edit_table(path, change)


def scalar_first(raw: Path) -> None:
    edit_poses(raw, lambda rows: rows[:, [0, 1, 2, 6, 3, 4, 5]])


def one_frame_late(raw: Path) -> None:
    edit_poses(raw, lambda rows: np.vstack([rows[:1], rows[:-1]]))


def edit_depth(raw: Path, change) -> None:
    for path in (raw / "tartanair").rglob("*_depth.npy"):
        np.save(path, change(np.load(path)).astype(np.float32))


def in_millimetres(raw: Path) -> None:
    edit_poses(raw, lambda rows: rows * np.array([1000.0, 1000, 1000, 1, 1, 1, 1]))


def along_the_ray(raw: Path) -> None:
    intrinsics = scene_for("tartanair", 0, 0, frames=1, size="small").cameras.intrinsics[0]

    def change(depth: np.ndarray) -> np.ndarray:
        row, column = np.indices(depth.shape)
        rays = unproject(np.stack([column + 0.5, row + 0.5], axis=-1), np.ones(depth.shape), intrinsics)
        return depth * np.linalg.norm(rays, axis=-1)

    edit_depth(raw, change)


FAULTS = {
    "half a pixel": ("virtual_kitti2", half_a_pixel, "half a pixel further left and up"),
    "focal length": ("virtual_kitti2", long_focal, "the focal length is 0.97 times as long"),
    "inverse": ("virtual_kitti2", inverted_poses, "the poses are cam_from_world"),
    "quaternion": ("tartanair", scalar_first, "the quaternions are wxyz"),
    "lag": ("tartanair", one_frame_late, "the pose of the frame after"),
    "unit": ("tartanair", in_millimetres, "the unit of depth is 1000 times as long"),
    "ray": ("tartanair", along_the_ray, "a distance along the ray, not along z"),
}


@pytest.mark.parametrize("dataset", ["tartanair", "virtual_kitti2"])
def test_right_files_fit(written, dataset):
    found = verdict(written, dataset)
    assert found.outcome == "fits"
    assert found.error < 1e-3 and found.close > 0.95 and found.best_other_error > 1.5 * found.error


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_files_is_found_and_named(raw, fault):
    dataset, plant, name = FAULTS[fault]
    plant(raw)
    found = verdict(raw, dataset)
    assert found.outcome == "misfit"
    assert name in found.reason and name in found.best_other


def test_a_camera_that_stands_still_decides_nothing(raw):
    edit_poses(raw, lambda rows: np.tile(rows[:1], (len(rows), 1)))
    first = next((raw / "tartanair").rglob("000000_left_depth.npy"))
    edit_depth(raw, lambda _: np.load(first))
    found = verdict(raw, "tartanair")
    assert found.outcome == "undecidable" and "hardly moves" in found.reason


def test_nonsense_is_a_misfit_that_nothing_explains(raw):
    """Every frame in a unit of its own: no convention mends that."""
    rng = np.random.default_rng(0)
    edit_depth(raw, lambda depth: depth * rng.uniform(0.5, 2))
    found = verdict(raw, "tartanair")
    assert found.outcome == "misfit" and "no known mistake explains it" in found.reason


@pytest.mark.usefixtures("ray_cluster")
def test_the_command_reports_and_convert_refuses(raw, tmp_path, capsys):
    one_frame_late(raw)
    add_a_sound_one(raw)
    source = str(raw / "tartanair")
    with pytest.raises(ValueError, match=r"1 of 2 sequences do not fit .*depth belongs to the pose of the frame after"):
        audit("tartanair", raw=source, out=str(tmp_path / "audit"))
    report = json.loads((tmp_path / "audit/audit.json").read_text())["sequences"]
    outcomes = {name: row["outcome"] for name, row in report.items()}
    assert outcomes == {"room0000/Easy/P000": "misfit", "room0000/Easy/P002": "fits"}
    assert report["room0000/Easy/P002"]["errors"]["as declared"] < 1e-3
    assert {path.suffix for path in (tmp_path / "audit").iterdir()} == {".json", ".png"}

    store = str(tmp_path / "store")
    capsys.readouterr()
    with pytest.raises(ValueError, match="1 of 2 sequences failed"):
        convert("tartanair", raw=source, store=store, **SMALL)
    assert "--allow-misfit" in capsys.readouterr().out
    convert("tartanair", raw=source, store=store, allow_misfit=True, **SMALL)
    opened = ClipStore(store)
    found = dict(zip(opened.column("sequence"), opened.column("audit"), strict=True))
    assert found == outcomes
    margin = dict(zip(opened.column("sequence"), opened.column("audit_margin"), strict=True))
    assert margin["room0000/Easy/P000"] < 1 / 1.5 and margin["room0000/Easy/P002"] > 1.5


def add_a_sound_one(raw: Path) -> None:
    """A second, sound trajectory beside the damaged one."""
    scene = scene_for("tartanair", 0, 1, frames=FRAMES, size="small")
    LAYOUTS["tartanair"].write(scene, raw / "tartanair" / LAYOUTS["tartanair"].folder(1))
