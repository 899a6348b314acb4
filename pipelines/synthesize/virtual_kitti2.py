"""Virtual KITTI 2.0.3 as its authors ship it (dataset notes D5), one scene at a time, seen by both cameras.

    Scene0001/clone/
        frames/rgb/Camera_{0,1}/rgb_00000.jpg
        frames/depth/Camera_{0,1}/depth_00000.png                       uint16 centimetres along z; 65535 is sky
        frames/instanceSegmentation/Camera_{0,1}/instancegt_00000.png   palette index = trackID + 1
        intrinsic.txt, extrinsic.txt, pose.txt, bbox.txt                rows of both cameras take turns
        info.txt, colors.txt

Left out: classes and flow. Synthetic scenes have four digits, real ones two. trackIDs count from 0. An object has rows
only where it is visible, and one object has none in the middle frame of a long sequence.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64
from PIL import Image

from pipelines.geometry import inverse, project
from pipelines.synthesize import Size
from pipelines.synthesize.arrangement import LONG
from pipelines.synthesize.scene import Rendering, Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (160, 96), "official": (1242, 375)}
RAW_FROM_SCENE = np.eye(4)
RAW_FROM_SCENE[:3, 3] = 20, -106, 5  # Y is down in both; the ground lies where Scene18 has it
BASELINE = 0.532725  # metres, camera 1 to the right of camera 0
FOCAL_LENGTH = 725.0087 / 1242  # of the width
SKY = 65535
PALETTE = np.random.default_rng(0).integers(64, 256, (256, 3)).astype(np.uint8)
PALETTE[0] = 0

HEADERS = {
    "intrinsic.txt": "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]",
    "extrinsic.txt": "frame cameraID r1,1 r1,2 r1,3 t1 r2,1 r2,2 r2,3 t2 r3,1 r3,2 r3,3 t3 0 0 0 1",
    "pose.txt": "frame cameraID trackID alpha width height length world_space_X world_space_Y world_space_Z "
    "rotation_world_space_y rotation_world_space_x rotation_world_space_z camera_space_X camera_space_Y camera_space_Z "
    "rotation_camera_space_y rotation_camera_space_x rotation_camera_space_z",
    "bbox.txt": "frame cameraID trackID left right top bottom number_pixels truncation_ratio occupancy_ratio isMoving",
    "info.txt": "trackID label model color",
    "colors.txt": "Category r g b",
}
COLORS = """Terrain 210 0 200
Sky 90 200 255
Tree 0 199 0
Vegetation 90 240 0
Building 140 140 140
Road 100 60 100
GuardRail 250 100 255
TrafficSign 255 255 0
TrafficLight 200 200 0
Pole 255 130 0
Misc 80 80 80
Truck 160 60 60
Car 255 127 80
Van 0 139 139
Undefined 0 0 0"""


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A scene under an open sky, seen by camera 0; its principal point lies a little beside the centre."""
    width, height = SIZES[size]
    intrinsics = np.array([[0, 0, 0.515 * width], [0, 0, 0.475 * height], [0, 0, 1]])
    intrinsics[(0, 1), (0, 1)] = FOCAL_LENGTH * width
    return Scene.random(
        seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics, moving=True, open_top=True
    )


def folder(index: int) -> str:
    return f"Scene{index + 1:04d}/clone"


def right_eye(scene: Scene) -> Scene:
    """The same scene seen by camera 1."""
    return scene.beside(BASELINE)


def write(scene: Scene, folder: Path) -> None:
    """Write a scene into a new folder."""
    for camera in (0, 1):
        for name in ("rgb", "depth", "instanceSegmentation"):
            (folder / f"frames/{name}/Camera_{camera}").mkdir(parents=True)
    tables = {name: [header] for name, header in HEADERS.items()}
    for t in range(len(scene)):
        for camera, view in enumerate((scene, right_eye(scene))):
            frame = view.render(t)
            _write_frame(folder / "frames", camera, t, frame)
            tables["intrinsic.txt"].append(_row(t, camera, *_integer_intrinsics(view, t)))
            tables["extrinsic.txt"].append(_row(t, camera, *_cam_from_world(view, t).ravel()))
            for track in listed(scene, t, frame):
                tables["pose.txt"].append(_row(t, camera, track, *_pose(view, t, track)))
                tables["bbox.txt"].append(_row(t, camera, track, *_bbox(view, t, track, frame.instance == track)))
    for track, solid in enumerate(scene.solids[1:]):
        tables["info.txt"].append(f"{track} Car {type(solid).__name__} Colour{track}")
    tables["colors.txt"] += COLORS.splitlines()
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")


