"""CO3D, file by file (dataset notes D8): what is read, left out and refused, against a plane written by hand."""

import json
import shutil
from pathlib import Path

import cv2
import implicitron
import numpy as np
import plane
import pytest
from PIL import Image
from shared_data import SHARED

from pipelines.catalog import Catalog
from pipelines.conversion import Conversion, plan_sequence
from pipelines.datasets.co3d import DATASET, Co3d
from pipelines.datasets.pytorch3d import Frame
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Excluded, Static
from pipelines.store.layout import StoreSettings

REAL = SHARED / "real/co3d"
SEQUENCE = "110_13051_23361"
NAME = f"apple/{SEQUENCE}"
SIZES = {"portrait": (40, 24), "landscape": (24, 40), "odd": (41, 25)}  # (H, W)


def intrinsics(t: int, height: int, width: int) -> np.ndarray:
    """Nothing symmetric, and other ones in every frame."""
    return np.array([[31.0 + t, 0, width / 2 + 1.5], [0, 33 + t, height / 2 - 2], [0, 0, 1]])


def depth(t: int, height: int, width: int) -> np.ndarray:
    return plane.depth(t, height, width, intrinsics(t, height, width))


def file(t: int) -> str:
    return f"frame{t + 1:06d}"


def number(t: int) -> int:
    """Not the number in the file name, nor even in its order."""
    return 100 - 3 * t


def record(t: int, size: tuple[int, int], *, isotropic: bool = True, scale: float = 1.0) -> dict:
    matrix = intrinsics(t, *size)
    numbers = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    return {
        "sequence_name": SEQUENCE,
        "frame_number": number(t),
        "frame_timestamp": -1,
        "image": {"path": f"{NAME}/images/{file(t)}.jpg", "size": list(size)},
        "depth": {
            "path": f"{NAME}/depths/{file(t)}.jpg.geometric.png",
            "scale_adjustment": scale,
            "mask_path": f"{NAME}/depth_masks/{file(t)}.png",
        },
        "mask": {"path": f"{NAME}/masks/{file(t)}.png", "mass": 1.0},
        "viewpoint": implicitron.viewpoint(
            plane.world_from_cam(t), *numbers, height=size[0], width=size[1], isotropic=isotropic
        ),
        "meta": {"frame_type": "train_known", "eval_batch_maps": [["{", 1]]},
    }


def write(raw: Path, size: tuple[int, int], *, isotropic: bool = True, scale: float = 1.0) -> Path:
    """<raw>/apple with one sequence; gives its folder."""
    folder = raw / NAME
    for kind in ("images", "depths", "depth_masks"):
        (folder / kind).mkdir(parents=True)
    for t in range(plane.FRAMES):
        Image.fromarray(plane.picture(t, *size)).save(folder / f"images/{file(t)}.jpg", quality=95, subsampling=0)
        save_depth(folder, t, depth(t, *size) / scale)
        Image.fromarray(np.ones(size, bool)).save(folder / f"depth_masks/{file(t)}.png")
    (folder / "images/._frame000001.jpg").write_bytes(b"")
    records = [record(t, size, isotropic=isotropic, scale=scale) for t in (2, 0, 3, 1)]
    other = record(0, size) | {"sequence_name": "540_79043_153212"}  # annotated, its archive not extracted
    implicitron.save([other, *records[:2], other, *records[2:]], folder.parent / "frame_annotations.jgz")
    save_sequences(folder, 0.9)
    (folder.parent / "set_lists").mkdir()
    save_sets(folder, range(plane.FRAMES))
    return folder


def save_depth(folder: Path, t: int, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.float16).view(np.uint16)).save(folder / f"depths/{file(t)}.jpg.geometric.png")


def save_sequences(folder: Path, quality: object) -> None:
    names = [SEQUENCE, "540_79043_153212"]
    records = [{"sequence_name": name, "category": "apple", "viewpoint_quality_score": quality} for name in names]
    implicitron.save(records, folder.parent / "sequence_annotations.jgz")


def save_sets(folder: Path, usable: list[int]) -> None:
    """Usable frames in train of one set or in val of another; all frames in test."""
    entries = [[SEQUENCE, number(t), f"{NAME}/images/{file(t)}.jpg"] for t in range(plane.FRAMES)]
    chosen = [entries[t] for t in usable]
    for name, parts in (("fewview_train", (chosen[::2], [])), ("manyview_dev_0", ([], chosen[1::2]))):
        text = json.dumps(dict(zip(("train", "val", "test"), (*parts, entries), strict=True)))
        (folder.parent / f"set_lists/set_lists_{name}.json").write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "raw", SIZES["portrait"])


