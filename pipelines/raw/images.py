"""Images from bytes: of the kind that is asked for, of a bearable size, and whole, or ValueError that names them."""

import io
import re

import cv2
import numpy as np
import OpenEXR
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pipelines.raw.limits import MAX_PIXELS

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
FORMATS = ["PNG", "JPEG", "PPM", "TIFF"]  # others are not even looked into: EPS, for one, is a program
JPEG = ("JPEG", "MPO")
# What Pillow and OpenCV raise for damaged files.
NO_IMAGE = OSError, SyntaxError, ValueError, Image.DecompressionBombError, cv2.error
# How files of images begin, those of formats that are not read here among them.
BEGINNINGS = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "TIFF": rb"II\*\0|MM\0\*",
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "GIF": rb"GIF8",
    "JPEG 2000": rb"\0\0\0\x0cjP  ",
    "PostScript": rb"%!PS",
}
# A damaged file becomes an error with a name, not a line on the terminal.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class OtherFormat(ValueError):
    """A whole image, of a format that is not read here."""


def format_of(start: bytes) -> str | None:
    """What kind of image a file is that begins so; None if of no kind that is known here."""
    kinds = (name for name, beginning in BEGINNINGS.items() if re.match(beginning, start, re.DOTALL))
    return next(kinds, None)


def decode_image(content: bytes, where: str, kinds: tuple[str, ...], what: str, flag: int | None) -> np.ndarray:
    """Pillow reads the header and checks size and kind, which is format and mode, like "PNG RGB". OpenCV decodes, three
    times as fast, except palettes, of which it would give the colours, and JPEGs in colour, whose damage it passes
    over in silence. `where` names the image in errors."""
    try:
        with header_of(io.BytesIO(content)) as image:
            decoded = None
            if fits := f"{image.format} {image.mode}" in kinds:
                if flag is None:
                    decoded = np.asarray(image)
                elif flag == cv2.IMREAD_COLOR_RGB and image.format in JPEG:
                    decoded = simplejpeg.decode_jpeg(content)
                else:
                    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except NO_IMAGE as error:
        raise unreadable(where, "an image", error) from None
    if not fits:
        raise ValueError(f"{where} is a {image.format} of mode {image.mode}, not {what}")
    if decoded is None:
        raise unreadable(where, "an image", "decoding stopped before its end")
    return decoded


def header_of(file: io.IOBase) -> Image.Image:
    """Its header alone. Pillow itself only warns of up to twice as many pixels as it allows."""
    start = file.read(16)
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:  # whose words name an object in memory
        if other := format_of(start):
            raise OtherFormat(other) from None
        raise ValueError("it begins like none" if start else "it is empty") from None
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, over {MAX_PIXELS}")
    return image


def decode_rgb(content: bytes, where: str) -> UInt8[np.ndarray, "H W 3"]:
    """An 8-bit RGB image that lies in a file of its own kind."""
    return decode_image(
        content, where, ("PNG RGB", "PNG RGBA", "JPEG RGB", "MPO RGB"), "an 8-bit RGB image", cv2.IMREAD_COLOR_RGB
    )


def decode_shown(content: bytes, where: str) -> tuple[UInt8[np.ndarray, "H W 3"], list[str]]:
    """RGB of a user's image as it is meant to be seen, turned as its EXIF says, and notes on what is lost of it.

    Grey, palettes, black and white, and 16 bits are taken too. ValueError that names the image for anything else.
    """
    notes = []
    try:
        with header_of(io.BytesIO(content)) as image:
            kind = f"{image.format} of mode {image.mode}"
            fits = image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I")
            if "A" in image.mode or "transparency" in image.info:
                notes.append("parts of it are transparent: they are shown as if they were not")
            if fits:
                if image.format in JPEG:
                    simplejpeg.decode_jpeg(content)  # for what it says of damage: Pillow knows only a sudden end
                image = ImageOps.exif_transpose(image)
                wide = image.mode.startswith("I")  # 16 bits of grey, which Pillow would cut at 255
                pixels = np.asarray(image if wide else image.convert("RGB"))
    except NO_IMAGE as error:
        raise unreadable(where, "an image", error) from None
    if not fits:
        raise ValueError(f"{where} is a {kind}, whose colours are not those of a screen: save it as RGB, PNG or JPEG")
    if wide:
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"{where} has values beyond 16 bits: save it with 8 or 16 bits per channel")
        pixels = np.repeat((pixels / 257).round().astype(np.uint8)[..., None], 3, axis=-1)
    return pixels, notes


def size_shown(content: bytes, where: str) -> tuple[int, int]:
    """(H, W) of an image as `decode_shown` gives it, from its header alone."""
    try:
        with header_of(io.BytesIO(content)) as image:
            # Of other files Pillow would decode the pixels to look for EXIF behind them.
            exif = image.getexif() if image.format in JPEG or "exif" in image.info else {}
            turned = exif.get(ExifTags.Base.Orientation, 1) >= 5
            return image.size if turned else image.size[::-1]
    except NO_IMAGE as error:
        raise unreadable(where, "an image", error) from None


def decode_exr(content: bytes, where: str, channel: str) -> Float[np.ndarray, "H W"]:
    """The one channel of an OpenEXR image, as float16 or float32, whichever it is stored as."""
    try:
        parts = OpenEXR.File(io.BytesIO(content), header_only=True, num_threads=0).parts
        header = parts[0].header
        width, height = (header["dataWindow"][1].astype(int) - header["dataWindow"][0] + 1).tolist()
        names = [each.name for each in header["channels"]]
    except (RuntimeError, ValueError, LookupError) as error:
        raise unreadable(where, "an OpenEXR image", error) from None
    flat = len(parts) == 1 and header["type"] in (OpenEXR.scanlineimage, OpenEXR.tiledimage)
    if not flat or names != [channel] or not 0 < width * height <= MAX_PIXELS:
        raise ValueError(
            f"{where} has channels {', '.join(names)} of {width} x {height} in {len(parts)} part(s); "
            f"it must be one flat image with one channel {channel} and at most {MAX_PIXELS} pixels"
        )
    try:
        pixels = OpenEXR.File(io.BytesIO(content), separate_channels=True, num_threads=0).channels()[channel].pixels
    except (RuntimeError, ValueError, LookupError) as error:
        raise unreadable(where, "an OpenEXR image", error) from None
    if pixels.shape != (height, width) or pixels.dtype not in (np.float16, np.float32):
        raise ValueError(
            f"channel {channel} of {where} is {pixels.dtype} {pixels.shape}; it must be half or float "
            f"and fill {(height, width)}"
        )
    return pixels


def unreadable(where: str, what: str, error: Exception | str) -> ValueError:
    if isinstance(error, OtherFormat):
        return ValueError(f"{where} is a {error} file, which is not read here: save it as PNG or JPEG")
    return ValueError(f"{where} cannot be read as {what} ({error}): truncated or corrupt, download it again")
