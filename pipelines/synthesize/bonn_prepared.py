"""Recordings of Bonn RGB-D Dynamic as evaluation codes prepare them: no names of the published list.

rgbd_bonn_dataset/rgbd_bonn_room0000/{rgb_110,depth_110}/<time>.png    groundtruth_110.txt
"""

from pathlib import Path

from pipelines.synthesize import bonn
from pipelines.synthesize.bonn import SIZES, scene
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.tum import prepare

__all__ = ["SIZES", "scene"]


def folder(index: int) -> str:
    return f"rgbd_bonn_dataset/{bonn.folder(index)}"


def write(scene: Scene, folder: Path) -> None:
    """Write a recording into a new folder."""
    bonn.write(scene, folder)
    prepare(folder, "110")
