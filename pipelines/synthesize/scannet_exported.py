"""ScanNet v2 as its tools export it, and as its authors ship a hundredth of it (dataset notes D6): a static room.

    python       color/0.jpg  depth/0.png  pose/0.txt  intrinsic/{intrinsic,extrinsic}_{color,depth}.txt
    sens         frame-000000.color.jpg  frame-000000.depth.pgm  frame-000000.pose.txt  _info.txt
    frames_25k   color/000000.jpg  depth/000000.png  pose/000000.txt  intrinsics_color.txt  intrinsics_depth.txt

The frames are those of `synthesize/scannet.py`, with the same oddities.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64
from PIL import Image

from pipelines.synthesize.scannet import (
    RAW_FROM_SCENE,
    SHIFT,
    SIZES,
    colour_view,
    folder,
    frames,
    integer_centres,
    scene,
    unknown_poses,
)
from pipelines.synthesize.scene import Scene

__all__ = ["RAW_FROM_SCENE", "SIZES", "folder", "scene", "unknown_poses"]

Tool = Literal["python", "sens", "frames_25k"]
NAMES: dict[Tool, tuple[str, str, str]] = {
    "python": ("color/{}.jpg", "depth/{}.png", "pose/{}.txt"),
    "sens": ("frame-{:06d}.color.jpg", "frame-{:06d}.depth.pgm", "frame-{:06d}.pose.txt"),
    "frames_25k": ("color/{:06d}.jpg", "depth/{:06d}.png", "pose/{:06d}.txt"),
}


def write(
    scene: Scene,
    folder: Path,
    *,
    tool: Tool = "python",
    step: int = 1,
    colour_from_depth: Float64[np.ndarray, "4 4"] | None = None,
) -> None:
    """Write a static scene into a new folder. `step`: names count so far from frame to frame."""
    extrinsics = np.eye(4) if colour_from_depth is None else colour_from_depth
    for t, frame in enumerate(frames(scene, extrinsics)):
        colour, depth, pose = (folder / name.format(t * step) for name in NAMES[tool])
        for path in (colour, depth, pose):
            path.parent.mkdir(parents=True, exist_ok=True)
        colour.write_bytes(frame.jpeg)
        if tool == "sens":
            header = f"P5\n# data in units of 1/{SHIFT} m\n{scene.width} {scene.height}\n65535\n"
            depth.write_bytes(header.encode() + frame.depth.astype(">u2").tobytes())
        else:
            Image.fromarray(frame.depth).save(depth, compress_level=1)
        np.savetxt(pose, frame.world_from_depth, fmt="%f")
    view = colour_view(scene, extrinsics)
    intrinsics = {"color": integer_centres(view), "depth": integer_centres(scene)}
    if tool == "sens":
        sizes = {"color": (view.width, view.height), "depth": (scene.width, scene.height)}
        (folder / "_info.txt").write_text(
            _info(intrinsics, {"color": np.eye(4), "depth": extrinsics}, sizes, len(scene))
        )
    elif tool == "frames_25k":
        for camera, matrix in intrinsics.items():
            np.savetxt(folder / f"intrinsics_{camera}.txt", matrix, fmt="%f")
    else:
        (folder / "intrinsic").mkdir()
        for camera, matrix in intrinsics.items():
            np.savetxt(folder / f"intrinsic/intrinsic_{camera}.txt", matrix, fmt="%f")
            extrinsic = extrinsics if camera == "depth" else np.eye(4)
            np.savetxt(folder / f"intrinsic/extrinsic_{camera}.txt", extrinsic, fmt="%f")


def _info(
    intrinsics: dict[str, Float64[np.ndarray, "4 4"]],
    extrinsics: dict[str, Float64[np.ndarray, "4 4"]],
    sizes: dict[str, tuple[int, int]],
    num_frames: int,
) -> str:
    lines = ["m_versionNumber = 4", "m_sensorName = StructureSensor"]
    for camera, (width, height) in sizes.items():
        lines += [f"m_{camera}Width = {width}", f"m_{camera}Height = {height}"]
    lines += [f"m_depthShift = {SHIFT}"]
    for camera in intrinsics:
        for kind, matrices in (("Intrinsic", intrinsics), ("Extrinsic", extrinsics)):
            numbers = " ".join(f"{value:.9g}" for value in matrices[camera].ravel())
            lines += [f"m_calibration{camera.capitalize()}{kind} = {numbers} "]
    return "\n".join([*lines, f"m_frames.size = {num_frames}\n"])
