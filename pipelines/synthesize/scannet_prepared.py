"""Scans of ScanNet as evaluation codes prepare them: no names of the published list.

    scans/scene0000_00/{color_90/frame_0000.jpg,depth_90/frame_0000.png}    pose_90.txt

Intrinsics are not among these files. The oddities are those of `synthesize/scannet.py`.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.synthesize.scannet import SIZES, folder, frames, scene
from pipelines.synthesize.scene import Scene

__all__ = ["SIZES", "folder", "scene"]


def write(scene: Scene, folder: Path) -> None:
    """Write a scan into a new folder."""
    for part in ("color_90", "depth_90"):
        (folder / part).mkdir(parents=True)
    poses = []
    for t, frame in enumerate(frames(scene, np.eye(4))):
        (folder / f"color_90/frame_{t:04d}.jpg").write_bytes(frame.jpeg)
        Image.fromarray(frame.depth).save(folder / f"depth_90/frame_{t:04d}.png", compress_level=1)
        poses.append(frame.world_from_depth.ravel())
    np.savetxt(folder / "pose_90.txt", np.stack(poses), fmt="%.9f")
