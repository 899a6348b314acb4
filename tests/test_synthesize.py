"""The written files, read with Pillow and NumPy alone, say what the scene says, in the datasets' own encodings."""

import gzip
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
import OpenEXR
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from tensorflow_example import parsed, unframed

from pipelines.sequence import Cameras
from pipelines.synthesize import (
    blended_mvs,
    co3d,
    dynamic_replica,
    kubric,
    mvs_synth,
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
        rotation = Rotation.from_euler("YZX", [yaw, -pitch, roll]).as_matrix()
        np.testing.assert_allclose(rotation, truth[:3, :3], atol=1e-7)
        cam_from_world = np.linalg.inv(raw_world_from_cam(virtual_kitti2, eyes(scene)[camera])[t])
        np.testing.assert_allclose([x_cam, y_cam, z_cam], (cam_from_world @ truth)[:3, 3], atol=1e-6)
        rotation_cam = Rotation.from_euler("YZX", [yaw_cam, -pitch_cam, roll_cam]).as_matrix()
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


# Dynamic Replica and CO3D


def frame_list(path: Path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))


def camera_of(record: dict) -> tuple[np.ndarray, np.ndarray]:
    """cam_from_world and K by PyTorch3D's documentation: row vectors, x left, y up; NDC counts from the centre of the
    image, in half its shorter side, or, where no format is named, in half its width and its height."""
    seen, (height, width) = record["viewpoint"], record["image"]["size"]
    signs = np.array([-1, -1, 1])
    cam_from_world = np.eye(4)
    cam_from_world[:3, :3] = (np.array(seen["R"]) * signs).T
    cam_from_world[:3, 3] = np.array(seen["T"]) * signs
    isotropic = seen.get("intrinsics_format") == "ndc_isotropic"
    assert isotropic or "intrinsics_format" not in seen
    x, y = (min(height, width) / 2,) * 2 if isotropic else (width / 2, height / 2)
    (fx, fy), (px, py) = seen["focal_length"], seen["principal_point"]
    return cam_from_world, np.array([[fx * x, 0, width / 2 - px * x], [0, fy * y, height / 2 - py * y], [0, 0, 1]])


