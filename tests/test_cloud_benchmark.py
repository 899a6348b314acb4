"""Points of all pixels on analytic clips: exact answers score perfectly, and each planted fault costs what it must."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation import clouds
from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.predictions import read_prediction
from pipelines.geometry import inverse, transform
from pipelines.synthesize import sintel, worldtrack
from tests.benchmark_clips import Asked, only_clip

FRAMES = 4


@pytest.fixture(scope="module", params=["tum", "sintel"])
def cloud(request, tmp_path_factory) -> Asked:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "sintel":
        scene = sintel.scene(4, num_frames=FRAMES, size="small")
        sintel.write_tree(scene, root, 0)
    else:
        scene = worldtrack.scene(3, num_frames=FRAMES, size="small")
        worldtrack.write(scene, root / worldtrack.folder(worldtrack.SUBSETS.index(request.param)))
    return Asked("cloud", only_clip("cloud", root), scene)


@pytest.fixture(scope="module")
def exact(cloud: Asked) -> np.ndarray:
    return cloud.answers()["points_world"]


def test_exact_points_score_perfectly(cloud: Asked, exact: np.ndarray) -> None:
    """Asked at once, or through the windows of `infer`, of three frames."""
    assert exact.shape == (FRAMES, *cloud.truth.size, 3)
    for said in (exact, cloud.answers(clip_frames=3)["points_world"]):
        row = cloud.scores({"points_world": said})
        assert row["points_used"] == row["points_expected"] > 1000
        for alignment in clouds.ALIGNMENTS:
            assert row[f"{alignment}.l1_sum"] < 2e-3
            assert row[f"{alignment}.apd"] == 1
        assert row["nearest.accuracy"] < 2e-3
        assert row["nearest.completion_ratio"] == 1
        assert row["nearest.normals"] > 0.99


def test_what_is_planted_costs_what_it_must(cloud: Asked, exact: np.ndarray) -> None:
    row = cloud.scores({"points_world": 3 * exact})
    assert row["scale"] == pytest.approx(1 / 3, rel=1e-3)
    for alignment in ("scale_mean_shift", "scale", "sim3_closed", "sim3"):
        assert row[f"{alignment}.l1_sum"] < 2e-3
    assert row["none.apd"] < 0.5

    row = cloud.scores({"points_world": exact + np.array([1.0, -2, 0.5])})
    assert row["mean_shift.l1_sum"] < 2e-3
    assert row["none.l1_sum"] == pytest.approx(3.5, abs=2e-3)
    assert row["none.l1_mean_axis"] == pytest.approx(3.5 / 3, abs=1e-3)

    lost = exact.copy()
    lost[FRAMES // 2 :] = np.nan
    row = cloud.scores({"points_world": lost})
    share = row["points_used"] / row["points_expected"]
    assert 0.2 < share < 0.8
    assert row["scale.apd"] == pytest.approx(share)
    assert row["scale.l1_sum"] < 2e-3

    own = transform(inverse(cloud.truth.first_from_cam)[:, None, None], exact.astype(np.float64))
    assert cloud.scores({"points_world": own})["sim3_closed.epe"] > 0.01  # each frame's own camera
    assert cloud.scores({"points_world": exact[::-1]})["sim3_closed.epe"] > 0.01
    with pytest.raises(ValueError, match=r"points_world of the prediction .* it must be \(4, h, w, 3\)"):
        cloud.scores({"points_world": exact[:-1]})
    with pytest.raises(ValueError, match="turned, or of cropped images"):
        cloud.scores({"points_world": exact.swapaxes(1, 2)})
    row = cloud.scores({"points_world": np.full_like(exact, np.nan)})
    assert row["points_used"] == 0
    assert row["scale_mean_shift.l1_sum"] is None
    assert cloud.benchmark.picture(cloud.truth, {"points_world": exact}, "title").ndim == 3


def test_half_a_pixel_costs(cloud: Asked, exact: np.ndarray) -> None:
    """As it would if pixels were believed to begin at the centre of the first one."""
    depth, matrix = cloud.truth.depth.astype(np.float64), cloud.truth.corner_intrinsics
    off = depth * 0.5 / matrix[:, None, None, 0, 0]
    rotation = cloud.truth.first_from_cam[:, :3, 0]
    shifted = exact + np.nan_to_num(off)[..., None] * rotation[:, None, None]
    row = cloud.scores({"points_world": shifted})
    frames = load_benchmark("cloud").scores(cloud.truth, {"points_world": exact})
    assert row["none.epe"] > frames["none.epe"] + 0.01


def test_dense_points_of_st4rtrack_are_of_the_reconstruction(cloud: Asked, exact: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / cloud.clip.file.removesuffix(".npz")
    folder.mkdir(parents=True)
    for t, points in enumerate(exact):
        np.save(folder / f"pts3d2_p{t}.npy", np.concatenate([points, np.zeros_like(points)], axis=-1))
    prediction, _ = read_prediction(str(tmp_path), cloud.clip)
    assert cloud.scores(prediction)["scale.l1_sum"] < 2e-3
    half = {"points_world": prediction["points_world"][:, ::2, ::2]}
    assert 0.001 < cloud.scores(half)["scale.epe"] < 0.6  # resized


def test_clips_without_what_is_needed_are_named(tmp_path: Path) -> None:
    scene = worldtrack.scene(3, num_frames=2, size="small")
    path = tmp_path / worldtrack.folder(0)
    worldtrack.write(scene, path)
    with np.load(path) as file:
        arrays = {**file}
    for missing, complaint in (("extrinsics_w2c", "has no extrinsics_w2c"), ("depth_map", "depth_map of .* is None")):
        np.savez(path, **{key: array for key, array in arrays.items() if key != missing})
        with pytest.raises(ValueError, match=complaint):
            load_benchmark("cloud").open(only_clip("cloud", tmp_path))
    np.savez(path, **arrays | {"depth_map": arrays["depth_map"][:, ::2]})
    with pytest.raises(ValueError, match=r"depth_map of .* its images are"):
        load_benchmark("cloud").open(only_clip("cloud", tmp_path))
    np.savez(path, **arrays | {"depth_map": 1000 * arrays["depth_map"]})
    with pytest.raises(ValueError, match=r"depth_map of .* m in the median: is it in millimetres"):
        load_benchmark("cloud").open(only_clip("cloud", tmp_path))
