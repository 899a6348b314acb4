"""Depth and poses on analytic recordings in their official layouts: the readers give what the scene is, exact answers
score perfectly, and each planted fault costs what it must."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.catalog import Catalog
from pipelines.conversion import Conversion, convert_group, plan_sequence
from pipelines.datasets import reader
from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.geometry import inverse
from pipelines.inspect import inspect
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Sequence
from pipelines.store import marks
from pipelines.store.index import finish
from pipelines.store.layout import StoreSettings
from pipelines.store.reader import ClipStore
from pipelines.synthesize import (
    bonn,
    bonn_prepared,
    kitti,
    kitti_prepared,
    scannet_prepared,
    sintel,
    tum,
    tum_prepared,
)
from pipelines.synthesize.scene import Scene
from pipelines.truth.verdict import judge
from tests.benchmark_clips import Asked, only_clip
from train.stores import refuse_benchmarks

LAYOUTS = {"sintel": sintel, "bonn": bonn, "tum": tum, "kitti": kitti}
PREPARED = {"bonn": bonn_prepared, "tum": tum_prepared, "kitti": kitti_prepared, "scannet": scannet_prepared}
FRAMES = 12


def written(key: str, root: Path, seed: int = 5, layouts: dict = LAYOUTS) -> Scene:
    layout = layouts[key]
    scene = layout.scene(seed, num_frames=FRAMES, size="small")
    if hasattr(layout, "write_tree"):
        layout.write_tree(scene, root, 0)
    else:
        layout.write(scene, root / layout.folder(0))
    return scene


@pytest.fixture(scope="module", params=LAYOUTS)
def recording(request, tmp_path_factory) -> tuple[str, Scene, Path, Sequence]:
    root = tmp_path_factory.mktemp(request.param)
    scene = written(request.param, root)
    raw = RawFolder(str(root))
    (name,) = reader(request.param).find(raw)
    return request.param, scene, root, reader(request.param).open(raw, name)


def test_readers_give_what_the_scene_is(recording) -> None:
    key, scene, _, sequence = recording
    frames = range(kitti.FIRST, FRAMES) if key == "kitti" else range(FRAMES)
    assert len(sequence) == len(frames)
    np.testing.assert_allclose(sequence.cameras.intrinsics, scene.cameras.intrinsics[frames], rtol=1e-6)
    if key == "kitti":
        assert not sequence.cameras.known.any()
    else:
        tolerance = 1e-4 if key == "bonn" else 1e-6  # T_M is rounded
        np.testing.assert_allclose(sequence.cameras.world_from_cam, scene.cameras.world_from_cam, atol=tolerance)
    step = {"sintel": 1e-5, "kitti": 1 / 512, "bonn": 1 / 1e4, "tum": 1 / 1e4}[key] * 1.01
    for place, t in enumerate(frames):
        frame, depth = scene.render(t), sequence.depth(place)
        np.testing.assert_array_equal(sequence.image(place), frame.image)
        known = np.isfinite(depth)
        np.testing.assert_allclose(depth[known], frame.depth[known], atol=step, rtol=1e-6)
        if key == "sintel":
            np.testing.assert_array_equal(known, np.isfinite(frame.depth))
        elif key != "kitti":
            assert known.any() == (t != FRAMES // 2)


def test_exact_depth_scores_perfectly_and_faults_cost(recording) -> None:
    key, scene, root, _ = recording
    if key == "tum":
        pytest.skip("its depth is no benchmark")
    asked = Asked("depth", only_clip("depth", root), scene)
    right = asked.truth.depth
    exact = {"depth": np.stack([scene.render(t).depth for t in range(FRAMES)])[-len(right) :]}
    row = asked.scores(exact)
    for alignment in ("metric", "median", "scale", "scale_exact", "scale_shift_exact"):
        assert row[f"{alignment}.abs_rel"] < 1e-3
        assert row[f"{alignment}.delta1"] == 1
    assert row["scale_exact.scale"] == pytest.approx(1, abs=1e-3)
    assert len(row["digest"]) == 32

    far = {"depth": 1.5 * exact["depth"]}
    row = asked.scores(far)
    assert row["metric.abs_rel"] == pytest.approx(0.5, abs=1e-3)
    assert row["metric.delta1"] == 0
    assert row["scale_exact.abs_rel"] < 1e-3
    assert row["scale_exact.scale"] == pytest.approx(1 / 1.5, abs=1e-3)

    shifted = {"depth": exact["depth"] + 2}
    row = asked.scores(shifted)
    assert row["scale_shift_exact.abs_rel"] < 1e-3
    assert row["scale_shift_exact.shift"] == pytest.approx(-2, abs=0.01)
    assert row["scale_exact.abs_rel"] > 0.01

    nothing = {"depth": np.where(np.arange(len(right))[:, None, None] % 2, np.nan, exact["depth"])}
    row = asked.scores(nothing)
    assert row["scale_exact.abs_rel"] < 1e-3
    assert row["scale_exact.delta1"] == pytest.approx(1 - row["not_finite"])
    assert 0.3 < row["not_finite"] < 0.7
    assert row["official.scale.abs_rel"] is None  # one NaN spoils it
    assert row["official.scale.delta1"] == 0
    assert asked.scores(shifted)["official.scale_shift.rmse"] == asked.scores(shifted)["scale_shift.rmse"]
    with pytest.raises(ValueError, match="turned, or of cropped images"):
        asked.scores({"depth": exact["depth"].swapaxes(1, 2)})
    with pytest.raises(ValueError, match="the truth has"):
        asked.scores({"depth": exact["depth"][:-1]})


def test_depth_and_poses_are_asked_through_the_recipes(tmp_path: Path) -> None:
    scene = written("sintel", tmp_path)
    depth = Asked("depth", only_clip("depth", tmp_path), scene)
    assert depth.scores(depth.answers())["scale_exact.abs_rel"] < 1e-3
    pose = Asked("pose", only_clip("pose", tmp_path), scene)
    row = pose.scores(pose.answers())
    assert row["sim3.ate"] < 1e-3
    assert row["sim3.rpe_r"] < 0.05
    assert row["pairs.auc_30"] > 0.95


def test_what_is_planted_costs_what_it_must_in_poses(recording) -> None:
    key, scene, root, _ = recording
    if key == "kitti":
        pytest.skip("its poses are no benchmark")
    asked = Asked("pose", only_clip("pose", root), scene)
    right = asked.truth.world_from_cam
    turn = np.eye(4)
    turn[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    turn[:3, 3] = 1, 2, 3
    moved = turn @ right
    moved[:, :3, 3] *= 0.3
    row = asked.scores({"world_from_cam": moved})
    assert row["sim3.ate"] < 1e-6
    assert row["sim3.rpe_t"] < 1e-6
    assert row["pairs.auc_30"] > 0.95
    assert row["ten_frames.auc_30"] > 0.95
    assert row["pairs.rotation_5"] == row["ten_frames.direction_5"] == 1
    assert len(set(row["drawn"].split())) == min(10, len(right))
    assert row["se3.ate"] > 1e-3
    assert row["none.ate"] > 0.1
    assert asked.scores({"world_from_cam": inverse(right)})["sim3.rpe_r"] > 0.05  # cam_from_world
    assert asked.scores({"world_from_cam": right[::-1]})["sim3.rpe_t"] > row["sim3.rpe_t"]

    still = np.tile(right[:1], (len(right), 1, 1))
    row = asked.scores({"world_from_cam": still})
    assert row["sim3.ate"] is None
    assert row["reason"].startswith("not alignable")
    lost = right.copy()
    lost[1] = np.nan
    row = asked.scores({"world_from_cam": lost})
    assert row["alignable"] == 0
    assert 0 < row["pairs.auc_30"] < 1
    summary = load_benchmark("pose").summary([asked.scores({"world_from_cam": right}), row])
    assert summary["not_alignable"] == 1
    assert summary["sim3.ate#"] == 1


def test_damaged_files_are_named(tmp_path: Path) -> None:
    written("sintel", tmp_path)
    camera = tmp_path / "training/camdata_left/room_0000/frame_0003.cam"
    camera.write_bytes(camera.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"frame_0003.cam in .* is no whole|frame_0003.cam in .* is no .cam of Sintel"):
        load_benchmark("depth").open(only_clip("depth", tmp_path))


def test_audit_finds_that_depth_and_cameras_fit(recording) -> None:
    """And that they would not, were the poses read the other way round."""
    key, _, _, sequence = recording
    if key == "kitti":  # has no poses
        assert judge(sequence).outcome == "undecidable"
        return
    assert judge(sequence).outcome == "fits"
    cameras = sequence.cameras
    sequence.cameras = replace(cameras, world_from_cam=inverse(cameras.world_from_cam))
    try:
        assert judge(sequence).outcome == "misfit"
    finally:
        sequence.cameras = cameras


@pytest.mark.parametrize("key", PREPARED)
def test_what_evaluation_codes_prepare_is_read_and_scores_perfectly(key: str, tmp_path: Path) -> None:
    """Frames are chosen already: none is left out again. Without images, stored predictions are scored all the same."""
    scene = written(key, tmp_path, layouts=PREPARED)
    frames = range(kitti.FIRST, FRAMES) if key == "kitti" else range(FRAMES)
    with_depth = key != "tum"
    exact = {"depth": np.stack([scene.render(t).depth for t in frames])}
    bench = load_benchmark("depth" if with_depth else "pose")
    asked = Asked(bench.key, only_clip(bench.key, tmp_path), scene)
    assert len(asked.truth) == len(frames)
    if with_depth:
        assert asked.scores(exact)["metric.abs_rel"] < 1e-3
        assert asked.scores({"depth": 2 * exact["depth"]})["scale_exact.abs_rel"] < 1e-3
    if key in ("tum", "scannet"):
        poses = Asked("pose", only_clip("pose", tmp_path), scene)
        row = poses.scores({"world_from_cam": scene.cameras.world_from_cam})
        assert row["sim3.ate"] < 1e-6
        assert row["frames_without_truth"] == (key == "scannet" and 1)
    if key in ("kitti", "scannet"):
        with pytest.raises(ValueError, match="came without intrinsics"):
            asked.benchmark.asked(asked.truth, known_intrinsics=True)

    if with_depth:
        for path in [*tmp_path.rglob("rgb_110"), *tmp_path.rglob("image_gathered"), *tmp_path.rglob("color_90")]:
            shutil.rmtree(path)
        alone = Asked("depth", replace(only_clip("depth", tmp_path), data=f"{tmp_path}/."), scene)
        if key == "bonn":  # has one image without depth, whose place nothing tells now
            exact["depth"] = np.delete(exact["depth"], FRAMES // 2, axis=0)
        assert alone.scores(exact)["metric.abs_rel"] < 1e-3
        assert alone.benchmark.picture(alone.truth, exact, "without images").ndim == 3
        with pytest.raises(ValueError, match=r"has no images .* stored predictions can be scored"):
            alone.truth.video("clip", 8)


def test_what_was_prepared_to_evaluate_on_is_not_converted(tmp_path: Path) -> None:
    written("scannet", tmp_path, layouts=PREPARED)
    (name,) = reader("scannet").find(RawFolder(str(tmp_path)))
    settings = SimpleNamespace(dataset="scannet")
    conversion = SimpleNamespace(settings=settings, raw=str(tmp_path))
    with pytest.raises(ValueError, match="can be evaluated on, but is without intrinsics"):
        Conversion.open(conversion, name)


def test_what_is_evaluated_on_can_be_looked_at_in_a_store_which_is_refused_to_train_on(recording, tmp_path) -> None:
    key, _, root, sequence = recording
    settings = StoreSettings(
        dataset=key,
        split="test",
        frames=4,
        image_size=64,
        strides=(1, 1),
        hop=4,
        samples=1,
        queries=128,
        video="zstd",
        seed=0,
    )
    store, catalog = str(tmp_path / "store"), Catalog.load(key)
    conversion = Conversion(raw=str(root), store=store, settings=settings, catalog=catalog, allow_misfit=False)
    marks.begin(store, settings)
    plan = plan_sequence({"sequence": sequence.name}, conversion=conversion)
    if key == "kitti":
        assert "known pose" in plan.skipped  # which a drive has elsewhere, if at all
        return
    row = {"sequence": sequence.name, "audit": plan.audit}
    groups = [convert_group(row | {"group": group}, conversion=conversion) for group in plan.todo]
    finish(store, settings, groups, {"sequences": [sequence.name]})
    assert len(ClipStore(store)) == FRAMES // 4
    inspect(store, out=str(tmp_path / "look"))
    with pytest.raises(
        ValueError, match=f"holds {sequence.name} of {key}, which the benchmark .* train on another dataset"
    ):
        refuse_benchmarks(ClipStore(store))
