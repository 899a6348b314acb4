"""ScanNet, file by file (dataset notes D6): what is read and what is refused, against a plane written by hand."""

import io
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import plane
import pytest
from odd_names import ODD, upload
from PIL import Image

from pipelines.datasets.scannet import DATASET, ScanNet
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Static
from pipelines.store.layout import StoreSettings
from pipelines.truth.clips import spans

FRAMES = 12  # so many that names without leading zeros are not in the order of their numbers
HEIGHT, WIDTH = 24, 32
COLOUR_HEIGHT, COLOUR_WIDTH = 44, 60
# Corner origin, as pixel centres at +0.5 ask for. Colour sees more than depth and has other proportions.
DEPTH_K = np.array([[28.9, 0, 16.4], [0, 28.7, 11.7], [0, 0, 1]])
COLOUR_K = np.array([[34.0, 0, 30.9], [0, 38.0, 21.3], [0, 0, 1]])
APART = np.eye(4)  # colour_from_depth where the cameras are not at one place
APART[:3, :3] = cv2.Rodrigues(np.array([0.02, -0.03, 0.01]))[0]
APART[:3, 3] = [0.2, -0.15, 0.02]
NAME = "scans/scene0003_01"


def pose(t: float) -> np.ndarray:
    return plane.world_from_cam(t / 6)


def depth(t: float) -> np.ndarray:
    return plane.depth(t / 6, HEIGHT, WIDTH, DEPTH_K)


def paint(points: np.ndarray, t: float) -> np.ndarray:
    """Colours of points of the world, linear in their place; blue tells the frame."""
    red, green = 128 + 20 * points[..., 0], 128 + 24 * points[..., 1]
    return np.stack([red, green, np.full_like(red, 10.0 * t)], axis=-1)


def colour(t: float, colour_from_depth: np.ndarray) -> np.ndarray:
    """What the colour camera sees of the plane."""
    camera = pose(t) @ np.linalg.inv(colour_from_depth)
    direction = plane.rays(COLOUR_HEIGHT, COLOUR_WIDTH, COLOUR_K) @ camera[:3, :3].T
    far = (plane.OFFSET - plane.NORMAL @ camera[:3, 3]) / (direction @ plane.NORMAL)
    return paint(camera[:3, 3] + far[..., None] * direction, t).round().clip(0, 255).astype(np.uint8)


def matrix(intrinsics: np.ndarray) -> np.ndarray:
    """4x4, as ScanNet has them: the centre of the top-left pixel is (0, 0)."""
    result = np.eye(4)
    result[:3, :3] = intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    return result


def encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, quality=97, subsampling=0)
    return file.getvalue()


def millimetres(t: float) -> np.ndarray:
    return np.round(1000 * depth(t)).astype(np.uint16)


def header(count: int = FRAMES, *, version=4, name=b"StructureSensor", kinds=(1, 1), shift=1000.0, **changes) -> bytes:
    sizes = changes.get("sizes", (COLOUR_WIDTH, COLOUR_HEIGHT, WIDTH, HEIGHT))
    colour_extrinsics = changes.get("colour_extrinsics", np.eye(4))
    colour_k, colour_from_depth = changes.get("colour_k", COLOUR_K), changes.get("colour_from_depth", np.eye(4))
    matrices = [matrix(colour_k), colour_extrinsics, matrix(DEPTH_K), colour_from_depth]
    start = struct.pack("<IQ", version, changes.get("name_length", len(name))) + name
    return start + np.array(matrices, "<f4").tobytes() + struct.pack("<2i4IfQ", *kinds, *sizes, shift, count)


def frame(pose: np.ndarray, colour: bytes, depth: bytes) -> bytes:
    return pose.astype("<f4").tobytes() + struct.pack("<4Q", 0, 0, len(colour), len(depth)) + colour + depth


