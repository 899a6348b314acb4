"""The contract of all adapters: an analytic scene, written in each official layout, comes back as it was.

How single files are read and refused is tested in one file per dataset.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from odd_names import ODD

from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS
from pipelines.geometry import inverse, project, transform, unproject
from pipelines.raw.folder import RawFolder
from pipelines.sequence import RigidInstances, Sequence, Static, Tracks, Unknown
from pipelines.synthesize import mvs_synth
from pipelines.synthesize.job import ALL, scene_for
from pipelines.synthesize.scene import Rendering, Scene
from pipelines.truth.ground_truth import GroundTruth

FRAMES = 9  # long enough for tumbling objects and for gaps in annotations
TIMES = np.arange(FRAMES)
HOLES = {"co3d": 0.03, "dynamic_replica": 0.001}  # largest share of surface whose depth the files do not tell


@dataclass(frozen=True)
class Variant:
    """A form in which a dataset comes."""

    key: str
    layout: str
    """Name of the writer."""
    index: int = 3
    eye: int = 0
    write: Callable[[Scene, Path], None] | None = None
    """If not as `synthesize` writes it."""
    shown: Callable[[Scene], Scene] = lambda scene: scene

    @property
    def module(self) -> ModuleType:
        return ALL[self.layout]

    @property
    def folder(self) -> str:
        return self.module.folder(self.index)


def layout(key: str, name: str, **options: str) -> Variant:
    return Variant(key, name, write=partial(ALL[name].write, **options))


VARIANTS = {
    **{key: Variant(key, key) for key in DATASETS},
    # Portrait, landscape and odd sizes, both forms of intrinsics, scales of depth.
    **{f"co3d {index}": Variant("co3d", "co3d", index) for index in (4, 5, 6, 7, 8)},
    "dynamic_replica right": Variant("dynamic_replica", "dynamic_replica", eye=1),
    "kubric tfrecord": Variant("kubric", "kubric_tfrecord"),
    "mvs_synth right-handed": layout("mvs_synth", "mvs_synth", left_handed=False),
    "mvs_synth old": Variant("mvs_synth", "mvs_synth", shown=mvs_synth.squeezed),
    "scannet python export": layout("scannet", "scannet_exported", tool="python"),
    "scannet sens tool": layout("scannet", "scannet_exported", tool="sens"),
    "scannet frames_25k": layout("scannet", "scannet_exported", tool="frames_25k"),
    "scannet iphone lz4": layout("scannet", "scannet_iphone", depth="lz4"),
    "scannet iphone deflate": layout("scannet", "scannet_iphone", depth="deflate"),
    "scannet iphone stream": layout("scannet", "scannet_iphone", depth="stream"),
    "tartanair V2": Variant("tartanair", "tartanair_v2"),
}


@dataclass(frozen=True)
class Case:
    variant: Variant
    scene: Scene
    raw: RawFolder
    sequence: Sequence
    catalog: Catalog

    @property
    def key(self) -> str:
        return self.variant.key

    @property
    def units(self) -> float:
        """Of the raw world per metre of the scene."""
        return getattr(self.variant.module, "units_per_metre", lambda scene: 1.0)(self.scene)

    @property
    def raw_from_scene(self) -> np.ndarray:
        """The dataset's world from the scene's: axes and unit."""
        return np.diag([*[self.units] * 3, 1]) @ self.variant.module.RAW_FROM_SCENE

    @property
    def raw_world_from_cam(self) -> np.ndarray:
        """A camera's axes keep their length whatever the unit."""
        return self.raw_from_scene @ self.scene.cameras.world_from_cam @ np.diag([*[1 / self.units] * 3, 1])

    @property
    def known(self) -> np.ndarray:
        """Frames whose pose the files tell."""
        return ~np.isin(TIMES, getattr(self.variant.module, "unknown_poses", lambda num_frames: [])(FRAMES))

    def rendered(self, t: int) -> Rendering:
        return _rendered(self.variant, t)


@cache
def _scene(variant: Variant) -> Scene:
    scene = variant.shown(scene_for(variant.layout, 0, variant.index, frames=FRAMES, size="small"))
    return variant.module.right_eye(scene) if variant.eye else scene


