"""Our metrics against numbers that the official evaluation codes gave for the same inputs (`data/eval_cases`)."""

import numpy as np
import pytest

from pipelines.evaluation import clouds, consistency, depth, pose, tapvid3d, worldtrack
from pipelines.evaluation.similarity import Degenerate
from pipelines.raw.tum import associate
from tests.official_cases import Case, names, needed

pytestmark = needed


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
