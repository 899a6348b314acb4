"""MVS-Synth, file by file (dataset notes D9): what is read, mended and refused, against a plane written by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import OpenEXR
import plane
import pytest
from odd_names import ODD, upload
from PIL import Image

from pipelines.catalog import Catalog
from pipelines.conversion import Conversion, plan_sequence
from pipelines.datasets.mvs_synth import DATASET, MvsSynth
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Unknown
from pipelines.store.layout import StoreSettings

HEIGHT, WIDTH = 36, 64  # a thirtieth of 1920 x 1080
FOCAL = 1157.84 / 30
INTRINSICS = np.array([[FOCAL, 0, 32], [0, FOCAL, 18], [0, 0, 1]])
MIRROR = np.diag([1.0, 1, -1, 1])


def write_exr(path: Path, **channels: np.ndarray) -> None:
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, channels).write(str(path))


def half(depth: np.ndarray) -> np.ndarray:
    return depth.astype(np.float16)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """GTAV_540 with one sequence, in a left-handed world."""
    folder = tmp_path / "GTAV_540/0017"
    for kind in ("images", "depths", "poses"):
        (folder / kind).mkdir(parents=True)
    for t in range(plane.FRAMES):
        Image.fromarray(plane.picture(t, HEIGHT, WIDTH)).save(folder / f"images/{t:04d}.png")
        write_exr(folder / f"depths/{t:04d}.exr", Y=half(plane.depth(t, HEIGHT, WIDTH, INTRINSICS)))
        extrinsic = np.linalg.inv(MIRROR @ plane.world_from_cam(t))
        assert np.linalg.det(extrinsic[:3, :3]) < 0
        pose = {"extrinsic": extrinsic.tolist(), "f_x": FOCAL, "f_y": FOCAL, "c_x": 32.0, "c_y": 18.0}
        (folder / f"poses/{t:04d}.json").write_text(json.dumps(pose))
    (tmp_path / "GTAV_540/num_images.json").write_text(json.dumps([100] * 17 + [plane.FRAMES]))
    return tmp_path


def opened(raw: Path) -> MvsSynth:
    return MvsSynth(RawFolder(str(raw)), "GTAV_540/0017")


def edit_poses(raw: Path, *frames: int, **changes) -> None:
    for t in frames or range(plane.FRAMES):
        path = raw / f"GTAV_540/0017/poses/{t:04d}.json"
        pose = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in pose.items() if value is not None}))


def test_reads_what_the_files_say(raw):
    sequence = opened(raw)
    assert len(sequence) == plane.FRAMES and sequence.image_size == (HEIGHT, WIDTH) and sequence.notes == ()
    np.testing.assert_array_equal(sequence.frame_numbers, range(plane.FRAMES))
    np.testing.assert_allclose(sequence.cameras.intrinsics, np.tile(INTRINSICS, (plane.FRAMES, 1, 1)))
    assert sequence.motion(np.arange(2)) == Unknown()
    assert sequence.normal(0, np.arange(2), np.arange(2)) is None and sequence.instance(0) is None
    for t in range(plane.FRAMES):
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], plane.world_from_cam(t), atol=1e-12)
        np.testing.assert_array_equal(sequence.image(t), plane.picture(t, HEIGHT, WIDTH))
        depth = sequence.depth(t)
        assert depth.dtype == np.float32
        np.testing.assert_allclose(depth, plane.depth(t, HEIGHT, WIDTH, INTRINSICS), rtol=2**-11)
    geometry = sequence.depth(1), sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert plane.distance(*geometry, centre=0.5).max() < 2**-11
    assert np.median(plane.distance(*geometry, centre=0)) > 2 * 2**-11


def test_the_world_is_reflected_only_where_it_is_left_handed(raw):
    right = [np.linalg.inv(plane.world_from_cam(t)) for t in range(plane.FRAMES)]
    for t, extrinsic in enumerate(right):
        edit_poses(raw, t, extrinsic=extrinsic.tolist())
    np.testing.assert_allclose(opened(raw).cameras.world_from_cam, np.linalg.inv(right), atol=1e-12)
    edit_poses(raw, 2, extrinsic=(right[2] @ MIRROR).tolist())
    with pytest.raises(ValueError, match=r"1 of 4 have det < 0; it must be all or none"):
        opened(raw)


def test_cameras_see_the_same_after_the_reflection(raw):
    """A point where raw pose and raw world put it projects to where its reflection projects with ours."""
    sequence = opened(raw)
    for t in range(plane.FRAMES):
        extrinsic = np.array(json.loads((raw / f"GTAV_540/0017/poses/{t:04d}.json").read_text())["extrinsic"])
        points = np.random.default_rng(t).uniform(-5, 5, (20, 4)) * [1, 1, 1, 0] + [0, 0, 0, 1]
        ours = np.linalg.inv(sequence.cameras.world_from_cam[t]) @ MIRROR @ points.T
        np.testing.assert_allclose(ours, extrinsic @ points.T, atol=1e-9)


def test_sky_holes_and_what_is_far_are_unknown(raw):
    depth = half(plane.depth(1, HEIGHT, WIDTH, INTRINSICS))
    depth[0, :7] = [np.inf, 0, -1, np.nan, 1000, 65504, 999.5]
    write_exr(raw / "GTAV_540/0017/depths/0001.exr", Y=depth)
    read = opened(raw).depth(1)
    assert np.isnan(read[0, :6]).all() and read[0, 6] == 999.5
    assert np.isfinite(read).sum() == read.size - 6


def test_float_depth_is_read_too(raw):
    depth = plane.depth(1, HEIGHT, WIDTH, INTRINSICS).astype(np.float32)
    write_exr(raw / "GTAV_540/0017/depths/0001.exr", Y=depth)
    np.testing.assert_array_equal(opened(raw).depth(1), depth)


def squeeze(raw: Path, *, height: int, width: int) -> None:
    """The first image, which says how large all are."""
    Image.new("RGB", (width, height)).save(raw / "GTAV_540/0017/images/0000.png")


# Of images (H, W): f_x, f_y, c_x, c_y of the files, what f_x and c_x are then, and whether that is a repair.
RELEASES = {
    "1080": ((1080, 1920), (1157.84, 1157.84, 960, 540), 1157.84, 960, False),
    "540 of today": ((540, 960), (579, 579, 480, 270), 579, 480, False),
    "old 540": ((540, 810), (579, 579, 405, 270), 579 * 0.84375, 405, True),
    "old 540 with the centre of the wide images": ((540, 810), (579, 579, 480, 270), 579 * 0.84375, 405, True),
    "old 540, only its centre wrong": ((540, 810), (488.53125, 579, 480, 270), 488.53125, 405, True),
    "old 540 that somebody has mended": ((540, 810), (488.53125, 579, 405, 270), 488.53125, 405, False),
    "540 of today with the factor of the old one": ((540, 960), (488.53125, 579, 480, 270), 579, 480, True),
    "principal point a little beside": ((540, 960), (579, 580, 481.5, 268.75), 579, 481.5, False),
    "zoomed": ((720, 1280), (2000, 2001, 640, 360), 2000, 640, False),
}


@pytest.mark.parametrize("release", RELEASES)
def test_intrinsics_of_every_release(raw, release):
    (height, width), (f_x, f_y, c_x, c_y), true_f_x, true_c_x, repaired = RELEASES[release]
    squeeze(raw, height=height, width=width)
    edit_poses(raw, f_x=f_x, f_y=f_y, c_x=c_x, c_y=c_y)
    sequence = opened(raw)
    expected = [[true_f_x, 0, true_c_x], [0, f_y, c_y], [0, 0, 1]]
    np.testing.assert_allclose(sequence.cameras.intrinsics, np.tile(expected, (plane.FRAMES, 1, 1)), rtol=1e-6)
    assert len(sequence.notes) == repaired
    assert not repaired or sequence.notes[0].startswith("intrinsics_repaired: f_x or c_x of 4 frames")


def test_focal_lengths_are_per_frame(raw):
    edit_poses(raw, 2, f_x=2 * FOCAL, f_y=2 * FOCAL)
    edit_poses(raw, 3, f_x=3 * FOCAL)
    sequence = opened(raw)
    np.testing.assert_allclose(sequence.cameras.intrinsics[:, 0, 0] / FOCAL, [1, 1, 2, 1])
    assert sequence.notes[0].startswith("intrinsics_repaired: f_x or c_x of 1 frames")


def test_conversion_is_told_of_repairs(raw):
    small = {"frames": 2, "image_size": 32, "strides": (1, 1), "hop": 4, "samples": 1, "queries": 8}
    settings = StoreSettings(dataset="mvs_synth", split="all", video="jpeg", seed=0, **small)
    conversion = Conversion(
        raw=str(raw),
        store=str(raw / "store"),
        settings=settings,
        catalog=Catalog.load("mvs_synth"),
        allow_misfit=True,
    )
    assert plan_sequence({"sequence": "GTAV_540/0017"}, conversion=conversion).notes == ""
    edit_poses(raw, f_x=0.9 * FOCAL)
    notes = plan_sequence({"sequence": "GTAV_540/0017"}, conversion=conversion).notes
    assert notes == "intrinsics_repaired: f_x or c_x of 4 frames did not fit 64x36 images"


@pytest.mark.parametrize("level", [".", "GTAV_540", "GTAV_540/0017"])
def test_has_one_name_from_every_level(raw, level):
    folder = RawFolder(str(raw / level))
    assert DATASET.find(folder) == ["GTAV_540/0017"]
    assert len(MvsSynth(folder, "GTAV_540/0017")) == plane.FRAMES
    assert DATASET.scene_of("GTAV_540/0017") == DATASET.scene_of("GTAV_1080/0017") == "0017"


def test_num_images_is_a_file_and_may_be_missing(raw):
    (raw / "GTAV_540/num_images.json").unlink()
    shutil.copytree(raw / "GTAV_540/0017", raw / "GTAV_540/.0018.partial")
    shutil.copytree(raw / "GTAV_540/0017", raw / "GTAV_540/copy of 17")
    assert DATASET.find(RawFolder(str(raw))) == ["GTAV_540/0017"]
    assert len(opened(raw)) == plane.FRAMES


def test_reads_depth_from_s3(raw, s3_uri):
    upload(raw, f"{s3_uri}/{ODD}")
    folder = RawFolder(f"{s3_uri}/{ODD}")
    assert DATASET.find(folder) == ["GTAV_540/0017"]
    np.testing.assert_array_equal(MvsSynth(folder, "GTAV_540/0017").depth(2), opened(raw).depth(2))


def remove(path: str):
    return lambda raw: (raw / "GTAV_540" / path).unlink()


def listed(content: str):
    return lambda raw: (raw / "GTAV_540/num_images.json").write_text(content)


def poses(**changes):
    return lambda raw: edit_poses(raw, 1, **changes)


def shape(height: int, width: int):
    return lambda raw: squeeze(raw, height=height, width=width)


REFUSED = {
    "missing image": (remove("0017/images/0003.png"), r"lists 4 frames .*missing file .*images/0003\.png"),
    "missing depth": (remove("0017/depths/0001.exr"), r"missing file .*depths/0001\.exr"),
    "missing pose": (remove("0017/poses/0002.json"), r"missing file .*poses/0002\.json"),
    "fewer frames than listed": (listed("[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,100]"), r"missing file .*0004\.(json|png)"),
    "more frames than listed": (listed("[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,3]"), r"nothing listed for .*0003\.json"),
    "sequence not listed": (listed("[100]"), r"num_images\.json .*must list from 1 to 10000 frames for sequence 0017"),
    "absurd number": (listed(f"[{'9,' * 17}{10**12}]"), r"num_images\.json .*must list from 1 to 10000"),
    "list of text": (listed('{"17": 4}'), r"num_images\.json .*must list"),
    "list no JSON": (listed("[1,"), r"num_images\.json .*cannot be read as JSON"),
    "pose no JSON": (
        lambda raw: (raw / "GTAV_540/0017/poses/0001.json").write_text("0 0 0"),
        r"0001\.json .*cannot be read as JSON",
    ),
    "pose a list": (
        lambda raw: (raw / "GTAV_540/0017/poses/0001.json").write_text("[1]"),
        r"0001\.json .*must have a finite 4x4 extrinsic",
    ),
    "no extrinsic": (poses(extrinsic=None), r"poses/0001\.json .*must have a finite 4x4 extrinsic"),
    "3x4 extrinsic": (poses(extrinsic=np.eye(4)[:3].tolist()), r"poses/0001\.json .*4x4 extrinsic"),
    "transposed extrinsic": (
        poses(extrinsic=np.linalg.inv(MIRROR @ plane.world_from_cam(1)).T.tolist()),
        r"poses/0001\.json .*its last row 0 0 0 1",
    ),
    "not finite": (poses(extrinsic=np.full((4, 4), np.nan).tolist()), r"poses/0001\.json .*finite"),
    "no f_x": (poses(f_x=None), r"poses/0001\.json .*f_x"),
    "number of 400 digits": (poses(c_y=10**400), r"poses/0001\.json .*finite"),
    "text for c_y": (poses(c_y="middle"), r"poses/0001\.json .*c_y"),
    "negative f_y": (poses(f_x=-FOCAL, f_y=-FOCAL), r"focal length is not positive"),
    "not orthonormal": (
        poses(extrinsic=(np.diag([1, 1.1, 1, 1]) @ MIRROR).tolist()),
        r"frame 1 is not a rigid motion",
    ),
    "principal point of other images": (
        lambda raw: edit_poses(raw, c_x=64.0, c_y=36.0),
        r"principal point of .*0000\.json .* is 32\.0 px from the centre of 64x36",
    ),
    "crop": (shape(36, 48), r"0000\.png .*is 48x36: MVS-Synth is 16:9, or 3:2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(raw, case):
    damage, message = REFUSED[case]
    damage(raw)
    with pytest.raises(ValueError, match=message):
        opened(raw)


def window(width: int, height: int):
    """The same file, with another size in its header."""

    def patch(content: bytes) -> bytes:
        start = content.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
        size = np.array([width - 1, height - 1], "<i4").tobytes()
        return content[: start + 8] + size + content[start + 16 :]

    return patch


BROKEN = {
    "cut": (lambda content: content[:-20], "cannot be read as an OpenEXR image"),
    "cut in the header": (lambda content: content[:60], "cannot be read as an OpenEXR image"),
    "no EXR": (lambda content: b"\x89PNG", "cannot be read as an OpenEXR image"),
    "empty": (lambda content: b"", "cannot be read as an OpenEXR image"),
    "absurdly large": (window(30_000, 30_000), r"channels Y of 30000 x 30000 .*at most 64000000 pixels"),
    "negative": (window(-4, 9), "cannot be read as an OpenEXR image"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_broken_depth(raw, case):
    damage, message = BROKEN[case]
    path = raw / "GTAV_540/0017/depths/0001.exr"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"depths/0001\.exr in .*{message}"):
        opened(raw).depth(1)


def test_refuses_depth_of_other_channels_kinds_and_sizes(raw):
    path, depth = raw / "GTAV_540/0017/depths/0001.exr", np.ones((HEIGHT, WIDTH), np.float16)
    sequence = opened(raw)
    write_exr(path, R=depth)
    with pytest.raises(ValueError, match=r"0001\.exr .*has channels R .*one channel Y"):
        sequence.depth(1)
    write_exr(path, Y=depth, Z=depth)
    with pytest.raises(ValueError, match=r"0001\.exr .*has channels Y, Z"):
        sequence.depth(1)
    write_exr(path, Y=depth.astype(np.uint32))
    with pytest.raises(ValueError, match=r"channel Y of .*0001\.exr .*uint32 .*must be half or float"):
        sequence.depth(1)
    OpenEXR.File([OpenEXR.Part({}, {"Y": depth}, name) for name in "ab"]).write(str(path))
    with pytest.raises(ValueError, match=r"0001\.exr .*in 2 part\(s\)"):
        sequence.depth(1)
    write_exr(path, Y=depth[:10])
    with pytest.raises(ValueError, match=r"0001\.exr .*\(10, 64\).*\(36, 64\)"):
        sequence.depth(1)
    Image.new("RGB", (64, 30)).save(raw / "GTAV_540/0017/images/0001.png")
    with pytest.raises(ValueError, match=r"0001\.png .*\(30, 64\).*\(36, 64\)"):
        sequence.image(1)


def test_refuses_other_folders(raw, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected MVS-Synth: GTAV_540/0000/.*found nothing"):
        DATASET.find(RawFolder(str(tmp_path / "empty")))
    with pytest.raises(ValueError, match=r"no poses for 'GTAV_540/0018'"):
        MvsSynth(RawFolder(str(raw)), "GTAV_540/0018")