def frames(colour_from_depth: np.ndarray | None = None) -> list[bytes]:
    apart = np.eye(4) if colour_from_depth is None else colour_from_depth
    return [
        frame(pose(t), encoded(colour(t, apart), "png"), zlib.compress(millimetres(t).tobytes())) for t in range(FRAMES)
    ]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """<raw>/scans with one scan, as the dataset ships it: colour as PNG, so that it is exact."""
    write_stream(tmp_path / "raw", header(), frames())
    (tmp_path / "raw" / NAME / "scene0003_01.txt").write_text(f"numColorFrames = {FRAMES + 1}\n")
    return tmp_path / "raw"


def write_stream(raw: Path, header: bytes, frames: list[bytes], rest: bytes = b"\2".ljust(8 + 256, b"\0")) -> None:
    (raw / NAME).mkdir(parents=True, exist_ok=True)
    (raw / NAME / "scene0003_01.sens").write_bytes(header + b"".join(frames) + rest)


def only(raw: Path) -> ScanNet:
    (name,) = DATASET.find(RawFolder(str(raw)))
    return ScanNet(RawFolder(str(raw)), name)


def check(sequence: ScanNet, *, colour_error: float = 0.3, pose_error: float = 1e-6) -> None:
    """All of the plane's frames, as they are on the grid of depth."""
    assert len(sequence) == FRAMES and sequence.image_size == (HEIGHT, WIDTH)
    np.testing.assert_allclose(sequence.cameras.intrinsics, np.tile(DEPTH_K, (FRAMES, 1, 1)), atol=1e-5)
    for t in range(FRAMES):
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], pose(t), atol=pose_error)
        np.testing.assert_allclose(sequence.depth(t), depth(t), atol=0.0005 + 1e-6)
        seen = pose(t)[:3, 3] + depth(t)[..., None] * (plane.rays(HEIGHT, WIDTH, DEPTH_K) @ pose(t)[:3, :3].T)
        error = np.abs(sequence.image(t) - paint(seen, t))
        assert error.mean() < colour_error and error.max() < 5 * colour_error  # a pixel is 3 levels wide


def test_reads_what_the_stream_says(raw):
    sequence = only(raw)
    check(sequence)
    assert sequence.name == NAME
    np.testing.assert_array_equal(sequence.frame_numbers, range(FRAMES))
    assert sequence.motion(np.arange(2)) == Static()
    assert np.isnan(sequence.normal(0, np.arange(2), np.arange(2))).all()
    assert sequence.instance(0) is None and sequence.neighbours(0) is None


def test_pixel_centres_lie_at_one_half(raw):
    sequence = only(raw)
    geometry = sequence.depth(1), sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert plane.distance(*geometry, centre=0.5).max() < 2e-4
    assert np.median(plane.distance(*geometry, centre=0)) > 2e-3


def test_the_stream_may_end_without_inertial_samples(raw):
    write_stream(raw, header(), frames(), rest=b"")
    check(only(raw))


@pytest.mark.parametrize("kind", ["jpeg colour", "raw colour", "raw depth", "other shift"])
def test_other_encodings(raw, kind):
    stored, kinds, shift = [], (1, 1), 1000.0
    for t in range(FRAMES):
        image, values = colour(t, np.eye(4)), millimetres(t)
        picture, compressed = encoded(image, "png"), zlib.compress(values.tobytes())
        if kind == "jpeg colour":
            picture, kinds = encoded(image, "jpeg"), (2, 1)
        if kind == "raw colour":
            picture, kinds = image.tobytes(), (0, 1)
        if kind == "raw depth":
            compressed, kinds = values.tobytes(), (1, 0)
        if kind == "other shift":
            compressed, shift = zlib.compress((4 * values).tobytes()), 4000.0
        stored.append(frame(pose(t), picture, compressed))
    write_stream(raw, header(kinds=kinds, shift=shift), stored)
    check(only(raw), colour_error=0.8 if kind == "jpeg colour" else 0.3)


