"""Drives of KITTI with depth as its authors ship them: no names of the published list.

    data_depth_annotated/val/<drive>_sync/proj_depth/groundtruth/image_02/0000000005.png
    <date>/<drive>_sync/image_02/data/0000000000.png    <date>/calib_cam_to_cam.txt

Truth is sparse, as of a laser scanner, and begins at frame 5; there is none above a third of the image.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (124, 38), "official": (1242, 375)}
FIRST = 5  # frame with truth
PER_METRE = 256
DATE = "2099_01_01"


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    width, height = SIZES[size]
    focal = 721.5377 / 1242 * width
    intrinsics = np.array([[focal, 0, 0.49 * width], [0, focal, 0.46 * height], [0, 0, 1]])
    return Scene.random(seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics, open_top=True)


def folder(index: int) -> str:
    """Which of its folders is written last."""
    return f"data_depth_annotated/val/{drive(index)}"


def drive(index: int) -> str:
    return f"{DATE}_drive_{index:04d}_sync"


def write_tree(scene: Scene, root: Path, index: int) -> None:
    """All files of a drive, below a folder that may hold others."""
    images = root / f"{DATE}/{drive(index)}/image_02/data"
    truth = root / folder(index) / "proj_depth/groundtruth/image_02"
    for path in (images, truth):
        path.mkdir(parents=True)
    matrix = scene.cameras.intrinsics[0]
    row = [matrix[0, 0], 0, matrix[0, 2] - 0.5, 0, 0, matrix[1, 1], matrix[1, 2] - 0.5, 0, 0, 0, 1, 0]
    calibration = root / DATE / "calib_cam_to_cam.txt"
    calibration.write_text("calib_time: 09-Jan-2012 13:57:47\nP_rect_02: " + " ".join(f"{x:e}" for x in row) + "\n")
    rng = np.random.default_rng([scene.seed, 6])
    for t in range(len(scene)):
        frame = scene.render(t)
        Image.fromarray(frame.image).save(images / f"{t:010d}.png", compress_level=1)
        if t < FIRST:
            continue
        known = np.isfinite(frame.depth) & (rng.random(frame.depth.shape) < 0.3)
        known[: scene.height // 3] = False
        steps = np.round(PER_METRE * np.where(known, frame.depth, 0)).astype(np.uint16)
        Image.fromarray(steps).save(truth / f"{t:010d}.png", compress_level=1)
