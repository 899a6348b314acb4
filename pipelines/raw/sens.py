"""The .sens stream: all RGB-D frames of a ScanNet scan in one file of some gigabytes. Dataset notes D6.

Little-endian, without padding, version 4:
    u32 version, u64 length and bytes of the sensor's name
    4 x 16 f32                 colour intrinsics and extrinsics, depth intrinsics and extrinsics; 4x4 by rows
    i32 colour compression     0 raw RGB, 1 PNG, 2 JPEG
    i32 depth compression      0 raw u16, 1 zlib of u16 (2, "occi", is proprietary)
    4 x u32                    colour width, colour height, depth width, depth height
    f32 depth shift            depth in metres is value / shift
    u64 number of frames, then of each
        16 f32                 camera pose; u64, u64 times
        u64, u64               bytes of the colour, bytes of the depth; then these bytes
    (IMU samples follow, which are not read)

Opening it reads 96 bytes per frame; pictures are fetched and decompressed when asked for.
"""

import struct
import zlib

import numpy as np
from jaxtyping import Float64, UInt8, UInt16

from pipelines.raw.folder import RawFolder
from pipelines.raw.images import decode_rgb, unreadable

START, FORMAT, FRAME = struct.Struct("<IQ"), struct.Struct("<2i4IfQ"), struct.Struct("<16f4Q")
MATRICES = 4 * 16 * 4  # bytes
RAW, PNG, JPEG = range(3)  # colour compression
ZLIB = 1  # depth compression
# What no scan comes near, and a damaged header exceeds.
MAX_NAME, MAX_SIDE, MAX_FRAMES, MAX_PICTURE = 4096, 4096, 1_000_000, 1 << 26
AHEAD = 1 << 14  # bytes: between two headers lie some 200,000 that the index does not need


class SensFile:
    """A .sens file in a raw folder. ValueError for what is not version 4, damaged or truncated."""

    colour_intrinsics: Float64[np.ndarray, "4 4"]
    """As stored, like the other three: in pixels, the centre of the top-left one being (0, 0)."""
    colour_extrinsics: Float64[np.ndarray, "4 4"]
    depth_intrinsics: Float64[np.ndarray, "4 4"]
    depth_extrinsics: Float64[np.ndarray, "4 4"]
    colour_size: tuple[int, int]
    """(H, W), as the other."""
    depth_size: tuple[int, int]
    depth_shift: float
    poses: Float64[np.ndarray, "T 4 4"]

    def __init__(self, raw: RawFolder, path: str) -> None:
        self._where = f"{path} in {raw.uri}"
        self._file = raw.open(path, ahead=AHEAD)
        self._size = self._file.seek(0, 2)
        self._file.seek(0)
        version, name_length = START.unpack(self._read(START.size))
        self._require(version == 4, f"has version {version}, not 4")
        self._require(name_length <= MAX_NAME, f"names its sensor in {name_length} bytes, more than {MAX_NAME}")
        self._read(name_length)
        matrices = np.frombuffer(self._read(MATRICES), "<f4").astype(np.float64).reshape(4, 4, 4)
        self.colour_intrinsics, self.colour_extrinsics, self.depth_intrinsics, self.depth_extrinsics = matrices
        self._colour, self._depth, *sides, self.depth_shift, num_frames = FORMAT.unpack(self._read(FORMAT.size))
        self._require(self._colour in (RAW, PNG, JPEG), f"has colour compression {self._colour}, not 0, 1 or 2")
        self._require(self._depth in (RAW, ZLIB), f"has depth compression {self._depth}, not 0 or 1")
        self._require(all(0 < side <= MAX_SIDE for side in sides), f"has images of {sides}, not from 1 to {MAX_SIDE}")
        self._require(0 < self.depth_shift < np.inf, f"has depth shift {self.depth_shift}, not a number above 0")
        self.colour_size, self.depth_size = (sides[1], sides[0]), (sides[3], sides[2])
        self._index(num_frames)

    def colour(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB."""
        where = f"colour of frame {t} of {self._where}"
        start, length, _ = self._pictures[t]
        content = self._picture(start, length)
        if self._colour != RAW:
            image = decode_rgb(content, where)
        elif len(content) == 3 * self.colour_size[0] * self.colour_size[1]:
            image = np.frombuffer(content, np.uint8).reshape(*self.colour_size, 3)
        else:
            raise unreadable(where, f"{self.colour_size} (H, W) RGB", f"{len(content)} bytes")
        if image.shape[:2] != self.colour_size:
            raise unreadable(where, f"{self.colour_size} (H, W) RGB as its header says", f"it is {image.shape[:2]}")
        return image

    def depth(self, t: int) -> UInt16[np.ndarray, "h w"]:
        """In units of 1 / depth_shift metres; 0 where unknown."""
        start, colour_length, length = self._pictures[t]
        content = self._picture(start + colour_length, length)
        expected, problem = 2 * self.depth_size[0] * self.depth_size[1], None
        if self._depth == ZLIB:
            inflater = zlib.decompressobj()
            try:
                content = inflater.decompress(content, expected + 1)
                problem = None if inflater.eof else "the stream does not end with the last pixel"
            except zlib.error as error:
                problem = error
        if problem or len(content) != expected:
            what = f"{self.depth_size} (H, W) of u16 depth"
            raise unreadable(f"depth of frame {t} of {self._where}", what, problem or f"{len(content)} bytes")
        return np.frombuffer(content, "<u2").astype(np.uint16).reshape(self.depth_size)

    def _index(self, num_frames: int) -> None:
        """Where each frame's pictures are, and its pose."""
        fits = num_frames <= min(MAX_FRAMES, (self._size - self._file.tell()) // FRAME.size)
        self._require(fits, f"of {self._size} bytes cannot hold the {num_frames} frames that its header tells of")
        self.poses, self._pictures = np.empty((num_frames, 4, 4)), []
        for t in range(num_frames):
            header = FRAME.unpack(self._read(FRAME.size))
            start, lengths = self._file.tell(), header[-2:]
            fits = max(lengths) <= MAX_PICTURE and start + sum(lengths) <= self._size
            self._require(fits, f"has {lengths} bytes of colour and depth in frame {t}, more than it holds or 64 MB")
            self.poses[t] = np.reshape(header[:16], (4, 4))
            self._pictures.append((start, *lengths))
            self._file.seek(start + sum(lengths))

    def _picture(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        return self._read(length)

    def _read(self, length: int) -> bytes:
        content = self._file.read(length)
        self._require(len(content) == length, f"ends after {self._size} bytes, in the middle of something")
        return content

    def _require(self, fulfilled: bool, problem: str) -> None:
        if not fulfilled:
            raise ValueError(f"{self._where} {problem}: not a ScanNet stream, or a damaged copy; download it again")
