"""Sequences of MPI Sintel as its authors ship it (dataset notes E3): no names of the published list.

    training/final/room_0000/frame_0001.png    training/depth/...dpt    training/camdata_left/...cam

The sky is finite and huge; every second sequence zooms, so that K changes from frame to frame.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.geometry import inverse
from pipelines.raw.sintel import TAG
from pipelines.sequence import Cameras
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (96, 48), "official": (1024, 436)}
SKY = 1e11
ZOOM = 0.02  # by which the focal length grows from frame to frame


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    width, height = SIZES[size]
    intrinsics = np.array([[1.1 * width, 0, width / 2], [0, 1.1 * width, height / 2], [0, 0, 1]])
    options = {"num_frames": num_frames, "width": width, "height": height, "open_top": True}
    made = Scene.random(seed, intrinsics=intrinsics, **options)
    if seed % 2 == 0:
        return made
    matrices = made.cameras.intrinsics.copy()
    matrices[:, (0, 1), (0, 1)] *= (1 + ZOOM) ** np.arange(num_frames)[:, None]
    return replace(made, cameras=Cameras(intrinsics=matrices, world_from_cam=made.cameras.world_from_cam))


def folder(index: int) -> str:
    """Which of its folders is written last."""
    return f"training/camdata_left/room_{index:04d}"


def write_tree(scene: Scene, root: Path, index: int) -> None:
    """All files of a sequence, below a folder that may hold others."""
    folders = {part: root / f"training/{part}/room_{index:04d}" for part in ("final", "depth", "camdata_left")}
    for path in folders.values():
        path.mkdir(parents=True)
    for t, matrix in enumerate(scene.cameras.intrinsics):
        frame, stem = scene.render(t), f"frame_{t + 1:04d}"
        Image.fromarray(frame.image).save(folders["final"] / f"{stem}.png", compress_level=1)
        depth = np.where(np.isfinite(frame.depth), frame.depth, SKY).astype("<f4")
        sides = np.array([scene.width, scene.height], "<i4").tobytes()
        (folders["depth"] / f"{stem}.dpt").write_bytes(TAG + sides + depth.tobytes())
        stored = matrix.copy()
        stored[:2, 2] -= 0.5
        pose = inverse(scene.cameras.world_from_cam[t])[:3]
        numbers = np.concatenate([stored.ravel(), pose.ravel()]).astype("<f8")
        (folders["camdata_left"] / f"{stem}.cam").write_bytes(TAG + numbers.tobytes())
