"""The written files, read with Pillow and NumPy alone, say what the scene says, in the datasets' own encodings."""

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import av
import cv2
import lz4.block
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from pipelines.sequence import Cameras
from pipelines.synthesize import (
    blended_mvs,
    point_odyssey,
    scannet,
    scannet_exported,
    scannet_iphone,
    tartanair,
    tartanair_v2,
    virtual_kitti2,
)
from pipelines.synthesize.job import ALL, scene_for
from pipelines.synthesize.scene import Scene

FRAMES = 8  # enough for the peculiarities of long sequences


@pytest.fixture(scope="module", params=[0, 1])
def written(request, tmp_path_factory) -> dict[str, tuple[Scene, Path]]:
    """Of each layout one sequence, and the scene that it shows."""
    root = tmp_path_factory.mktemp("raw")
    result = {}
    for name, layout in ALL.items():
        scene = scene_for(name, 3, request.param, frames=FRAMES, size="small")
        layout.write(scene, root / name)
        result[name] = scene, root / name
    return result


def image(path: Path, mode: str) -> np.ndarray:
    with Image.open(path) as opened:
        assert opened.mode == mode, path
        return np.asarray(opened)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * np.log10(((a.astype(float) - b) ** 2).mean() / 255**2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def raw_world_from_cam(layout, scene: Scene) -> np.ndarray:
    return layout.RAW_FROM_SCENE @ scene.cameras.world_from_cam


# TartanAir


def test_tartanair_files(written):
    scene, folder = written["tartanair"]
    assert names(folder) == ["depth_left", "image_left", "pose_left.txt", "seg_left"]
    expected = [f"{t:06d}_left.png" for t in range(FRAMES)]
    assert names(folder / "image_left") == ["._000000_left.png", *expected]
    assert names(folder / "depth_left") == [f"{t:06d}_left_depth.npy" for t in range(FRAMES)]
    far = 0
    for t in range(FRAMES):
        frame = scene.render(t)
        assert (image(folder / f"image_left/{t:06d}_left.png", "RGB") == frame.image).all()
        depth = np.load(folder / f"depth_left/{t:06d}_left_depth.npy", allow_pickle=False)
        assert depth.dtype == np.float32 and depth.shape == (96, 128)
        assert (depth == depth.astype(np.float16)).all(), "float16 precision"
        sky = ~np.isfinite(frame.depth)
        np.testing.assert_allclose(depth[~sky], frame.depth[~sky], rtol=2**-11)
        assert np.isin(depth[sky], [10_000, 14_000]).all()
        far += (depth == 14_000).sum()
    assert far == 1
    assert not scene.moving.any()


def test_tartanair_poses_are_ned_world_from_camera_with_xyzw(written):
    scene, folder = written["tartanair"]
    rows = np.loadtxt(folder / "pose_left.txt")
    assert rows.shape == (FRAMES, 7)
    ned_from_cv = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])  # forward, right, down from right, down, forward
    rotation = Rotation.from_quat(rows[:, 3:]).as_matrix() @ ned_from_cv
    expected = raw_world_from_cam(tartanair, scene)
    np.testing.assert_allclose(rotation, expected[:, :3, :3], atol=1e-12)
    np.testing.assert_allclose(rows[:, :3], expected[:, :3, 3], atol=1e-12)
    assert (rows[:, 2] < -1).all(), "the camera is above the ground, and z points down"
    heading = Rotation.from_quat(rows[:, 3:]).apply([1, 0, 0])  # the body's forward axis
    np.testing.assert_allclose(heading, expected[:, :3, 2], atol=1e-12)


def test_quaternions_are_right_for_every_angle():
    rotations = Rotation.random(200, rng=0)
    half_turns = Rotation.from_rotvec(np.pi * np.vstack([np.eye(3), [[0, 0.6, 0.8]]]))
    for rotation in [*rotations, *half_turns, Rotation.identity()]:
        quaternion = tartanair.quaternion_xyzw(rotation.as_matrix())
        np.testing.assert_allclose(Rotation.from_quat(quaternion).as_matrix(), rotation.as_matrix(), atol=1e-12)


