"""Raw files as what they hold, read strictly, with errors that name the file, the rule and the remedy.

The traps of `Library traps` in the dataset notes are met here once: 16-bit greys stay 16-bit, palette indices stay
indices, truncated files raise, and pickles are never executed.
"""

import io
import json
import math
import tokenize
from abc import ABC, abstractmethod
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8, UInt16

from pipelines.raw.images import NO_IMAGE, decode_exr, decode_image, decode_rgb, header_of, unreadable
from pipelines.raw.place import Refused

MAX_SIDE = 1 << 24  # of an array; a few would hold nothing, but ever so many rows of it


class RawFiles(ABC):
    """Files by their path, wherever their bytes lie: in a folder, or in a record of a larger file."""

    uri: str
    """What holds them, for error messages."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """All bytes of a file; ValueError if it is missing."""

    def open(self, path: str) -> io.IOBase:
        """A seekable binary file; ValueError if it is missing."""
        return io.BytesIO(self.read(path))

    def text(self, path: str) -> str:
        return self._as_text(path, self.read(path))

    def json(self, path: str) -> Any:
        text = self.text(path)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._unreadable(path, "JSON", error) from None

    def table(self, path: str, *, columns: int, skip_rows: int = 0) -> Float64[np.ndarray, "rows columns"]:
        """A text table of numbers separated by spaces, True and False being 1 and 0; every row must have `columns`."""
        lines = self.text(path).replace("True", "1").replace("False", "0").splitlines()[skip_rows:]
        if not any(line.strip() for line in lines):
            return np.empty((0, columns))
        try:
            rows = np.loadtxt(lines, ndmin=2, dtype=np.float64)
        except ValueError as error:
            raise self._unreadable(path, f"a table of {columns} numbers per line", error) from None
        if rows.shape[1] != columns:
            raise ValueError(
                f"{path} in {self.uri} has {rows.shape[1]} columns, not {columns}: not this dataset's file"
            )
        return rows

    def npy(self, path: str) -> np.ndarray:
        """A plain .npy array; object arrays (pickles) are refused."""
        content = self.read(path)
        file = io.BytesIO(content)
        try:
            shape, _, dtype = npy_header(file)
            if file.tell() + math.prod(shape) * dtype.itemsize != len(content):
                raise ValueError(f"{shape} {dtype} in {len(content)} bytes")
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise self._unreadable(path, "a plain .npy array", error) from None

    def image_size(self, path: str) -> tuple[int, int]:
        """(H, W) of an image, from its header."""
        with self.open(path) as file:
            try:
                with header_of(file) as image:
                    return image.height, image.width
            except Refused:
                raise
            except NO_IMAGE as error:
                raise self._unreadable(path, "an image", error) from None

    def rgb(self, path: str) -> UInt8[np.ndarray, "H W 3"]:
        """An 8-bit RGB image."""
        return decode_rgb(self.read(path), f"{path} in {self.uri}")

    def grey16(self, path: str) -> UInt16[np.ndarray, "H W"]:
        """A 16-bit grey PNG or PGM (which is big-endian, and may have comments)."""
        return self._decoded(path, ("PNG I;16", "PNG I", "PPM I"), "a 16-bit grey PNG or PGM", cv2.IMREAD_UNCHANGED)

    def float32(self, path: str) -> Float32[np.ndarray, "H W"]:
        """A PNG of four 8-bit channels that are, in the order B, G, R, A, the bytes of little-endian float32."""
        channels = self._decoded(path, ("PNG RGBA",), "a PNG of four 8-bit channels", cv2.IMREAD_UNCHANGED)
        return np.ascontiguousarray(channels).view("<f4")[..., 0].astype(np.float32)

    def rgb16(self, path: str) -> UInt16[np.ndarray, "H W 3"]:
        """A 16-bit RGB PNG, of which Pillow would give the upper bytes only."""
        what = "a 16-bit RGB PNG"
        decoded = self._decoded(path, ("PNG RGB",), what, cv2.IMREAD_UNCHANGED)
        if decoded.dtype != np.uint16:
            raise ValueError(f"{path} in {self.uri} has 8 bits per channel, but must be {what}: was it saved again?")
        return decoded[..., ::-1]

    def float_tiff(self, path: str) -> Float32[np.ndarray, "H W"]:
        """A TIFF of one channel of float32."""
        return self._decoded(path, ("TIFF F",), "a float32 TIFF of one channel", cv2.IMREAD_UNCHANGED)

    def exr(self, path: str, channel: str) -> Float[np.ndarray, "H W"]:
        """The one channel of an OpenEXR image, as float16 or float32, whichever it is stored as."""
        return decode_exr(self.read(path), f"{path} in {self.uri}", channel)

    def indices(self, path: str) -> UInt8[np.ndarray, "H W"]:
        """An 8-bit palette (or grey) PNG, as its indices."""
        return self._decoded(path, ("PNG P", "PNG L"), "an 8-bit index PNG", None)

    def mask(self, path: str) -> Bool[np.ndarray, "H W"]:
        """A black-and-white PNG, of 1 bit per pixel or 8: true where it is not black."""
        return self._decoded(path, ("PNG 1", "PNG L"), "a PNG of black and white or greys", None) > 0

    def _decoded(self, path: str, kinds: tuple[str, ...], what: str, flag: int | None) -> np.ndarray:
        return decode_image(self.read(path), f"{path} in {self.uri}", kinds, what, flag)

    def _as_text(self, path: str, content: bytes) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._unreadable(path, "text", error) from None

    def _unreadable(self, path: str, what: str, error: Exception | str) -> ValueError:
        return unreadable(f"{path} in {self.uri}", what, error)


def npy_header(file: io.IOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether by columns, and dtype of an .npy array; `file` then stands where its numbers begin. ValueError
    for what is none, or of a later version than 1.0: these are for field names, and their headers have any length."""
    if (version := np.lib.format.read_magic(file)) != (1, 0):
        raise ValueError(f"version {version}, not (1, 0)")
    try:
        shape, column_major, dtype = np.lib.format.read_array_header_1_0(file)
    except (tokenize.TokenError, RecursionError) as error:
        raise ValueError(f"no header: {error}") from None
    if not all(0 <= side <= MAX_SIDE for side in shape):
        raise ValueError(f"shape {shape}: each side must be from 0 to {MAX_SIDE}")
    return shape, column_major, dtype
