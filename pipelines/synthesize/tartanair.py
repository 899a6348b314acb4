"""TartanAir V1 as its authors ship it (dataset notes D4), one trajectory at a time: a static scene under an open sky.

    room0000/Easy/P000/
        image_left/000000_left.png           8-bit RGB
        image_left/._000000_left.png         junk that macOS leaves in re-hosted copies
        depth_left/000000_left_depth.npy     float32 with float16 values, metres along z; sky 10000, one pixel 14000
        seg_left/000000_left_seg.npy         uint8
        pose_left.txt                        tx ty tz qx qy qz qw: world_from_cam, NED axes

P-numbers have gaps, and one environment lies in a folder of its own name, as some unzip tools make it.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float64
from PIL import Image

from pipelines.geometry import xyzw_from_rotation
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (128, 96), "official": (640, 480)}
CAM_FROM_NED = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])  # OpenCV axes from forward, right, down
RAW_FROM_SCENE = np.eye(4)
RAW_FROM_SCENE[:3, :3] = CAM_FROM_NED.T
TRAJECTORIES = ("Easy/P000", "Easy/P002")  # of every environment
DOUBLED = "room0001"
SKY, FAR_SKY = 10_000, 14_000


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A scene in which only the camera moves, with the camera of V1 scaled to the size."""
    width, height = SIZES[size]
    intrinsics = np.array([[width / 2, 0, width / 2], [0, height * 2 / 3, height / 2], [0, 0, 1]])
    return Scene.random(
        seed,
        num_frames=num_frames,
        width=width,
        height=height,
        intrinsics=intrinsics,
        moving=False,
        open_top=True,
    )


def folder(index: int) -> str:
    environment = f"room{index // len(TRAJECTORIES):04d}"
    parent = f"{environment}/{environment}" if environment == DOUBLED else environment
    return f"{parent}/{TRAJECTORIES[index % len(TRAJECTORIES)]}"


def write(scene: Scene, folder: Path) -> None:
    """Write a static scene into a new folder."""
    for name in ("image_left", "depth_left", "seg_left"):
        (folder / name).mkdir(parents=True)
    (folder / "image_left/._000000_left.png").write_bytes(
        b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X".ljust(4096, b"\0")
    )
    far_sky_is_due = True
    for t in range(len(scene)):
        frame = scene.render(t)
        depth = np.where(np.isfinite(frame.depth), frame.depth, SKY).astype(np.float16).astype(np.float32)
        sky = np.argwhere(depth == SKY)
        if far_sky_is_due and len(sky):
            depth[tuple(sky[0])], far_sky_is_due = FAR_SKY, False
        Image.fromarray(frame.image).save(folder / f"image_left/{t:06d}_left.png", compress_level=1)
        np.save(folder / f"depth_left/{t:06d}_left_depth.npy", depth)
        np.save(folder / f"seg_left/{t:06d}_left_seg.npy", np.zeros(depth.shape, np.uint8))
    np.savetxt(folder / "pose_left.txt", pose_rows(scene), fmt="%.18e")


def pose_rows(scene: Scene) -> Float64[np.ndarray, "T 7"]:
    """tx ty tz qx qy qz qw of every frame."""
    world_from_cam = RAW_FROM_SCENE @ scene.cameras.world_from_cam
    return np.array([[*pose[:3, 3], *xyzw_from_rotation(pose[:3, :3] @ CAM_FROM_NED)] for pose in world_from_cam])
