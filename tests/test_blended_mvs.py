"""BlendedMVS, file by file (dataset notes D7): what is read and what is refused, against a plane written by hand."""

import shutil
from pathlib import Path

import numpy as np
import plane
import pytest
from PIL import Image
from shared_data import SHARED

from pipelines.catalog import Catalog
from pipelines.conversion import Conversion, plan_sequence
from pipelines.datasets.blended_mvs import DATASET, BlendedMvs, _camera
from pipelines.raw.folder import RawFolder
from pipelines.raw.pfm import read_pfm
from pipelines.sequence import Static
from pipelines.store.layout import StoreSettings
from pipelines.truth.clips import spans

REAL = SHARED / "real/blended_mvs/issue34_cam.txt"
HEIGHT, WIDTH = 24, 32
INTRINSICS = np.array([[25.5, 0, 16.4], [0, 25.25, 11.6], [0, 0, 1]])
PID = "5b7a3890fc8fcf6781e2593a"
NUMBERS = [0, 1, 3, 4, 7]
PAIRS = """5
3
3 0 5.5 7 90.25 1 40.0
0
2 1 100 3 50
7
0
1
1 0 100
4
4 7 1 3 2 1 3 0 4
"""
NEIGHBOURS = [[1, 2], [0], [4, 1, 0], [0, 1, 2, 4], []]  # by place, the highest score first


def depth(t: int) -> np.ndarray:
    return plane.depth(t, HEIGHT, WIDTH, INTRINSICS)


def pfm(depth: np.ndarray, header: str = "Pf\n{} {}\n-1.000000\n", kind: str = "<f4") -> bytes:
    """Rows from bottom to top."""
    return header.format(depth.shape[1], depth.shape[0]).encode() + depth[::-1].astype(kind).tobytes()


def camera(t: int, depth_line: str = "1.5 0.1 128 14.3") -> str:
    extrinsic = "".join(
        " ".join(f"{value:.10g}" for value in row) + " \n" for row in np.linalg.inv(plane.world_from_cam(t))
    )
    intrinsic = "".join(" ".join(f"{value:g}" for value in row) + " \n" for row in INTRINSICS)
    return f"extrinsic\n{extrinsic}\nintrinsic\n{intrinsic}\n{depth_line} \n"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """<raw>/BlendedMVS/<PID> as the dataset ships it."""
    folder = tmp_path / "raw/BlendedMVS" / PID
    for name in ("blended_images", "rendered_depth_maps", "cams"):
        (folder / name).mkdir(parents=True)
    for t, number in enumerate(NUMBERS):
        Image.fromarray(plane.picture(t, HEIGHT, WIDTH)).save(
            folder / f"blended_images/{number:08d}.jpg", quality=98, subsampling=0
        )
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"blended_images/{number:08d}_masked.jpg")
        (folder / f"rendered_depth_maps/{number:08d}.pfm").write_bytes(pfm(depth(t)))
        (folder / f"cams/{number:08d}_cam.txt").write_text(camera(t))
    (folder / "cams/pair.txt").write_text(PAIRS)
    return folder


def only(raw: Path) -> BlendedMvs:
    (name,) = DATASET.find(RawFolder(str(raw)))
    return BlendedMvs(RawFolder(str(raw)), name)


def test_reads_what_the_files_say(scene):
    sequence = only(scene.parent)
    assert sequence.name == PID
    assert len(sequence) == len(NUMBERS)  # the masked twins are no photos
    np.testing.assert_array_equal(sequence.frame_numbers, NUMBERS)
    np.testing.assert_allclose(sequence.cameras.intrinsics, np.tile(INTRINSICS, (len(NUMBERS), 1, 1)))
    assert sequence.cameras.known.all()
    assert sequence.motion(np.arange(2)) == Static()
    assert sequence.normal(0, np.arange(2), np.arange(2)) is None and sequence.instance(0) is None
    for t in range(len(NUMBERS)):
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], plane.world_from_cam(t), atol=1e-8)
        assert np.median(np.abs(sequence.image(t).astype(int) - plane.picture(t, HEIGHT, WIDTH))) <= 6
        np.testing.assert_allclose(sequence.depth(t), depth(t), rtol=1e-6)


