"""TartanAir V2 as its authors ship it (dataset notes D4), one trajectory at a time: a static scene under an open sky.

    Room0000/Data_easy/P000/
        image_lcam_front/000000_lcam_front.png         8-bit RGB
        depth_lcam_front/000000_lcam_front_depth.png   bytes of float32 metres along z, as B, G, R, A; sky 10000
        pose_lcam_front.txt                            as in V1

Left out: the other eleven cameras and the segmentation.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.tartanair import RAW_FROM_SCENE, SKY, pose_rows

__all__ = ["RAW_FROM_SCENE"]

SIZES: dict[Size, tuple[int, int]] = {"small": (96, 96), "official": (640, 640)}


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A scene in which only the camera moves, with the camera of V2 scaled to the size: 90 degrees wide and high."""
    side, _ = SIZES[size]
    return Scene.random(
        seed,
        num_frames=num_frames,
        width=side,
        height=side,
        intrinsics=np.array([[side / 2, 0, side / 2], [0, side / 2, side / 2], [0, 0, 1]]),
        moving=False,
        open_top=True,
    )


def folder(index: int) -> str:
    return f"Room{index // 2:04d}/{('Data_easy', 'Data_hard')[index % 2]}/P000"


def write(scene: Scene, folder: Path) -> None:
    """Write a static scene into a new folder."""
    for name in ("image_lcam_front", "depth_lcam_front"):
        (folder / name).mkdir(parents=True)
    for t in range(len(scene)):
        frame = scene.render(t)
        depth = np.where(np.isfinite(frame.depth), frame.depth, SKY).astype("<f4")
        blue_green_red_alpha = depth[..., None].view(np.uint8)
        coded = Image.fromarray(np.ascontiguousarray(blue_green_red_alpha[..., (2, 1, 0, 3)]))
        name = f"{t:06d}_lcam_front"
        Image.fromarray(frame.image).save(folder / f"image_lcam_front/{name}.png", compress_level=1)
        coded.save(folder / f"depth_lcam_front/{name}_depth.png", compress_level=1)
    np.savetxt(folder / "pose_lcam_front.txt", pose_rows(scene), fmt="%.18e")
