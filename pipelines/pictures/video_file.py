"""Pictures as a video file to look at."""

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float) -> None:
    """H.264 in mp4, playable everywhere: 4:2:0, hence an odd last row or column is doubled. Appears whole."""
    partial = path.with_name(f".{path.name}.partial")
    with av.open(partial, "w", format="mp4") as container:
        stream = None
        for frame in frames:
            height, width = frame.shape[:2]
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(10_000))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)