def opened(folder: Path) -> Co3d:
    return Co3d(RawFolder(str(folder.parents[1])), NAME)


def change(folder: Path, t: int, **fields: object) -> None:
    """Write the list again with other fields in the record of frame t."""
    records = [record(k, SIZES["portrait"]) for k in range(plane.FRAMES)]
    records[t] |= fields
    implicitron.save(records, folder.parent / "frame_annotations.jgz")


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_reads_what_the_files_say(tmp_path, shape, isotropic, scale):
    size = SIZES[shape]
    folder = write(tmp_path / "raw", size, isotropic=isotropic, scale=scale)
    assert DATASET.find(RawFolder(str(tmp_path / "raw"))) == [NAME]
    sequence = opened(folder)
    assert len(sequence) == plane.FRAMES and sequence.image_size == size and not sequence.notes
    np.testing.assert_array_equal(sequence.frame_numbers, [1, 2, 3, 4])  # the files' order, not frame_number's
    assert sequence.motion(np.arange(2)) == Static()
    assert np.isnan(sequence.normal(0, np.arange(3), np.arange(3))).all()
    assert sequence.instance(0) is None and sequence.neighbours(0) is None
    for t in range(plane.FRAMES):
        np.testing.assert_allclose(sequence.cameras.intrinsics[t], intrinsics(t, *size), atol=1e-9)
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], plane.world_from_cam(t), atol=1e-9)
        assert np.abs(sequence.image(t).astype(int) - plane.picture(t, *size)).mean() < 3
        np.testing.assert_allclose(sequence.depth(t), depth(t, *size), rtol=2**-11)


def test_pixel_centres_lie_at_one_half(folder):
    sequence = opened(folder)
    geometry = sequence.depth(1), sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert np.median(plane.distance(*geometry, centre=0)) > 5 * np.median(plane.distance(*geometry, centre=0.5))


def test_real_intrinsics(folder):
    """A record of v2 and one of v1, whose format is not named, with the cameras that the dataset notes give."""
    height, width = 640, 479
    Image.new("RGB", (width, height)).save(folder / "images/frame000001.jpg")
    real = {
        "focal_length": [2.3000135] * 2,
        "principal_point": [-0.0020876827] * 2,
        "intrinsics_format": "ndc_isotropic",
    }
    seen = record(0, SIZES["portrait"])["viewpoint"]
    change(folder, 0, image={"path": f"{NAME}/images/frame000001.jpg", "size": [height, width]}, viewpoint=seen | real)
    save_sets(folder, [0])
    matrix = opened(folder).cameras.intrinsics[0]
    np.testing.assert_allclose(matrix, [[550.853, 0, 240.0], [0, 550.853, 320.5], [0, 0, 1]], atol=1e-3)
    height, width = 1899, 1068
    Image.new("RGB", (width, height)).save(folder / "images/frame000001.jpg")
    real = {"focal_length": [3.55484, 1.99925], "principal_point": [0.0, 0.0]}
    del seen["intrinsics_format"]
    change(folder, 0, image={"path": f"{NAME}/images/frame000001.jpg", "size": [height, width]}, viewpoint=seen | real)
    matrix = opened(folder).cameras.intrinsics[0]
    np.testing.assert_allclose(matrix, [[1898.286, 0, 534], [0, 1898.286, 949.5], [0, 0, 1]], atol=3e-3)


def test_frames_come_in_the_order_of_the_numbers_in_their_names(folder):
    """Also where these have no leading zeros."""
    renamed = {0: "frame9", 1: "frame10", 2: "frame100", 3: "frame101"}
    for t, name in renamed.items():
        (folder / f"images/{file(t)}.jpg").rename(folder / f"images/{name}.jpg")
    records = [record(t, SIZES["portrait"]) for t in range(plane.FRAMES)]
    for t, name in renamed.items():
        records[t]["image"]["path"] = f"{NAME}/images/{name}.jpg"
    implicitron.save(records[::-1], folder.parent / "frame_annotations.jgz")
    sequence = opened(folder)
    np.testing.assert_array_equal(sequence.frame_numbers, [9, 10, 100, 101])
    np.testing.assert_allclose(sequence.cameras.world_from_cam[1], plane.world_from_cam(1), atol=1e-9)
    assert np.abs(sequence.image(1).astype(int) - plane.picture(1, *SIZES["portrait"])).mean() < 3


