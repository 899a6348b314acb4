"""The contract of all adapters: an analytic scene, written in each official layout, comes back as it was.

How single files are read and refused is tested in one file per dataset.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS
from pipelines.geometry import inverse, project, transform, unproject
from pipelines.raw_folder import RawFolder
from pipelines.sequence import RigidInstances, Sequence, Static, Tracks
from pipelines.synthesize.job import ALL, scene_for
from pipelines.synthesize.scene import Rendering, Scene

FRAMES = 9  # long enough for tumbling objects and for gaps in annotations
INDEX = 3
TIMES = np.arange(FRAMES)


# Layouts beside the one that `synthesize DATASET` writes: what is written, and how.
VARIANTS = {
    "scannet, python export": ("scannet_exported", {"tool": "python"}),
    "scannet, sens tool": ("scannet_exported", {"tool": "sens"}),
    "scannet, frames_25k": ("scannet_exported", {"tool": "frames_25k"}),
    "scannet, iphone, lz4": ("scannet_iphone", {"depth": "lz4"}),
    "scannet, iphone, deflate": ("scannet_iphone", {"depth": "deflate"}),
    "scannet, iphone, stream": ("scannet_iphone", {"depth": "stream"}),
    "tartanair, V2": ("tartanair_v2", {}),
}
CASES = {key: (key, {}) for key in DATASETS} | VARIANTS


@dataclass(frozen=True)
class Case:
    key: str
    written: str
    """Name of the layout."""
    scene: Scene
    raw: RawFolder
    sequence: Sequence
    catalog: Catalog

    @property
    def layout(self) -> ModuleType:
        return ALL[self.written]

    @property
    def units(self) -> float:
        """Of the raw world per metre of the scene."""
        return getattr(self.layout, "units_per_metre", lambda scene: 1.0)(self.scene)

    @property
    def raw_from_scene(self) -> np.ndarray:
        """The dataset's world from the scene's: axes and unit."""
        return np.diag([*[self.units] * 3, 1]) @ self.layout.RAW_FROM_SCENE

    @property
    def raw_world_from_cam(self) -> np.ndarray:
        """A camera's axes keep their length whatever the unit."""
        return self.raw_from_scene @ self.scene.cameras.world_from_cam @ np.diag([*[1 / self.units] * 3, 1])

    @property
    def known(self) -> np.ndarray:
        """Frames whose pose the files tell."""
        return ~np.isin(TIMES, getattr(self.layout, "unknown_poses", lambda num_frames: [])(FRAMES))

    def rendered(self, t: int) -> Rendering:
        return _rendered(self.written, t)


@cache
def _rendered(key: str, t: int) -> Rendering:
    return scene_for(key, 0, INDEX, frames=FRAMES, size="small").render(t, supersample=1)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> Case:
    key = request.param.split(",")[0]
    written, options = CASES[request.param]
    root = tmp_path_factory.mktemp(key)
    scene = scene_for(written, 0, INDEX, frames=FRAMES, size="small")
    ALL[written].write(scene, root / ALL[written].folder(INDEX), **options)
    raw = RawFolder(str(root))
    name = DATASETS[key].find(raw)[0]
    return Case(key, written, scene, raw, DATASETS[key](raw, name), Catalog.load(key))


def test_names_are_folders_and_scenes_are_shared(case):
    names = DATASETS[case.key].find(case.raw)
    assert names == sorted(names) and case.sequence.name == names[0]
    folder = case.layout.folder(INDEX)
    assert all(name.startswith(folder) for name in names)
    scene = DATASETS[case.key].scene_of(names[0])
    assert any(part.lower().startswith(scene.lower()) for part in folder.split("/"))
    assert case.catalog.split_of(DATASETS[case.key].scene_of(names[0])) == "train"


def test_cameras(case):
    cameras = case.sequence.cameras
    assert len(case.sequence) == FRAMES
    numbers = getattr(case.layout, "frame_numbers", np.arange)(FRAMES)
    np.testing.assert_array_equal(case.sequence.frame_numbers, numbers)
    np.testing.assert_array_equal(cameras.known, case.known)
    intrinsics = case.scene.cameras.intrinsics[case.known]
    np.testing.assert_allclose(cameras.intrinsics[case.known], intrinsics, rtol=1e-6)
    error = np.abs(cameras.world_from_cam - case.raw_world_from_cam)[case.known]
    assert error[:, :3, :3].max() < 1e-4 and error[:, :, 3].max() < 1e-4 * case.units


@pytest.mark.parametrize("t", [0, FRAMES - 1])
def test_frames(case, t):
    truth = case.rendered(t)
    image, depth = case.sequence.image(t), case.sequence.depth(t)
    assert image.dtype == np.uint8 and image.shape == truth.image.shape == (*case.sequence.image_size, 3)
    assert np.median(np.abs(image.astype(int) - truth.image)) <= 6
    assert depth.dtype == np.float32
    known = np.isfinite(truth.depth)
    np.testing.assert_array_equal(np.isfinite(depth), known)
    step = case.catalog.depth_tolerance.step_of(case.units * truth.depth[known])
    assert (np.abs(depth - case.units * truth.depth)[known] <= 1.01 * step).all()
    instance = case.sequence.instance(t)
    if case.catalog.motion == "rigid_instances":
        assert instance.dtype == np.int32
        np.testing.assert_array_equal(instance, truth.instance)
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
        assert normal.shape == (truth.depth.size, 3) and np.isnan(normal).all()
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
        tolerance = 2 * case.catalog.depth_tolerance.step_of(depth) + 1e-4 * case.units
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
            moved += (np.linalg.norm(there - world, axis=1) > 0.1 * case.units).sum()
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
