"""PointOdyssey, file by file (dataset notes D1): what is read, what is refused; the truth is written by hand."""

import zipfile
from pathlib import Path

import numpy as np
import plane
import pytest
from PIL import Image
from shared_data import SHARED

from pipelines.catalog import Catalog
from pipelines.datasets.point_odyssey import DATASET, UNITS, PointOdyssey
from pipelines.raw.folder import RawFolder
from pipelines.truth.depth_maps import OCCLUDED, VISIBLE, DepthMaps

REAL = SHARED / "real/point_odyssey"
HEIGHT, WIDTH = 24, 40
INTRINSICS = np.array([[30.0, 0, 20], [0, 30, 12], [0, 0, 1]])
BLENDER_FROM_WORLD = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # "R1" of the generator
EVERY_FRAME = np.arange(plane.FRAMES)

# Tracks. Points 0 and 1 are whole; every other one steps into one trap.
STILL, MOVES, INVALID, OUTSIDE, BROKEN_2D, WANDERS, JUMPS, BEHIND = range(8)


def points() -> np.ndarray:
    """(T, 8, 3) in the world."""
    rng = np.random.default_rng(0)
    xyz = np.tile(rng.uniform([-1, -0.5, 3.5], [1, 0.5, 4.5], (8, 3)), (plane.FRAMES, 1, 1))
    xyz[:, MOVES] += 0.1 * EVERY_FRAME[:, None]
    xyz[:, OUTSIDE, 0] += 20
    xyz[1:, WANDERS, 2] += 60  # 3 x 60 in sum, while it moves by few pixels
    xyz[2, JUMPS] = plane.world_from_cam(2)[:3, :3] @ [20, 0, 1] + plane.world_from_cam(2)[:3, 3]  # 600 px away
    xyz[:, BEHIND, 2] = -3
    return xyz


def projections(xyz: np.ndarray) -> np.ndarray:
    cam_from_world = np.stack([np.linalg.inv(plane.world_from_cam(t)) for t in range(plane.FRAMES)])
    cam = np.einsum("tij,tpj->tpi", cam_from_world[:, :3, :3], xyz) + cam_from_world[:, None, :3, 3]
    return cam[..., :2] / cam[..., 2:] * 30 + [20, 12]


def annotation(dtype: type = np.float32) -> dict[str, np.ndarray]:
    xyz = points()
    uv = projections(xyz)
    uv[1, BROKEN_2D] = np.inf, 3
    uv[3, BROKEN_2D] = np.nan
    valids, visibs = np.ones((2, *xyz.shape[:2]))
    valids[1, INVALID] = 0
    visibs[:, OUTSIDE] = 0
    visibs[0, MOVES] = 0
    valids[:, BEHIND] = 0  # yet flagged as visible
    return {
        "trajs_3d": xyz.astype(dtype),
        "trajs_2d": uv.astype(dtype),
        "valids": valids.astype(dtype),
        "visibs": visibs.astype(dtype),
        "intrinsics": np.tile(INTRINSICS, (plane.FRAMES, 1, 1)).astype(dtype),
        "extrinsics": np.stack([np.linalg.inv(plane.world_from_cam(t)) for t in range(plane.FRAMES)]).astype(dtype),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """<raw>/val/gym as in the archives."""
    folder = tmp_path / "raw" / "val" / "gym"
    for kind in ("rgbs", "depths", "normals"):
        (folder / kind).mkdir(parents=True)
    for t in range(plane.FRAMES):
        depth = plane.depth(t, HEIGHT, WIDTH, INTRINSICS)
        normal = BLENDER_FROM_WORLD @ plane.NORMAL
        normals = np.tile(((normal + 1) * 127.5).round().astype(np.uint8), (HEIGHT, WIDTH, 1))
        normals[:, -8:] = 127  # length 0: background
        quality = {"quality": 95, "subsampling": 0}
        Image.fromarray(plane.picture(t, HEIGHT, WIDTH)).save(folder / f"rgbs/rgb_{t:05d}.jpg", **quality)
        Image.fromarray((depth * 65.535).astype(np.uint16)).save(folder / f"depths/depth_{t:05d}.png")
        Image.fromarray(normals).save(folder / f"normals/normal_{t:05d}.jpg", **quality)
    (folder / "rgbs/._rgb_00000.jpg").write_bytes(b"")
    np.savez(folder / "anno.npz", **annotation())
    return folder


def opened(folder: Path) -> PointOdyssey:
    raw = RawFolder(str(folder.parents[1]))
    assert DATASET.find(raw) == ["val/gym"]
    return PointOdyssey(raw, "val/gym")


def save(folder: Path, *without: str, **changes: np.ndarray) -> None:
    arrays = annotation() | changes
    np.savez(folder / "anno.npz", **{key: array for key, array in arrays.items() if key not in without})


def test_reads_what_the_files_say(folder):
    sequence = opened(folder)
    assert len(sequence) == plane.FRAMES
    assert sequence.instance(0) is None
    np.testing.assert_array_equal(sequence.frame_numbers, EVERY_FRAME)
    for t in range(plane.FRAMES):
        np.testing.assert_allclose(sequence.cameras.intrinsics[t], INTRINSICS)  # nothing added
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], plane.world_from_cam(t), atol=1e-6)
        assert np.abs(sequence.image(t).astype(int) - plane.picture(t, HEIGHT, WIDTH)).mean() < 3
        error = plane.depth(t, HEIGHT, WIDTH, INTRINSICS) - sequence.depth(t)
        assert -0.00764 < error.min() < -0.007 and 0.007 < error.max() < 0.00764  # half a step of 15.26 mm to each side
    geometry = sequence.depth(1), sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert np.median(plane.distance(*geometry, centre=0)) > 1.5 * np.median(plane.distance(*geometry, centre=0.5))


