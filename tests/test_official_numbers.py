"""Our metrics against numbers that the official evaluation codes gave for the same inputs (`data/eval_cases`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_data import SHARED

from pipelines.evaluation import clouds, consistency, depth, pose, tapvid3d, worldtrack
from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.job import score_clip
from pipelines.evaluation.benchmarks.report import summarise
from pipelines.evaluation.similarity import Degenerate
from pipelines.geometry import xyzw_from_rotation
from pipelines.raw.sintel import TAG
from pipelines.raw.tum import associate

CASES = SHARED / "eval_cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the worked numbers are not here: shared/data/eval_cases")


class Case:
    def __init__(self, name: str) -> None:
        self.name, self.about = name, json.loads((CASES / "index.json").read_text())["cases"][f"{name}.npz"]
        with np.load(CASES / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = dict(file)

    def __getitem__(self, key: str) -> Any:
        return self.arrays[f"in/{key}"]

    def expected(self, prefix: str) -> dict[str, np.ndarray]:
        """Below out/prefix/, by the rest of their names."""
        start = f"out/{prefix}/" if prefix else "out/"
        return {key.removeprefix(start): value for key, value in self.arrays.items() if key.startswith(start)}

    def tolerance(self, name: str) -> float:
        for pattern, looser in self.about["looser"].items():
            if (pattern[0] == "*" and name.endswith(pattern[1:])) or (pattern[-1] == "/" and name.startswith(pattern)):
                return looser
        return self.about["tolerance_abs"]

    def agrees(self, name: str, found: Any) -> None:
        """`found` is out/name, within its stated tolerance."""
        expected = self.arrays[f"out/{name}"]
        bound = self.tolerance(f"out/{name}") + self.about["tolerance_rel"] * np.abs(expected)
        found = np.asarray(found, np.float64)
        same = (np.abs(found - expected) <= bound) | (np.isnan(found) & np.isnan(expected)) | (found == expected)
        if not np.all(same):
            worst = np.nanargmax(np.where(same, 0, np.abs(found - expected)))
            ours, theirs = found.flat[worst], expected.flat[worst]
            pytest.fail(f"{self.name}: {name} is {ours}, the official code has {theirs}", pytrace=False)


def names(start: str, *but: str) -> list[str]:
    listed = sorted(path.stem for path in CASES.glob(f"{start}*.npz")) if CASES.is_dir() else []
    return [name for name in listed if name not in but]


def number(array: np.ndarray) -> float | None:
    return None if np.isnan(array) else float(array)


@pytest.mark.parametrize(
    "name", names("depth_", "depth_folders", "depth_missing_frame", "depth_resize_up", "depth_resize_down")
)
def test_depth(name: str) -> None:
    case = Case(name)
    settings = {"cap": number(case["max_depth"]), "clip": number(case["post_clip_max"])}
    alignments = {key.split("/")[0] for key in case.expected("") if key.endswith("/abs_rel")}
    assert {"scale", "scale_shift"} <= alignments
    for alignment in alignments:
        found = depth.depth_scores(case["gt"], case["pred"], alignment, **settings, parity=True)
        for metric in depth.METRICS:
            case.agrees(f"{alignment}/{metric}", found[metric])


@pytest.mark.parametrize("name", names("depth_resize"))
def test_depth_of_another_size(name: str) -> None:
    case = Case(name)
    height, width = case["size_hw"].tolist()
    case.agrees("resized", depth.resized(case["pred"], (height, width)))


OTHER_POSES = ("pose_sintel_files", "pose_scannet_file", "pose_tum_association", *names("pose_missing"))  # below


@pytest.mark.parametrize("name", names("pose_", *OTHER_POSES))
def test_pose(name: str) -> None:
    case = Case(name)
    if case.arrays["out/status"] != "ok":
        with pytest.raises(Degenerate):
            pose.align(case["pred"], case["gt"], "sim3")
        assert pose.path_scores(case["pred"], case["gt"])["ate"] is None
        return
    found = pose.path_scores(case["pred"], case["gt"])
    case.agrees("ate", found["ate"])
    case.agrees("rpe_trans", found["rpe_translation"])
    case.agrees("rpe_rot", found["rpe_rotation_degrees"])
    for alignment in ("sim3", "se3", "scale_only", "none"):
        if f"out/ape/{alignment}/error" in case.arrays:
            case.agrees(f"ape/{alignment}/error", pose.position_errors(case["pred"], case["gt"], alignment))


def test_association_by_time() -> None:
    case = Case("pose_tum_association")
    pairs = associate(case["rgb_stamps"], case["gt_stamps"])
    case.agrees("pairs", np.stack([case["rgb_stamps"][pairs[:, 0]], case["gt_stamps"][pairs[:, 1]]], axis=1))


@pytest.mark.parametrize("name", names("auc_"))
def test_auc(name: str) -> None:
    case = Case(name)
    if "in/pred" in case.arrays:
        rotation, direction = pose.pair_errors(case["pred"], case["gt"])
        case.agrees("r_error", rotation)
        case.agrees("t_error", direction)
    else:
        rotation, direction = case["r_error"], case["t_error"]
    for most in (30, 15, 5, 3):
        case.agrees(f"auc_{most}", pose.auc(rotation, direction, most))


@pytest.mark.parametrize("name", names("tapvid3d_", "tapvid3d_folder", "tapvid3d_world"))
def test_tapvid3d(name: str) -> None:
    case = Case(name)
    clip = tapvid3d.Clip(
        truth=case["gt_tracks"],
        truth_visible=case["gt_visible"],
        predicted=case["pred_tracks"],
        visible=case["pred_visible"],
        focal=float(np.sqrt(case["intrinsics_256"][0] * case["intrinsics_256"][1])),
        query_frames=tapvid3d.query_frames(case["queries_xyt"]),
    )
    variants = {key.split("/")[0] for key in case.expected("") if key.endswith("/average_jaccard")}
    checked = 0
    for variant in variants:
        scaling = variant.removesuffix("_repaired")
        if scaling not in tapvid3d.SCALINGS:
            continue
        found = tapvid3d.scores(clip, scaling)
        for metric in case.expected(variant):
            if metric in found:
                case.agrees(f"{variant}/{metric}", found[metric])
                checked += 1
    assert checked


def test_tapvid3d_in_the_world() -> None:
    case = Case("tapvid3d_world")
    anchored = tapvid3d.in_first_camera(case["gt_tracks"], case["extrinsics_w2c"])
    case.agrees("gt_anchor", anchored)
    focal = float(np.sqrt(case["intrinsics_256"][0] * case["intrinsics_256"][1]))
    for subset, counted in (("visible", case["gt_visible"]), ("all", np.ones_like(case["gt_visible"]))):
        for scaling in ("median", "none"):
            found = tapvid3d.world_hits(anchored, case["pred_anchor"], counted, anchored[..., 2], focal, scaling)
            for metric, value in found.items():
                case.agrees(f"{subset}/{scaling}/{metric}", value)


@pytest.mark.parametrize("name", names("worldtrack_", "worldtrack_mean_over_clips"))
def test_worldtrack(name: str) -> None:
    case = Case(name)
    g, p = case["gt"], case["pred"]
    moving = worldtrack.dynamic_tracks(g)
    for key, expected in case.expected("st4rtrack").items():
        alignment, subset, metric = key.split("/")
        chosen = moving if subset == "dyn" else np.ones_like(moving)
        if metric == "status" or not chosen.any():
            continue
        found = worldtrack.scores(g[:, chosen], p[:, chosen], alignment, "st4rtrack")[metric]
        case.agrees(f"st4rtrack/{key}", np.inf if found is None and np.isinf(expected) else found)
    ours = {"global": "global", "pertraj": "per_traj", "sim3_closed": "sim3_closed", "sim3": "sim3"}
    for theirs, alignment in ours.items():
        for ending, chosen in (("", np.ones_like(moving)), ("_dyn", moving)):
            if f"out/opend4rt/epe_{theirs}{ending}" not in case.arrays or not chosen.any():
                continue
            found = worldtrack.scores(g[:, chosen], p[:, chosen], alignment, "opend4rt")
            case.agrees(f"opend4rt/avg_pts_{theirs}{ending}", found["apd"])
            case.agrees(f"opend4rt/epe_{theirs}{ending}", found["epe"])
            case.agrees(f"opend4rt/fractions_{theirs}{ending}", found["fractions"])


def test_means_over_worldtrack_clips() -> None:
    case = Case("worldtrack_mean_over_clips")
    for key in ("avg_pts_global", "epe_global", "avg_pts_global_dyn", "epe_global_dyn", "epe_pertraj"):
        case.agrees(f"opend4rt/{key}", worldtrack.mean_over_clips(list(case[key])))
    clips = int(np.isfinite(case["epe_global"]).sum())
    found = worldtrack.mean_over_clips(list(case["epe_global_dyn"]), divide_by=clips)
    case.agrees("st4rtrack_rule/epe_global_dyn", found)


@pytest.mark.parametrize("name", names("cloud_l1_"))
def test_point_cloud(name: str) -> None:
    case = Case(name)
    found = clouds.cloud_scores([clouds.Maps(case["gt"], case["pred"], case["valid"])])
    for key in case.expected(""):
        alignment, _, metric = key.partition("/")
        case.agrees(key, found[alignment][metric] if metric else found["s" if key == "scale" else key])


def test_nearest_points() -> None:
    case = Case("cloud_accuracy_completion")
    found = clouds.nearest_scores(case["gt"], case["pred"], case["gt_normals"], case["pred_normals"])
    case.agrees("completion_ratio_0.05", found["completion_ratio"])
    for way in ("accuracy", "completion"):
        for metric in ("mean", "median", "normal_mean", "normal_median"):
            case.agrees(f"{way}/{metric}", found[way][metric])


@pytest.mark.parametrize("name", names("consistency_"))
def test_consistency(name: str) -> None:
    case = Case(name)
    found = consistency.consistency(case["gt"], case["pred"], case["member"])
    for key in case.expected(""):
        case.agrees(key, found[key])


# What follows are files on a disk, found and read as the command does it.


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