def test_numbers_that_are_none_and_what_is_not_trusted_are_unknown_depth(folder):
    values = depth(1, *SIZES["portrait"])
    values[0, :6] = [0, -0.0, np.inf, -np.inf, np.nan, -1]
    save_depth(folder, 1, values)
    trusted = np.ones(SIZES["portrait"], bool)
    trusted[5:9, 3:8] = False
    for mask in (trusted, trusted.astype(np.uint8), trusted.astype(np.uint8) * 255):  # 1 bit, or saved again with 8
        Image.fromarray(mask).save(folder / "depth_masks/frame000002.png")
        read = opened(folder).depth(1)
        expected = trusted.copy()
        expected[0, :6] = False
        np.testing.assert_array_equal(np.isfinite(read), expected)
        np.testing.assert_allclose(read[expected], values[expected], rtol=2**-11)


@pytest.mark.parametrize("blank", [0.0, -0.0])
def test_leaves_out_what_was_blanked_or_has_no_camera_or_depth(folder, blank):
    save_depth(folder, 2, np.full(SIZES["portrait"], blank))
    sequence = opened(folder)
    np.testing.assert_array_equal(sequence.frame_numbers, [1, 2, 4])
    assert sequence.notes == ("1 frames with blank depth",)
    np.testing.assert_allclose(sequence.cameras.world_from_cam[2], plane.world_from_cam(3), atol=1e-9)
    np.testing.assert_allclose(sequence.depth(2), depth(3, *SIZES["portrait"]), rtol=2**-11)

    save_sets(folder, [0, 2, 3])  # frame 1 is in a test list only
    change(folder, 3, viewpoint=None)
    sequence = opened(folder)
    np.testing.assert_array_equal(sequence.frame_numbers, [1])
    reasons = ("in no train or val list", "with blank depth", "without viewpoint")
    assert sequence.notes == tuple(f"1 frames {reason}" for reason in reasons)
    change(folder, 3, depth=None)
    assert "1 frames without depth" in opened(folder).notes
    change(folder, 3, depth={"path": f"{NAME}/depths/x.png", "mask_path": None})
    assert "1 frames without depth" in opened(folder).notes


def test_a_blank_file_of_a_large_photo_is_small_enough_to_be_looked_into(folder):
    size = (1900, 1000)
    sizes = []
    for t in range(plane.FRAMES):
        Image.new("RGB", size[::-1]).save(folder / f"images/{file(t)}.jpg")
        values = np.full(size, 0x8000 if t == 1 else 0, np.uint16)
        values[-1, -1] = 15360 if t == 3 else 0  # 1.0 in a single pixel
        path = folder / f"depths/{file(t)}.jpg.geometric.png"
        Image.fromarray(values).save(path, compress_level=(1, 9)[t % 2])
        sizes.append(path.stat().st_size)
    implicitron.save([record(t, size) for t in range(plane.FRAMES)], folder.parent / "frame_annotations.jgz")
    assert min(sizes) > 1024
    sequence = opened(folder)
    np.testing.assert_array_equal(sequence.frame_numbers, [4])
    assert sequence.notes == ("3 frames with blank depth",)


@pytest.mark.parametrize("quality", [None, 0.5, 0.93, 1])
def test_quality_that_is_unknown_or_good_is_accepted(folder, quality):
    save_sequences(folder, quality)
    assert len(opened(folder)) == plane.FRAMES


def test_sequences_that_the_dataset_itself_advises_against_are_excluded(folder):
    for quality in (0.2, 0.499):
        save_sequences(folder, quality)
        with pytest.raises(Excluded, match=rf"viewpoint_quality_score of {NAME} is {quality}, below 0.5"):
            opened(folder)
    save_sequences(folder, None)
    far = record(1, SIZES["portrait"])["viewpoint"] | {"T": [0, 2e5, 0]}
    change(folder, 1, viewpoint=far)
    with pytest.raises(Excluded, match="cameras farther than 100000 away"):
        opened(folder)
    change(folder, 1, viewpoint=None)
    save_sets(folder, [1])
    with pytest.raises(
        Excluded, match=r"no usable frame: 3 frames in no train or val list, 1 frames without viewpoint"
    ):
        opened(folder)


