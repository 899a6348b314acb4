"""The path of the camera as text: TUM, and matrices with intrinsics as St4RTrack has them."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipelines.geometry import xyzw_from_rotation
from pipelines.results.reading import Result


def write(folder: Path, result: Result, about: str) -> list[str]:
    cameras, numbers = result.arrays("cameras"), np.array(result.video.frame_numbers)
    pose, lens = cameras["world_from_cam"], cameras["intrinsics"]
    (folder / "tum.txt").write_text(f"# {about}\n{tum(numbers, pose)}")
    (folder / "matrices.txt").write_text(f"# {about}\n# world_from_cam, row by row\n{_rows(pose.reshape(-1, 16))}")
    (folder / "intrinsics.txt").write_text(f"# {about}\n# native pixels, row by row\n{_rows(lens.reshape(-1, 9))}")
    missing = int((~np.isfinite(pose).all(axis=(1, 2))).sum())
    return [f"{missing} frames have no pose: no line in tum.txt, nan in matrices.txt"] if missing else []


def tum(frame_numbers: np.ndarray, world_from_cam: Float[np.ndarray, "T 4 4"]) -> str:
    """TUM trajectory: frame number, position, quaternion (w last). Frames without a pose have no line."""
    lines = ["# frame tx ty tz qx qy qz qw"]
    for number, pose in zip(frame_numbers, world_from_cam.astype(np.float64), strict=True):
        if np.isfinite(pose).all():
            values = [*pose[:3, 3], *xyzw_from_rotation(pose[:3, :3])]
            lines.append(" ".join([str(number), *(f"{value:.9g}" for value in values)]))
    return "\n".join(lines) + "\n"


def _rows(values: Float[np.ndarray, "T n"]) -> str:
    return "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in values)
