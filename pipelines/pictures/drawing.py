"""Marks, colours and tiles that pictures are made of.

Images are RGB uint8. Positions are `uv_norm`, from 0 to 1 over the image. Small images are enlarged before anything is
drawn on them, so that lines and letters stay readable.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "_ _ 3"]
Mask = UInt8[np.ndarray, "_ _"]
Colour = tuple[int, ...]

SUBPIXEL = 4  # bits of a pixel that OpenCV draws with
RANGE_VALUES = 1 << 24  # that are sorted to find a range of colours
TEXT = 15  # height of a line of text, in pixels
SMALLEST_TEXT = 12
DARK, LIGHT = (24, 24, 28), (235, 235, 235)
UNKNOWN = (70, 70, 70)  # where depth is NaN


def fitted(image: Picture, long_side: int) -> Picture:
    """The image with this long side; if it is more than eight times as long as wide, it is widened to an eighth."""
    height, width = image.shape[:2]
    factor = long_side / max(height, width)
    narrowest = long_side // 8
    return stretched(image, max(narrowest, round(width * factor)), max(narrowest, round(height * factor)))


def stretched(image: Picture, width: int, height: int) -> Picture:
    """The image in another size and shape."""
    grow = width > image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if grow else cv2.INTER_AREA)


def position_colours(uv_norm: Float[np.ndarray, "N 2"]) -> UInt8[np.ndarray, "N 3"]:
    """A colour per position, neighbours alike: hue runs from left to right, paler towards the bottom."""
    hsv = np.stack([150 * uv_norm[:, 0], 255 - 130 * uv_norm[:, 1], np.full(len(uv_norm), 255)], axis=-1)
    return cv2.cvtColor(hsv.round().astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]


def distinct_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Colours that neighbours in the list do not share."""
    hues = (np.arange(count) * 0.618034) % 1 * 179
    hsv = np.stack([hues, np.full(count, 200), np.full(count, 255)], axis=-1)
    return cv2.cvtColor(hsv.round().astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]


def depth_colours(depth: Float[np.ndarray, "*shape"], low: float, high: float) -> UInt8[np.ndarray, "*shape 3"]:
    """Near is red, far is blue, NaN is grey; beyond [low, high] the end colours."""
    level = 1 - np.clip((depth - low) / max(high - low, 1e-12), 0, 1)
    index = np.nan_to_num(level * 255).round().astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(index.reshape(1, -1), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return np.where(np.isfinite(depth)[..., None], colours.reshape(*depth.shape, 3), np.uint8(UNKNOWN))


def depth_range(depth: Float[np.ndarray, "*shape"]) -> tuple[float, float]:
    """The 2nd and 98th percentile of what is known, which a few wild values do not move; (0, 1) if nothing is.

    Of a large array, every so many-th row and column is looked at: of `RANGE_VALUES` values at most.
    """
    while depth.size > RANGE_VALUES:
        longest = int(np.argmax(depth.shape))
        depth = depth[tuple(slice(None, None, 2 if axis == longest else 1) for axis in range(depth.ndim))]
    known = depth[np.isfinite(depth)]
    return (float(np.quantile(known, 0.02)), float(np.quantile(known, 0.98))) if known.size else (0.0, 1.0)


# --- marks -----------------------------------------------------------------------------------------------------------


def _pixel(image: Picture | Mask, uv_norm: Float[np.ndarray, "2"]) -> tuple[int, int] | None:
    """OpenCV's fixed-point position, in which pixel centres are whole numbers; None if it is far outside the image."""
    u, v = float(uv_norm[0]), float(uv_norm[1])  # numbers of Python's: NumPy takes ten times as long for so few
    if not (abs(u - 0.5) < 1.5 and abs(v - 0.5) < 1.5):  # NaN is nowhere
        return None
    height, width = image.shape[:2]
    return round((u * width - 0.5) * (1 << SUBPIXEL)), round((v * height - 0.5) * (1 << SUBPIXEL))


def dot(
    image: Picture, uv_norm: Float[np.ndarray, "2"], colour: Colour, radius: float, *, hollow: bool = False
) -> None:
    """A filled disc with a dark rim, or a ring."""
    if (centre := _pixel(image, uv_norm)) is None:
        return
    size = round(radius * (1 << SUBPIXEL))
    if not hollow:
        cv2.circle(image, centre, size + 16, DARK, -1, cv2.LINE_AA, SUBPIXEL)
    cv2.circle(image, centre, size, colour, 1 + (radius > 4) if hollow else -1, cv2.LINE_AA, SUBPIXEL)


def cross(image: Picture, uv_norm: Float[np.ndarray, "2"], colour: Colour, radius: float) -> None:
    """An oblique cross."""
    if (centre := _pixel(image, uv_norm)) is None:
        return
    arm = round(radius * (1 << SUBPIXEL))
    for dx, dy in ((arm, arm), (arm, -arm)):
        start, end = (centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy)
        cv2.line(image, start, end, colour, 2, cv2.LINE_AA, SUBPIXEL)


def line(
    image: Picture | Mask, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], colour: Colour, width: int = 1
) -> None:
    """On a mask `colour` has one number."""
    ends = _pixel(image, start), _pixel(image, end)
    if None not in ends:
        cv2.line(image, *ends, colour, width, cv2.LINE_AA, SUBPIXEL)


