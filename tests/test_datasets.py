"""The contract of all adapters: an analytic scene, written in each official layout, comes back as it was.

How single files are read and refused is tested in one file per dataset.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS
from pipelines.geometry import inverse, project, transform, unproject
from pipelines.ground_truth import GroundTruth
from pipelines.raw_folder import RawFolder
from pipelines.sequence import RigidInstances, Sequence, Static, Tracks, Unknown
from pipelines.synthesize import kubric, mvs_synth
from pipelines.synthesize.job import LAYOUTS, scene_for
from pipelines.synthesize.scene import Rendering, Scene

FRAMES = 9  # long enough for tumbling objects and for gaps in annotations
INDEX = 3
TIMES = np.arange(FRAMES)


@dataclass(frozen=True)
class Variant:
    """A form in which a dataset comes."""

    key: str
    folder: str
    write: Callable[[Scene, Path], None]
    shown: Callable[[Scene], Scene] = lambda scene: scene


VARIANTS = {key: Variant(key, layout.folder(INDEX), layout.write) for key, layout in LAYOUTS.items()}
VARIANTS["kubric_tfrecord"] = Variant(
    "kubric", "analytic-train.tfrecord-00007-of-00010", lambda scene, path: kubric.write_shard([scene], path)
)
OF_ANY_HAND = partial(mvs_synth.write, left_handed=False)
VARIANTS["mvs_synth_right_handed"] = Variant("mvs_synth", "GTAV_540/0003", OF_ANY_HAND)
VARIANTS["mvs_synth_old"] = Variant("mvs_synth", "GTAV_540/0003", mvs_synth.write, mvs_synth.squeezed)


@dataclass(frozen=True)
class Case:
    variant: str
    scene: Scene
    raw: RawFolder
    sequence: Sequence
    catalog: Catalog

    @property
    def key(self) -> str:
        return VARIANTS[self.variant].key

    @property
    def raw_from_scene(self) -> np.ndarray:
        """The dataset's world axes from the scene's."""
        return LAYOUTS[self.key].RAW_FROM_SCENE

    def rendered(self, t: int) -> Rendering:
        return _rendered(self.variant, t)


@cache
def _scene(variant: str) -> Scene:
    scene = scene_for(VARIANTS[variant].key, 0, INDEX, frames=FRAMES, size="small")
    return VARIANTS[variant].shown(scene)


@cache
def _rendered(variant: str, t: int) -> Rendering:
    return _scene(variant).render(t, supersample=1)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory) -> Case:
    variant = VARIANTS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    variant.write(_scene(request.param), root / variant.folder)
    raw = RawFolder(str(root))
    name = DATASETS[variant.key].find(raw)[0]
    return Case(request.param, _scene(request.param), raw, DATASETS[variant.key](raw, name), Catalog.load(variant.key))


def test_names_are_folders_and_scenes_are_shared(case):
    names = DATASETS[case.key].find(case.raw)
    assert names == sorted(names) and case.sequence.name == names[0]
    folder = VARIANTS[case.variant].folder
    assert all(name.startswith(folder) for name in names)
    assert DATASETS[case.key].scene_of(names[0]) in re.findall(r"\w+", folder)
    assert case.catalog.split_of(DATASETS[case.key].scene_of(names[0])) == "train"


def test_cameras(case):
    cameras = case.sequence.cameras
    assert len(case.sequence) == FRAMES
    np.testing.assert_array_equal(case.sequence.frame_numbers, TIMES)
    np.testing.assert_allclose(cameras.intrinsics, case.scene.cameras.intrinsics, rtol=1e-6)
    truth = case.raw_from_scene @ case.scene.cameras.world_from_cam
    np.testing.assert_allclose(cameras.world_from_cam, truth, atol=1e-4)
    assert cameras.known.all()


@pytest.mark.parametrize("t", [0, FRAMES - 1])
def test_frames(case, t):
    truth = case.rendered(t)
    image, depth = case.sequence.image(t), case.sequence.depth(t)
    assert image.dtype == np.uint8 and image.shape == truth.image.shape == (*case.sequence.image_size, 3)
    assert np.median(np.abs(image.astype(int) - truth.image)) <= 6
    assert depth.dtype == np.float32
    known = np.isfinite(truth.depth)
    np.testing.assert_array_equal(~np.isnan(depth), known)
    step = case.catalog.depth_tolerance.step_of(truth.depth[known])
    assert (np.abs(depth - truth.depth)[known] <= 1.01 * step).all()
    instance = case.sequence.instance(t)
    if case.catalog.motion == "rigid_instances":
        assert instance.dtype == np.int32
        np.testing.assert_array_equal(instance == -1, truth.instance == -1)
        pairs = np.unique([instance.ravel(), truth.instance.ravel()], axis=1)  # whatever the dataset's numbers are
        assert [len(np.unique(row)) for row in pairs] == [pairs.shape[1]] * 2
    else:
        assert instance is None


@pytest.mark.parametrize("t", [0, FRAMES - 1])
def test_normals(case, t):
    truth = case.rendered(t)
    row, column = np.indices(truth.depth.shape).reshape(2, -1)
    normal = case.sequence.normal(t, column, row)
    if case.catalog.normals != "stored":
        assert normal is None
        return
    normal = normal.reshape(truth.normal.shape)
    known = np.isfinite(normal).all(axis=2)
    np.testing.assert_allclose(np.linalg.norm(normal[known], axis=-1), 1, atol=1e-5)
    assert known[np.isfinite(truth.depth)].mean() > 0.98
    sky = ~np.isfinite(truth.depth)
    assert (known & sky).sum() <= 0.1 * sky.sum()  # JPEG bleeds over the horizon
    angle = np.degrees(np.arccos((normal * truth.normal).sum(axis=2).clip(-1, 1)))
    assert np.nanmedian(angle) < 1 and np.nanpercentile(angle, 90) < 3


def test_points_go_where_they_go(case):
    """Lifting what is seen at one time and moving it to every other lands where the scene says."""
    motion = case.sequence.motion(TIMES)
    kinds = {"static": Static, "rigid_instances": RigidInstances, "tracks": Tracks, "unknown": Unknown}
    assert isinstance(motion, kinds[case.catalog.motion])
    if isinstance(motion, Unknown):
        check_unknown(case, motion)
        return
    if isinstance(motion, RigidInstances):  # or instances could be taken for frames
        assert len(motion.world_from_instance) != FRAMES
    if isinstance(motion, Tracks):
        check_tracks(case, motion)
        return
    moved = 0
    for t_src in (0, 5):
        uv = np.random.default_rng(t_src).integers(0, [case.scene.width, case.scene.height], (3000, 2)) + 0.5
        column, row = uv.astype(int).T
        depth = case.sequence.depth(t_src)[row, column].astype(float)
        lifted = unproject(uv, depth, case.sequence.cameras.intrinsics[t_src])
        world = transform(case.sequence.cameras.world_from_cam[t_src], lifted)
        hits = case.scene.trace(uv, np.full(len(uv), t_src))
        tolerance = 2 * case.catalog.depth_tolerance.step_of(depth) + 1e-4
        instance = hits.surface - 1 if case.catalog.motion == "static" else case.sequence.instance(t_src)[row, column]
        for t_tgt in TIMES:
            there = world.copy()
            if isinstance(motion, RigidInstances):
                pose = motion.world_from_instance
                on = instance >= 0
                there[on] = transform((pose[:, t_tgt] @ inverse(pose[:, t_src]))[instance[on]], world[on])
            truth = transform(case.raw_from_scene, case.scene.position(hits, np.full(len(uv), t_tgt)))
            error = np.linalg.norm(there - truth, axis=1)
            known = np.isfinite(error)
            assert (error[known] < tolerance[known]).all()
            assert known[(instance < 0) & np.isfinite(depth)].all()
            moved += (np.linalg.norm(there - world, axis=1) > 0.1).sum()
    assert (moved > 0) == (case.catalog.motion == "rigid_instances")


def check_unknown(case: Case, motion: Unknown) -> None:
    """No point of anything that moves has a wrong place at another time; what stands still keeps its place."""
    cameras = case.sequence.cameras
    depth = np.stack([case.sequence.depth(t) for t in range(FRAMES)])
    truth = GroundTruth(
        cameras=cameras, depth=depth, instance=None, motion=motion, tolerance=case.catalog.depth_tolerance
    )
    rng = np.random.default_rng(0)
    uv = rng.random((40_000, 2)) * [case.scene.width, case.scene.height]
    t_src, t_tgt, t_cam = rng.integers(0, FRAMES, (3, len(uv)))
    points = truth.lift(uv, t_src)
    answer = truth.ask(points, t_tgt, t_cam)
    hits = case.scene.trace(uv, t_src)
    there, then = case.scene.position(hits, t_tgt), case.scene.position(hits, t_src)
    xyz = transform(inverse(case.scene.cameras.world_from_cam[t_cam]), there)
    error = np.linalg.norm(answer.xyz - xyz, axis=1) / np.linalg.norm(xyz, axis=1)
    moves = np.append(False, case.scene.moving)[hits.surface.clip(0)] & points.known
    assert (moves & (np.linalg.norm(there - then, axis=1) > 0.2)).sum() > 1000
    assert not (moves & answer.xyz_valid & (error > 0.02)).any()
    assert answer.xyz_valid[moves & (t_tgt == t_src)].all()
    rests = points.known & ~moves & (hits.surface >= 0)  # beside the centre of a wall's pixel may be sky
    assert error[rests & answer.xyz_valid].max() < 0.02
    assert answer.xyz_valid[rests & case.scene.visible(hits, t_tgt)].mean() > 0.95


def check_tracks(case: Case, motion: Tracks) -> None:
    """Every track lies, while it is seen, on the surface that its pixel shows, and stays that very point."""
    cameras = case.scene.cameras
    known = np.isfinite(motion.xyz_world).all(axis=2)
    assert len(known) > 500 and known.mean() > 0.99 and not motion.visible[~known].any()
    assert 0.1 < motion.visible.mean() < 0.95
    assert (np.linalg.norm(np.ptp(motion.xyz_world[known.all(axis=1)], axis=1), axis=-1) > 0.1).any()
    for t in (0, 5):
        rows = np.flatnonzero(motion.visible[:, t])
        xyz = transform(inverse(case.raw_from_scene), motion.xyz_world[rows].astype(float))
        seen = transform(inverse(cameras.world_from_cam[t]), xyz[:, t])
        hits = case.scene.trace(project(seen, cameras.intrinsics[t]), np.full(len(rows), t))
        on_surface = np.abs(hits.depth - seen[:, 2]) < 1e-3 * seen[:, 2]
        assert on_surface.mean() > 0.98  # at a silhouette, float32 may fall to either side
        truth = np.stack([case.scene.position(hits, np.full(len(rows), k)) for k in TIMES], axis=1)
        error = np.linalg.norm(xyz - truth, axis=2)[on_surface]
        assert np.percentile(error, 98) < 1e-2


@pytest.mark.parametrize("key", DATASETS)
def test_finds_nothing_in_the_folder_of_another_dataset(key, tmp_path: Path):
    (tmp_path / "Office" / "Data_easy").mkdir(parents=True)
    (tmp_path / "done.ok").write_text("")
    with pytest.raises(ValueError, match=r"expected .*v?[12].*; found Office/, done\.ok\. Check --raw"):
        DATASETS[key].find(RawFolder(str(tmp_path)))
