"""The two binary formats of MPI Sintel: depth (.dpt) and cameras (.cam). Both begin with the float 202021.25."""

import struct

import numpy as np
from jaxtyping import Float32, Float64

from pipelines.raw.folder import RawFolder
from pipelines.raw.limits import MAX_PIXELS

TAG = struct.pack("<f", 202021.25)
CAMERA_BYTES = 4 + 8 * (9 + 12)


def read_depth(raw: RawFolder, path: str) -> Float32[np.ndarray, "H W"]:
    """Metres along z, as stored: the sky is finite and huge."""
    content = raw.read(path)
    width, height = struct.unpack("<ii", content[4:12]) if content[:4] == TAG and len(content) >= 12 else (0, 0)
    if not 0 < width * height <= MAX_PIXELS or width < 0 or len(content) != 12 + 4 * width * height:
        raise ValueError(f"{path} in {raw.uri} is no whole .dpt of Sintel ({len(content)} bytes): download it again")
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width)


def read_camera(raw: RawFolder, path: str) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "4 4"]]:
    """(intrinsics with the centre of the first pixel at 0, cam_from_world)."""
    content = raw.read(path)
    if content[:4] != TAG or len(content) != CAMERA_BYTES:
        raise ValueError(f"{path} in {raw.uri} is no .cam of Sintel ({len(content)} bytes): download it again")
    numbers = np.frombuffer(content, "<f8", offset=4)
    return numbers[:9].reshape(3, 3), np.concatenate([numbers[9:].reshape(3, 4), [[0, 0, 0, 1.0]]])
