"""Recordings of TUM RGB-D as evaluation codes prepare them: no names of the published list.

rgbd_dataset_freiburg3_room0000/{rgb_90,depth_90}/<time>.png    groundtruth_90.txt
"""

from pathlib import Path

from pipelines.synthesize import tum
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.tum import SIZES, folder, prepare, scene

__all__ = ["SIZES", "folder", "scene"]


def write(scene: Scene, folder: Path) -> None:
    """Write a recording into a new folder."""
    tum.write(scene, folder)
    prepare(folder, "90")