def test_conversion_skips_them_with_the_reason_and_counts_no_failure(folder):
    save_sequences(folder, 0.2)
    raw, catalog = str(folder.parents[1]), Catalog.load("co3d")
    settings = StoreSettings(
        dataset="co3d", split="all", frames=4, image_size=64, strides=(1, 1), hop=4, samples=1, queries=64,
        video="jpeg", seed=0,
    )  # fmt: skip

    conversion = Conversion(raw=raw, store=f"{raw}/store", settings=settings, catalog=catalog, allow_misfit=False)
    plan = plan_sequence({"sequence": NAME}, conversion=conversion)
    assert "below 0.5" in plan.skipped and not plan.todo
    (folder / f"images/{file(0)}.jpg").unlink()
    save_sequences(folder, 0.9)
    with pytest.raises(ValueError, match="missing file"):
        plan_sequence({"sequence": NAME}, conversion=conversion)


def test_finds_what_was_extracted_at_any_level(folder):
    raw = folder.parents[1]
    assert DATASET.find(RawFolder(str(folder.parent))) == [NAME]
    assert len(Co3d(RawFolder(str(folder.parent)), NAME)) == plane.FRAMES
    (raw / "release").mkdir()
    shutil.move(folder.parent, raw / "release/apple")
    names = DATASET.find(RawFolder(str(raw)))
    assert names == [f"release/{NAME}"] and DATASET.scene_of(names[0]) == DATASET.scene_of(NAME) == "apple"
    deeper = Co3d(RawFolder(str(raw)), names[0])
    np.testing.assert_allclose(deeper.depth(3), depth(3, *SIZES["portrait"]), rtol=2**-11)
    assert deeper.image(3).shape == (*SIZES["portrait"], 3)


def without(t: int, key: str) -> dict:
    fields = record(t, SIZES["portrait"])
    del fields["viewpoint"][key]
    return fields["viewpoint"]


def seen(t: int, **fields: object) -> dict:
    return record(t, SIZES["portrait"])["viewpoint"] | fields


def located(path: str) -> dict:
    return {"path": path, "size": list(SIZES["portrait"])}