@cache
def _rendered(variant: Variant, t: int) -> Rendering:
    return _scene(variant).render(t, supersample=1)


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def case(request, tmp_path_factory) -> Case:
    variant = request.param
    root = tmp_path_factory.mktemp(variant.key) / ODD
    write = variant.write or variant.module.write
    target = root / variant.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    write(variant.shown(scene_for(variant.layout, 0, variant.index, frames=FRAMES, size="small")), target)
    raw = RawFolder(str(root))
    name = DATASETS[variant.key].find(raw)[variant.eye]
    return Case(variant, _scene(variant), raw, DATASETS[variant.key].open(raw, name), Catalog.load(variant.key))


def test_names_are_folders_and_scenes_are_shared(case):
    names = DATASETS[case.key].find(case.raw)
    assert names == sorted(names) and case.sequence.name == names[case.variant.eye]
    folder = case.variant.folder
    assert all(name.startswith(folder) for name in names)
    scene = DATASETS[case.key].scene_of(names[0])
    assert any(part.lower().startswith(scene.lower()) for part in re.split(r"[/.-]", folder))
    assert case.catalog.split_of(scene) == "train"


def test_cameras(case):
    cameras = case.sequence.cameras
    assert len(case.sequence) == FRAMES
    numbers = getattr(case.variant.module, "frame_numbers", np.arange)(FRAMES)
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
    known, told = np.isfinite(truth.depth), np.isfinite(depth)
    assert not np.isinf(depth).any()
    assert not (told & ~known).any() and (known & ~told).mean() <= HOLES.get(case.key, 0)
    step = case.catalog.depth_tolerance.step_of(case.units * truth.depth[told])
    assert (np.abs(depth - case.units * truth.depth)[told] <= 1.01 * step).all()
    instance = case.sequence.instance(t)
    if case.catalog.motion == "rigid_instances":
        assert instance.dtype == np.int32
        np.testing.assert_array_equal(instance == -1, truth.instance == -1)
        pairs = np.unique([instance.ravel(), truth.instance.ravel()], axis=1)  # whatever the dataset's numbers are
        assert [len(np.unique(row)) for row in pairs] == [pairs.shape[1]] * 2
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
    kinds = {"static": Static, "rigid_instances": RigidInstances, "tracks": Tracks, "unknown": Unknown}
    assert isinstance(motion, kinds[case.catalog.motion])
    if isinstance(motion, Unknown):
        check_unknown(case, motion)
        return
    if isinstance(motion, RigidInstances):  # or instances could be taken for frames
        assert len(motion.world_from_instance) != FRAMES
    if isinstance(motion, Tracks):
        if case.variant.eye:
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
def test_archives_may_lie_a_level_deeper(key, tmp_path: Path):
    scene = scene_for(key, 0, 3, frames=2, size="small")
    ALL[key].write(scene, tmp_path / "extracted" / ALL[key].folder(3))
    raw = RawFolder(str(tmp_path))
    name = DATASETS[key].find(raw)[0]
    sequence = DATASETS[key].open(raw, name)
    np.testing.assert_allclose(sequence.cameras.intrinsics, scene.cameras.intrinsics, rtol=1e-6)
    assert sequence.image(1).shape[:2] == sequence.depth(1).shape == sequence.image_size
    assert Catalog.load(key).split_of(DATASETS[key].scene_of(name)) == "train"


@pytest.mark.parametrize("key", DATASETS)
def test_finds_nothing_in_the_folder_of_another_dataset(key, tmp_path: Path):
    (tmp_path / "Office" / "Data_easy").mkdir(parents=True)
    (tmp_path / "done.ok").write_text("")
    with pytest.raises(ValueError, match=r"expected .*v?[12].*; found Office/, done\.ok\. Check --raw"):
        DATASETS[key].find(RawFolder(str(tmp_path)))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("blended_mvs", "BlendedMVS/validation"),
        ("blended_mvs", "5b7a3890fc8fcf6781e2593a_copy"),
        ("kubric", "movi_f-held_out.tfrecord-00000-of-00512/3"),
        ("scannet", "scans_test/office"),
        ("scannet", "my_scene0707_00"),
        ("scannet", "office/iphone"),
        ("tartanair", "carwelding/P000"),
    ],
)
def test_no_scene_is_guessed_from_a_name_that_does_not_tell_it(key, name):
    """Else "*" would put it into training, whatever it shows."""
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        DATASETS[key].scene_of(name)


def test_names_of_datasets_cost_nothing_until_one_is_asked_for():
    script = "import sys, pipelines.datasets as d; print(list(d.DATASETS), {'cv2', 'av', 'OpenEXR'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{list(DATASETS)} set()"
    assert all(DATASETS[key].key == key and Catalog.load(key).key == key for key in DATASETS)
    with pytest.raises(KeyError):
        DATASETS["os"]
