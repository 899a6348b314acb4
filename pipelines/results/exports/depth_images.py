"""Depth as 16-bit PNG: depth = value * scale, 0 is unknown; the scale is one for the clip, and in every file."""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.results.reading import Result

LARGEST = 65535


def write(folder: Path, result: Result, about: str) -> list[str]:
    depth = result.arrays("depth")["depth"]
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        raise ValueError(f"depth of {result.uri} is known nowhere: there is nothing to write")
    scale = float(depth[known].max()) / LARGEST
    values = np.where(known, np.maximum(1, np.rint(np.where(known, depth, 0) / scale)), 0).astype(np.uint16)
    said = PngInfo()
    said.add_text("scale", repr(scale))
    said.add_text("about", about)
    for number, image in zip(result.video.frame_numbers, values, strict=True):
        Image.fromarray(image).save(folder / f"depth_{number:06d}.png", pnginfo=said)
    return [f"scale {scale!r}: depth = value * scale, 0 is unknown; {1 - known.mean():.1%} of it is"]
