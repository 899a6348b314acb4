"""The contract of all adapters: an analytic scene, written in each official layout, comes back as it was.

How single files are read and refused is tested in one file per dataset.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS
from pipelines.geometry import inverse, project, transform, unproject
from pipelines.raw_folder import RawFolder
from pipelines.sequence import RigidInstances, Sequence, Static, Tracks
from pipelines.synthesize.job import LAYOUTS, scene_for
from pipelines.synthesize.scene import Rendering, Scene

FRAMES = 9  # long enough for tumbling objects and for gaps in annotations
INDEX = 3
TIMES = np.arange(FRAMES)


# Layouts come in variants: other scenes (portrait, landscape and odd sizes, sky and ceiling, and for CO3D both forms of
# intrinsics and scales of depth), other eyes, and archives that were extracted a level deeper than expected.
VARIANTS = [(key, INDEX, 0, "") for key in DATASETS]
VARIANTS += [("co3d", index, 0, "") for index in (4, 5, 6, 7, 8)]
VARIANTS += [("co3d", 4, 0, "co3d_v2"), ("dynamic_replica", INDEX, 1, "dynamic_replica_v2")]
HOLES = {"co3d": 0.03, "dynamic_replica": 0.001}  # largest share of surface whose depth the files do not tell


@dataclass(frozen=True)
class Case:
    key: str
    outer: str
    """Folder that the archives were extracted into, below the raw one."""
    index: int
    eye: int
    scene: Scene
    raw: RawFolder
    sequence: Sequence
    catalog: Catalog

    @property
    def raw_from_scene(self) -> np.ndarray:
        """The dataset's world axes from the scene's."""
        return LAYOUTS[self.key].RAW_FROM_SCENE

    @property
    def folder(self) -> str:
        return f"{self.outer}/{LAYOUTS[self.key].folder(self.index)}".lstrip("/")

    def rendered(self, t: int) -> Rendering:
        return _rendered(self.key, self.index, self.eye, t)


@cache
def _scene(key: str, index: int, eye: int) -> Scene:
    scene = scene_for(key, 0, index, frames=FRAMES, size="small")
    return LAYOUTS[key].right_eye(scene) if eye else scene


@cache
def _rendered(key: str, index: int, eye: int, t: int) -> Rendering:
    return _scene(key, index, eye).render(t, supersample=1)


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: "-".join(map(str, variant)))
def case(request, tmp_path_factory) -> Case:
    key, index, eye, outer = request.param
    root = tmp_path_factory.mktemp(key)
    LAYOUTS[key].write(_scene(key, index, 0), root / outer / LAYOUTS[key].folder(index))
    raw = RawFolder(str(root))
    name = DATASETS[key].find(raw)[eye]
    return Case(key, outer, index, eye, _scene(key, index, eye), raw, DATASETS[key](raw, name), Catalog.load(key))


def test_names_are_folders_and_scenes_are_shared(case):
    names = DATASETS[case.key].find(case.raw)
    assert names == sorted(names) and case.sequence.name == names[case.eye]
    assert all(name.startswith(case.folder) for name in names)
    assert DATASETS[case.key].scene_of(names[0]) in case.folder.split("/")
    assert case.catalog.split_of(DATASETS[case.key].scene_of(names[0])) == "train"


def test_cameras(case):
    cameras = case.sequence.cameras
    assert len(case.sequence) == FRAMES
    np.testing.assert_array_equal(case.sequence.frame_numbers - case.sequence.frame_numbers[0], TIMES)
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
    told = np.isfinite(depth)
    assert not (told & ~known).any() and (known & ~told).mean() <= HOLES.get(case.key, 0)
    step = case.catalog.depth_tolerance.step_of(truth.depth[told])
    assert (np.abs(depth - truth.depth)[told] <= 1.01 * step).all()
    instance = case.sequence.instance(t)
    if case.catalog.motion == "rigid_instances":
        assert instance.dtype == np.int32
        np.testing.assert_array_equal(instance, truth.instance)
    elif case.key == "dynamic_replica":  # what moves, and the static background
        moves = (truth.instance >= 0) & case.scene.moving[truth.instance]
        np.testing.assert_array_equal(instance >= 0, moves)
        assert moves.any() and (instance[~moves] == -1).all()
    else:
        assert instance is None


@pytest.mark.parametrize("t", [0, FRAMES - 1])
def test_normals(case, t):
    truth = case.rendered(t)
    row, column = np.indices(truth.depth.shape).reshape(2, -1)
    normal = case.sequence.normal(t, column, row)
    if case.catalog.normals == "depth":
        assert normal is None
        return
    if case.catalog.normals == "none":
        assert np.isnan(normal).all()
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
    assert isinstance(
        motion, {"static": Static, "rigid_instances": RigidInstances, "tracks": Tracks}[case.catalog.motion]
    )
    if isinstance(motion, Tracks):
        if case.eye:
            assert len(motion.xyz_world) == 0 and case.sequence.instance(0) is not None
        else:
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
