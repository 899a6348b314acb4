"""Virtual KITTI 2, file by file (dataset notes D5): what is read, what is refused; the truth is written by hand."""

import shutil
from pathlib import Path

import numpy as np
import plane
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from shared_data import SHARED

from pipelines.datasets.virtual_kitti2 import DATASET, VirtualKitti2, object_rotation
from pipelines.raw.folder import RawFolder
from pipelines.synthesize.virtual_kitti2 import rotation_columns

REAL = SHARED / "real/virtual_kitti2/Scene01/clone/pose.txt"
HEIGHT, WIDTH = 12, 20
INTRINSICS = np.array([[15.0, 0, 10.25], [0, 16, 6.5], [0, 0, 1]])  # corner origin; the files say 9.75 and 6
BASELINE = np.array([0.532725, 0, 0])
HEADERS = {
    "intrinsic": "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]",
    "extrinsic": "frame cameraID r1,1 r1,2 r1,3 t1 r2,1 r2,2 r2,3 t2 r3,1 r3,2 r3,3 t3 0 0 0 1",
    "pose": "frame cameraID trackID alpha width height length world_space_X world_space_Y world_space_Z "
    "rotation_world_space_y rotation_world_space_x rotation_world_space_z camera_space_X camera_space_Y "
    "camera_space_Z rotation_camera_space_y rotation_camera_space_x rotation_camera_space_z",
    "bbox": "frame cameraID trackID left right top bottom number_pixels truncation_ratio occupancy_ratio isMoving",
}
# The one real row that dataset notes D5 quote, for trackID 0 of frame 25.
REAL_ROW = (
    "0 1.69414 1.776562 1.421875 3.617188 53.18796 -106 79.85496 2.263542 0 0 "
    "-3.088518 1.056862 55.55215 1.638601 -0.01539355 0.03731001"
)

# trackID: {frame: (x, y, z, ry, rx, rz)}, who sees it, and whether it is flagged as moving.
PATHS = {
    0: {t: (1.0 + t, -2.0, 5.0, 0.5 + 0.2 * t, 0.1, -0.2 * t) for t in (0, 1, 3)},  # not listed in frame 2
    3: {1: (4.0, 0.0, 8.0, 1.2, 0.0, 0.0), 2: (4.0, 0.001, 8.0, 1.2, 0.0, 0.0)},  # parked
    5: {t: (-3.0, 0.0, 6.0 + t, 0.0, 0.0, 0.0) for t in (0, 2)},  # frame 2 in camera 1 only
    6: {1: (2.0, 0.0, 7.0, 0.0, 0.0, 0.0)},  # seen once, while it moves
    8: {1: (0.0, 0.0, 9.0, 0.0, 0.0, 0.0), 3: (0.5, 0.0, 9.0, 0.0, 0.0, 0.0)},  # moves, though never flagged
}
MOVING = (0, 5, 6)
UNLISTED = 12  # shown, but in no row


def camera_pose(t: int, camera: int) -> np.ndarray:
    pose = plane.world_from_cam(t)
    pose[:3, 3] += camera * pose[:3, :3] @ BASELINE
    return pose


def object_pose(track: int, t: int) -> np.ndarray:
    x, y, z, ry, rx, rz = PATHS[track][t]
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("YZX", [ry, -rx, rz]).as_matrix()
    pose[:3, 3] = x, y, z
    return pose