def test_tartanair_camera_is_that_of_v1_at_every_size():
    for size, factor in (("official", 1), ("small", 0.2)):
        scene = tartanair.scene(0, num_frames=1, size=size)
        np.testing.assert_allclose(
            scene.cameras.intrinsics[0], [[320 * factor, 0, 320 * factor], [0, 320 * factor, 240 * factor], [0, 0, 1]]
        )


def test_tartanair_v2_files(written):
    scene, folder = written["tartanair_v2"]
    assert names(folder) == ["depth_lcam_front", "image_lcam_front", "pose_lcam_front.txt"]
    assert names(folder / "image_lcam_front") == [f"{t:06d}_lcam_front.png" for t in range(FRAMES)]
    assert names(folder / "depth_lcam_front") == [f"{t:06d}_lcam_front_depth.png" for t in range(FRAMES)]
    for t in range(FRAMES):
        frame = scene.render(t)
        assert (image(folder / f"image_lcam_front/{t:06d}_lcam_front.png", "RGB") == frame.image).all()
        coded = cv2.imread(str(folder / f"depth_lcam_front/{t:06d}_lcam_front_depth.png"), cv2.IMREAD_UNCHANGED)
        assert coded.dtype == np.uint8 and coded.shape == (96, 96, 4)
        depth = np.frombuffer(coded.tobytes(), "<f4").reshape(96, 96)  # as OpenCV orders the channels
        np.testing.assert_array_equal(depth, np.where(np.isfinite(frame.depth), frame.depth, 10_000).astype(np.float32))
    rows = np.loadtxt(folder / "pose_lcam_front.txt")
    ned_from_cv = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    expected = raw_world_from_cam(tartanair_v2, scene)
    np.testing.assert_allclose(
        Rotation.from_quat(rows[:, 3:]).as_matrix() @ ned_from_cv, expected[:, :3, :3], atol=1e-12
    )
    np.testing.assert_allclose(rows[:, :3], expected[:, :3, 3], atol=1e-12)
    official = tartanair_v2.scene(0, num_frames=1, size="official")
    np.testing.assert_array_equal(official.cameras.intrinsics[0], [[320, 0, 320], [0, 320, 320], [0, 0, 1]])


# ScanNet

APART = np.eye(4)
APART[:3, :3] = Rotation.from_euler("YXZ", [0.01, -0.02, 0.015]).as_matrix()
APART[:3, 3] = [-0.04, 0.01, 0.005]


def seen_in_colour(scene: Scene, colour_from_depth: np.ndarray, size: tuple[int, int], focal: float) -> Scene:
    """What the colour camera of a scan must show, written down anew."""
    return replace(
        scene,
        width=size[0],
        height=size[1],
        cameras=Cameras(
            intrinsics=np.tile([[focal, 0, 0.51 * size[0]], [0, focal, 0.48 * size[1]], [0, 0, 1]], (len(scene), 1, 1)),
            world_from_cam=scene.cameras.world_from_cam @ np.linalg.inv(colour_from_depth),
        ),
    )