def colour_of(row: UInt8[np.ndarray, "3"]) -> Colour:
    return tuple(int(x) for x in row)


# --- tiles -----------------------------------------------------------------------------------------------------------


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Read once, not for every picture."""
    return ImageFont.load_default(size)


def caption(width: int, text: str, size: int = TEXT) -> Picture:
    """A strip with one line of text, as high for any text: what is too long is smaller, then shortened."""
    smaller = size
    while smaller > SMALLEST_TEXT and _font(smaller).getlength(text) > width - 8:
        smaller -= 1
    font = _font(smaller)
    while text and font.getlength(text) > width - 8:
        text = text[:-2].rstrip("…") + "…"
    strip = Image.new("RGB", (width, round(1.7 * size)), DARK)
    ImageDraw.Draw(strip).text((4, round(0.25 * size)), text, fill=LIGHT, font=font)
    return np.asarray(strip)


def titled(image: Picture, text: str, size: int = TEXT) -> Picture:
    """The image below a caption."""
    return np.concatenate([caption(image.shape[1], text, size), image])


def beside(images: Sequence[Picture], gap: int = 6) -> Picture:
    """Images in a row, filled up at the bottom to the height of the tallest."""
    height = max(len(image) for image in images)
    padded = [_padded(image, height, image.shape[1] + gap * (i > 0), left=True) for i, image in enumerate(images)]
    return np.concatenate(padded, axis=1)


def below(images: Sequence[Picture], gap: int = 6) -> Picture:
    """Images in a column, filled up on the right to the width of the widest."""
    width = max(image.shape[1] for image in images)
    return np.concatenate([_padded(image, len(image) + gap, width, left=False) for image in images])


def _padded(image: Picture, height: int, width: int, *, left: bool) -> Picture:
    canvas = np.full((height, width, 3), DARK, np.uint8)
    x = width - image.shape[1] if left else 0
    canvas[: len(image), x : x + image.shape[1]] = image
    return canvas


def colour_bar(height: int, low: float, high: float) -> Picture:
    """The scale of `depth_colours`, near at the bottom, with its ends and middle written on it."""
    values = np.linspace(high, low, height)
    bar = np.repeat(depth_colours(values, low, high)[:, None], 18, axis=1)
    labels = Image.new("RGB", (54, height), DARK)
    draw, font = ImageDraw.Draw(labels), _font(TEXT - 2)
    for share in (0, 0.5, 1):
        text = f"{high + share * (low - high):.3g}"
        draw.text((5, 1 + share * (height - TEXT - 4)), text, fill=LIGHT, font=font)
    return np.concatenate([bar, np.asarray(labels)], axis=1)


def save(path: Path, image: Picture) -> None:
    Image.fromarray(image).save(path)