def instance_indices() -> np.ndarray:
    """trackID + 1, with 0 for none."""
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[2:5, 3:6], indices[6:9, 10:15], indices[9:, :4] = 0 + 1, 3 + 1, UNLISTED + 1
    return indices


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """<raw>/Scene01/clone as in the archives, all merged into one folder."""
    scene = tmp_path / "raw" / "Scene01" / "clone"
    rows: dict[str, list] = {name: [] for name in HEADERS}
    for t in range(plane.FRAMES):
        for camera in (0, 1):  # interleaved
            rows["intrinsic"].append([t, camera, 15, 16, 9.75, 6])
            rows["extrinsic"].append([t, camera, *np.linalg.inv(camera_pose(t, camera)).ravel()])
            for track, path in PATHS.items():
                if t in path and (track, t, camera) != (5, 2, 0):
                    x, y, z, *angles = path[t]
                    rows["pose"].append([t, camera, track, 0, 1.7, 1.5, 4, x, y, z, *angles, 0, 0, 0, 0, 0, 0])
                    rows["bbox"].append([t, camera, track, 0, 9, 0, 9, 50, 0.4, 0.7, track in MOVING])
            for kind in ("rgb", "depth", "instanceSegmentation"):
                (scene / f"frames/{kind}/Camera_{camera}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane.picture(t, HEIGHT, WIDTH)).save(
                scene / f"frames/rgb/Camera_{camera}/rgb_{t:05d}.jpg", quality=95, subsampling=0
            )
            pose = camera_pose(t, camera)
            z = (plane.OFFSET - plane.NORMAL @ pose[:3, 3]) / (
                plane.rays(HEIGHT, WIDTH, INTRINSICS) @ pose[:3, :3].T @ plane.NORMAL
            )
            Image.fromarray((100 * z).round().astype(np.uint16)).save(
                scene / f"frames/depth/Camera_{camera}/depth_{t:05d}.png"
            )
            mask = Image.fromarray(instance_indices()).convert("P")
            mask.putpalette([(7 * i) % 256 for i in range(768)])  # colours that are no indices
            mask.save(scene / f"frames/instanceSegmentation/Camera_{camera}/instancegt_{t:05d}.png")
    for name, header in HEADERS.items():
        lines = [" ".join(map(str, row)) for row in rows[name]]
        (scene / f"{name}.txt").write_text("\n".join([header, *lines]) + "\n")
    (scene / "frames/rgb/Camera_0/._rgb_00000.jpg").write_bytes(b"")
    return tmp_path / "raw"


def opened(raw: Path, camera: int = 0) -> VirtualKitti2:
    return VirtualKitti2(RawFolder(str(raw)), f"Scene01/clone/Camera_{camera}")


@pytest.mark.parametrize("camera", [0, 1])
def test_reads_what_the_files_say(raw, camera):
    sequence = opened(raw, camera)
    assert len(sequence) == plane.FRAMES
    np.testing.assert_array_equal(sequence.frame_numbers, range(plane.FRAMES))
    for t in range(plane.FRAMES):
        np.testing.assert_allclose(sequence.cameras.intrinsics[t], INTRINSICS)  # half a pixel more than in the file
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], camera_pose(t, camera), atol=1e-9)
        assert np.abs(sequence.image(t).astype(int) - plane.picture(t, HEIGHT, WIDTH)).mean() < 3
        np.testing.assert_array_equal(sequence.instance(t), instance_indices().astype(int) - 1)
    geometry = sequence.depth(2), sequence.cameras.intrinsics[2], sequence.cameras.world_from_cam[2]
    assert plane.distance(*geometry, centre=0.5).max() < 0.006 / sequence.depth(2).min()  # half a centimetre
    assert np.median(plane.distance(*geometry, centre=0)) > 5e-3


def test_sky_and_holes_are_unknown_depth(raw):
    path = raw / "Scene01/clone/frames/depth/Camera_0/depth_00001.png"
    steps = np.asarray(Image.open(path)).copy()
    steps[0, :4] = [0, 65535, 65534, 1]
    Image.fromarray(steps).save(path)
    depth = opened(raw).depth(1)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth[0, :4], [np.nan, np.nan, 655.34, 0.01], rtol=1e-6)


def test_instances_move_as_their_pose_rows_say(raw):
    frames = np.array([3, 0, 1])
    motion = opened(raw).motion(frames).world_from_instance
    assert motion.shape[1:] == (3, 4, 4)
    for i, t in enumerate(frames.tolist()):  # the instance shown as index 1 is trackID 0, in row 0
        np.testing.assert_allclose(motion[opened(raw).instance(t)[2, 3], i], object_pose(0, t), atol=1e-12)


def test_unknown_instance_poses_are_nan(raw):
    sequence = opened(raw)
    motion = sequence.motion(np.arange(plane.FRAMES)).world_from_instance
    known = np.isfinite(motion).all(axis=(2, 3))
    np.testing.assert_array_equal(known[0], [True, True, False, True])  # it moves: the gap stays a gap
    np.testing.assert_array_equal(known[8], [False, True, False, True])  # never flagged, but its rows differ
    np.testing.assert_array_equal(known[6], [False, True, False, False])
    np.testing.assert_array_equal(known[5], [True, False, True, False])
    np.testing.assert_allclose(motion[5, 2], object_pose(5, 2))  # from the other camera's row
    assert sequence.instance(0)[HEIGHT - 1, 0] == UNLISTED and not known[UNLISTED].any()  # unknown, not background


