"""Kubric, as TFRecord and as render folder (dataset notes D3): what is read and refused; truth written by hand."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import plane
import pytest
from odd_names import ODD, upload
from PIL import Image
from scipy.spatial.transform import Rotation
from tensorflow_example import framed, parsed, serialized, unframed

from pipelines.datasets.kubric import DATASET, Kubric
from pipelines.raw.folder import RawFolder

HEIGHT, WIDTH = 24, 40
FOCAL_LENGTH, SENSOR_WIDTH = 35.0, 32.0
FOCAL = 35 / 32 * WIDTH
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
FRAMES, INSTANCES = plane.FRAMES, 3  # not as many of one as of the other
RANGE = 2.0, 9.0  # of distances, in TFRecords
SHARD = "analytic-train.tfrecord-00003-of-00010"
RAYS = plane.rays(HEIGHT, WIDTH, INTRINSICS)


def object_pose(k: int, t: int) -> np.ndarray:
    """All but the first move, though instance 1 is called static."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("ZYX", [0.3 * k + 0.4 * t * (k > 0), 0.2 * k, -0.5]).as_matrix()
    pose[:3, 3] = [k + 0.5 * t * (k > 0), -k, 0.25 * k]
    return pose


def wxyz(rotation: np.ndarray) -> list[float]:
    x, y, z, w = Rotation.from_matrix(rotation).as_quat().tolist()
    return [w, x, y, z]


def segmentation() -> np.ndarray:
    """Instance k is k + 1."""
    shown = np.zeros((HEIGHT, WIDTH), np.uint8)
    shown[2:6, 3:9], shown[8:14, 20:30], shown[16:, :5] = 1, 2, 3
    return shown


def document() -> dict:
    """metadata.json."""
    poses = [plane.world_from_cam(t) for t in range(FRAMES)]
    blender = [pose[:3, :3] @ np.diag([1, -1, -1]) for pose in poses]  # y up, -z forward
    instances = [
        {
            "positions": [object_pose(k, t)[:3, 3].tolist() for t in range(FRAMES)],
            "quaternions": [wxyz(object_pose(k, t)[:3, :3]) for t in range(FRAMES)],
            "is_dynamic": k == 2,
        }
        for k in range(INSTANCES)
    ]
    camera = {"focal_length": FOCAL_LENGTH, "sensor_width": SENSOR_WIDTH, "field_of_view": 0.9}
    camera["positions"] = [pose[:3, 3].tolist() for pose in poses]
    camera["quaternions"] = [wxyz(rotation) for rotation in blender]
    metadata = {"num_frames": FRAMES, "num_instances": INSTANCES, "resolution": [WIDTH, HEIGHT]}
    return {"flags": {}, "metadata": metadata, "camera": camera, "instances": instances}


def distance(t: int) -> np.ndarray:
    """From the camera's centre, along the ray."""
    return plane.depth(t, HEIGHT, WIDTH, INTRINSICS) * np.linalg.norm(RAYS, axis=-1)


def normal16() -> np.ndarray:
    return np.broadcast_to(((plane.NORMAL + 1) / 2 * 65535).round().astype(np.uint16), (HEIGHT, WIDTH, 3))


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


def features() -> dict[str, list]:
    """A record, by the names of TFDS."""
    low, high = RANGE
    facts = document()
    found = {
        "video": [png(plane.picture(t, HEIGHT, WIDTH)) for t in range(FRAMES)],
        "segmentations": [png(segmentation())] * FRAMES,
        "depth": [png(((distance(t) - low) / (high - low) * 65535).round().astype(np.uint16)) for t in range(FRAMES)],
        "normal": [png(normal16())] * FRAMES,
        "forward_flow": [7] * (FRAMES * HEIGHT * WIDTH * 2),
        "metadata/depth_range": [low, high],
        "metadata/num_frames": [FRAMES],
        "metadata/num_instances": [INSTANCES],
        "metadata/video_name": [b"17"],
    }
    for name in ("focal_length", "sensor_width", "positions", "quaternions"):
        found[f"camera/{name}"] = np.ravel(facts["camera"][name]).tolist()
    for name in ("positions", "quaternions"):
        found[f"instances/{name}"] = np.ravel([instance[name] for instance in facts["instances"]]).tolist()
    return found