def test_holes_and_sky_are_unknown_depth(folder):
    path = folder / "depths/depth_00001.png"
    steps = np.asarray(Image.open(path)).copy()
    steps[0, :3] = [0, 65535, 65534]
    Image.fromarray(steps).save(path)
    np.testing.assert_allclose(opened(folder).depth(1)[0, :3], [np.nan, np.nan, 65534.5 / 65.535], rtol=1e-6)


@pytest.mark.parametrize("stored_sign", [1, -1])
def test_normals_come_from_blenders_world_and_face_the_camera(folder, stored_sign):
    for t in range(plane.FRAMES):
        path = folder / f"normals/normal_{t:05d}.jpg"
        if stored_sign < 0:
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path, quality=95, subsampling=0)
        row, column = np.indices(opened(folder).image_size).reshape(2, -1)
        normal = opened(folder).normal(t, column, row).reshape(*opened(folder).image_size, 3)
        assert np.isnan(normal[:, -4:]).all()
        truth = plane.world_from_cam(t)[:3, :3].T @ plane.NORMAL
        assert truth[2] < 0  # towards the camera
        cosine = normal[:, :-12] @ truth
        assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 3


def test_tracks_are_the_annotated_points(folder):
    frames = np.array([0, 2, 3])
    motion = opened(folder).motion(frames)
    assert motion.xyz_world.dtype == np.float32 and motion.visible.dtype == bool
    assert motion.xyz_world.shape == (6, 3, 3)  # what wanders and what jumps are left out
    np.testing.assert_allclose(motion.xyz_world[MOVES], points()[frames, MOVES], atol=1e-6)
    np.testing.assert_array_equal(motion.visible[[STILL, MOVES, OUTSIDE]], [[1, 1, 1], [0, 1, 1], [0, 0, 0]])
    assert np.isfinite(motion.xyz_world[OUTSIDE]).all()  # annotated, though not visible


def test_what_is_not_annotated_is_unknown_and_not_visible(folder):
    motion = opened(folder).motion(EVERY_FRAME)
    known = np.isfinite(motion.xyz_world).all(axis=2)
    np.testing.assert_array_equal(known[INVALID], [1, 0, 1, 1])
    np.testing.assert_array_equal(known[BROKEN_2D], [1, 0, 1, 0])  # trajs_2d is inf, then NaN
    assert not known[-1].any()  # BEHIND is flagged as visible, but not valid
    assert not motion.visible[~known].any()
    assert motion.visible[[INVALID, BROKEN_2D]][known[[INVALID, BROKEN_2D]]].all()