def test_pixel_centres_lie_at_one_half_and_rows_are_turned_once(scene):
    sequence = only(scene)
    geometry = sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert plane.distance(sequence.depth(1), *geometry, centre=0.5).max() < 1e-6
    assert np.median(plane.distance(sequence.depth(1), *geometry, centre=0)) > 3e-3
    assert np.median(plane.distance(sequence.depth(1)[::-1], *geometry, centre=0.5)) > 3e-2


# Photos without order


def test_neighbours_are_those_of_pair_txt_by_score(scene):
    sequence = only(scene)
    assert [sequence.neighbours(t) for t in range(len(NUMBERS))] == NEIGHBOURS


def settings(frames: int) -> StoreSettings:
    rest = {"split": "all", "image_size": 32, "samples": 1, "queries": 8, "video": "jpeg", "seed": 0, "hop": 1}
    return StoreSettings(dataset="blended_mvs", frames=frames, strides=(1, 1), **rest)


def test_clips_walk_from_neighbour_to_neighbour(scene):
    found = spans(only(scene), settings(3))
    assert {span.start for span in found} == {0, 1, 2, 3}  # photo 4 sees what no other sees
    for span in found:
        assert all(
            any(t in NEIGHBOURS[seen] for seen in span.frames[:i]) for i, t in enumerate(span.frames[1:], start=1)
        )


@pytest.mark.parametrize(("rows", "kept"), [(0, False), (1, False), (2, True)])
def test_a_photo_with_hardly_any_depth_is_in_no_clip(scene, rows, kept):
    """Of 24 rows one is 4 %."""
    values = depth(1)
    values[rows:] = 0
    (scene / "rendered_depth_maps/00000001.pfm").write_bytes(pfm(values))
    sequence = only(scene)
    assert sequence.cameras.known.tolist() == [True, kept, True, True, True]
    shown = {t for span in spans(sequence, settings(2)) for t in span.frames}
    assert (1 in shown) == kept and {0, 2, 3} <= shown
    conversion = Conversion(
        raw=str(scene.parent),
        store=str(scene.parent / "store"),
        settings=settings(2),
        catalog=Catalog.load("blended_mvs"),
        allow_misfit=True,
    )
    assert plan_sequence({"sequence": PID}, conversion=conversion).notes == ("" if kept else "1 frames without pose")


# Depth


def test_nothing_of_the_mesh_is_unknown(scene):
    values = depth(2)
    values[0, :4] = [0, -1, np.nan, np.inf]
    (scene / "rendered_depth_maps/00000003.pfm").write_bytes(pfm(values))
    read = only(scene).depth(2)
    assert np.argwhere(np.isnan(read)).tolist() == [[0, column] for column in range(4)]


RANGES = {  # with the numbers of a real file: MIN + INTERVAL is 60.0937, MIN + 127 and 128 INTERVAL 244.109 and 245.569
    "58.6333 1.46043515625 128 245.569": [False, False, True, True, True, False],
    "58.6333 1.46043515625 128": [False, False, True, True, True, False],
    "58.6333 1.46043515625": [True] * 6,  # says nothing of the far end
    "0 1.46043515625 128 245.569": [True] * 6,
    "-3.5 1.46043515625 128 245.569": [True] * 6,
    "58.6333 1.46043515625 128 -1": [True] * 6,
    "58.6333 0.5 128 245.569": [False, True, True, True, True, False],
}