def write_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps(document()))
    for t in range(FRAMES):
        Image.fromarray(plane.picture(t, HEIGHT, WIDTH)).convert("RGBA").save(folder / f"rgba_{t:05d}.png")
        shown = Image.fromarray(segmentation()).convert("P")
        shown.putpalette([(7 * i) % 256 for i in range(768)])  # colours that are no indices
        shown.save(folder / f"segmentation_{t:05d}.png")
        Image.fromarray(distance(t).astype(np.float32)).save(folder / f"depth_{t:05d}.tiff")
        (folder / f"normal_{t:05d}.png").write_bytes(png(normal16()))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A render folder "marble_1" and, apart, a shard of two records of which the second is the scene."""
    write_folder(tmp_path / "folder/marble_1")
    (tmp_path / "record").mkdir()
    other = serialized(features() | {"camera/focal_length": [70.0]})
    (tmp_path / "record" / SHARD).write_bytes(framed(other) + framed(serialized(features())))
    return tmp_path


NAMES = {"folder": "marble_1", "record": f"{SHARD}/1"}
layouts = pytest.mark.parametrize("layout", NAMES)


def opened(raw: Path, layout: str) -> Kubric:
    return Kubric(RawFolder(str(raw / layout)), NAMES[layout])


@layouts
def test_reads_what_the_files_say(raw, layout):
    sequence = opened(raw, layout)
    assert len(sequence) == FRAMES and sequence.image_size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(sequence.frame_numbers, range(FRAMES))
    tolerance = (RANGE[1] - RANGE[0]) / 65535 if layout == "record" else 1e-6
    row, column = np.indices((HEIGHT, WIDTH)).reshape(2, -1)
    for t in range(FRAMES):
        np.testing.assert_allclose(sequence.cameras.intrinsics[t], INTRINSICS, rtol=1e-7)
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], plane.world_from_cam(t), atol=1e-6)
        np.testing.assert_array_equal(sequence.image(t), plane.picture(t, HEIGHT, WIDTH))
        np.testing.assert_allclose(sequence.depth(t), plane.depth(t, HEIGHT, WIDTH, INTRINSICS), atol=tolerance)
        np.testing.assert_array_equal(sequence.instance(t), segmentation().astype(int) - 1)
        truth = plane.world_from_cam(t)[:3, :3].T @ plane.NORMAL
        truth = truth * -np.sign(RAYS @ truth).ravel()[:, None]  # towards the camera
        np.testing.assert_allclose(sequence.normal(t, column, row), truth, atol=5e-5)  # 8 bits would miss by 4e-3


@layouts
def test_pixel_centres_lie_at_one_half(raw, layout):
    sequence = opened(raw, layout)
    geometry = sequence.depth(1), sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert plane.distance(*geometry, centre=0.5).max() < 2e-5
    assert np.median(plane.distance(*geometry, centre=0)) > 2e-4


@layouts
def test_every_instance_moves_as_its_poses_say(raw, layout):
    frames = np.array([3, 0, 1])
    poses = opened(raw, layout).motion(frames).world_from_instance
    assert poses.shape == (INSTANCES, 3, 4, 4)
    truth = [[object_pose(k, t) for t in frames.tolist()] for k in range(INSTANCES)]
    np.testing.assert_allclose(poses, truth, atol=1e-6)


def test_records_and_folders_have_names_and_splits(raw):
    everything = raw / "all/movi_f/512x512/1.0.0"
    everything.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        shutil.copy(raw / "record" / SHARD, everything / f"movi_f-{split}.tfrecord-00000-of-00512")
    (everything / "dataset_info.json").write_text("{}")
    (everything / ".movi_f-train.tfrecord-00001-of-00512.partial").write_bytes(b"")
    shutil.copytree(raw / "folder/marble_1", raw / "all/own/marble_1")
    names = DATASET.find(RawFolder(str(raw / "all")))
    shard = "movi_f/512x512/1.0.0/movi_f-{}.tfrecord-00000-of-00512"
    shards = [shard.format(split) for split in ("test", "train", "validation")]
    assert names == [f"{shard}/{i}" for shard in shards for i in (0, 1)] + ["own/marble_1"]
    splits = [DATASET.scene_of(name) for name in names]
    assert splits == ["test", "test", "train", "train", "validation", "validation", "marble_1"]
    assert DATASET.find(RawFolder(str(raw / "folder/marble_1"))) == ["marble_1"]
    assert len(Kubric(RawFolder(str(raw / "folder/marble_1")), "marble_1")) == FRAMES
    assert DATASET.find(RawFolder(str(raw / "record"))) == [f"{SHARD}/0", f"{SHARD}/1"]
    first = Kubric(RawFolder(str(raw / "record")), f"{SHARD}/0")
    np.testing.assert_allclose(first.cameras.intrinsics[:, 0, 0], 2 * FOCAL)


def test_a_cut_shard_fails_only_its_last_record(raw):
    path = raw / "record" / SHARD
    path.write_bytes(path.read_bytes()[:-100])
    folder = RawFolder(str(raw / "record"))
    names = DATASET.find(folder)
    assert names == [f"{SHARD}/0", f"{SHARD}/1"] and len(Kubric(folder, names[0])) == FRAMES
    with pytest.raises(ValueError, match=r"record 1 of analytic.* the file ends before: download the shard again"):
        Kubric(folder, names[1])


def test_reads_records_from_s3(raw, s3_uri):
    upload(raw / "record", f"{s3_uri}/{ODD}")
    folder = RawFolder(f"{s3_uri}/{ODD}")
    remote, local = Kubric(folder, DATASET.find(folder)[1]), opened(raw, "record")
    np.testing.assert_array_equal(remote.depth(2), local.depth(2))
    np.testing.assert_array_equal(remote.image(2), local.image(2))


@pytest.mark.parametrize("dataset", ["movi_f", "movi_e", "panning_movi_e"])
def test_refuses_smaller_copies_whose_maps_lie_beside_the_pixel_centres(raw, dataset):
    name = f"{dataset}-train.tfrecord-00000-of-00512"
    (raw / "record" / SHARD).rename(raw / "record" / name)
    native = {"movi_f": 512}.get(dataset, 256)
    with pytest.raises(ValueError, match=rf"{name}/0 .* is 40 wide, but {dataset} .* download {native}x{native}"):
        Kubric(RawFolder(str(raw / "record")), f"{name}/0")


def test_reads_native_sizes(raw):
    path = raw / "record" / "movi_f-train.tfrecord-00000-of-00512"
    large = {
        "video": [png(np.zeros((512, 512, 3), np.uint8))] * FRAMES,
        "depth": [png(np.full((512, 512), 65535, np.uint16))] * FRAMES,
    }
    path.write_bytes(framed(serialized(features() | large)))
    sequence = Kubric(RawFolder(str(raw / "record")), f"{path.name}/0")
    np.testing.assert_allclose(sequence.cameras.intrinsics[0], [[560, 0, 256], [0, 560, 256], [0, 0, 1]])
    corner = np.hypot(1, np.hypot(255.5, 255.5) / 560)
    assert corner == pytest.approx(1.19, abs=1e-3)  # as the dataset notes say of MOVi's camera
    np.testing.assert_allclose(sequence.depth(0)[[0, 255], [0, 255]], [9 / corner, 9], rtol=1e-5)


def test_depth_without_a_dome_is_unknown_where_nothing_is(raw):
    depth = distance(1).astype(np.float32)
    depth[0, :5] = [1e10, np.inf, np.nan, 0, -1]
    Image.fromarray(depth).save(raw / "folder/marble_1/depth_00001.tiff")
    read = opened(raw, "folder").depth(1)
    assert np.isnan(read[0, :5]).all() and np.isfinite(read).sum() == read.size - 5


def test_normals_of_nothing_are_unknown(raw):
    pixels = normal16().copy()
    pixels[0, 0], pixels[0, 1] = 32767, 32768
    (raw / "folder/marble_1/normal_00001.png").write_bytes(png(pixels))
    normal = opened(raw, "folder").normal(1, np.array([0, 1, 2]), np.array([0, 0, 0]))
    np.testing.assert_array_equal(np.isnan(normal).any(axis=1), [True, True, False])


def with_document(edit):
    def apply(raw: Path) -> None:
        path = raw / "folder/marble_1/metadata.json"
        facts = json.loads(path.read_text())
        edit(facts)
        path.write_text(json.dumps(facts))

    return apply


def with_features(**changes):
    def apply(raw: Path) -> None:
        path = raw / "record" / SHARD
        first, second = unframed(path.read_bytes())
        changed = parsed(second) | {name.replace("__", "/"): values for name, values in changes.items()}
        kept = {name: values for name, values in changed.items() if values is not None}
        path.write_bytes(framed(first) + framed(serialized(kept)))

    return apply


def remove(name: str):
    return lambda raw: (raw / "folder/marble_1" / name).unlink()


REFUSED = {
    "no metadata": ("folder", remove("metadata.json"), r"no metadata\.json for 'marble_1'"),
    "metadata no JSON": (
        "folder",
        lambda raw: (raw / "folder/marble_1/metadata.json").write_text("{"),
        r"metadata\.json .*cannot be read as JSON",
    ),
    "metadata of something else": ("folder", with_document(lambda d: d.pop("camera")), r"lacks .*KeyError\('camera'\)"),
    "metadata no mapping": (
        "folder",
        lambda raw: (raw / "folder/marble_1/metadata.json").write_text("[1]"),
        r"metadata\.json .*lacks what Kubric's renderer writes",
    ),
    "instance without positions": (
        "folder",
        with_document(lambda d: d["instances"][1].pop("positions")),
        r"lacks .*KeyError\('positions'\)",
    ),
    "instance cut short": (
        "folder",
        with_document(lambda d: d["instances"][1]["positions"].pop()),
        r"instances/positions of .*metadata\.json .* finite numbers of shape \(3, 4, 3\)",
    ),
    "number of 400 digits": (
        "folder",
        with_document(lambda d: d["camera"].update(focal_length=10**400)),
        r"camera/focal_length of .*metadata\.json .*finite numbers",
    ),
    "text for a number": (
        "folder",
        with_document(lambda d: d["camera"].update(focal_length="long")),
        r"camera/focal_length of .*metadata\.json .*finite numbers",
    ),
    "other number of frames": (
        "folder",
        with_document(lambda d: d["metadata"].update(num_frames=24)),
        r"metadata\.json .* lists 24 frames, but .* of 4",
    ),
    "position not finite": (
        "folder",
        with_document(lambda d: d["camera"]["positions"][1].__setitem__(0, float("nan"))),
        r"camera/positions of .*finite",
    ),
    "quaternion of no rotation": (
        "folder",
        with_document(lambda d: d["camera"]["quaternions"][1].__setitem__(slice(None), [0, 0, 0, 0.5])),
        r"camera/quaternions of .*length 1",
    ),
    "negative focal length": (
        "folder",
        with_document(lambda d: d["camera"].update(focal_length=-35)),
        r"focal length is not positive",
    ),
    "missing image": ("folder", remove("rgba_00002.png"), r"lists 4 frames .*missing file marble_1/rgba_00002\.png"),
    "missing depth": ("folder", remove("depth_00003.tiff"), r"missing file marble_1/depth_00003\.tiff"),
    "missing segmentation": ("folder", remove("segmentation_00000.png"), r"missing .*segmentation_00000\.png"),
    "missing normal": ("folder", remove("normal_00001.png"), r"missing .*normal_00001\.png"),
    "record without depth": ("record", with_features(depth=None), r"record 1 of .*'depth': 0.*as many of each"),
    "record without frames": (
        "record",
        with_features(video=[], depth=[], normal=[], segmentations=[]),
        r"record 1 of .*'video': 0.*must have some",
    ),
    "record with fewer depths": ("record", with_features(depth=[b""] * 3), r"'depth': 3.*as many of each"),
    "record without poses": (
        "record",
        with_features(instances__positions=None),
        r"instances/positions of record 1 of .*shape \(3, 4, 3\)",
    ),
    "record that lists other frames": ("record", with_features(metadata__num_frames=[24]), r"lists 24 frames, but"),
    "record with more instances": (
        "record",
        with_features(metadata__num_instances=[10**12]),
        r"instances/quaternions of record 1 .*finite numbers of shape \(1000000000000, 4, 4\)",
    ),
    "negative number of instances": ("record", with_features(metadata__num_instances=[-3]), r"instances/quaternions"),
    "range upside down": ("record", with_features(metadata__depth_range=[9.0, 2.0]), r"depth_range .* is 9 to 2"),
    "range without a dome": ("record", with_features(metadata__depth_range=[2.0, 1e10]), r"is 2 to 1e\+10.*dome"),
    "no range": ("record", with_features(metadata__depth_range=None), r"metadata/depth_range of record 1"),
    "video no image": ("record", with_features(video=[b"no image"] * 4), r"video/0 in record 1 of .*cannot be read"),
    "no such record": (
        "record",
        lambda raw: (raw / "record" / SHARD).write_bytes(framed(serialized(features()))),
        r"record 1 of .* is not there: the shard has 1 records",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(raw, case):
    layout, damage, message = REFUSED[case]
    damage(raw)
    with pytest.raises(ValueError, match=message):
        opened(raw, layout)


def test_refuses_maps_that_do_not_fit(raw):
    folder, sequence = raw / "folder/marble_1", opened(raw, "folder")
    Image.new("RGB", (10, 6)).save(folder / "rgba_00001.png")
    with pytest.raises(ValueError, match=r"rgba_00001\.png .*\(6, 10\).*\(24, 40\)"):
        sequence.image(1)
    Image.fromarray(np.ones((6, 10), np.float32)).save(folder / "depth_00001.tiff")
    with pytest.raises(ValueError, match=r"depth_00001\.tiff .*\(6, 10\)"):
        sequence.depth(1)
    Image.fromarray(np.ones((24, 40), np.uint16)).save(folder / "depth_00001.tiff")
    with pytest.raises(ValueError, match=r"depth_00001\.tiff .*not a float32 TIFF"):
        sequence.depth(1)
    cut = (folder / "depth_00002.tiff").read_bytes()[:-900]
    (folder / "depth_00002.tiff").write_bytes(cut)
    with pytest.raises(ValueError, match=r"depth_00002\.tiff .*cannot be read as an image"):
        sequence.depth(2)
    Image.fromarray((normal16() // 256).astype(np.uint8)).save(folder / "normal_00001.png")
    with pytest.raises(ValueError, match=r"normal_00001\.png .*8 bits per channel, but must be a 16-bit RGB PNG"):
        sequence.normal(1, np.zeros(1, int), np.zeros(1, int))
    Image.fromarray(segmentation() + np.uint8(1)).save(folder / "segmentation_00001.png")
    with pytest.raises(ValueError, match=r"segmentation_00001\.png .*shows object 4 of 3"):
        sequence.instance(1)
    Image.new("RGB", (40, 24)).save(folder / "segmentation_00002.png")
    with pytest.raises(ValueError, match=r"segmentation_00002\.png .*not an 8-bit index"):
        sequence.instance(2)


def test_refuses_maps_of_a_record_that_do_not_fit(raw):
    with_features(normal=[png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))] * 4, depth=[png(segmentation())] * 4)(raw)
    sequence = opened(raw, "record")
    with pytest.raises(ValueError, match=rf"normal/2 in record 1 of {SHARD} in .*8 bits per channel"):
        sequence.normal(2, np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(ValueError, match=r"depth/3 in record 1 of .*not a 16-bit grey PNG"):
        sequence.depth(3)


def test_refuses_other_folders(raw, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected Kubric.*tfrecord.*metadata\.json.*found nothing"):
        DATASET.find(RawFolder(str(tmp_path / "empty")))
    (tmp_path / "empty" / SHARD).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"no sequence .*found {SHARD}"):
        DATASET.find(RawFolder(str(tmp_path / "empty")))
    with pytest.raises(ValueError, match=r"leaves the raw folder"):
        Kubric(RawFolder(str(raw / "folder")), f"../record/{SHARD}/1")