def test_points_that_are_not_finite_are_unknown(folder):
    xyz = annotation()["trajs_3d"]
    xyz[1, STILL, 0], xyz[2, STILL, 1] = np.inf, np.nan
    save(folder, trajs_3d=xyz)
    motion = opened(folder).motion(EVERY_FRAME)
    np.testing.assert_array_equal(np.isfinite(motion.xyz_world[STILL]).all(axis=1), [1, 0, 0, 1])
    np.testing.assert_array_equal(motion.visible[STILL], [1, 0, 0, 1])


def test_only_the_frames_asked_for_decide_which_tracks_are_whole(folder):
    assert len(opened(folder).motion(np.array([0, 1])).xyz_world) == 8  # WANDERS is 60 away, JUMPS has not jumped
    assert len(opened(folder).motion(np.array([0, 1, 3])).xyz_world) == 7  # WANDERS is 120 away


def test_trajs_2d_decides_nothing_but_what_is_broken(folder):
    snapped = annotation()["trajs_2d"] + np.float32(700) * (EVERY_FRAME % 2)[:, None, None]
    save(folder, trajs_2d=snapped)
    np.testing.assert_allclose(opened(folder).motion(EVERY_FRAME).xyz_world[:2], points()[:, :2].swapaxes(0, 1), 1e-6)


def test_visibilities_of_v1_1_have_three_values(folder):
    flags = np.ones((plane.FRAMES, 8), np.float16)
    flags[:, BEHIND], flags[:, OUTSIDE] = 2, 0
    save(folder, "valids", "visibs", visibilities=flags)
    motion = opened(folder).motion(EVERY_FRAME)
    assert np.isnan(motion.xyz_world[-1]).all() and not motion.visible[-1].any()  # 2 is invalid, not visible
    assert np.isfinite(motion.xyz_world[OUTSIDE]).all() and not motion.visible[OUTSIDE].any()
    assert motion.visible[STILL].all()


def test_half_precision_is_used_in_full(folder):
    xyz = points()
    xyz[:, STILL] = [800.0, 30.0, 900.0]  # squares overflow float16
    arrays = annotation(np.float16) | {"trajs_3d": xyz.astype(np.float16)}
    np.savez(folder / "anno.npz", **arrays)
    sequence = opened(folder)
    rotation = sequence.cameras.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (4, 1, 1)), atol=1e-12)
    truth = np.stack([plane.world_from_cam(t) for t in range(plane.FRAMES)])
    np.testing.assert_allclose(sequence.cameras.world_from_cam, truth, atol=2e-3)
    motion = sequence.motion(EVERY_FRAME)
    assert motion.xyz_world.dtype == np.float32
    np.testing.assert_allclose(motion.xyz_world[STILL], [[800, 30, 900]] * 4)
    np.testing.assert_allclose(motion.xyz_world[MOVES], points()[:, MOVES], atol=0.02)


def test_a_frame_without_extrinsics_has_an_unknown_pose(folder):
    extrinsics = annotation()["extrinsics"]
    extrinsics[2, 0, 3] = np.inf
    save(folder, extrinsics=extrinsics)
    sequence = opened(folder)
    np.testing.assert_array_equal(sequence.cameras.known, [True, True, False, True])
    assert len(sequence.motion(EVERY_FRAME).xyz_world)


@pytest.mark.parametrize("saved", ["None", "[None]", "[]", "NaN", "absent"])
def test_a_sequence_without_3d_has_no_tracks(folder, saved):
    values = {"None": np.array(None, dtype=object), "NaN": np.array(np.nan)}
    values |= {"[None]": np.array([None], dtype=object), "[]": np.array([], dtype=object)}
    if saved == "absent":
        save(folder, "trajs_3d", "trajs_2d", "valids", "visibs")
    else:
        save(folder, trajs_3d=values[saved])
    sequence = opened(folder)
    motion = sequence.motion(np.array([0, 2]))
    assert motion.xyz_world.shape == (0, 2, 3) and motion.visible.shape == (0, 2)
    (note,) = sequence.notes
    assert note.startswith("no tracks: trajs_3d of val/gym/anno.npz ")


