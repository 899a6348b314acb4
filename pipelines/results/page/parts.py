"""What pages are made of: a template with its parts filled in, and small pictures."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

HERE = Path(__file__).parent
SMALLEST = 64  # pixels of the longer side: no smaller, whatever the budget


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The file of that name beside this one, with each {{name}} in it replaced; what replaces it is taken as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], (HERE / template).read_text())


def small_picture(frame: UInt8[np.ndarray, "H W 3"], budget: int, side: int) -> bytes:
    """A JPEG of at most about `budget` bytes and so many pixels to its longer side: coarser first, then smaller."""
    factor = min(1.0, side / max(frame.shape[:2]))
    while True:
        size = tuple(max(1, round(n * factor)) for n in frame.shape[1::-1])
        image = Image.fromarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
        for quality in (80, 55):
            content = io.BytesIO()
            image.save(content, "JPEG", quality=quality, optimize=True)
            if content.tell() <= budget or max(size) <= SMALLEST:
                return content.getvalue()
        factor *= 0.7