def listed(scene: Scene, t: int, frame: Rendering) -> list[int]:
    """Which trackIDs have rows for this frame: the visible ones; all but the first in the middle of a long sequence."""
    visible = np.unique(frame.instance[frame.instance >= 0]).tolist()
    gap = len(scene) >= LONG and t == len(scene) // 2
    return [track for track in visible if not (gap and track == 0)]


def _write_frame(folder: Path, camera: int, t: int, frame: Rendering) -> None:
    Image.fromarray(frame.image).save(folder / f"rgb/Camera_{camera}/rgb_{t:05d}.jpg", quality=95)
    centimetres = np.minimum(np.round(100 * frame.depth), SKY).astype(np.uint16)
    Image.fromarray(centimetres).save(folder / f"depth/Camera_{camera}/depth_{t:05d}.png", compress_level=1)
    instance = Image.fromarray((frame.instance + 1).astype(np.uint8))
    instance.putpalette(PALETTE.tobytes())
    instance.save(folder / f"instanceSegmentation/Camera_{camera}/instancegt_{t:05d}.png", compress_level=1)


def _row(*values: object) -> str:
    return " ".join(f"{value:.9g}" if isinstance(value, float) else str(value) for value in values)


def _integer_intrinsics(view: Scene, t: int) -> Float64[np.ndarray, "4"]:
    """fx fy cx cy where the centre of the top-left pixel is (0, 0)."""
    matrix = view.cameras.intrinsics[t]
    return np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2] - 0.5, matrix[1, 2] - 0.5])


def _cam_from_world(view: Scene, t: int) -> Float64[np.ndarray, "4 4"]:
    return inverse(RAW_FROM_SCENE @ view.cameras.world_from_cam[t])


def _pose(view: Scene, t: int, track: int) -> list[float]:
    """alpha, width, height, length; then position and rotation in the world; then both in the camera."""
    world_from_object = RAW_FROM_SCENE @ view.world_from_object[track, t]
    cam_from_object = _cam_from_world(view, t) @ world_from_object
    x, _, z = cam_from_object[:3, 3]
    length, height, width = view.solids[1 + track].size
    cam_angles = rotation_columns(cam_from_object)
    alpha = cam_angles[0] - np.arctan2(x, z)
    world_columns = [*world_from_object[:3, 3], *rotation_columns(world_from_object)]
    cam_columns = [*cam_from_object[:3, 3], *cam_angles]
    return [alpha, width, height, length, *world_columns, *cam_columns]


def rotation_columns(pose: Float64[np.ndarray, "4 4"]) -> tuple[float, float, float]:
    """The columns y, x, z of an object (radians), whose axes are length, down, width; dataset notes D5, Recipe.

    Its length points along (cos y cos x, -sin x, -sin y cos x); z is how far it then rolls about it.
    """
    length, down, width = pose[:3, :3].T
    y, z = np.arctan2(-length[2], length[0]), np.arctan2(-width[1], down[1])
    return float(y), float(-np.arcsin(length[1])), float(z)


def _bbox(view: Scene, t: int, track: int, mask: Bool[np.ndarray, "H W"]) -> list[int | float | bool]:
    """left right top bottom number_pixels truncation_ratio occupancy_ratio isMoving, of an object that is visible."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, right, top, bottom = (int(edge) for edge in (columns[0], columns[-1], rows[0], rows[-1]))
    pixels = int(mask.sum())
    occupancy = pixels / max((right - left) * (bottom - top), 1)
    return [left, right, top, bottom, pixels, _truncation(view, t, track), occupancy, bool(view.moving[track])]


def _truncation(view: Scene, t: int, track: int) -> float:
    """Share of the box around the whole object in the image plane that lies outside the image."""
    solid = view.solids[1 + track]
    corners = solid.centre.T + (np.indices((2, 2, 2)).reshape(3, 8).T - 0.5) * solid.size
    cam_from_object = _cam_from_world(view, t) @ RAW_FROM_SCENE @ view.world_from_object[track, t]
    xyz_cam = corners @ cam_from_object[:3, :3].T + cam_from_object[:3, 3]
    xyz_cam[:, 2] = np.maximum(xyz_cam[:, 2], 0.1)  # corners beside the camera are far outside
    uv = project(xyz_cam, np.tile(view.cameras.intrinsics[t], (8, 1, 1)))
    low, high = uv.min(axis=0), uv.max(axis=0)
    inside = np.clip(high, 0, [view.width, view.height]) - np.clip(low, 0, [view.width, view.height])
    return float(1 - inside.prod() / (high - low).prod())