def bent() -> np.ndarray:
    result = pose(3)
    result[:3, 0] *= 1.01
    return result


def with_entry(row: int, column: int, value: float) -> np.ndarray:
    result = pose(3)
    result[row, column] = value
    return result


UNKNOWN = {
    "-inf": np.full((4, 4), -np.inf),
    "nan": np.full((4, 4), np.nan),
    "one nan": with_entry(1, 2, np.nan),
    "one inf": with_entry(0, 3, np.inf),
    "zero": np.zeros((4, 4)),
    "zero with a one": np.diag([0.0, 0, 0, 1]),
    "bent": bent(),
    "mirrored": pose(3) @ np.diag([1.0, 1, -1, 1]),
    "last row": with_entry(3, 0, 0.5),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_pose_that_is_none_is_unknown_and_no_clip_bridges_it(raw, kind, recwarn):
    stored = frames()
    stored[5] = UNKNOWN[kind].astype("<f4").tobytes() + stored[5][64:]
    write_stream(raw, header(), stored)
    sequence = only(raw)
    assert sequence.cameras.known.tolist() == [t != 5 for t in range(FRAMES)]
    assert np.isnan(sequence.cameras.world_from_cam[5]).all()
    np.testing.assert_allclose(sequence.cameras.world_from_cam[6], pose(6), atol=1e-6)
    settings = {"split": "all", "image_size": 32, "samples": 1, "queries": 8, "video": "jpeg", "seed": 0, "hop": 1}
    found = spans(sequence, StoreSettings(dataset="scannet", frames=3, strides=(1, 3), **settings))
    assert found and all(5 not in range(span.frames[0], span.frames[-1] + 1) for span in found)
    assert not recwarn.list


def test_the_identity_is_a_pose_once_and_a_fill_twice(raw):
    """The plane's first pose is the identity."""
    stored = frames()
    assert only(raw).cameras.known.all()
    stored[7] = np.eye(4, dtype="<f4").tobytes() + stored[7][64:]
    write_stream(raw, header(), stored)
    assert np.flatnonzero(~only(raw).cameras.known).tolist() == [0, 7]


def test_depth_of_zero_is_unknown(raw):
    values, stored = millimetres(2), frames()
    values[3, 4:9] = 0
    picture = encoded(colour(2, np.eye(4)), "png")
    stored[2] = frame(pose(2), picture, zlib.compress(values.tobytes()))
    stored[4] = frame(pose(4), picture, zlib.compress(bytes(2 * HEIGHT * WIDTH)))
    write_stream(raw, header(), stored)
    sequence = only(raw)
    assert np.argwhere(np.isnan(sequence.depth(2))).tolist() == [[3, column] for column in range(4, 9)]
    assert np.isnan(sequence.depth(4)).all() and sequence.cameras.known[4]


# Where the cameras are not at one place


def test_depth_is_seen_from_the_colour_camera_where_that_is_elsewhere(raw):
    write_stream(raw, header(colour_from_depth=APART), frames(APART))
    sequence = only(raw)
    scale = np.diag([WIDTH / COLOUR_WIDTH, HEIGHT / COLOUR_HEIGHT, 1])
    np.testing.assert_allclose(sequence.cameras.intrinsics[3], scale @ COLOUR_K, atol=1e-5)
    for t in (0, 7):
        truth = pose(t) @ np.linalg.inv(APART)
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], truth, atol=1e-6)
        seen = sequence.depth(t)
        distance = plane.distance(seen, sequence.cameras.intrinsics[t], truth, centre=0.5)
        assert np.nanmedian(distance) < 0.015 and np.nanmax(distance) < 0.03  # a pixel of the slanted plane
        rays = plane.rays(HEIGHT, WIDTH, sequence.cameras.intrinsics[t]) @ truth[:3, :3].T
        error = np.abs(sequence.image(t) - paint(truth[:3, 3] + seen[..., None] * rays, t))
        assert np.nanmedian(error) < 1.5  # of one or two pixels of 8 levels; 0.2 m of baseline are 6 levels


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("zoom", [1, 2.2])
def test_no_holes_open_and_the_nearest_surface_wins(raw, side, zoom):
    """A square a metre away before a wall at four: in the colour camera it has moved, to either side."""
    apart = np.eye(4)
    apart[0, 3] = 0.25 * side
    values = np.full((HEIGHT, WIDTH), 4000, np.uint16)
    values[8:16, 12:20] = 1000
    stored = frame(np.eye(4), encoded(colour(0, np.eye(4)), "png"), zlib.compress(values.tobytes()))
    colour_k = COLOUR_K * [[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]]  # of depth pixels with space between them, or not
    write_stream(raw, header(1, colour_from_depth=apart, colour_k=colour_k), [stored])
    seen = only(raw).depth(0)
    to_colour = np.diag([WIDTH / COLOUR_WIDTH, HEIGHT / COLOUR_HEIGHT, 1]) @ colour_k

    def covers(left: float, top: float, right: float, bottom: float, z: float, margin: float) -> np.ndarray:
        """Pixels of the colour camera inside a rectangle of the depth image at distance z, by a margin."""
        corners = np.array([[left, top, 1], [right, bottom, 1]]) @ np.linalg.inv(DEPTH_K).T * z + apart[:3, 3]
        (left, top), (right, bottom) = (corners @ to_colour.T / z)[:, :2]
        v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        return (u > left + margin) & (u < right - margin) & (v > top + margin) & (v < bottom - margin)

    square = covers(12, 8, 20, 16, 1, 0.8)
    assert square.sum() >= 9 and (seen[square] == 1).all()
    near, hidden = covers(12, 8, 20, 16, 1, -0.8), covers(12, 8, 20, 16, 4, 0.8)
    wall = covers(0, 0, WIDTH, HEIGHT, 4, 0.8) & ~near & ~covers(12, 8, 20, 16, 4, -0.8)
    assert wall.sum() > 100 and (seen[wall] == 4).all()
    assert (hidden & ~near).sum() > 2 and np.isnan(seen[hidden & ~near]).all()  # what the square hid from depth
    assert np.isnan(seen[~covers(0, 0, WIDTH, HEIGHT, 4, -0.8)]).all()


