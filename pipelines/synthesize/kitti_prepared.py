"""Drives of KITTI as evaluation codes gather them: no names of the published list.

    depth_selection/val_selection_cropped/{image_gathered,groundtruth_depth_gathered}/<drive>_sync_02/0000000005.png

Only frames with truth are there, and no calibration.
"""

import shutil
from pathlib import Path

from pipelines.synthesize import kitti
from pipelines.synthesize.kitti import SIZES, scene
from pipelines.synthesize.scene import Scene

__all__ = ["SIZES", "scene"]

ROOT = "depth_selection/val_selection_cropped"


def folder(index: int) -> str:
    """Which of its folders is written last."""
    return f"{ROOT}/groundtruth_depth_gathered/{kitti.drive(index)}_02"


def write_tree(scene: Scene, root: Path, index: int) -> None:
    """All files of a drive, below a folder that may hold others."""
    drive = kitti.drive(index)
    shipped, images = root / "shipped", root / f"{ROOT}/image_gathered/{drive}_02"
    kitti.write_tree(scene, shipped, index)
    truth = shipped / kitti.folder(index) / "proj_depth/groundtruth/image_02"
    images.mkdir(parents=True)
    for path in truth.iterdir():
        (shipped / f"{kitti.DATE}/{drive}/image_02/data/{path.name}").rename(images / path.name)
    (root / folder(index)).parent.mkdir(parents=True, exist_ok=True)
    truth.rename(root / folder(index))
    shutil.rmtree(shipped)
