"""The frames of a video as image files, for programs that want photos."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from pipelines.results.reading import Result

QUALITY = 95  # of JPEG
GREY = 128


def photo_names(result: Result) -> list[str]:
    return [f"frame_{number:06d}.jpg" for number in result.video.frame_numbers]


def write_photos(folder: Path, result: Result) -> list[str]:
    """Every frame in its native size. A note instead, if the video is gone."""
    try:
        frames = result.native_frames
    except ValueError as error:
        return [f"without images: {error}"]
    folder.mkdir()
    for name, frame in zip(photo_names(result), frames, strict=True):
        Image.fromarray(frame).save(folder / name, quality=QUALITY)
    return []


def colours_at(result: Result, uv_norm: Float[np.ndarray, "N 2"], frame: int) -> UInt8[np.ndarray, "N 3"]:
    """Of the video, at positions in one frame; grey if it is gone."""
    try:
        frames = result.frames
    except ValueError:
        return np.full((len(uv_norm), 3), GREY, np.uint8)
    for t, image in enumerate(frames):
        if t == frame:
            height, width = image.shape[:2]
            column = np.clip(uv_norm[:, 0] * width, 0, width - 1).astype(int)
            row = np.clip(uv_norm[:, 1] * height, 0, height - 1).astype(int)
            return image[row, column]
    raise ValueError(f"{result.video.name} has no frame {frame}")