def corrupt(folder: Path) -> None:
    path = folder / "anno.npz"
    path.write_bytes(path.read_bytes()[:-300])


def damage_extrinsics(folder: Path) -> None:
    """Compressed data that does not inflate, in a zip whose directory is whole."""
    np.savez_compressed(folder / "anno.npz", **annotation())
    data = bytearray((folder / "anno.npz").read_bytes())
    with zipfile.ZipFile(folder / "anno.npz") as archive:
        start = archive.getinfo("extrinsics.npy").header_offset + 60
    data[start : start + 100] = b"\xff" * 100
    (folder / "anno.npz").write_bytes(bytes(data))


def not_rotations() -> np.ndarray:
    return annotation()["extrinsics"] * np.float32([2, 2, 2, 1])[:, None]


REFUSED = {
    "pickled tracks": (
        lambda folder: save(folder, trajs_3d=np.array([None, {}], dtype=object)),
        r"trajs_3d .*pickled .*refused",
    ),
    "corrupt zip": (corrupt, r"anno\.npz .*corrupt or truncated"),
    "damaged data": (damage_extrinsics, r"anno\.npz .*corrupt or truncated"),
    "no extrinsics": (lambda folder: save(folder, "extrinsics"), r"anno\.npz .*no array 'extrinsics'"),
    "pickled cameras": (
        lambda folder: save(folder, intrinsics=np.array([None, None])),
        r"intrinsics .*pickled .*refused",
    ),
    "fewer extrinsics": (
        lambda folder: save(folder, extrinsics=annotation()["extrinsics"][:3]),
        r"intrinsics \(4, 3, 3\) and extrinsics \(3, 4, 4\)",
    ),
    "no rotations": (lambda folder: save(folder, extrinsics=not_rotations()), r"extrinsics of .*hold no rotations"),
    "fewer tracks rows": (
        lambda folder: save(folder, trajs_3d=annotation()["trajs_3d"][:3]),
        r"trajs_3d of .*\(3, 8, 3\).*\(4, 8, 3\)",
    ),
    "flags of other points": (
        lambda folder: save(folder, visibs=annotation()["visibs"][:, :5]),
        r"visibs of .*\(4, 5\).*\(4, 8\)",
    ),
    "no flags": (lambda folder: save(folder, "valids", "visibs"), r"valids of .*missing"),
    "missing depth": (lambda folder: (folder / "depths/depth_00001.png").unlink(), r"missing file .*depth_00001\.png"),
    "missing rgb": (lambda folder: (folder / "rgbs/rgb_00003.jpg").unlink(), r"lists 4 .*has 3.*missing .*rgb_00003"),
    "one rgb too many": (
        lambda folder: (folder / "rgbs/rgb_00004.jpg").write_bytes(b""),
        r"lists 4 frames but .*has 5.*rgb_00004\.jpg",
    ),
    "missing normals": (lambda folder: (folder / "normals/normal_00000.jpg").unlink(), r"missing .*normal_00000\.jpg"),
    "v1.0": (lambda folder: (folder / "anno.npz").rename(folder / "annot.npz"), r"v1\.0.*download v1\.2"),
    "v1.0, other name": (
        lambda folder: (folder / "anno.npz").rename(folder / "annotations.npz"),
        r"v1\.0.*download v1\.2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(folder, case):
    damage, message = REFUSED[case]
    damage(folder)
    with pytest.raises(ValueError, match=message):
        opened(folder)


def test_refuses_maps_of_another_size(folder):
    sequence = opened(folder)
    Image.new("RGB", (10, 6)).save(folder / "rgbs/rgb_00001.jpg")
    Image.new("RGB", (10, 6)).save(folder / "normals/normal_00001.jpg")
    Image.fromarray(np.ones((6, 10), np.uint16)).save(folder / "depths/depth_00001.png")
    first = np.zeros(1, int)

    def normals(t: int) -> np.ndarray:
        return sequence.normal(t, first, first)

    for read, name in ((sequence.image, "rgb"), (sequence.depth, "depth"), (normals, "normal")):
        with pytest.raises(ValueError, match=rf"{name}_00001\..* is \(6, 10\).*\(24, 40\)"):
            read(1)


def test_has_one_name_from_every_level(folder):
    assert DATASET.scene_of("val/gym") == "val"
    for level in (folder.parents[1], folder.parent, folder):
        raw = RawFolder(str(level))
        assert DATASET.find(raw) == ["val/gym"]
        assert len(PointOdyssey(raw, "val/gym")) == plane.FRAMES


def test_refuses_other_folders(tmp_path):
    (tmp_path / "Scene01").mkdir()
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected PointOdyssey v1\.2.*anno\.npz.*found Scene01/, readme\.txt"):
        DATASET.find(RawFolder(str(tmp_path)))


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    """A clip of the generator: its depth as we read it, and its tracks in the axes of the cameras."""
    if not REAL.is_dir():
        pytest.skip("the real clip of PointOdyssey's generator is not here: shared/data/real")
    stored = np.round(np.load(REAL / "deps.npz")["deps"][:, 0].astype(float) * 65.535).astype(np.uint16)
    intrinsics = np.load(REAL / "intris.npz")["intris"][0].astype(float)
    track = np.load(REAL / "track.npz")["track_g"].astype(float)
    uv, z = track[..., :2], track[..., 2]
    focal, centre = intrinsics[:, None, [0, 1], [0, 1]], intrinsics[:, None, :2, 2]
    xyz_cam = np.concatenate([(uv - centre) / focal * z[..., None], z[..., None]], axis=-1)
    cam_from_world = np.load(REAL / "intris.npz")["extris"][0].astype(float)
    world = np.einsum(
        "tij,tnj->tni", np.linalg.inv(cam_from_world[:, :3, :3]), xyz_cam - cam_from_world[:, None, :3, 3]
    )
    inside = ((uv >= 0) & (uv < [960, 540])).all(axis=-1)
    maps = DepthMaps(
        depth=UNITS[stored],
        instance=None,
        intrinsics=intrinsics,
        tolerance=Catalog.load("point_odyssey").depth_tolerance,
    )
    times = np.repeat(np.arange(len(uv)), uv.shape[1])
    _, seen = maps.look(xyz_cam.reshape(-1, 3), times, np.full(len(times), -2))
    nearest = UNITS[stored][times, *np.floor(uv[..., ::-1].reshape(-1, 2)).astype(int).clip(0, [539, 959]).T]
    return {
        "behind": z - nearest.reshape(z.shape),
        "static": np.abs(world - np.median(world, axis=0)).max(axis=(0, 2)) < 0.05,
        "visible": (track[..., 3] > 0.5) & (track[..., 4] > 0.5) & inside,
        "outcome": seen.reshape(z.shape),
    }


def test_real_depth_has_half_a_step_added(real):
    on_surface = real["visible"] & real["static"] & (np.abs(real["behind"]) < 0.015)
    assert on_surface.sum() > 2000
    assert abs(np.median(real["behind"][on_surface])) < 0.002  # 15 mm are a step; without the half it is 8 mm off


def test_real_tracks_behind_the_surface_are_left_out(real):
    """What catalogs/point_odyssey.yaml says of its tolerance."""
    visible, static, kept = real["visible"], real["static"], real["outcome"] == VISIBLE
    behind = np.nanmedian(np.where(visible, real["behind"], np.nan), axis=0) > 0.02
    share = {
        name: kept[visible & tracks].mean()
        for name, tracks in {"behind": static & behind, "on it": static & ~behind, "moves": ~static}.items()
    }
    assert (static & behind).sum() == 62 and static.sum() > 145
    assert share["behind"] < 0.1 and share["on it"] > 0.98 and share["moves"] > 0.73
    occluded = real["outcome"] == OCCLUDED
    taken = visible & kept.any(axis=0)
    assert occluded[taken & static & ~behind].mean() < 0.001