def test_parked_cars_stand_in_every_frame(raw):
    motion = opened(raw).motion(np.arange(plane.FRAMES)).world_from_instance[3]
    np.testing.assert_allclose(motion[[0, 3]], [object_pose(3, 1)] * 2)
    np.testing.assert_allclose(motion[2], object_pose(3, 2))


def test_rotation_order():
    angles = np.random.default_rng(0).uniform(-3, 3, (50, 3))
    expected = Rotation.from_euler("YZX", angles * [1, -1, 1]).as_matrix()
    np.testing.assert_allclose(object_rotation(angles), expected, atol=1e-12)


def check_real_rows(rows: np.ndarray) -> None:
    """Cars stand on the road, 1.650 m below the camera; and all of a frame agree how the camera is turned."""
    cam_from_object, world_from_object = object_rotation(rows[:, 16:19]), object_rotation(rows[:, 10:13])
    height = np.einsum("ni,ni->n", cam_from_object[:, :, 1], rows[:, 13:16])  # down from the camera to a car's base
    np.testing.assert_allclose(height, 1.65, atol=1e-4)
    cam_from_world = cam_from_object @ world_from_object.transpose(0, 2, 1)
    for frame in np.unique(rows[:, 0]):
        turned = cam_from_world[rows[:, 0] == frame]
        np.testing.assert_allclose(turned, np.broadcast_to(turned[0], turned.shape), atol=2e-6)
    assert (cam_from_world[:, 1, 1] > 0.99).all()  # an upright camera


def test_a_real_row_of_scene18():
    check_real_rows(np.array(["25", "0", *REAL_ROW.split()], float)[None])


@pytest.mark.skipif(not REAL.exists(), reason="the real rows of Virtual KITTI 2 are not here: shared/data/real")
def test_real_rows_of_scene01():
    rows = np.loadtxt(REAL, skiprows=1)
    assert len(rows) == 79 and (rows[:, 0] == 0).sum() > 30
    check_real_rows(rows)
    synthesized = np.array([rotation_columns(pose) for pose in as_poses(rows[:, 16:19])])
    np.testing.assert_allclose(synthesized, rows[:, 16:19], atol=1e-7)  # what we write is what they wrote


def as_poses(columns: np.ndarray) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(columns), 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("YZX", columns * [1, -1, 1]).as_matrix()
    return poses


def test_supports_archives_side_by_side(raw, tmp_path):
    apart = tmp_path / "apart"
    scene = Path("Scene01/clone")
    for kind in ("rgb", "depth", "instanceSegmentation"):
        shutil.copytree(raw / scene / "frames" / kind, apart / f"vkitti_2.0.3_{kind}" / scene / "frames" / kind)
    (apart / "vkitti_2.0.3_textgt" / scene).mkdir(parents=True)
    for name in HEADERS:
        shutil.copy(raw / scene / f"{name}.txt", apart / "vkitti_2.0.3_textgt" / scene)
    names = DATASET.find(RawFolder(str(apart)))
    assert names == DATASET.find(RawFolder(str(raw))) == ["Scene01/clone/Camera_0", "Scene01/clone/Camera_1"]
    np.testing.assert_array_equal(opened(apart, 1).depth(2), opened(raw, 1).depth(2))
    np.testing.assert_array_equal(opened(apart, 1).instance(2), opened(raw, 1).instance(2))


def test_scenes_have_any_number(raw):
    (raw / "Scene01").rename(raw / "Scene123")
    name = "Scene123/clone/Camera_1"
    assert name in DATASET.find(RawFolder(str(raw)))
    assert DATASET.scene_of(name) == "Scene123"
    assert len(VirtualKitti2(RawFolder(str(raw)), name)) == plane.FRAMES


def edit(filename: str, find: str, replacement: str):
    """Replace in a text file, once."""

    def apply(scene: Path) -> None:
        text = (scene / filename).read_text()
        assert find in text
        (scene / filename).write_text(text.replace(find, replacement, 1))

    return apply


def remove(path: str):
    return lambda scene: (scene / path).unlink()