REFUSED = {
    "rotation mirrored": (
        lambda f: change(f, 2, viewpoint=seen(2, R=np.diag([1.0, 1, -1]).tolist())),
        r"pose of frame 2 is not a rigid motion.*mirrored",
    ),
    "rotation of another shape": (
        lambda f: change(f, 2, viewpoint=seen(2, R=[1, 2])),
        rf"viewpoint\.R of frame 94 of '{SEQUENCE}' in apple/frame_annotations\.jgz .*shape \(3, 3\): download",
    ),
    "no translation": (lambda f: change(f, 2, viewpoint=without(2, "T")), r"viewpoint\.T of frame 94 .* is None"),
    "not finite": (lambda f: change(f, 2, viewpoint=seen(2, T=[0, np.inf, 0])), r"viewpoint\.T .*finite numbers"),
    "unknown format": (
        lambda f: change(f, 2, viewpoint=seen(2, intrinsics_format="screen")),
        r"intrinsics_format of frame 94 .* is 'screen'; it must be one of ndc_isotropic, ndc_norm_image_bounds",
    ),
    "focal length 0": (lambda f: change(f, 2, viewpoint=seen(2, focal_length=[0, 1])), "focal length is not positive"),
    "scale 0": (
        lambda f: change(f, 2, depth=record(2, SIZES["portrait"], scale=0)["depth"]),
        r"depth\.scale_adjustment of frame 94 .* above 0",
    ),
    "sizes differ": (
        lambda f: change(f, 2, image={"path": f"{NAME}/images/{file(2)}.jpg", "size": [24, 40]}),
        r"frame000001\.jpg .* is \(40, 24\) \(H, W\), but .*frame_annotations\.jgz also says \(24, 40\)",
    ),
    "size is no size": (
        lambda f: change(f, 2, image={"path": f"{NAME}/images/{file(2)}.jpg", "size": [24.5, 40]}),
        r"image\.size of frame 94 .*\[H, W\], whole numbers",
    ),
    "viewpoint is a list": (lambda f: change(f, 2, viewpoint=[1]), r"viewpoint of frame 94 .*a mapping"),
    "path is a number": (lambda f: change(f, 2, image={"path": 7}), r"image\.path of frame 94 .* is 7.*a path"),
    "no path": (lambda f: change(f, 2, image={"size": [40, 24]}), r"frame 94 .* must have .*an image path"),
    "no frame_number": (lambda f: change(f, 2, frame_number=None), r"frame None of .* must have a whole frame_number"),
    "path of another category": (
        lambda f: change(f, 2, image=located("pear/a/frame000003.jpg")),
        r"'pear/a/frame000003\.jpg' in .* does not begin with its folder's name 'apple'",
    ),
    "path out of the folder": (
        lambda f: change(f, 2, image=located("apple/../../secret/frame000003.jpg")),
        r"leaves the raw folder",
    ),
    "absolute path": (lambda f: change(f, 2, image=located("apple//etc/frame000003.jpg")), r"leaves the raw folder"),
    "image without number": (
        lambda f: [
            (f / f"images/{file(2)}.jpg").rename(f / "images/last.jpg"),
            change(f, 2, image=located(f"{NAME}/images/last.jpg")),
        ],
        r"last\.jpg has no number",
    ),
    "one image twice": (
        lambda f: change(f, 2, image=located(f"{NAME}/images/{file(1)}.jpg")),
        r"lists one image of .* for two frames",
    ),
    "frame_number twice": (lambda f: change(f, 2, frame_number=number(1)), r"each once; it lists 4"),
    "missing image": (lambda f: (f / f"images/{file(1)}.jpg").unlink(), r"missing file .*images/frame000002\.jpg"),
    "missing depth": (
        lambda f: (f / f"depths/{file(1)}.jpg.geometric.png").unlink(),
        r"missing file .*frame000002\.jpg\.geometric\.png",
    ),
    "missing mask": (lambda f: (f / f"depth_masks/{file(1)}.png").unlink(), r"missing .*depth_masks/frame000002\.png"),
    "missing folder": (
        lambda f: shutil.rmtree(f / "depths"),
        r"missing file .*depths/frame00000\d\.jpg\.geometric\.png",
    ),
    "no set lists": (lambda f: shutil.rmtree(f.parent / "set_lists"), r"no set list apple/set_lists/.*blanked"),
    "set list without val": (
        lambda f: (f.parent / "set_lists/set_lists_fewview_train.json").write_text('{"train": []}'),
        r"set_lists_fewview_train\.json .*mapping of train and val .*'val'",
    ),
    "set list of other entries": (
        lambda f: (f.parent / "set_lists/set_lists_fewview_train.json").write_text('{"train": [1], "val": []}'),
        r"set_lists_fewview_train\.json .*\[sequence, frame_number, path\]",
    ),
    "set list is no JSON": (
        lambda f: (f.parent / "set_lists/set_lists_fewview_train.json").write_text("["),
        r"set_lists_fewview_train\.json .*download it again",
    ),
    "quality is text": (lambda f: save_sequences(f, "good"), r"sequence_annotations\.jgz .*a number or null"),
    "no record of the sequence": (
        lambda f: implicitron.save([], f.parent / "sequence_annotations.jgz"),
        r"sequence_annotations\.jgz .*one record of '110_13051_23361'.*has 0",
    ),
    "no frame of the sequence": (
        lambda f: implicitron.save([], f.parent / "frame_annotations.jgz"),
        r"must list frames of '110_13051_23361'.*lists 0",
    ),
    "list cut short": (
        lambda f: (f.parent / "frame_annotations.jgz").write_bytes(
            (f.parent / "frame_annotations.jgz").read_bytes()[:-20]
        ),
        r"frame_annotations\.jgz .*truncated or corrupt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(folder, case):
    opened(folder)  # what was kept of the files is not used for others
    damage, message = REFUSED[case]
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        opened(folder)
    assert not isinstance(error.value, Excluded)


def test_refuses_maps_of_another_size_or_kind(folder):
    sequence = opened(folder)
    Image.new("RGB", (10, 6)).save(folder / "images/frame000002.jpg")
    with pytest.raises(ValueError, match=r"images/frame000002\.jpg .* is \(6, 10\).*\(40, 24\)"):
        sequence.image(1)
    Image.new("1", (10, 6)).save(folder / "depth_masks/frame000002.png")
    with pytest.raises(ValueError, match=r"depth_masks/frame000002\.png .* is \(6, 10\)"):
        sequence.depth(1)
    Image.new("L", (24, 40)).save(folder / "depths/frame000002.jpg.geometric.png")
    with pytest.raises(ValueError, match=r"geometric\.png .*mode L, not a 16-bit grey PNG"):
        sequence.depth(1)
    Image.new("RGB", (24, 40)).save(folder / "depth_masks/frame000003.png")
    with pytest.raises(ValueError, match=r"depth_masks/frame000003\.png .*mode RGB, not a PNG of black and white"):
        sequence.depth(2)


def test_refuses_other_folders(tmp_path, folder):
    (tmp_path / "other/apple_000").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"expected CO3D v2.*frame_annotations\.jgz.*found apple_000/"):
        DATASET.find(RawFolder(str(tmp_path / "other")))
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"no sequence in .*expected CO3D v2"):
        DATASET.find(RawFolder(str(folder.parents[1])))
    (folder.parent / "sequence_annotations.jgz").unlink()
    with pytest.raises(ValueError, match=r"missing file apple/sequence_annotations\.jgz"):
        DATASET.find(RawFolder(str(folder.parents[1])))