@pytest.mark.parametrize("line", RANGES)
def test_depth_outside_the_stated_range_is_unknown(scene, line):
    values = np.full((HEIGHT, WIDTH), 100.0)
    values[0, :6] = [58.7, 60.0, 60.2, 244.0, 245.0, 246.0]
    (scene / "rendered_depth_maps/00000000.pfm").write_bytes(pfm(values))
    (scene / "cams/00000000_cam.txt").write_text(camera(0, line))
    read = only(scene).depth(0)
    assert np.isfinite(read[0, :6]).tolist() == RANGES[line] and np.isfinite(read[1:]).all()


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("Pf\n{} {}\n-1.000000\n", "<f4"),
        ("Pf\t{}\t{}\t-1\n", "<f4"),
        ("Pf {}  {} -0.5 ", "<f4"),  # the size of the scale means nothing
        ("Pf\r\n{} {}\r\n-1.0\n", "<f4"),
        ("Pf\n{} {}\n1.0\n", ">f4"),
        ("Pf\n{} {}\n+255\n", ">f4"),
    ],
)
def test_pfm_headers_and_byte_orders(tmp_path, header, kind):
    """Data that begin with whitespace bytes are data."""
    values = np.arange(12, dtype=np.float64).reshape(3, 4) + 0.5
    values[2, 0] = np.frombuffer(b"\n\t \n", kind)[0]
    (tmp_path / "map.pfm").write_bytes(pfm(values, header, kind))
    read = read_pfm(RawFolder(str(tmp_path)), "map.pfm")
    np.testing.assert_array_equal(read, values.astype(np.float32))
    assert read.dtype == np.float32 and read.dtype.isnative and read.flags.writeable


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PF\n2 2\n-1\n" + bytes(48),
        b"Pf\n2 2\n-1\n" + bytes(15),
        b"Pf\n2 2\n-1\n" + bytes(17),
        b"Pf\n2 2\n0\n" + bytes(16),
        b"Pf\n0 2\n-1\n",
        b"Pf\n2 -2\n-1\n" + bytes(16),
        b"Pf\n2 2\nnan\n" + bytes(16),
        b"Pf\n2 2\n-1\r\n" + bytes(16),
        b"Pf\n99999 99999\n-1\n",
        b"Pf\n2\n-1\n" + bytes(16),
    ],
)
def test_refuses_what_is_no_pfm(tmp_path, content):
    (tmp_path / "map.pfm").write_bytes(content)
    with pytest.raises(ValueError, match=r"map\.pfm .*cannot be read as a grey PFM"):
        read_pfm(RawFolder(str(tmp_path)), "map.pfm")


# Names


@pytest.mark.parametrize("level", [".", ".."])
def test_has_one_name(scene, level):
    name = only(scene / level).name
    assert name == PID and DATASET.scene_of(name) == PID


def test_finds_scenes_of_every_part_and_nested_ones(scene):
    raw = scene.parents[1]
    for copy in ("plus/5b4933abf2b5f44e95de482a", "high/58eaf1513353456af3a1682a/58eaf1513353456af3a1682a"):
        shutil.copytree(scene, raw / copy)
    names = DATASET.find(RawFolder(str(raw)))
    assert names == [
        f"BlendedMVS/{PID}",
        "high/58eaf1513353456af3a1682a/58eaf1513353456af3a1682a",
        "plus/5b4933abf2b5f44e95de482a",
    ]
    scenes = [PID, "58eaf1513353456af3a1682a", "5b4933abf2b5f44e95de482a"]
    assert [DATASET.scene_of(name) for name in names] == scenes
    assert all(len(BlendedMvs(RawFolder(str(raw)), name)) == len(NUMBERS) for name in names)


def test_refuses_other_folders(tmp_path):
    with pytest.raises(ValueError, match=r"expected BlendedMVS .*blended_images/.*found nothing"):
        DATASET.find(RawFolder(str(tmp_path)))


# Damaged files


def edit(name: str, old: str, new: str):
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def mirror(folder: Path) -> None:
    text = camera(0).split("\n")
    row = [f"{-float(value)}" for value in text[1].split()]
    (folder / "cams/00000000_cam.txt").write_text("\n".join([text[0], " ".join(row), *text[2:]]))


