"""The written files, read with Pillow and NumPy alone, say what the scene says, in the datasets' own encodings."""

import json
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from tensorflow_example import parsed, unframed

from pipelines.synthesize import kubric, mvs_synth, point_odyssey, tartanair, virtual_kitti2
from pipelines.synthesize.job import LAYOUTS, scene_for
from pipelines.synthesize.scene import Scene

FRAMES = 8  # enough for the peculiarities of long sequences


@pytest.fixture(scope="module", params=[0, 1])
def written(request, tmp_path_factory) -> dict[str, tuple[Scene, Path]]:
    """Of each layout one sequence, and the scene that it shows."""
    root = tmp_path_factory.mktemp("raw")
    result = {}
    for name, layout in LAYOUTS.items():
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
