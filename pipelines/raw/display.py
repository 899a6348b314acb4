"""A decoded frame as it is meant to be seen: upright, with square pixels, in the range of an ordinary display."""

from collections.abc import Iterator

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter
from jaxtyping import UInt8

HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
TO_SDR = {
    "dst_color_trc": ColorTrc.BT709,
    "dst_color_primaries": ColorPrimaries.BT709,
    "dst_colorspace": Colorspace.ITU709,
}


class Display:
    """For the frames of one video; what it takes to convert a high range is made ready once."""

    def __init__(self, where: str) -> None:
        """`where` names the video in errors."""
        self._where, self._reformatter = where, VideoReformatter()

    def rgb(self, frame: av.VideoFrame, pixel_aspect: float) -> UInt8[np.ndarray, "H W 3"]:
        """Of a high range of brightness, 203 cd/m2 become white (BT.2408), and what is brighter is white too.

        `pixel_aspect` is the width of a pixel in its height. ValueError for a frame that is turned by an odd angle.
        """
        width = max(1, round(frame.width * pixel_aspect))
        options = TO_SDR if frame.color_trc in HDR else {}
        pixels = self._reformatter.reformat(frame, format="rgb24", width=width, threads=1, **options).to_ndarray()
        a, b, c, d = display_matrix(frame)
        if (a or d) and (b or c):
            raise ValueError(
                f"{self._where} is to be turned by an angle that is not a right one: turn it, and write it again"
            )
        if b:
            pixels = pixels.swapaxes(0, 1)
        if a + c < 0:
            pixels = pixels[:, ::-1]
        if b + d < 0:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


def display_matrix(frame: av.VideoFrame) -> tuple[int, ...]:
    """a, b, c, d of ISO 14496-12, 6.2.2: (x, y) of the frame is shown at (a x + c y, b x + d y), in 1 / 65536."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist() if matrix else (0, 0, 0, 0, 0)
    return (a, b, c, d) if a or b or c or d else (1 << 16, 0, 0, 1 << 16)


def display_notes(frame: av.VideoFrame) -> Iterator[str]:
    """What is lost of a frame when it is seen like this."""
    if frame.color_trc in HDR:
        yield f"its brightness has a high range ({HDR[frame.color_trc]}): 203 cd/m2 became white, what is brighter too"
    if any(component.is_alpha for component in frame.format.components):
        yield "parts of it are transparent: they are shown as if they were not"
    if frame.interlaced_frame:
        yield "it is interlaced: each frame shows two instants in alternate rows; deinterlace it for better results"
