"""MVS-Synth as its authors ship it (dataset notes D9), one sequence at a time.

    GTAV_540/0000/
        images/0000.png    8-bit RGB
        depths/0000.exr    one channel Y, half, along z; inf is sky, and three pixels of it are 0
        poses/0000.json    extrinsic: cam_from_world of a left-handed world, det -1; f_x, f_y, c_x, c_y

Left out: num_images.json, one file for all sequences. Of a `squeezed` scene the files are those of the old release.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import OpenEXR
from PIL import Image

from pipelines.geometry import inverse, scaled_intrinsics
from pipelines.sequence import Cameras
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Rendering, Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (128, 72), "official": (960, 540)}
RAW_FROM_SCENE = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # +Z down, once reflected
LEFT_HANDED = np.diag([1.0, 1, -1, 1])  # +Z up, as in the game
FOCAL_LENGTH = 1157.84 / 1920  # of the width


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A scene under an open sky in which things move, though the dataset does not say which."""
    width, height = SIZES[size]
    intrinsics = np.array([[0, 0, width / 2], [0, 0, height / 2], [0, 0, 1]])
    intrinsics[(0, 1), (0, 1)] = FOCAL_LENGTH * width
    return Scene.random(
        seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics, moving=True, open_top=True
    )


def squeezed(scene: Scene) -> Scene:
    """The same scene in images of 3:2, as 810 x 540 are of 960 x 540."""
    ratio = 810 / 960
    intrinsics = scaled_intrinsics(scene.cameras.intrinsics, width_ratio=ratio, height_ratio=1.0)
    cameras = Cameras(intrinsics=intrinsics, world_from_cam=scene.cameras.world_from_cam)
    return replace(scene, cameras=cameras, width=round(ratio * scene.width))


def folder(index: int) -> str:
    return f"GTAV_540/{index:04d}"


def write(scene: Scene, folder: Path, *, left_handed: bool = True) -> None:
    """Write a scene into a new folder, in the game's world or in its mirror image."""
    for name in ("images", "depths", "poses"):
        (folder / name).mkdir(parents=True)
    world_from_raw = LEFT_HANDED if left_handed else np.eye(4)
    extrinsics = inverse(RAW_FROM_SCENE @ scene.cameras.world_from_cam) @ world_from_raw
    for t, matrix in enumerate(scene.cameras.intrinsics):
        _write_frame(folder, t, scene.render(t))
        # f_x as of square pixels: right in wide images, and the fault of the old release in squeezed ones.
        pose = {"extrinsic": extrinsics[t].tolist(), "f_x": matrix[1, 1], "f_y": matrix[1, 1]}
        pose |= {"c_x": matrix[0, 2], "c_y": matrix[1, 2]}
        (folder / f"poses/{t:04d}.json").write_text(json.dumps(pose))


def _write_frame(folder: Path, t: int, frame: Rendering) -> None:
    Image.fromarray(frame.image).save(folder / f"images/{t:04d}.png", compress_level=1)
    depth = frame.depth.astype(np.float16)
    depth[tuple(np.argwhere(np.isinf(frame.depth))[:3].T)] = 0
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Y": depth}).write(str(folder / f"depths/{t:04d}.exr"))