# Exported frames


def export(folder: Path, tool: str, step: int = 1) -> None:
    """The plane's frames in files; the names count `step` from frame to frame."""
    for t in range(FRAMES):
        number = t * step
        colour_name, depth_name, pose_name = {
            "python": (f"color/{number}.jpg", f"depth/{number}.png", f"pose/{number}.txt"),
            "sens": tuple(f"frame-{number:06d}.{kind}" for kind in ("color.jpg", "depth.pgm", "pose.txt")),
            "frames_25k": (f"color/{number:06d}.jpg", f"depth/{number:06d}.png", f"pose/{number:06d}.txt"),
        }[tool]
        for name in (colour_name, depth_name, pose_name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / colour_name).write_bytes(encoded(colour(t, np.eye(4)), "jpeg"))
        if tool == "sens":
            start = f"P5\n# a comment\n{WIDTH} {HEIGHT}\n65535\n".encode()
            (folder / depth_name).write_bytes(start + millimetres(t).byteswap().tobytes())
        else:
            Image.fromarray(millimetres(t)).save(folder / depth_name)
        np.savetxt(folder / pose_name, pose(t), fmt="%f")
    if tool == "sens":
        lines = ["m_versionNumber = 4", "m_sensorName = StructureSensor", "m_depthShift = 1000"]
        for name, values in (("ColorIntrinsic", matrix(COLOUR_K)), ("DepthIntrinsic", matrix(DEPTH_K))):
            lines += [f"m_calibration{name} = {' '.join(map(str, values.ravel()))} "]
            lines += [f"m_calibration{name[:5]}Extrinsic = {' '.join(map(str, np.eye(4).ravel()))} "]
        (folder / "_info.txt").write_text("\n".join(lines) + "\n")
        return
    (folder / "intrinsic").mkdir()
    kinds = {"color": COLOUR_K, "depth": DEPTH_K}
    for camera, values in kinds.items():
        np.savetxt(folder / f"intrinsic/intrinsic_{camera}.txt", matrix(values), fmt="%f")
        np.savetxt(folder / f"intrinsic/extrinsic_{camera}.txt", np.eye(4), fmt="%f")
        if tool == "frames_25k":
            (folder / f"intrinsic/intrinsic_{camera}.txt").rename(folder / f"intrinsics_{camera}.txt")
    if tool == "frames_25k":
        shutil.rmtree(folder / "intrinsic")


