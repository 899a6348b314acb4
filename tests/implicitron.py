"""Frame annotations as PyTorch3D's Implicitron writes them, from OpenCV cameras, by the dataset notes (D2, D8)."""

import gzip
import json
from pathlib import Path

import numpy as np


def viewpoint(
    world_from_cam: np.ndarray, fx: float, fy: float, cx: float, cy: float, *, height: int, width: int, isotropic: bool
) -> dict:
    """R and T for row vectors in axes x left, y up; without a format the units are half the width and half the
    height, with "ndc_isotropic" half of the shorter side."""
    cam_from_world = np.linalg.inv(world_from_cam)
    rotation, shift = cam_from_world[:3, :3], cam_from_world[:3, 3]
    signs = np.array([-1, -1, 1])
    x, y = (min(height, width) / 2,) * 2 if isotropic else (width / 2, height / 2)
    told = {
        "R": (signs[:, None] * rotation).T.tolist(),
        "T": (signs * shift).tolist(),
        "focal_length": [fx / x, fy / y],
        "principal_point": [(width / 2 - cx) / x, (height / 2 - cy) / y],
    }
    return told | ({"intrinsics_format": "ndc_isotropic"} if isotropic else {})


def save(records: object, path: Path) -> None:
    """As gzipped JSON (.jgz), or plain."""
    text = json.dumps(records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".jgz" else text)