# Real cameras and photos


def real_frames() -> list[Frame]:
    """The cameras that came with 20 real photos, as a list would tell them."""
    cameras = np.load(REAL / "gt_cameras.npz")
    told = zip(*(cameras[key].tolist() for key in ("gtR", "gtT", "gtFL")), strict=True)
    records = [
        {
            "sequence_name": "apple",
            "frame_number": i,
            "image": {"path": path.name, "size": [1896, 1066]},
            "viewpoint": {
                "R": rotation,
                "T": shift,
                "focal_length": focal_length,
                "principal_point": [0, 0],
                "intrinsics_format": "ndc_isotropic",
            },
        }
        for i, (path, (rotation, shift, focal_length)) in enumerate(
            zip(sorted((REAL / "images").glob("*.jpg")), told, strict=True)
        )
    ]
    return [Frame.parse(record, "a list", str) for record in records]


def matches(first: Frame, second: Frame) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) homogeneous pixels of corner origin that show the same, found by their looks alone."""
    sift = cv2.SIFT_create(1500)
    points, looks = zip(
        *(sift.detectAndCompute(cv2.imread(str(REAL / "images" / each.image), 0), None) for each in (first, second)),
        strict=True,
    )
    good = [
        best for best, next_best in cv2.BFMatcher().knnMatch(*looks, k=2) if best.distance < 0.7 * next_best.distance
    ]
    pairs = [(points[0][match.queryIdx].pt, points[1][match.trainIdx].pt) for match in good]
    uv = np.swapaxes(np.array(pairs), 0, 1) + 0.5  # OpenCV's top-left centre is (0, 0)
    return tuple(np.concatenate([uv, np.ones((2, uv.shape[1], 1))], axis=2))


def pixels_off(uv: np.ndarray, uv_other: np.ndarray, other_from_cam: np.ndarray, k: np.ndarray, k_other: np.ndarray):
    """Median distance of points from the lines on which a point of the other photo must lie (Hartley & Zisserman 9)."""
    x, y, z = other_from_cam[:3, 3]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    lines = uv @ (np.linalg.inv(k_other).T @ cross @ other_from_cam[:3, :3] @ np.linalg.inv(k)).T
    return np.median(np.abs((lines * uv_other).sum(axis=1)) / np.linalg.norm(lines[:, :2], axis=1))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real cameras and photos of CO3D are not here: shared/data/real")
@pytest.mark.parametrize("i", [0, 2, 14])
def test_real_photos_agree_with_their_cameras(i):
    first, second = real_frames()[i : i + 2]
    uv, uv_other = matches(first, second)
    other_from_cam = np.linalg.inv(second.world_from_cam) @ first.world_from_cam
    ks = first.intrinsics, second.intrinsics
    assert len(uv) > 80 and pixels_off(uv, uv_other, other_from_cam, *ks) < 1
    inverted = second.world_from_cam @ np.linalg.inv(first.world_from_cam)
    assert pixels_off(uv, uv_other, inverted, *ks) > 10  # as it would be if the poses were the other way round


@pytest.mark.skipif(not REAL.is_dir(), reason="the real records of CO3D are not here: shared/data/real")
def test_real_records():
    listed = json.loads((REAL / "frame_annotations_3_records.json").read_text())
    frames = [Frame.parse(each, "a list", str) for each in listed]
    assert [frame.number for frame in frames] == [each["frame_number"] for each in listed]
    first = frames[0]
    assert first.size == (900, 2000) and first.depth_scale == 1
    np.testing.assert_allclose(first.intrinsics, [[1781.605, 0, 1000], [0, 1782.496, 450], [0, 0, 1]], atol=1e-3)
    step = np.linalg.inv(frames[0].world_from_cam) @ frames[1].world_from_cam  # 66 ms of a walk around an apple
    assert 0 < np.linalg.norm(step[:3, 3]) < 0.05 * np.linalg.norm(first.world_from_cam[:3, 3])