TOOLS = ("python", "sens", "frames_25k")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("step", [1, 10])
def test_reads_exported_frames(tmp_path, tool, step):
    """Numbers without leading zeros are numbers all the same, and those of skipped frames stay."""
    export(tmp_path / NAME, tool, step)
    (tmp_path / NAME / "color").mkdir(exist_ok=True)
    (tmp_path / NAME / "color/._0.jpg").write_bytes(b"\0\5\26\7")
    sequence = only(tmp_path)
    check(sequence, colour_error=0.8, pose_error=1e-5)
    np.testing.assert_array_equal(sequence.frame_numbers, np.arange(FRAMES) * step)


def test_the_stream_goes_before_frames_exported_beside_it(raw):
    export(raw / NAME, "python")
    shutil.rmtree(raw / NAME / "color")
    check(only(raw))


def test_exported_poses_of_minus_infinity_are_unknown(tmp_path):
    export(tmp_path / NAME, "python")
    (tmp_path / NAME / "pose/7.txt").write_text("-inf -inf -inf -inf\n" * 4)
    assert np.flatnonzero(~only(tmp_path).cameras.known).tolist() == [7]


def edit(name: str, old: str, new: str):
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def halve(names: str, size: tuple[int, int] = (COLOUR_WIDTH // 2, COLOUR_HEIGHT // 2)):
    def change(folder: Path) -> None:
        for path in folder.glob(names):
            Image.open(path).resize(size).save(path)

    return change


REFUSED_EXPORTS = {
    "missing depth": ("python", lambda f: (f / "depth/3.png").unlink(), r"lists 12 .* has 11 .*missing .*depth/3\.png"),
    "missing pose": ("python", lambda f: (f / "pose/3.txt").unlink(), r"color has 12 .*nothing listed .*color/3\.jpg"),
    "no poses": ("python", lambda f: shutil.rmtree(f / "pose"), r"pose/%d\.txt lists 0 frames"),
    "missing K": (
        "python",
        lambda f: (f / "intrinsic/intrinsic_depth.txt").unlink(),
        r"missing file .*intrinsic_depth\.txt",
    ),
    "short pose": ("python", edit("pose/4.txt", " 0.000000 1.000000", " 1.000000"), r"pose/4\.txt .*must be 16"),
    "no numbers": ("python", edit("pose/4.txt", "1.000000", "one"), r"pose/4\.txt .*must be 16 numbers"),
    "colour elsewhere": (
        "python",
        edit("intrinsic/extrinsic_color.txt", "0.000000", "0.100000"),
        r"colour extrinsics of .* not the identity",
    ),
    "no rotation": (
        "python",
        edit("intrinsic/extrinsic_depth.txt", "0.000000", "0.100000"),
        r"depth extrinsics of .* no rigid motion",
    ),
    "all colour resized": ("python", halve("color/*.jpg"), r"intrinsics of colour of .*were the images resized"),
    "all depth resized": ("frames_25k", halve("depth/*.png", (16, 12)), r"intrinsics of depth of .*\(12, 16\)"),
    "skew": ("python", edit("intrinsic/intrinsic_depth.txt", "28.900000 0.000000", "28.9 0.1"), r"must be fx 0 cx"),
    "no shift": ("sens", edit("_info.txt", "m_depthShift", "m_shift"), r"_info\.txt .*does not tell m_depthShift"),
    "zero shift": (
        "sens",
        edit("_info.txt", "m_depthShift = 1000", "m_depthShift = 0"),
        r"m_depthShift of .*_info\.txt",
    ),
    "no number": (
        "sens",
        edit("_info.txt", "m_depthShift = 1000", "m_depthShift = x"),
        r"m_depthShift of .*_info\.txt",
    ),
    "short K": ("sens", edit("_info.txt", "m_calibrationDepthIntrinsic = ", "m_calibrationDepthIntrinsic = 1 "), r"16"),
}


@pytest.mark.parametrize("case", REFUSED_EXPORTS)
def test_refuses_to_open_an_export(tmp_path, case):
    tool, damage, message = REFUSED_EXPORTS[case]
    export(tmp_path / NAME, tool)
    damage(tmp_path / NAME)
    with pytest.raises(ValueError, match=message):
        only(tmp_path)


def test_refuses_exported_frames_that_do_not_fit(tmp_path):
    export(tmp_path / NAME, "sens")
    sequence = only(tmp_path)
    halve("frame-000003.color.jpg")(tmp_path / NAME)
    with pytest.raises(ValueError, match=r"colour of frame 3 of .*\(22, 30\) \(H, W\), not \(44, 60\)"):
        sequence.image(3)
    path = tmp_path / NAME / "frame-000004.depth.pgm"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"frame-000004\.depth\.pgm .*cannot be read as an image"):
        sequence.depth(4)
    path.write_bytes(b"P5\n2 2\n255\n\0\0\0\0")
    with pytest.raises(ValueError, match=r"frame-000004\.depth\.pgm .*not a 16-bit grey PNG or PGM"):
        sequence.depth(4)


# Names


@pytest.mark.parametrize("level", [".", "scans", NAME])
def test_has_one_name_from_every_level(raw, level):
    assert only(raw / level).name == NAME


def test_finds_scans_in_every_layout(raw):
    for name, tool in (("scans_test/scene0707_00", "python"), ("a/scene0708_01", "sens"), ("b/scene0009_00", TOOLS[2])):
        export(raw / name, tool)
    names = DATASET.find(RawFolder(str(raw)))
    assert names == ["a/scene0708_01", "b/scene0009_00", NAME, "scans_test/scene0707_00"]
    assert [DATASET.scene_of(name) for name in names] == ["scene0708", "scene0009", "scene0003", "scene0707"]
    assert DATASET.scene_of("scans/scene0003_00") == DATASET.scene_of("scene0003_02/exported") == "scene0003"
    for name in names:
        assert len(ScanNet(RawFolder(str(raw)), name)) == FRAMES


def test_refuses_other_folders(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected ScanNet v2: sceneSSSS_RR/.*\.sens.*found nothing"):
        DATASET.find(RawFolder(str(tmp_path / "empty")))
    shutil.copy(raw / NAME / "scene0003_01.sens", raw / NAME / "scene0003_02.sens")
    with pytest.raises(ValueError, match=r"has scene0003_01\.sens and scene0003_02\.sens: give each scan a folder"):
        only(raw)


# Damaged and hostile streams


REFUSED_HEADERS = {
    "old version": ({"version": 3}, "has version 3, not 4"),
    "long name": ({"name_length": 1 << 40}, "names its sensor in 1099511627776 bytes"),
    "unknown colour": ({"kinds": (-1, 1)}, "has colour compression -1"),
    "occi depth": ({"kinds": (1, 2)}, "has depth compression 2"),
    "no width": ({"sizes": (0, 44, 32, 24)}, r"has images of \[0, 44, 32, 24\]"),
    "absurd width": ({"sizes": (60, 44, 1 << 20, 24)}, "not from 1 to 4096"),
    "no shift": ({"shift": 0.0}, "has depth shift 0"),
    "no number": ({"shift": float("nan")}, "has depth shift nan"),
    "colour elsewhere": ({"colour_extrinsics": APART}, "colour extrinsics of .* not the identity"),
    "other size": ({"sizes": (COLOUR_WIDTH * 3, COLOUR_HEIGHT, WIDTH, HEIGHT)}, "intrinsics of colour of .*resized"),
    "frames that are not there": ({"count": 40}, "ends after"),
    "absurd frames": ({"count": 1 << 60}, "cannot hold the 1152921504606846976 frames"),
}


@pytest.mark.parametrize("case", REFUSED_HEADERS)
def test_refuses_to_open_a_stream(raw, case):
    changes, message = REFUSED_HEADERS[case]
    write_stream(raw, header(**changes), frames())
    with pytest.raises(ValueError, match=message) as refused:
        only(raw)
    assert "scene0003_01.sens" in str(refused.value)


@pytest.mark.parametrize("length", [0, 11, 100, 400, 2000, -300])
def test_refuses_a_truncated_stream(raw, length):
    path = raw / NAME / "scene0003_01.sens"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"scene0003_01\.sens .*(ends after|cannot hold|more than it holds).*download"):
        only(raw)


@pytest.mark.parametrize("lengths", [(1 << 40, 0), (0, 1 << 63), (1 << 27, 0)])
def test_refuses_absurd_lengths_of_pictures(raw, lengths):
    stored = frames()
    stored[2] = stored[2][:80] + struct.pack("<2Q", *lengths) + stored[2][96:]
    write_stream(raw, header(), stored)
    with pytest.raises(ValueError, match=rf"has \({lengths[0]}, {lengths[1]}\) bytes .* in frame 2, more"):
        only(raw)


def test_refuses_pictures_that_do_not_fit(raw):
    stored, image = frames(), colour(0, np.eye(4))
    stored[1] = frame(pose(1), encoded(image[:-1], "png"), zlib.compress(millimetres(1).tobytes()[:-2]))
    stored[2] = frame(pose(2), encoded(image, "png")[:-60], zlib.compress(millimetres(2).tobytes())[:-20])
    stored[3] = frame(pose(3), b"", b"no zlib at all")
    stored[4] = frame(pose(4), b"", zlib.compress(bytes(200_000_000), 9))
    write_stream(raw, header(), stored)
    sequence = only(raw)
    for t, message in ((1, r"\(43, 60\)"), (2, "cannot be read as an image"), (3, "cannot be read as an image")):
        with pytest.raises(ValueError, match=rf"colour of frame {t} of .*scene0003_01\.sens .*{message}"):
            sequence.image(t)
    tracemalloc.start()
    for t, message in ((1, "1534 bytes"), (2, "does not end"), (3, "incorrect header"), (4, "does not end")):
        with pytest.raises(ValueError, match=rf"depth of frame {t} of .*scene0003_01\.sens .*{message}"):
            sequence.depth(t)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000  # the bomb did not go off
    tracemalloc.stop()


def test_opening_reads_no_pictures(raw):
    """A gigabyte of them, of which the disk holds none."""
    hole = 60_000_000
    with (raw / NAME / "scene0003_01.sens").open("wb") as file:
        file.write(header(17))
        for t in range(17):
            file.write(pose(t / 8).astype("<f4").tobytes() + struct.pack("<4Q", 0, 0, hole - 1, 1))
            file.truncate(file.seek(hole, 1))
    tracemalloc.start()
    assert len(only(raw)) == 17
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_stream_on_s3(raw, s3_uri):
    upload(raw, f"{s3_uri}/{ODD}")
    sequence = only(f"{s3_uri}/{ODD}")
    assert sequence.name == NAME
    check(sequence)
