"""Portable float maps: one channel of float32, rows from bottom to top."""

import re

import numpy as np
from jaxtyping import Float32

from pipelines.raw.folder import RawFolder
from pipelines.raw.images import unreadable
from pipelines.raw.limits import MAX_PIXELS

# Any whitespace between the tokens, but a single byte of it before the data.
HEADER = re.compile(rb"Pf\s+([1-9][0-9]{0,4})\s+([1-9][0-9]{0,4})\s+([-+]?[0-9]+(?:\.[0-9]*)?)\s")


def read_pfm(raw: RawFolder, path: str) -> Float32[np.ndarray, "H W"]:
    """Rows from top to bottom. The sign of the header's scale tells the byte order; its size means nothing."""
    content = raw.read(path)
    header = HEADER.match(content)
    if header is None:
        raise unreadable(f"{path} in {raw.uri}", "a grey PFM", f"it begins with {content[:32]!r}")
    width, height, scale = int(header[1]), int(header[2]), float(header[3])
    if scale == 0 or width * height > MAX_PIXELS or len(content) != header.end() + 4 * width * height:
        problem = f"header {width} x {height}, scale {scale:g}; {len(content)} bytes"
        raise unreadable(f"{path} in {raw.uri}", "a grey PFM", problem)
    rows = np.frombuffer(content, "<f4" if scale < 0 else ">f4", offset=header.end()).reshape(height, width)
    return np.flipud(rows).astype(np.float32)