def check_camera(record: dict, layout, scene: Scene, t: int) -> None:
    cam_from_world, matrix = camera_of(record)
    identity = cam_from_world @ layout.RAW_FROM_SCENE @ scene.cameras.world_from_cam[t]
    np.testing.assert_allclose(identity, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(matrix, scene.cameras.intrinsics[t], atol=1e-9)
    assert record["image"]["size"] == [scene.height, scene.width]


def half(path: Path) -> np.ndarray:
    return image(path, "I;16").view(np.float16).astype(np.float32)


def dynamic_replica_eyes(scene: Scene) -> dict[str, Scene]:
    return {"left": scene, "right": dynamic_replica.right_eye(scene)}


def test_dynamic_replica_list_has_the_left_eye_then_the_right_one(written):
    scene, folder = written["dynamic_replica"]
    (left, right) = names(folder)[:2]
    assert names(folder)[2:] == ["frame_annotations_train.jgz"] and right == left.replace("left", "right")
    records = frame_list(folder / "frame_annotations_train.jgz")
    order = [(eye, t) for eye in ("left", "right") for t in range(FRAMES)]
    assert [(record["camera_name"], record["frame_number"]) for record in records] == order
    assert {f"{record['sequence_name']}_source_left" for record in records} == {left}
    for record, (eye, t) in zip(records, order, strict=True):
        check_camera(record, dynamic_replica, dynamic_replica_eyes(scene)[eye], t)
        assert record["viewpoint"]["intrinsics_format"] == "ndc_isotropic"
        assert record["depth"]["scale_adjustment"] == 1
        assert record["image"]["path"] == f"{left[:-4]}{eye}/images/{left[:-4]}{eye}-{t:04d}.png"
        assert record["depth"]["path"] == f"{left[:-4]}{eye}/depths/{left[:-4]}{eye}_{t:04d}.geometric.png"
        assert record["mask"]["path"] == f"{left[:-4]}{eye}/masks/{left[:-4]}{eye}_{t:04d}.png"
        assert (record["trajectories"] is None) == (eye == "right")
    assert "done.ok" in names(folder / left / "images") and "trajectories" not in names(folder / right)
    centres = [np.linalg.inv(camera_of(record)[0])[:3, 3] for record in records]
    baseline = [np.linalg.norm(centres[t] - centres[FRAMES + t]) for t in range(FRAMES)]
    np.testing.assert_allclose(baseline, 0.12, rtol=1e-9)


def test_dynamic_replica_frames(written):
    scene, folder = written["dynamic_replica"]
    for record in frame_list(folder / "frame_annotations_train.jgz"):
        frame = dynamic_replica_eyes(scene)[record["camera_name"]].render(record["frame_number"])
        rgba = image(folder / record["image"]["path"], "RGBA")
        np.testing.assert_array_equal(rgba, np.dstack([frame.image, np.full(frame.depth.shape, 255)]))
        depth = half(folder / record["depth"]["path"])
        assert image(folder / record["depth"]["path"], "I;16")[0, :3].tolist() == [0x8000, 0, 0x7C00]
        depth[0, :3] = frame.depth[0, :3]
        np.testing.assert_allclose(depth, frame.depth, rtol=2**-11)
        moves = (frame.instance >= 0) & scene.moving[frame.instance]
        np.testing.assert_array_equal(image(folder / record["mask"]["path"], "L"), np.where(moves, 255, 0))
        assert 0 < moves.mean() < 1


def test_dynamic_replica_trajectories_are_points_seen_at_some_time(written):
    scene, folder = written["dynamic_replica"]
    records = frame_list(folder / "frame_annotations_train.jgz")[:FRAMES]
    loaded = [torch.load(folder / record["trajectories"]["path"], weights_only=True) for record in records]
    xyz = np.stack([tensors["traj_3d_world"] for tensors in loaded]).astype(float)
    visible = np.stack([tensors["verts_inds_vis"] for tensors in loaded])
    assert xyz.shape == (FRAMES, 2048, 3) and visible.shape == (FRAMES, 2048) and visible.dtype == bool
    assert visible.any(axis=0).mean() > 0.99 and 0.2 < visible.mean() < 1
    moving = np.linalg.norm(np.ptp(xyz, axis=0), axis=-1) > 0.01
    assert 0.02 < moving.mean() < 0.95 and (loaded[0]["instances"].numpy()[moving] > 0).all()
    for t, (record, tensors) in enumerate(zip(records, loaded, strict=True)):
        cam_from_world, matrix = camera_of(record)
        cam = xyz[t] @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        uv = (cam @ matrix.T)[:, :2] / cam[:, 2:]
        stored = tensors["traj_2d"].numpy()
        assert np.isinf(stored[0, :2]).all() and stored.shape == (2048, 3)
        shown = visible[t]
        shown[0] = False
        np.testing.assert_allclose(stored[shown, :2], uv[shown], atol=0.01)
        depth = scene.trace(uv[shown], np.full(shown.sum(), t)).depth
        assert (np.abs(depth - cam[shown, 2]) <= 1e-4 * depth).mean() > 0.99
        np.testing.assert_array_equal(tensors["img"].numpy(), image(folder / record["image"]["path"], "RGBA")[..., :3])


def test_co3d_list_is_shuffled_and_names_files_by_other_numbers(written):
    scene, folder = written["co3d"]
    assert names(folder)[1:] == ["frame_annotations.jgz", "sequence_annotations.jgz", "set_lists"]
    (sequence,) = frame_list(folder / "sequence_annotations.jgz")
    assert (folder / sequence["sequence_name"] / "images").is_dir()
    assert sequence["viewpoint_quality_score"] == (None if scene.seed % 2 else 0.87)
    records = frame_list(folder / "frame_annotations.jgz")
    assert len(records) == FRAMES + 4 == len(names(folder / sequence["sequence_name"] / "images"))
    by_file = {int(record["image"]["path"][-10:-4]): record for record in records}
    assert list(by_file) != sorted(by_file) == list(range(1, FRAMES + 5))
    assert all(record["frame_number"] == 3 * file - 2 for file, record in by_file.items())
    assert by_file[FRAMES + 1]["depth"] is None and by_file[FRAMES + 2]["viewpoint"] is None
    for t in range(FRAMES):
        check_camera(by_file[t + 1], co3d, scene, t)
        assert by_file[t + 1]["depth"]["scale_adjustment"] == (2.5 if scene.seed % 4 > 1 else 1)
        assert ("intrinsics_format" in by_file[t + 1]["viewpoint"]) == (scene.seed % 2 == 0)
    sets = [json.loads(path.read_text()) for path in sorted((folder / "set_lists").iterdir())]
    known = {tuple(entry) for listed in sets for part in ("train", "val") for entry in listed[part]}
    test = {tuple(entry) for listed in sets for entry in listed["test"]}
    entries = {(r["sequence_name"], r["frame_number"], r["image"]["path"]): file for file, r in by_file.items()}
    assert known | test == set(entries) and {entries[entry] for entry in test - known} == {FRAMES + 3}


def test_co3d_frames(written):
    scene, folder = written["co3d"]
    for record in frame_list(folder / "frame_annotations.jgz"):
        t = int(record["image"]["path"][-10:-4]) - 1
        assert all(path.startswith("apple/") for path in (record["image"]["path"], record["mask"]["path"]))
        place = {key: folder / record[key]["path"].removeprefix("apple/") for key in ("image", "mask")}
        shown = image(place["image"], "RGB")
        assert shown.shape == (scene.height, scene.width, 3)
        ramp = image(place["mask"], "L")
        assert ramp.max() > 200 and ramp.min() == 0 and 50 < ramp.mean() < 200
        if record["depth"] is None:
            continue
        depth = half(folder / record["depth"]["path"].removeprefix("apple/"))
        trusted = image(folder / record["depth"]["mask_path"].removeprefix("apple/"), "1")
        if t >= FRAMES + 2:
            assert shown.max() == 0 and not depth.any() and not trusted.any()
            continue
        frame = scene.render(min(t, FRAMES - 1))
        assert psnr(shown, frame.image) > 28
        assert np.isposinf(depth[0, 0]) and np.isnan(depth[0, 1]) and depth[0, 2] == 0
        depth[0, :3] = frame.depth[0, :3] / record["depth"]["scale_adjustment"]
        known = np.isfinite(frame.depth)
        error = np.abs(depth * record["depth"]["scale_adjustment"] / np.where(known, frame.depth, 1000) - 1)
        assert (error[trusted] <= 2**-11).all() and (error[~trusted] > 0.1).all() and 0.5 < trusted.mean() < 0.99
        assert (trusted <= known).all() and (known.all() or np.isfinite(depth[~known]).mean() > 0.9)


def test_co3d_scenes_are_portraits_landscapes_and_odd():
    scenes = [co3d.scene(seed, num_frames=1, size="small") for seed in range(3)]
    sizes = [(scene.width, scene.height) for scene in scenes]
    assert sizes == [(96, 128), (128, 96), (97, 127)]
    assert not any(scene.moving.any() for scene in scenes)
    focal = [scene.cameras.intrinsics[0, (0, 1), (0, 1)] for scene in scenes]
    assert all(fx != fy for fx, fy in focal)


# Kubric


def rgb16(content: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.dtype == np.uint16 and decoded.ndim == 3
    return decoded[..., ::-1] / 65535


def seen_points(scene: Scene, t: int) -> np.ndarray:
    """(H, W, 3) camera axes: what the pixel centres show."""
    v, u = np.mgrid[: scene.height, : scene.width] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(scene.cameras.intrinsics[t]).T
    return rays * scene.render(t).depth[..., None]


def rotation_of(wxyz: list[float]) -> np.ndarray:
    w, x, y, z = wxyz
    return Rotation.from_quat([x, y, z, w]).as_matrix()


def test_kubric_folder_has_the_renderers_files(written):
    scene, folder = written["kubric"]
    kinds = ["backward_flow", "forward_flow", "normal", "object_coordinates", "rgba", "segmentation"]
    files = {f"{kind}_{t:05d}.png" for kind in kinds for t in range(FRAMES)}
    files |= {f"depth_{t:05d}.tiff" for t in range(FRAMES)} | {"metadata.json", "data_ranges.json", "events.json"}
    assert set(names(folder)) == files
    metadata = json.loads((folder / "metadata.json").read_text())
    assert {"flags", "metadata", "camera", "instances"} == set(metadata)
    assert metadata["metadata"]["num_instances"] == len(metadata["instances"]) >= 3
    seen = [sum(instance["visibility"]) for instance in metadata["instances"]]
    assert seen == sorted(seen, reverse=True) and seen[-1] > 0
    assert not any(instance["is_dynamic"] for instance in metadata["instances"])
    objects = [int(instance["asset_id"].split("_")[1]) for instance in metadata["instances"]]
    world_from_cam = raw_world_from_cam(kubric, scene)
    for t in range(FRAMES):
        frame, points = scene.render(t), seen_points(scene, t)
        rgba = image(folder / f"rgba_{t:05d}.png", "RGBA")
        assert (rgba[..., :3] == frame.image).all() and (rgba[..., 3] == 255).all()
        depth = image(folder / f"depth_{t:05d}.tiff", "F")
        np.testing.assert_allclose(depth, np.linalg.norm(points, axis=-1), rtol=1e-6)
        assert (depth[0, 0] / frame.depth[0, 0]) > 1.1, "a distance, not a depth"
        shown = image(folder / f"segmentation_{t:05d}.png", "P").astype(int)
        np.testing.assert_array_equal(np.array([-1, *objects])[shown], frame.instance)
        assert np.bincount(shown.ravel(), minlength=len(objects) + 1)[1:].tolist() == [
            instance["visibility"][t] for instance in metadata["instances"]
        ]
        normal = rgb16((folder / f"normal_{t:05d}.png").read_bytes()) * 2 - 1
        np.testing.assert_allclose(normal @ world_from_cam[t, :3, :3], frame.normal, atol=1e-4)


def test_kubric_cameras_and_instances_are_those_of_the_scene(written):
    scene, folder = written["kubric"]
    metadata = json.loads((folder / "metadata.json").read_text())
    camera, world_from_cam = metadata["camera"], raw_world_from_cam(kubric, scene)
    focal = camera["focal_length"] / camera["sensor_width"] * scene.width
    np.testing.assert_allclose(
        scene.cameras.intrinsics[0], [[focal, 0, scene.width / 2], [0, focal, scene.height / 2], [0, 0, 1]]
    )
    assert (camera["focal_length"], camera["sensor_width"]) == pytest.approx((35, 32))
    assert np.tan(camera["field_of_view"] / 2) == pytest.approx(16 / 35), "radians"
    np.testing.assert_allclose(camera["positions"], world_from_cam[:, :3, 3], atol=1e-12)
    for t in range(FRAMES):
        rotation = rotation_of(camera["quaternions"][t])
        np.testing.assert_allclose(rotation[:, 0], world_from_cam[t, :3, 0], atol=1e-12)  # right
        np.testing.assert_allclose(rotation[:, 1], -world_from_cam[t, :3, 1], atol=1e-12)  # up, not down
        assert rotation[2, 1] > 0.9, "the camera's up is nearly the world's, +z"
        # The official projection, with the normalised and sign-flipped matrix.
        blender = (seen_points(scene, t) @ world_from_cam[t, :3, :3].T) @ rotation
        homogeneous = blender @ np.array(camera["K"]).T
        v, u = np.mgrid[: scene.height, : scene.width] + 0.5
        projected = homogeneous[..., :2] / homogeneous[..., 2:] * [scene.width, scene.height]
        np.testing.assert_allclose(projected, np.stack([u, v], axis=-1), atol=1e-9)
    for instance in metadata["instances"]:
        truth = kubric.RAW_FROM_SCENE @ scene.world_from_object[int(instance["asset_id"].split("_")[1])]
        np.testing.assert_allclose(instance["positions"], truth[:, :3, 3], atol=1e-12)
        rotations = [rotation_of(wxyz) for wxyz in instance["quaternions"]]
        np.testing.assert_allclose(rotations, truth[:, :3, :3], atol=1e-12)


def test_kubric_object_coordinates_and_boxes_give_the_points_that_depth_gives(written):
    scene, folder = written["kubric"]
    instances = json.loads((folder / "metadata.json").read_text())["instances"]
    for t in range(FRAMES):
        coordinates = rgb16((folder / f"object_coordinates_{t:05d}.png").read_bytes())
        shown = image(folder / f"segmentation_{t:05d}.png", "P").astype(int)
        pose = raw_world_from_cam(kubric, scene)[t]
        world = seen_points(scene, t) @ pose[:3, :3].T + pose[:3, 3]
        for k, instance in enumerate(instances):
            corner, g = np.array(instance["bboxes_3d"][t]), coordinates[shown == k + 1]
            axes = np.stack([corner[4] - corner[0], corner[2] - corner[0], corner[1] - corner[0]])
            np.testing.assert_allclose(corner[0] + g @ axes, world[shown == k + 1], atol=1e-4)


def test_kubric_flow_goes_from_the_frame_before_to_the_frame_after(written):
    scene, folder = written["kubric"]
    ranges = json.loads((folder / "data_ranges.json").read_text())
    v, u = np.mgrid[: scene.height, : scene.width] + 0.5
    uv = np.stack([u, v], axis=-1).reshape(-1, 2)
    moved = 0
    for t in range(1, FRAMES - 1):
        hits = scene.trace(uv, np.full(len(uv), t))
        where = []
        for k in (t - 1, t, t + 1):
            cam_from_world = np.linalg.inv(scene.cameras.world_from_cam[k])
            xyz = scene.position(hits, np.full(len(uv), k)) @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
            homogeneous = xyz @ scene.cameras.intrinsics[k].T
            where.append(homogeneous[:, :2] / homogeneous[:, 2:])
        for name, truth in (("backward_flow", where[1] - where[0]), ("forward_flow", where[2] - where[1])):
            low, high = ranges[name]["min"], ranges[name]["max"]
            flow = low + rgb16((folder / f"{name}_{t:05d}.png").read_bytes()).reshape(-1, 3) * (high - low)
            np.testing.assert_allclose(flow[:, 1::-1], truth, atol=2 * (high - low) / 65535)
            moved += (np.abs(truth) > 1).sum()
    assert moved > 1000


def test_kubric_records_hold_what_the_folder_holds(written, tmp_path):
    scene, folder = written["kubric"]
    other = kubric.scene(99, num_frames=2, size="small")
    kubric.write_shard([other, scene], tmp_path / "shard")
    first, second = (parsed(payload) for payload in unframed((tmp_path / "shard").read_bytes()))
    document = json.loads((folder / "metadata.json").read_text())
    count = len(document["instances"])
    assert count != FRAMES, "or one could be taken for the other"
    assert first["metadata/num_frames"] == [2] and second["metadata/num_frames"] == [FRAMES]
    assert (second["metadata/width"], second["metadata/height"]) == ([scene.width], [scene.height])
    assert second["metadata/num_instances"] == [count] and second["metadata/video_name"] == [b"1"]
    for name in ("positions", "quaternions", "bboxes_3d", "image_positions", "visibility"):  # instance by instance
        told = np.ravel([instance[name] for instance in document["instances"]])
        np.testing.assert_allclose(second[f"instances/{name}"], told, rtol=1e-6)
    assert [name.decode() for name in second["instances/asset_id"]] == [i["asset_id"] for i in document["instances"]]
    for name in ("positions", "quaternions", "focal_length", "sensor_width", "field_of_view"):
        np.testing.assert_allclose(second[f"camera/{name}"], np.ravel(document["camera"][name]), rtol=1e-6, atol=1e-9)
    low, high = second["metadata/depth_range"]
    for t in range(FRAMES):
        (tmp_path / "a.png").write_bytes(second["video"][t])
        assert (image(tmp_path / "a.png", "RGB") == image(folder / f"rgba_{t:05d}.png", "RGBA")[..., :3]).all()
        (tmp_path / "a.png").write_bytes(second["segmentations"][t])
        assert (image(tmp_path / "a.png", "L") == image(folder / f"segmentation_{t:05d}.png", "P")).all()
        (tmp_path / "a.png").write_bytes(second["depth"][t])
        depth = low + image(tmp_path / "a.png", "I;16") / 65535 * (high - low)
        np.testing.assert_allclose(depth, image(folder / f"depth_{t:05d}.tiff", "F"), atol=(high - low) / 65535)
        for name in ("normal", "object_coordinates"):
            assert (rgb16(second[name][t]) == rgb16((folder / f"{name}_{t:05d}.png").read_bytes())).all()
    for name in ("forward_flow", "backward_flow"):
        flow = np.reshape(second[name], (FRAMES, scene.height, scene.width, 2)) / 65535
        pngs = [rgb16((folder / f"{name}_{t:05d}.png").read_bytes()) for t in range(FRAMES)]
        np.testing.assert_array_equal(flow, np.stack(pngs)[..., :2])
        ranges = json.loads((folder / "data_ranges.json").read_text())[name]
        np.testing.assert_allclose(second[f"metadata/{name}_range"], [ranges["min"], ranges["max"]], rtol=1e-6)


# MVS-Synth


def exr(path: Path) -> np.ndarray:
    channels = OpenEXR.File(str(path), separate_channels=True).channels()
    assert list(channels) == ["Y"]
    return channels["Y"].pixels


def test_mvs_synth_files(written):
    scene, folder = written["mvs_synth"]
    assert names(folder) == ["depths", "images", "poses"]
    assert names(folder / "poses") == [f"{t:04d}.json" for t in range(FRAMES)]
    holes = 0
    for t in range(FRAMES):
        frame = scene.render(t)
        assert (image(folder / f"images/{t:04d}.png", "RGB") == frame.image).all()
        depth = exr(folder / f"depths/{t:04d}.exr")
        assert depth.dtype == np.float16 and depth.shape == (72, 128)
        sky = np.isinf(frame.depth)
        assert np.isin(depth[sky], [0, np.inf]).all() and (depth[sky] == np.inf).any()
        np.testing.assert_allclose(depth[~sky], frame.depth[~sky], rtol=2**-11)
        holes += (depth == 0).sum()
    assert holes == 3 * FRAMES
    assert scene.moving.any(), "something moves, unannotated"


def test_mvs_synth_poses_are_of_a_left_handed_world(written, tmp_path):
    scene, folder = written["mvs_synth"]
    mvs_synth.write(scene, tmp_path / "right", left_handed=False)
    for t in range(FRAMES):
        pose, right = (json.loads((path / f"poses/{t:04d}.json").read_text()) for path in (folder, tmp_path / "right"))
        extrinsic = np.array(pose["extrinsic"])
        assert np.linalg.det(extrinsic[:3, :3]) == pytest.approx(-1)
        mirror = np.diag([1, 1, -1, 1])
        np.testing.assert_allclose(extrinsic @ mirror @ raw_world_from_cam(mvs_synth, scene)[t], np.eye(4), atol=1e-12)
        np.testing.assert_allclose(right["extrinsic"], extrinsic @ mirror, atol=1e-12)
        up = np.linalg.inv(extrinsic)[:3, :3] @ [0, -1, 0]
        assert up[2] > 0.9, "+z up"
        matrix = [[pose["f_x"], 0, pose["c_x"]], [0, pose["f_y"], pose["c_y"]], [0, 0, 1]]
        np.testing.assert_allclose(matrix, scene.cameras.intrinsics[t])
        assert pose["f_x"] == pytest.approx(1157.84 / 15)


def test_mvs_synth_old_release_squeezes_images_but_not_f_x(written, tmp_path):
    scene, folder = written["mvs_synth"]
    mvs_synth.write(mvs_synth.squeezed(scene), tmp_path / "old")
    wide, narrow = (json.loads((path / "poses/0000.json").read_text()) for path in (folder, tmp_path / "old"))
    assert narrow == wide | {"c_x": 54.0}
    before, after = image(folder / "images/0003.png", "RGB"), image(tmp_path / "old/images/0003.png", "RGB")
    assert after.shape == (72, 108, 3)
    assert psnr(cv2.resize(before, (108, 72), interpolation=cv2.INTER_AREA), after) > 22, "the same view, narrower"
