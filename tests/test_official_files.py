"""The worked numbers from files on a disk, found and read as the command does it (`data/eval_cases`)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.evaluation import depth
from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.job import score_clip
from pipelines.evaluation.benchmarks.report import summarise
from pipelines.geometry import xyzw_from_rotation
from pipelines.raw.sintel import TAG
from tests.official_cases import Case, names, needed

pytestmark = needed


def scored(key: str, data: list[Path], predictions: Path) -> dict[str, Any]:
    """The content of metrics.json, without the rest of the job."""
    bench = load_benchmark(key)
    found, rows, failed = bench.find([str(place) for place in data]), {}, {}
    for clip in found.clips:
        try:
            rows[clip] = score_clip({"clip": clip}, key=key, predictions=str(predictions))
        except ValueError as error:
            failed[str(clip)] = str(error)
    return summarise(bench, found, rows, failed)


def write_files(case: Case, below: str, root: Path) -> Path:
    """The raw bytes and arrays in/BELOW/PATH of a case, at their paths below `root`."""
    start = f"in/{below}/"
    for key, array in case.arrays.items():
        if key.startswith(start):
            path = root / key.removeprefix(start)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array) if path.suffix == ".npy" else path.write_bytes(array.tobytes())
    return root


@pytest.mark.parametrize("together", [True, False])
def test_depth_folders(together: bool, tmp_path: Path) -> None:
    """Without images, of which the scores need none; of the three datasets in one folder, or of each in its own."""
    case = Case("depth_folders")
    data = write_files(case, "data", tmp_path / "data")
    folders = [data] if together else [data / "sintel", data / "bonn", data / "kitti"]
    found = scored("depth", folders, write_files(case, "pred", tmp_path / "pred"))
    assert not found["clips"]["failed"]
    for dataset in ("sintel", "bonn", "kitti"):
        for alignment in ("metric", "scale", "scale_shift"):
            for metric in depth.METRICS:
                ours = found["scores"][dataset][
                    f"{alignment}.{metric.replace('delta_1.25^', 'delta').replace('delta_1.25', 'delta1')}"
                ]
                case.agrees(f"{dataset}/{alignment}/{metric}", ours)


def test_tapvid3d_folder(tmp_path: Path) -> None:
    """A missing prediction, and one of another shape, count as zeros in all metrics."""
    case = Case("tapvid3d_folder")
    for number in range(4):
        truth = {key: case[f"clip{number}/{key}"] for key in ("queries_xyt", "tracks_XYZ", "visibility", "fx_fy_cx_cy")}
        jpegs = np.array([case[f"clip{number}/jpeg"].tobytes()] * len(truth["tracks_XYZ"]))
        for folder, arrays in (
            ("truth", truth | {"images_jpeg_bytes": jpegs}),
            ("said", {key: case.arrays.get(f"in/clip{number}/pred_{key}") for key in ("tracks_XYZ", "visibility")}),
        ):
            if all(array is not None for array in arrays.values()):
                path = tmp_path / folder / f"pstudio/clip{number}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, **arrays)
    found = scored("tapvid3d", [tmp_path / "truth"], tmp_path / "said")
    assert set(found["clips"]["failed"]) == {"pstudio/clip2", "pstudio/clip3"}
    for scaling in ("median", "none"):
        for theirs, ours in (
            ("average_jaccard", "aj"),
            ("average_pts_within_thresh", "apd"),
            ("occlusion_accuracy", "oa"),
        ):
            case.agrees(f"{scaling}/{theirs}", found["scores"]["pstudio"][f"{scaling}.{ours}"])


@pytest.mark.parametrize("name", ["pose_sintel_files", "pose_scannet_file"])
def test_files_of_poses(name: str, tmp_path: Path) -> None:
    case, data = Case(name), tmp_path / "data"
    if name == "pose_sintel_files":
        folder, clip = data / "training/camdata_left/alley_2", "sintel/alley_2"
        files = {key.removeprefix("in/"): key for key in case.arrays if key.endswith(".cam")}
    else:
        folder, clip = data / "scene0707_00", "scannet/scene0707_00"
        files = {"pose_90.txt": "in/pose_90.txt"}
    folder.mkdir(parents=True)
    for file, key in files.items():
        (folder / file).write_bytes(case.arrays[key].tobytes())
    said = tmp_path / f"said/{clip}.npz"
    said.parent.mkdir(parents=True)
    np.savez(said, world_from_cam=case["pred"])
    found = scored("pose", [data], tmp_path / "said")
    scores = found["scores"][clip.partition("/")[0]]
    for theirs, ours in (("ate", "ate"), ("rpe_trans", "rpe_t"), ("rpe_rot", "rpe_r")):
        case.agrees(theirs, scores[f"sim3.{ours}"])


@pytest.mark.parametrize("name", names("pose_missing"))
def test_a_pose_that_is_missing_is_named_and_shifts_nothing(name: str, tmp_path: Path) -> None:
    """The official code stamps predictions 0, 1, 2, ..., so those after the gap meet another frame's truth."""
    case = Case(name)
    truth, stamps = case["gt"], np.round(np.arange(len(case["gt"])))
    missing = len(truth) - 1 if "last" in name else 12
    said = tmp_path / "scene0707_00/pred_traj.txt"
    said.parent.mkdir()
    kept = [t for t in range(len(truth)) if t != missing]
    rows = [[stamps[t], *truth[t, :3, 3], *np.roll(xyzw_from_rotation(truth[t, :3, :3]), 1)] for t in kept]
    np.savetxt(said, rows)
    folder = tmp_path / "data/scene0707_00"
    folder.mkdir(parents=True)
    np.savetxt(folder / "pose_90.txt", truth.reshape(len(truth), 16))
    found = scored("pose", [tmp_path / "data"], tmp_path)
    if "last" in name:
        (reason,) = found["clips"]["failed"].values()
        assert "is (24, 4, 4), the truth is (25, 4, 4)" in reason
    else:
        scores = found["scores"]["scannet"]
        assert scores["not_alignable"] == 1
        assert "sim3.ate" not in scores
        assert scores["pairs.auc_30"] == pytest.approx(24 * 23 / (25 * 24), abs=1e-6)  # the rest is where it belongs


def test_a_depth_map_that_is_missing_is_named(tmp_path: Path) -> None:
    case = Case("depth_missing_frame")
    folder = tmp_path / "alley_2"
    folder.mkdir()
    for t in (0, 2):
        np.save(folder / f"frame_{t:04}.npy", case["pred"][0])
    truth = tmp_path / "data/training/depth/alley_2"
    truth.mkdir(parents=True)
    for t, frame in enumerate(case["gt"]):
        sides = np.array(frame.shape[::-1], "<i4").tobytes()
        (truth / f"frame_{t + 1:04}.dpt").write_bytes(TAG + sides + frame.astype("<f4").tobytes())
    assert "frame_0002.npy where frame 1 is due" in str(
        scored("depth", [tmp_path / "data"], tmp_path)["clips"]["failed"]
    )
    (folder / "frame_0002.npy").rename(folder / "frame_0001.npy")
    assert "the truth has 3 frames" in str(scored("depth", [tmp_path / "data"], tmp_path)["clips"]["failed"])
