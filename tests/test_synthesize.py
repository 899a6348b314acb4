"""The written files, read with Pillow and NumPy alone, say what the scene says, in the datasets' own encodings."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from pipelines.synthesize import co3d, dynamic_replica, point_odyssey, tartanair, virtual_kitti2
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
