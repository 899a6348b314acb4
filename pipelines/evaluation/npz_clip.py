"""Clips of TAPVid-3D and WorldTrack, an .npz each: what those of tracks and those of depth have in common.

| key                 | shape, dtype          | is                                                                     |
|---------------------|-----------------------|------------------------------------------------------------------------|
| `images_jpeg_bytes` | (T,) bytes            | JPEG of each frame, of fixed length or as Python objects               |
| `fx_fy_cx_cy`       | (4,) float            | pixels of the stored images                                            |
| `extrinsics_w2c`    | (T, 4, 4) float       | cam_from_world; absent where the camera stands still                   |
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float64, UInt8

from pipelines.geometry import inverse
from pipelines.raw.folder import RawFolder
from pipelines.raw.images import decode_rgb
from pipelines.raw.npz import Npz
from pipelines.results.sources import Video
from pipelines.truth.clips import resize

FPS = 30.0  # of the pictures alone


@dataclass(frozen=True, kw_only=True)
class NpzClip:
    """One clip, read whole but for its images, which are decoded when they are asked for."""

    where: str
    jpegs: list[bytes] = field(repr=False)
    fx_fy_cx_cy: Float64[np.ndarray, "4"]
    cam_from_world: Float64[np.ndarray, "T 4 4"] | None

    def __len__(self) -> int:
        return len(self.jpegs)

    @property
    def intrinsics(self) -> Float64[np.ndarray, "3 3"]:
        """In the file's own pixels."""
        fx, fy, cx, cy = self.fx_fy_cx_cy
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB. ValueError if it is no image, or of another size than the first."""
        image = decode_rgb(self.jpegs[t], f"image {t} of {self.where}")
        if t and image.shape[:2] != self.size:
            raise ValueError(f"image {t} of {self.where} is {image.shape[:2]} (H, W), the first is {self.size}")
        return image

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        return self.image(0).shape[:2]

    @property
    def truth(self) -> tuple[np.ndarray | None, ...]:
        """What there is beside images and cameras, for the digest."""
        return ()

    @cached_property
    def digest(self) -> str:
        """Of images and truth."""
        digest = hashlib.blake2b(digest_size=16)
        for content in (*self.jpegs, *self.truth, self.fx_fy_cx_cy, self.cam_from_world):
            digest.update(b"" if content is None else np.ascontiguousarray(content) if len(content) else b"")
        return digest.hexdigest()

    @cached_property
    def first_from_cam(self) -> Float64[np.ndarray, "T 4 4"]:
        """The camera of frame 0 is the world; identities where the camera stands still."""
        if self.cam_from_world is None:
            return np.tile(np.eye(4), (len(self), 1, 1))
        return self.cam_from_world[:1] @ inverse(self.cam_from_world)

    def video(self, name: str, image_size: int) -> Video:
        """As `infer` would take it."""
        return Video(
            name=name,
            clip=np.stack([resize(self.image(t), image_size) for t in range(len(self))]),
            frames=Images(self),
            size=self.size,
            frame_numbers=np.arange(len(self)),
            fps=FPS,
            digest=self.digest,
            native=lambda places: (self.image(t) for t in places),
            notes=(),
        )


@dataclass(frozen=True)
class Images:
    """`Shown` frames of a clip."""

    clip: NpzClip

    def __len__(self) -> int:
        return len(self.clip)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        return (self.clip.image(t) for t in range(len(self.clip)))


class NpzFile:
    """The file of a clip. ValueError naming file and array for what is missing, damaged or pickled."""

    def __init__(self, folder: str, path: str) -> None:
        self.npz = Npz(RawFolder(folder), path)
        self.where = f"{path} in {folder}"

    def numbers(self, key: str, *, needed: bool = False) -> np.ndarray | None:
        """In float64; None if there is no such array."""
        if self.npz.shape(key) is None:
            if needed:
                raise ValueError(
                    f"{self.where} has no {key}: not this benchmark's file, or incomplete: download it again"
                )
            return None
        array = self.npz.rows(key)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{key} of {self.where} is {array.dtype}: it must be numbers")
        return array.astype(np.float64)

    def jpegs(self) -> list[bytes]:
        if "images_jpeg_bytes" not in self.npz:
            raise ValueError(
                f"{self.where} has no images_jpeg_bytes: its images come from a script of the benchmark's authors"
            )
        return self.npz.byte_strings("images_jpeg_bytes")

    def filmed(self, frames: int) -> dict[str, np.ndarray | None]:
        """`fx_fy_cx_cy` and `cam_from_world` of so many images."""
        focal, poses = self.numbers("fx_fy_cx_cy", needed=True), self.numbers("extrinsics_w2c")
        self.require_shapes(frames, {"fx_fy_cx_cy": (focal, (4,)), "extrinsics_w2c": (poses, (frames, 4, 4))})
        if not (np.isfinite(focal).all() and (focal[:2] > 0).all()):
            raise ValueError(f"fx_fy_cx_cy of {self.where} are {focal.tolist()}: focal lengths are above 0")
        return {"fx_fy_cx_cy": focal, "cam_from_world": poses}

    def require_shapes(self, frames: int, found: dict[str, tuple[np.ndarray | None, tuple[int, ...]]]) -> None:
        for key, (array, shape) in found.items():
            if array is not None and array.shape != shape:
                raise ValueError(
                    f"{key} of {self.where} is {array.shape}, of {frames} images it must be {shape}: download it again"
                )
