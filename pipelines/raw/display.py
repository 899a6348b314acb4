"""A decoded frame as it is meant to be seen: upright, with square pixels, in the range of an ordinary display."""

from collections.abc import Iterator
from functools import cache

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter
from jaxtyping import Float64, UInt8

HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
HIGH_RANGE = {
    "format": "rgb48le",
    "dst_color_trc": ColorTrc.SMPTE2084,
    "dst_color_primaries": ColorPrimaries.BT709,
}
BRIGHTEST = 1000.0  # cd/m2: the nominal peak of HLG, and what most PQ is mastered for; beyond, all is white
WHITE = 203.0  # cd/m2 of the standard range's white (BT.2408)
GAMMA = 2.4  # of a display of the standard range (BT.1886)
SIGNALS = 1 << 16

M1, M2 = 2610 / 16384, 2523 / 32  # of PQ (SMPTE ST 2084)
C1, C2, C3 = 3424 / 4096, 2413 / 128, 2392 / 128


def pq_signal(light: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """cd/m2 to PQ, from 0 to 1."""
    y = (light / 10_000) ** M1
    return ((C1 + C2 * y) / (1 + C3 * y)) ** M2


def pq_light(signal: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """The inverse."""
    x = signal ** (1 / M2)
    return 10_000 * (np.maximum(x - C1, 0) / (C2 - C3 * x)) ** (1 / M1)


@cache
def tone_curve() -> UInt8[np.ndarray, "65536"]:
    """PQ of 16 bits to the standard range: as it is up to 93 cd/m2, from there on ever flatter, so that what is bright
    keeps its structure (ITU-R BT.2390, EETF, with black at 0)."""
    peak = pq_signal(np.array([WHITE, BRIGHTEST]))
    most = peak[0] / peak[1]
    knee = 1.5 * most - 0.5
    signal = np.minimum(np.linspace(0, 1, SIGNALS) / peak[1], 1)
    t = (np.maximum(signal, knee) - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    light = pq_light(np.where(signal < knee, signal, spline) * peak[1])
    return np.rint(255 * np.clip(light / WHITE, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


class Display:
    """For the frames of one video; what it takes to convert a high range is made ready once."""

    def __init__(self, where: str) -> None:
        """`where` names the video in errors."""
        self._where, self._reformatter = where, VideoReformatter()
        self._matrix, self._rotation = None, None

    def rgb(self, frame: av.VideoFrame, pixel_aspect: float) -> UInt8[np.ndarray, "H W 3"]:
        """A high range of brightness is brought into the standard one by `tone_curve`.

        `pixel_aspect` is the width of a pixel in its height. ValueError for a frame that is turned by an odd angle.
        """
        width = max(1, round(frame.width * pixel_aspect))
        high = frame.color_trc in HDR
        options = HIGH_RANGE if high else {"format": "rgb24"}
        pixels = self._reformatter.reformat(frame, width=width, threads=1, **options).to_ndarray()
        if high:
            pixels = tone_curve()[pixels]
        a, b, c, d = self.matrix(frame)
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

    def matrix(self, frame: av.VideoFrame) -> tuple[int, ...]:
        """As `display_matrix`, which is asked again only where frames begin to be turned otherwise."""
        if self._matrix is None or frame.rotation != self._rotation:
            self._matrix, self._rotation = display_matrix(frame), frame.rotation
        return self._matrix


def display_matrix(frame: av.VideoFrame) -> tuple[int, ...]:
    """a, b, c, d of ISO 14496-12, 6.2.2: (x, y) of the frame is shown at (a x + c y, b x + d y), in 1 / 65536.

    PyAV never frees a frame whose side data was looked at, so what is looked at is a small copy.
    """
    copy = VideoReformatter().reformat(frame, width=16, height=16, format="gray8", threads=1)
    matrix = copy.side_data.get(Type.DISPLAYMATRIX)
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist() if matrix else (0, 0, 0, 0, 0)
    return (a, b, c, d) if a or b or c or d else (1 << 16, 0, 0, 1 << 16)


def display_notes(frame: av.VideoFrame) -> Iterator[str]:
    """What is lost of a frame when it is seen like this."""
    if frame.color_trc in HDR:
        yield f"its brightness has a high range ({HDR[frame.color_trc]}): what is bright is shown darker than it is"
    if any(component.is_alpha for component in frame.format.components):
        yield "parts of it are transparent: they are shown as if they were not"
    if frame.interlaced_frame:
        yield "it is interlaced: each frame shows two instants in alternate rows; deinterlace it for better results"