def move(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


REFUSED = {
    "missing depth": (lambda f: (f / "rendered_depth_maps/00000003.pfm").unlink(), r"missing .*00000003\.pfm"),
    "missing image": (
        lambda f: (f / "blended_images/00000003.jpg").unlink(),
        r"missing .*blended_images/00000003\.jpg",
    ),
    "missing camera": (lambda f: (f / "cams/00000003_cam.txt").unlink(), r"nothing listed for .*00000003\.jpg"),
    "no cameras": (lambda f: [path.unlink() for path in f.glob("cams/*_cam.txt")], r"cams lists 0 frames"),
    "pair.txt beside cams": (move("cams/pair.txt", "pair.txt"), r"missing file .*cams/pair\.txt"),
    "unknown id": (
        edit("cams/pair.txt", "7 90.25", "5 90.25"),
        r"cams/pair\.txt .*ids being those of cams/ \(KeyError",
    ),
    "too short": (edit("cams/pair.txt", "3 0 5.5", "4 0 5.5"), r"cams/pair\.txt .*must be a count"),
    "too long": (edit("cams/pair.txt", "5\n", "4\n"), r"cams/pair\.txt .*numbers too many"),
    "its own neighbour": (edit("cams/pair.txt", "2 1 100", "2 0 100"), r"cams/pair\.txt .*its own neighbour"),
    "cut off": (lambda f: (f / "cams/pair.txt").write_text(PAIRS[:-6]), r"cams/pair\.txt .*StopIteration"),
    "28 words": (edit("cams/00000001_cam.txt", "1.5 0.1 128 14.3", "1.5"), r"00000001_cam\.txt .*28 words"),
    "32 words": (edit("cams/00000001_cam.txt", "14.3", "14.3 1"), r"00000001_cam\.txt .*32 words"),
    "other words": (
        edit("cams/00000001_cam.txt", "extrinsic", "intrinsic"),
        r"00000001_cam\.txt .*must be 'extrinsic'",
    ),
    "no number": (edit("cams/00000001_cam.txt", "25.5", "f"), r"00000001_cam\.txt .*16 finite numbers"),
    "not finite": (edit("cams/00000001_cam.txt", "25.5", "nan"), r"00000001_cam\.txt .*not finite"),
    "mirrored": (mirror, "pose of frame 0 is not a rigid motion.*mirrored"),
    "K of the large images": (edit("cams/00000001_cam.txt", "16.4", "43.7"), "intrinsics of .*were the images resized"),
    "one size too many": (
        lambda f: (f / "rendered_depth_maps/00000003.pfm").write_bytes(pfm(np.ones((12, 16)))),
        r"00000003\.pfm .*\(12, 16\) \(H, W\), but the first image .*\(24, 32\)",
    ),
    "truncated depth": (
        lambda f: (f / "rendered_depth_maps/00000003.pfm").write_bytes(pfm(depth(2))[:-4]),
        r"00000003\.pfm .*cannot be read as a grey PFM",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(scene, case):
    damage, message = REFUSED[case]
    damage(scene)
    with pytest.raises(ValueError, match=message):
        only(scene)


@pytest.mark.skipif(not REAL.exists(), reason="the real camera file of BlendedMVS is not here: shared/data/real")
def test_a_real_camera_file():
    cam_from_world, intrinsics, (nearest, farthest) = _camera(REAL.read_text(), str(REAL))
    rotation = cam_from_world[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(rotation) > 0
    np.testing.assert_allclose(intrinsics[:2, 2], [384, 288], atol=0.5)  # the middle of 768 x 576, corner origin
    # Of the four numbers the last is what the other three lead to, and the first plane lies one interval in.
    assert farthest == 245.569 and abs(58.6333 + 128 * 1.46043515625 - farthest) < 1e-3
    assert nearest == pytest.approx(58.6333 + 1.46043515625)
