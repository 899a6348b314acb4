"""TAPVid-3D and WorldTrack on analytic clips in their official layouts: exact answers score perfectly, and each planted
fault costs what it must."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.synthesize import tapvid3d, worldtrack
from tests.benchmark_clips import Asked, only_clip

FRAMES = 10


@pytest.fixture(scope="module", params=["drivetrack", "adt", "pstudio"])
def tap(request, tmp_path_factory) -> Asked:
    index = ("drivetrack", "adt", "pstudio").index(request.param)
    return made("tapvid3d", tapvid3d, index, tmp_path_factory.mktemp("tapvid3d"))


@pytest.fixture(scope="module", params=worldtrack.SUBSETS[:4])
def world(request, tmp_path_factory) -> Asked:
    return made("worldtrack", worldtrack, worldtrack.SUBSETS.index(request.param), tmp_path_factory.mktemp("world"))


def made(key: str, layout, index: int, root: Path) -> Asked:
    scene = layout.scene(3, num_frames=FRAMES, size="small")
    path = root / layout.folder(index)
    layout.write(scene, path)
    return Asked(key, only_clip(key, root), layout.as_filmed(scene, path))


def test_exact_tracks_score_perfectly_in_tapvid3d(tap: Asked) -> None:
    row = tap.scores(tap.answers())
    for scaling in ("median", "mean", "none", "per_trajectory", "median_on_queries", "local_neighborhood"):
        assert row[f"{scaling}.apd"] == pytest.approx(1, abs=1e-9)
        assert row[f"{scaling}.oa"] == 1
    assert row["median.aj"] == 1
    assert row["not_finite"] == 0
    if tap.clip.subset == "drivetrack":
        assert row["world.apd"] == row["world_anchor_z.apd"] == 1
        assert row["world.l1_sum"] < 1e-4
        assert row["world.still_half_moves"] < 1e-9
    else:
        assert "world.apd" not in row


def test_what_is_planted_costs_what_it_must_in_tapvid3d(tap: Asked) -> None:
    exact = tap.answers()
    far = {key: 3 * x if x.dtype != bool else x for key, x in exact.items()}
    row = tap.scores(far)
    assert row["median.apd"] == 1
    assert row["none.apd"] == 0
    assert row["fixed_metric.apd"] == 1

    half = exact | {"tracks_XYZ": exact["tracks_XYZ"].copy()}
    fx = tap.truth.fx_fy_cx_cy[0]
    half["tracks_XYZ"][..., 0] += 0.6 * half["tracks_XYZ"][..., 2] / fx  # 0.6 of 64 pixels are 2.4 of 256:
    assert tap.scores(half)["none.apd"] == pytest.approx(3 / 5, abs=0.01)  # beyond 1 and 2, within 4, 8 and 16

    swapped = {key: x[::-1] for key, x in exact.items()}
    assert tap.scores(swapped)["median.apd"] < 0.99

    hidden = exact | {"visibility": np.zeros_like(exact["visibility"])}
    assert tap.scores(hidden)["none.apd"] == pytest.approx(1, abs=1e-9)
    assert tap.scores(hidden)["none.aj"] == 0

    nothing = exact | {"tracks_XYZ": np.full_like(exact["tracks_XYZ"], np.nan)}
    row = tap.scores(nothing)
    assert row["median.apd"] == 0
    assert row["median.aj"] == 0
    assert row["not_finite"] == 1


def test_exact_tracks_score_perfectly_in_worldtrack(world: Asked) -> None:
    row = world.scores(world.answers())
    for alignment in ("global", "per_traj", "sim3_closed", "sim3"):
        for tracks in ("all", "visible"):
            assert row[f"ours.{alignment}.{tracks}.apd"] == 1
            assert row[f"ours.{alignment}.{tracks}.epe"] < 1e-4
        assert row[f"ours.{alignment}.dynamic.apd"] in (None, 1)
    assert row["scale"] == pytest.approx(1, abs=1e-4)
    # The pixel that St4RTrack's gather finds is up to a 512th of the image beside the point.
    for protocol in ("st4rtrack", "opend4rt"):  # at silhouettes that is on something else
        assert 1e-4 < row[f"{protocol}.global.all.epe"] < 0.5
        assert 0.7 < row[f"{protocol}.global.all.apd"] <= 1
    assert row["not_finite"] == 0


def test_what_is_planted_costs_what_it_must_in_worldtrack(world: Asked) -> None:
    exact = {"tracks_world": world.answers()["tracks_world"]}
    points = exact["tracks_world"].astype(np.float64)
    assert world.scores({"tracks_world": 2 * points})["ours.global.all.epe"] < 1e-4
    turned = points @ np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    row = world.scores({"tracks_world": turned})
    assert row["ours.sim3_closed.all.epe"] < 1e-4
    assert row["ours.global.all.apd"] < 0.5

    missing = points.copy()
    missing[:, : points.shape[1] // 4] = np.nan
    row = world.scores({"tracks_world": missing})
    share = 1 - (points.shape[1] // 4) / points.shape[1]
    assert row["ours.global.all.apd"] == pytest.approx(share)
    assert row["opend4rt.global.all.apd"] == 1
    assert row["st4rtrack.global.all.apd"] == 0
    assert row["ours.global.visible.apd"] < 1  # who says nothing where it is hard gains nothing
    assert row["ours.sim3.all.apd"] == pytest.approx(share)

    off = points.copy()
    off[:, :2] += 5.0  # RANSAC is not moved by a few tracks, least squares is
    row = world.scores({"tracks_world": off})
    assert row["ours.sim3.all.epe"] == pytest.approx(5 * 3**0.5 * 2 / points.shape[1], rel=1e-3)
    assert row["ours.sim3_closed.all.apd"] < row["ours.sim3.all.apd"]
    if world.truth.cam_from_world is not None:  # each frame's own camera in place of the first
        chosen = world.truth.visible[0]
        assert world.scores({"tracks_world": world.truth.tracks[:, chosen]})["ours.global.all.epe"] > 0.02
    with pytest.raises(ValueError, match=r"tracks_world of the prediction .* is .*, the truth is"):
        world.scores({"tracks_world": points[:-1]})


def test_means_over_tracks_stand_beside_those_over_clips() -> None:
    clips = [
        {"ours.global.dynamic.apd": 1.0, "dynamic_tracks": 3, "tracks": 10, "ours.global.all.epe": 1.0},
        {"ours.global.dynamic.apd": 0.5, "dynamic_tracks": 1, "tracks": 30, "ours.global.all.epe": 2.0},
        {"ours.global.dynamic.apd": None, "dynamic_tracks": 0, "tracks": 40, "ours.global.all.epe": 3.0},
    ]
    means = load_benchmark("worldtrack").summary(clips)
    assert means["ours.global.dynamic.apd"] == 0.75
    assert means["ours.global.dynamic.apd#"] == 2
    assert means["ours.global.dynamic.apd_pooled"] == 0.875
    assert means["ours.global.all.epe_pooled"] == pytest.approx((10 + 60 + 120) / 80)


def test_a_clip_longer_than_the_model_takes_goes_through_windows(tmp_path: Path) -> None:
    asked = made("tapvid3d", tapvid3d, 0, tmp_path)
    row = asked.scores(asked.answers(clip_frames=6))
    assert row["median.apd"] > 0.9
    assert row["median.oa"] > 0.9


def test_a_published_list_is_known_by_its_names(tmp_path: Path) -> None:
    for name in ("adt/Lite_release_recognition_GreenDecorationTall_seq031_6", "pstudio/not_published"):
        (tmp_path / f"{name}.npz").parent.mkdir()
        (tmp_path / f"{name}.npz").touch()
    found = load_benchmark("tapvid3d").find([str(tmp_path)])
    assert found.title == "minival, adt, pstudio: 1 of its 100 clips and 1 other, NOT the published subset"
    assert len(found.missing) == 99
    assert "adt/Apartment_release_meal_seq136_8" in found.missing


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tracks_XYZ": np.zeros((3, 4, 3))}, "tracks_XYZ of .* is .*, of 10 images it must be"),
        ({"fx_fy_cx_cy": np.array([0.0, 1, 2, 3])}, "focal lengths are above 0"),
        ({"images_jpeg_bytes": np.array([b"no image"] * FRAMES)}, "cannot be read as an image"),
        ({"visibility": None}, "has no visibility"),
        ({"tracks_XYZ": np.full((FRAMES, 128, 3), 3000.0), "queries_xyt": None}, "are they in millimetres"),
        ({"fx_fy_cx_cy": np.array([300.0, 300, 256, 256])}, "intrinsics of .* but images are"),
        ({"queries_xyt": np.full((4, 3), 99.0)}, "queries_xyt"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path: Path, change: dict, complaint: str) -> None:
    scene = tapvid3d.scene(3, num_frames=FRAMES, size="small")
    path = tmp_path / tapvid3d.folder(0)
    tapvid3d.write(scene, path)
    with np.load(path) as file:
        arrays = {**file} | change
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    clip = only_clip("tapvid3d", tmp_path)
    with pytest.raises(ValueError, match=complaint):
        _ = load_benchmark("tapvid3d").open(clip).size
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="corrupt or truncated"):
        load_benchmark("tapvid3d").open(clip)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    scene = tapvid3d.scene(3, num_frames=2, size="small")
    path = tmp_path / tapvid3d.folder(1)
    tapvid3d.write(scene, path)
    with np.load(path, allow_pickle=True) as file:
        arrays = {**file}
    for evil in (Runs(), [Runs()], 3):
        arrays["images_jpeg_bytes"] = np.array([evil, b""], dtype=object)
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=r"refused|other objects|damaged"):
            load_benchmark("tapvid3d").open(only_clip("tapvid3d", tmp_path))
    assert not (tmp_path / "executed").exists()
