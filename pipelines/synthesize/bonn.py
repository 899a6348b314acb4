"""Recordings of Bonn RGB-D Dynamic as its authors ship them (dataset notes E4): no names of the published list.

    rgbd_bonn_room0000/        as in synthesize/tum.py

groundtruth.txt has poses of a body with markers; the depth's metre is 1.0593 of the motion capture's.
"""

from pathlib import Path

import numpy as np

from pipelines.datasets.bonn import SCALE, T_M, T_ROS
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.tum import SIZES, scene_of, write_recording

__all__ = ["SIZES"]

INTRINSICS = (542.822841, 542.576870, 315.593520, 237.756098)


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    return scene_of(seed, INTRINSICS, num_frames=num_frames, size=size)


def folder(index: int) -> str:
    return f"rgbd_bonn_room{index:04d}"


def write(scene: Scene, folder: Path) -> None:
    """Write a recording into a new folder."""
    scaled = scene.cameras.world_from_cam.copy()
    scaled[:, :3] *= SCALE
    body = T_ROS @ scaled @ np.linalg.inv(T_M) @ T_ROS
    u, _, vh = np.linalg.svd(body[:, :3, :3])
    body[:, :3, :3] = u @ vh
    write_recording(scene, folder, body)