REFUSED = {
    "missing rgb": (remove("frames/rgb/Camera_0/rgb_00002.jpg"), r"lists 4 .* has 3 .*missing .*rgb_00002\.jpg"),
    "missing depth": (remove("frames/depth/Camera_0/depth_00001.png"), r"missing file .*depth_00001\.png"),
    "missing instances": (
        lambda scene: shutil.rmtree(scene / "frames/instanceSegmentation"),
        r"missing file .*instanceSegmentation/Camera_0/instancegt_00000\.png",
    ),
    "missing text": (remove("pose.txt"), r"missing file .*pose\.txt"),
    "gap in frames": (
        edit("intrinsic.txt", "\n1 0 15 16 9.75 6", ""),
        r"intrinsic\.txt .*one row per frame of camera 0",
    ),
    "row twice": (edit("extrinsic.txt", "\n1 0 ", "\n0 0 "), r"extrinsic\.txt .*one row per frame"),
    "fewer poses": (edit("extrinsic.txt", "\n3 0 ", "\n3 2 "), r"lists 4 frames .*other 3"),
    "pose not finite": (edit("extrinsic.txt", "\n0 0 1.0", "\n0 0 nan"), r"extrinsic\.txt .*finite"),
    "mirrored pose": (edit("extrinsic.txt", "\n0 0 1.0", "\n0 0 -1.0"), r"frame 0 is not a rigid motion.*det < 0"),
    "object pose not finite": (edit("pose.txt", "\n0 0 0 0 1.7", "\n0 0 0 0 inf"), r"row 1 of .*pose\.txt .*finite"),
    "object in no frame": (edit("pose.txt", "\n3 0 8 ", "\n9 0 8 "), r"row \d+ of .*pose\.txt .*frame of intrinsic"),
    "trackID no palette shows": (edit("pose.txt", "\n3 0 8 ", "\n3 0 255 "), r"pose\.txt .*trackID below 255"),
    "pose columns": (edit("pose.txt", "\n0 0 0 0 1.7", "\n0 0 0 1.7"), r"pose\.txt .*cannot be read|columns"),
    "not a flag": (edit("bbox.txt", "True", "maybe"), r"bbox\.txt .*cannot be read as a table of 11"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(raw, case):
    damage, message = REFUSED[case]
    damage(raw / "Scene01/clone")
    with pytest.raises(ValueError, match=message):
        opened(raw)


def test_refuses_frames_that_do_not_fit(raw):
    frames = raw / "Scene01/clone/frames"
    sequence = opened(raw)
    Image.new("RGB", (10, 6)).save(frames / "rgb/Camera_0/rgb_00001.jpg")
    with pytest.raises(ValueError, match=r"rgb_00001\.jpg .*\(6, 10\).*\(12, 20\)"):
        sequence.image(1)
    Image.fromarray(np.ones((6, 10), np.uint16)).save(frames / "depth/Camera_0/depth_00001.png")
    with pytest.raises(ValueError, match=r"depth_00001\.png .*\(6, 10\)"):
        sequence.depth(1)
    Image.new("L", (10, 6)).save(frames / "instanceSegmentation/Camera_0/instancegt_00001.png")
    with pytest.raises(ValueError, match=r"instancegt_00001\.png .*\(6, 10\)"):
        sequence.instance(1)
    Image.new("L", (20, 12)).save(frames / "depth/Camera_0/depth_00002.png")
    with pytest.raises(ValueError, match=r"depth_00002\.png .*not a 16-bit grey"):
        sequence.depth(2)
    Image.new("RGB", (20, 12)).save(frames / "instanceSegmentation/Camera_0/instancegt_00002.png")
    with pytest.raises(ValueError, match=r"instancegt_00002\.png .*not an 8-bit index"):
        sequence.instance(2)


def test_refuses_other_folders(raw, tmp_path):
    with pytest.raises(ValueError, match=r"no sequence.*expected Virtual KITTI 2.*intrinsic\.txt.*found clone/"):
        DATASET.find(RawFolder(str(raw / "Scene01")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected Virtual KITTI 2.*found nothing"):
        DATASET.find(RawFolder(str(tmp_path / "empty")))
    shutil.rmtree(raw / "Scene01/clone/frames/rgb")
    with pytest.raises(ValueError, match=r"missing file Scene01/clone/frames/rgb/Camera_0/rgb_00000\.jpg"):
        opened(raw, int(DATASET.find(RawFolder(str(raw)))[0][-1]))
    with pytest.raises(ValueError, match=r"'Scene01/clone' is no sequence"):
        VirtualKitti2(RawFolder(str(raw)), "Scene01/clone")
