"""Frame annotations of PyTorch3D's Implicitron, as Dynamic Replica and CO3D ship them (dataset notes D2 and D8)."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt16
from PIL import Image

FLIP = np.diag([-1.0, -1, 1])  # OpenCV's camera axes to PyTorch3D's: x left, y up


def viewpoint(
    cam_from_world: Float64[np.ndarray, "4 4"],
    intrinsics: Float64[np.ndarray, "3 3"],
    *,
    width: int,
    height: int,
    isotropic: bool = True,
) -> dict[str, Any]:
    """Row vectors, normalised device coordinates. Not isotropic is the older form, which has no name in the file."""
    half = np.array([width, height]) / 2
    unit = np.full(2, half.min()) if isotropic else half
    return {
        "R": (cam_from_world[:3, :3].T @ FLIP).tolist(),
        "T": (FLIP @ cam_from_world[:3, 3]).tolist(),
        "focal_length": (intrinsics[(0, 1), (0, 1)] / unit).tolist(),
        "principal_point": ((half - intrinsics[:2, 2]) / unit).tolist(),
    } | ({"intrinsics_format": "ndc_isotropic"} if isotropic else {})


def half_bits(depth: Float64[np.ndarray, "H W"]) -> UInt16[np.ndarray, "H W"]:
    """The bits of float16 numbers."""
    return depth.astype(np.float16).view(np.uint16)


def save_png(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def save_list(records: list[dict[str, Any]], path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(records).encode(), mtime=0))