def check_scan(scene: Scene, t: int, jpeg: bytes, depth: np.ndarray, pose: np.ndarray, apart: np.ndarray) -> None:
    """One frame of a scan, whichever way it was written."""
    colour = seen_in_colour(scene, apart, (260, 194), 1170.187988 / 1296 * 260)
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.format == "JPEG" and picture.size == (260, 194)
        assert psnr(np.asarray(picture), colour.render(t).image) > 28
    truth = np.round(1000 * scene.render(t).depth) * (t != FRAMES // 2 - 1)
    np.testing.assert_array_equal(depth, truth)
    if t == FRAMES // 2:
        assert (pose == -np.inf).all()
    else:
        np.testing.assert_allclose(pose, raw_world_from_cam(scannet, scene)[t], atol=2e-6)


def check_calibration(scene: Scene, matrices: list[np.ndarray], apart: np.ndarray) -> None:
    """4x4 intrinsics and extrinsics of colour, then of depth; pixels count from integer centres."""
    focal = 1170.187988 / 1296 * 260
    colour = [[focal, 0, 0.51 * 260 - 0.5, 0], [0, focal, 0.48 * 194 - 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    depth = np.eye(4)
    depth[:3, :3] = scene.cameras.intrinsics[0] - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    for found, expected in zip(matrices, [colour, np.eye(4), depth, apart], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert abs(depth[0, 0] / scene.width - 577.870605 / 640) < 1e-9 and depth[0, 0] == depth[1, 1]


@pytest.mark.parametrize("apart", [None, APART], ids=["at one place", "apart"])
def test_scannet_stream(written, tmp_path, apart):
    scene, folder = written["scannet"]
    if apart is not None:
        folder = tmp_path / "scannet"
        scannet.write(scene, folder, colour_from_depth=apart)
    assert names(folder) == ["scannet.sens", "scannet.txt"]
    file = io.BytesIO((folder / "scannet.sens").read_bytes())

    def take(pattern: str) -> tuple:
        return struct.unpack(pattern, file.read(struct.calcsize(pattern)))

    assert take("<IQ") == (4, 15) and file.read(15) == b"StructureSensor"
    matrices = np.reshape(take("<64f"), (4, 4, 4))
    check_calibration(scene, list(matrices), np.eye(4) if apart is None else apart)
    assert take("<2i") == (2, 1) and take("<4I") == (260, 194, 128, 96) and take("<fQ") == (1000, FRAMES)
    for t in range(FRAMES):
        pose = np.reshape(take("<16f"), (4, 4))
        *times, colour_bytes, depth_bytes = take("<4Q")
        assert times == [0, 0]
        jpeg, depth = file.read(colour_bytes), zlib.decompress(file.read(depth_bytes))
        depth = np.frombuffer(depth, "<u2").reshape(96, 128)
        check_scan(scene, t, jpeg, depth, pose, np.eye(4) if apart is None else apart)
    assert take("<Q") == (2,) and file.read() == bytes(256)
    info = dict(line.split(" = ") for line in (folder / "scannet.txt").read_text().splitlines())
    assert info["numColorFrames"] == str(FRAMES + 1) and info["numDepthFrames"] == str(FRAMES)
    assert ("colorToDepthExtrinsics" in info) == (apart is not None)
    if apart is not None:
        told = np.array(info["colorToDepthExtrinsics"].split(), float).reshape(4, 4)
        np.testing.assert_allclose(told @ apart, np.eye(4), atol=1e-5)
    assert not scene.moving.any()


@pytest.mark.parametrize("tool", ["python", "sens", "frames_25k"])
def test_scannet_exports(written, tmp_path, tool):
    scene, _ = written["scannet_exported"]
    folder = tmp_path / "scan"
    apart = np.eye(4) if tool == "frames_25k" else APART
    scannet_exported.write(scene, folder, tool=tool, step=10, colour_from_depth=apart)
    for t in range(FRAMES):
        number = 10 * t
        if tool == "sens":
            colour, depth, pose = (
                folder / f"frame-{number:06d}.{kind}" for kind in ("color.jpg", "depth.pgm", "pose.txt")
            )
            magic, comment, size, largest, values = depth.read_bytes().split(b"\n", 4)
            assert (magic, comment[:1], size, largest) == (b"P5", b"#", b"128 96", b"65535")
            values = np.frombuffer(values, ">u2").reshape(96, 128)
        else:
            name = str(number) if tool == "python" else f"{number:06d}"
            colour, depth, pose = (
                folder / f"color/{name}.jpg",
                folder / f"depth/{name}.png",
                folder / f"pose/{name}.txt",
            )
            values = image(depth, "I;16")
        check_scan(scene, t, colour.read_bytes(), values, np.loadtxt(pose), apart)
    if tool == "sens":
        lines = [line.split(" = ") for line in (folder / "_info.txt").read_text().splitlines()]
        info = {key: np.array(value.split(), float) for key, value in lines if key != "m_sensorName"}
        assert info["m_depthShift"] == 1000 and info["m_frames.size"] == FRAMES
        assert [*info["m_colorWidth"], *info["m_colorHeight"]] == [260, 194]
        assert [*info["m_depthWidth"], *info["m_depthHeight"]] == [128, 96]
        keys = [f"m_calibration{camera}{kind}" for camera in ("Color", "Depth") for kind in ("Intrinsic", "Extrinsic")]
        check_calibration(scene, [info[key].reshape(4, 4) for key in keys], apart)
    elif tool == "python":
        kinds = [(kind, camera) for camera in ("color", "depth") for kind in ("intrinsic", "extrinsic")]
        matrices = [np.loadtxt(folder / f"intrinsic/{kind}_{camera}.txt") for kind, camera in kinds]
        check_calibration(scene, matrices, apart)
    else:
        colour, depth = (np.loadtxt(folder / f"intrinsics_{camera}.txt") for camera in ("color", "depth"))
        check_calibration(scene, [colour, np.eye(4), depth, np.eye(4)], apart)


@pytest.mark.parametrize("encoding", ["lz4", "deflate", "stream"])
def test_scannet_iphone_files(written, tmp_path, encoding):
    scene, folder = written["scannet_iphone"]
    if encoding != "lz4":
        folder = tmp_path / "iphone"
        scannet_iphone.write(scene, folder, depth=encoding)
    assert names(folder) == ["depth.bin", "pose_intrinsic_imu.json", "rgb.mkv"]
    told = json.loads((folder / "pose_intrinsic_imu.json").read_text())
    assert list(told) == [f"frame_{t:06d}" for t in range(FRAMES) if t != FRAMES // 2]
    with av.open(folder / "rgb.mkv") as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(pictures) == FRAMES and container.streams.video[0].average_rate == 60
    content = (folder / "depth.bin").read_bytes()
    for t in range(FRAMES):
        truth = scene.render(t, supersample=1).depth
        if encoding == "stream":
            depth = np.frombuffer(zlib.decompress(content, -15), "<f4").reshape(-1, 192, 256)[t]
            np.testing.assert_array_equal(depth, truth.astype(np.float32))
        else:
            (length,) = struct.unpack("<I", content[:4])
            payload, content = content[4 : 4 + length], content[4 + length :]
            if encoding == "lz4":
                depth = np.frombuffer(lz4.block.decompress(payload, uncompressed_size=98304), "<u2").reshape(192, 256)
                np.testing.assert_array_equal(depth, np.round(1000 * truth))
            else:
                depth = np.frombuffer(zlib.decompress(payload, -15), "<f4").reshape(192, 256)
                np.testing.assert_array_equal(depth, truth.astype(np.float32))
        larger = cv2.resize(scene.render(t).image, (320, 240), interpolation=cv2.INTER_LINEAR)
        assert psnr(pictures[t], larger) > 22
        if t != FRAMES // 2:
            frame = told[f"frame_{t:06d}"]
            np.testing.assert_allclose(frame["aligned_pose"], raw_world_from_cam(scannet_iphone, scene)[t], atol=1e-12)
            assert np.abs(np.array(frame["pose"]) - frame["aligned_pose"]).max() > 0.5
            nominal = np.diag([1920 / 256, 1440 / 192, 1]) @ scene.cameras.intrinsics[t]
            np.testing.assert_allclose(frame["intrinsic"], nominal, rtol=1e-12)
    assert encoding == "stream" or content == b""
    assert (np.diff(scene.cameras.intrinsics[:, 0, 0]) > 0.1).all(), "the focal length breathes"


# BlendedMVS


def test_blended_mvs_files(written):
    scene, folder = written["blended_mvs"]
    units = blended_mvs.units_per_metre(scene)
    assert units == (37.5 if scene.seed % 2 else 1)
    numbers = [t + (t >= 2) for t in range(FRAMES)]
    assert names(folder) == ["blended_images", "cams", "rendered_depth_maps"]
    expected = [f"{number:08d}{twin}.jpg" for number in numbers for twin in ("", "_masked")]
    assert names(folder / "blended_images") == sorted(expected)
    assert names(folder / "rendered_depth_maps") == [f"{number:08d}.pfm" for number in numbers]
    lengths = set()
    for t, number in enumerate(numbers):
        frame = scene.render(t)
        sky = ~np.isfinite(frame.depth)
        assert psnr(image(folder / f"blended_images/{number:08d}.jpg", "RGB"), frame.image) > 28
        masked = image(folder / f"blended_images/{number:08d}_masked.jpg", "RGB")
        assert not sky.any() or np.median(masked[sky]) < 5
        header, data = (folder / f"rendered_depth_maps/{number:08d}.pfm").read_bytes().split(b"-1.000000\n", 1)
        assert header == b"Pf\n128 96\n"
        depth = np.frombuffer(data, "<f4").reshape(96, 128)[::-1]
        np.testing.assert_array_equal(depth, np.where(sky, 0, units * frame.depth).astype(np.float32))
        words = (folder / f"cams/{number:08d}_cam.txt").read_text().split()
        assert (words[0], words[17]) == ("extrinsic", "intrinsic")
        lengths.add(len(words))
        extrinsic = np.array(words[1:17], float).reshape(4, 4)
        truth = np.linalg.inv(raw_world_from_cam(blended_mvs, scene)[t])
        np.testing.assert_allclose(extrinsic[:3, :3], truth[:3, :3], atol=1e-6)
        np.testing.assert_allclose(extrinsic[:3, 3], units * truth[:3, 3], atol=1e-5 * units)
        np.testing.assert_allclose(np.array(words[18:27], float).reshape(3, 3), scene.cameras.intrinsics[t], rtol=1e-8)
        smallest, interval, *more = map(float, words[27:])
        assert (smallest == 0) == (t == 1)
        if more:
            largest = more[1] if len(more) == 2 else smallest + interval * more[0]
            assert more[0] == 128 and (t == 1 or smallest + interval < depth[~sky].min())
            assert largest > depth[~sky].max()
    assert lengths == {29, 30, 31}


def test_blended_mvs_pairs(written):
    _, folder = written["blended_mvs"]
    count, *lines = (folder / "cams/pair.txt").read_text().splitlines()
    assert int(count) == FRAMES == len(lines) / 2
    numbers = [int(line) for line in lines[::2]]
    assert sorted(numbers) == [t + (t >= 2) for t in range(FRAMES)] != numbers
    for number, line in zip(numbers, lines[1::2], strict=True):
        length, *rest = line.split()
        ids, scores = [int(word) for word in rest[::2]], [float(word) for word in rest[1::2]]
        assert len(ids) == int(length) and set(ids) <= set(numbers) - {number, FRAMES}
        assert scores == sorted(scores, reverse=True)
        assert (ids == []) == (number == FRAMES)  # the last photo


# Virtual KITTI 2


def table(path: Path) -> list[list[str]]:
    """Rows without the header, which must be there."""
    header, *lines = path.read_text().splitlines()
    assert not header[0].isdigit()
    assert len(lines[0].split()) == len(header.split())
    return [line.split() for line in lines]


def eyes(scene: Scene) -> list[Scene]:
    return [scene, virtual_kitti2.right_eye(scene)]


def test_virtual_kitti2_frames(written):
    scene, folder = written["virtual_kitti2"]
    for camera, view in enumerate(eyes(scene)):
        for t in range(FRAMES):
            frame = view.render(t)
            rgb = image(folder / f"frames/rgb/Camera_{camera}/rgb_{t:05d}.jpg", "RGB")
            assert psnr(rgb, frame.image) > 28
            depth = image(folder / f"frames/depth/Camera_{camera}/depth_{t:05d}.png", "I;16")
            assert depth.dtype == np.uint16
            sky = ~np.isfinite(frame.depth)
            assert (depth[sky] == 65535).all()
            np.testing.assert_array_equal(depth[~sky], np.round(100 * frame.depth[~sky]))
            instance = image(folder / f"frames/instanceSegmentation/Camera_{camera}/instancegt_{t:05d}.png", "P")
            np.testing.assert_array_equal(instance, frame.instance + 1)


def test_virtual_kitti2_cameras_take_turns_and_count_pixels_from_integer_centres(written):
    scene, folder = written["virtual_kitti2"]
    order = [[str(t), str(camera)] for t in range(FRAMES) for camera in (0, 1)]
    intrinsic, extrinsic = table(folder / "intrinsic.txt"), table(folder / "extrinsic.txt")
    assert [row[:2] for row in intrinsic] == order and [row[:2] for row in extrinsic] == order
    fx, fy, cx, cy = np.array(intrinsic, float)[:, 2:].T
    truth = scene.cameras.intrinsics[0]
    for values, expected in ((fx, truth[0, 0]), (fy, truth[1, 1]), (cx + 0.5, truth[0, 2]), (cy + 0.5, truth[1, 2])):
        np.testing.assert_allclose(values, expected, rtol=1e-8)
    assert abs(truth[0, 2] - scene.width / 2) > 1 and abs(truth[1, 2] - scene.height / 2) > 1, "off centre"
    cam_from_world = np.array(extrinsic, float)[:, 2:].reshape(FRAMES, 2, 4, 4)
    for camera, view in enumerate(eyes(scene)):
        identity = cam_from_world[:, camera] @ raw_world_from_cam(virtual_kitti2, view)
        np.testing.assert_allclose(identity, np.tile(np.eye(4), (FRAMES, 1, 1)), atol=1e-6)
    right_from_left = cam_from_world[:, 1] @ np.linalg.inv(cam_from_world[:, 0])
    np.testing.assert_allclose(right_from_left[:, :3, 3], np.tile([-0.532725, 0, 0], (FRAMES, 1)), atol=1e-6)


def test_virtual_kitti2_poses_hold_in_world_and_camera(written):
    scene, folder = written["virtual_kitti2"]
    tilted = 0
    for row in table(folder / "pose.txt"):
        t, camera, track = map(int, row[:3])
        alpha, width, height, length, *numbers = map(float, row[3:])
        x, y, z, yaw, pitch, roll, x_cam, y_cam, z_cam, yaw_cam, pitch_cam, roll_cam = numbers
        assert [length, height, width] == pytest.approx(scene.solids[1 + track].size, rel=1e-8)
        truth = virtual_kitti2.RAW_FROM_SCENE @ scene.world_from_object[track, t]
        np.testing.assert_allclose([x, y, z], truth[:3, 3], atol=1e-6)
        rotation = Rotation.from_euler("YXZ", [yaw, pitch, roll]).as_matrix()
        np.testing.assert_allclose(rotation, truth[:3, :3], atol=1e-7)
        cam_from_world = np.linalg.inv(raw_world_from_cam(virtual_kitti2, eyes(scene)[camera])[t])
        np.testing.assert_allclose([x_cam, y_cam, z_cam], (cam_from_world @ truth)[:3, 3], atol=1e-6)
        rotation_cam = Rotation.from_euler("YXZ", [yaw_cam, pitch_cam, roll_cam]).as_matrix()
        np.testing.assert_allclose(rotation_cam, (cam_from_world @ truth)[:3, :3], atol=1e-7)
        assert alpha == pytest.approx(yaw_cam - np.arctan2(x_cam, z_cam), abs=1e-6)
        assert abs(pitch) + abs(roll) < 1e-6 or track == 1
        tilted += abs(pitch) > 0.01 and abs(roll) > 0.01
    assert tilted > 0


def test_virtual_kitti2_lists_objects_where_they_are_visible_but_for_one_gap(written):
    scene, folder = written["virtual_kitti2"]
    pose = [tuple(map(int, row[:3])) for row in table(folder / "pose.txt")]
    bbox = table(folder / "bbox.txt")
    assert pose == [tuple(map(int, row[:3])) for row in bbox]
    visible = set()
    for camera, view in enumerate(eyes(scene)):
        for t in range(FRAMES):
            visible |= {(t, camera, int(track)) for track in np.unique(view.render(t).instance) if track >= 0}
    assert visible - set(pose) == {(FRAMES // 2, camera, 0) for camera in (0, 1)} & visible != set()
    assert set(pose) < visible
    for t, camera, track, left, right, top, bottom, pixels, truncation, occupancy, moves in bbox:
        mask = eyes(scene)[int(camera)].render(int(t)).instance == int(track)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), columns.max(), rows.min(), rows.max(), mask.sum()]
        assert [int(left), int(right), int(top), int(bottom), int(pixels)] == box
        assert 0 <= float(truncation) <= 1 and float(occupancy) > 0
        assert moves == str(bool(scene.moving[int(track)]))
    assert [int(row[0]) for row in table(folder / "info.txt")] == list(range(len(scene.solids) - 1))
    assert len(table(folder / "colors.txt")) == 15


def test_virtual_kitti2_truncation_says_what_lies_outside_the_image(written):
    scene, folder = written["virtual_kitti2"]
    shares = []
    for row in table(folder / "bbox.txt"):
        t, camera, track = map(int, row[:3])
        corners = (np.indices((2, 2, 2)).reshape(3, 8).T - [0.5, 1, 0.5]) * scene.solids[1 + track].size
        pose = np.linalg.inv(eyes(scene)[camera].cameras.world_from_cam[t]) @ scene.world_from_object[track, t]
        homogeneous = (corners @ pose[:3, :3].T + pose[:3, 3]) @ scene.cameras.intrinsics[t].T
        uv = homogeneous[:, :2] / homogeneous[:, 2:]
        whole = (homogeneous[:, 2] > 0) & (uv >= 0).all(axis=1) & (uv <= [scene.width, scene.height]).all(axis=1)
        assert (float(row[8]) == 0) == whole.all()
        shares.append(float(row[8]))
    assert 0 in shares and max(shares) > 0.1


# PointOdyssey


def test_point_odyssey_frames(written):
    scene, folder = written["point_odyssey"]
    zeros = 0
    for t in range(FRAMES):
        frame = scene.render(t)
        assert psnr(image(folder / f"rgbs/rgb_{t:05d}.jpg", "RGB"), frame.image) > 28
        depth = image(folder / f"depths/depth_{t:05d}.png", "I;16")
        sky = ~np.isfinite(frame.depth)
        np.testing.assert_array_equal(depth[~sky], np.floor(frame.depth[~sky] * 65535 / 1000))
        assert np.isin(depth[sky], [0, 65535]).all() and (not sky.any() or (depth[sky] == 65535).any())
        zeros += (depth == 0).sum()
        mask = image(folder / f"masks/mask_{t:05d}.png", "RGB").reshape(-1, 3)
        ids = frame.instance.ravel()
        assert (mask[ids < 0] == 0).all()
        colours = [np.unique(mask[ids == i], axis=0) for i in np.unique(ids[ids >= 0])]
        assert all(len(colour) == 1 for colour in colours)
        assert len(np.unique(np.concatenate(colours), axis=0)) == len(colours)
        normals = image(folder / f"normals/normal_{t:05d}.jpg", "RGB") / 127.5 - 1
        length = np.linalg.norm(normals, axis=-1)
        # Blender's z is up, its x is the annotations' x: (x, y, z) of the annotation world is Blender's (x, z, -y).
        raw_normals = np.stack([normals[..., 0], normals[..., 2], -normals[..., 1]], axis=-1)
        rotation = raw_world_from_cam(point_odyssey, scene)[t, :3, :3]
        cosine = (raw_normals @ rotation * frame.normal).sum(axis=-1) / length
        assert np.median(cosine[~sky]) > np.cos(np.radians(1)) and np.quantile(cosine[~sky], 0.1) > 0.99
        assert not sky.any() or np.median(length[sky]) < 0.05
        floor = (frame.instance < 0) & (np.abs(frame.normal @ rotation.T @ [0, 1, 0] - 1) < 1e-9)
        assert floor.any() and np.median(normals[floor, 2]) > 0.98, "the floor faces up, Blender's +z"
    assert zeros == (3 * FRAMES if scene.seed % 2 else 0)


@pytest.mark.parametrize(
    ("dtype", "xyz_tolerance", "uv_tolerance"), [(np.float32, 1e-5, 1e-2), (np.float16, 2e-2, 1.5)]
)
def test_point_odyssey_annotations(written, tmp_path, dtype, xyz_tolerance, uv_tolerance):
    scene, folder = written["point_odyssey"]
    if dtype == np.float16:
        folder = tmp_path / "half"
        point_odyssey.write(scene, folder, dtype=np.float16)
    with np.load(folder / "anno.npz", allow_pickle=False) as file:
        annotations = dict(file)
    assert all(value.dtype == dtype for value in annotations.values())
    with np.load(folder / "info.npz", allow_pickle=False) as file:
        assert {name: tuple(file[name]) for name in file.files} == {k: v.shape for k, v in annotations.items()}
    assert "assets" in json.loads((folder / "scene_info.json").read_text())
    xyz, uv, visible, valid = (
        annotations[name].astype(np.float64) for name in ("trajs_3d", "trajs_2d", "visibs", "valids")
    )
    count = xyz.shape[1]
    assert xyz.shape == (FRAMES, count, 3) and uv.shape == (FRAMES, count, 2) and count == 2048
    assert np.isinf(uv[:, -3]).all() and valid[0, -3] == 1
    assert (valid[:, -2] == 0).all() and (visible[:, -2] == 0).all()
    assert (valid[:, -1] == 1).all() and (visible[:, -1] == 0).all()
    regular = slice(0, count - 3)
    assert (valid[:, regular] == 1).all() and 0.2 < visible[:, regular].mean() < 1

    extrinsics, matrix = annotations["extrinsics"].astype(np.float64), annotations["intrinsics"].astype(np.float64)
    world_from_cam = raw_world_from_cam(point_odyssey, scene)
    np.testing.assert_allclose(
        extrinsics @ world_from_cam, np.tile(np.eye(4), (FRAMES, 1, 1)), atol=1e-5 if dtype == np.float32 else 2e-2
    )
    assert (matrix[:, 0, 2] == scene.width / 2).all() and (matrix[:, 1, 2] == scene.height / 2).all()
    for t in range(FRAMES):
        xyz_cam = (xyz[t] - world_from_cam[t, :3, 3]) @ world_from_cam[t, :3, :3]
        homogeneous = xyz_cam @ scene.cameras.intrinsics[t].T
        projected, z = homogeneous[:, :2] / homogeneous[:, 2:], xyz_cam[:, 2]
        inside = (z > 0) & (projected >= 0).all(axis=1) & (projected < [scene.width, scene.height]).all(axis=1)
        assert not inside[-1] and z[-1] > 0
        shown = visible[t] == 1
        shown[-3:] = False
        np.testing.assert_allclose(uv[t, shown], projected[shown], atol=uv_tolerance)
        seen = scene.trace(projected[shown], np.full(shown.sum(), t))
        close = np.abs(seen.depth - z[shown]) <= xyz_tolerance * np.maximum(z[shown], 1)
        assert close.mean() > (0.999 if dtype == np.float32 else 0.9)


def test_point_odyssey_tracks_follow_movers_and_rest_on_the_room(written):
    _, folder = written["point_odyssey"]
    with np.load(folder / "anno.npz", allow_pickle=False) as file:
        xyz = file["trajs_3d"][:, :-3]
    steps = np.linalg.norm(np.diff(xyz, axis=0), axis=-1)
    moving = (steps > 0.01).any(axis=0)
    assert 0.02 < moving.mean() < 0.95
    assert (steps[:, ~moving] < 1e-6).all()
    np.testing.assert_allclose(xyz[..., 1].min(), 0, atol=1e-5)  # nothing below the floor, and y points up
    assert xyz[..., 1].max() > 1
