"""The one form every dataset takes before it becomes clips.

Conventions, everywhere in this repository:
    camera axes  OpenCV: +x right, +y down, +z forward
    poses        world_from_cam: p_world = world_from_cam @ p_cam ("camera-to-world"; its inverse is cam_from_world)
    pixels       uv = (u, v) in pixels; the centre of the top-left pixel is (0.5, 0.5), the image spans [0, W] x [0, H]
    depth        along +z, not along the ray; metres, or the dataset's own unit if it is not metric; NaN where unknown
    times        frames of a sequence are counted from 0

Dimension names: T frames, H W pixels, P tracked points, I instances.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from pipelines.raw.folder import RawFolder


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """One pinhole camera per frame.

    Raises ValueError for a pose that is no rigid motion (rotation not orthonormal, or mirrored) or a focal length <= 0.
    A frame whose pose is unknown has a NaN pose.
    """

    intrinsics: Float64[np.ndarray, "T 3 3"]
    """Pixels of the raw frame, corner origin: a symmetric camera has cx = W/2."""
    world_from_cam: Float64[np.ndarray, "T 4 4"]

    def __post_init__(self) -> None:
        known = np.isfinite(self.world_from_cam).all(axis=(1, 2))
        rotation = self.world_from_cam[known, :3, :3]
        skew = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
        mirrored = np.linalg.det(rotation) < 0
        if (bad := (skew > 1e-3) | mirrored).any():
            frame = int(np.flatnonzero(known)[bad][0])
            raise ValueError(
                f"pose of frame {frame} is not a rigid motion: rotation differs from orthonormal by {skew[bad][0]:.2g}"
                f"{' and is mirrored (det < 0)' if mirrored[bad][0] else ''}; check the pose file's row order and units"
            )
        if not (self.intrinsics[:, (0, 1), (0, 1)] > 0).all():
            raise ValueError("focal length is not positive (or not a number): check the intrinsics file")

    @property
    def known(self) -> Bool[np.ndarray, "T"]:
        """Frames whose pose is known."""
        return np.isfinite(self.world_from_cam).all(axis=(1, 2))


@dataclass(frozen=True)
class Static:
    """Nothing moves: a surface point seen once is there at all times."""


@dataclass(frozen=True)
class Unknown:
    """Something may move unannotated: a point at another time is trusted only where that frame's depth agrees, and no
    frame's depth looks through the surface around it."""


@dataclass(frozen=True, kw_only=True)
class RigidInstances:
    """Objects that move as rigid bodies; `Sequence.instance` says which pixel shows which. All else is static."""

    world_from_instance: Float64[np.ndarray, "I T 4 4"]
    """NaN where an object's pose is not known in a frame."""


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Annotated points through time. Pixels that are no track are known at their own time only, unless
    `Sequence.instance` says that they show the static background."""

    xyz_world: Float32[np.ndarray, "P T 3"]
    """NaN where a point is not annotated in a frame."""
    visible: Bool[np.ndarray, "P T"]
    """The dataset's own flag: not occluded."""


NEEDS = {
    "images": "a model cannot be asked about it, stored predictions can be scored",
    "depth": "it cannot be scored by depth",
}
"""What cannot be done without."""

Motion = Static | Unknown | RigidInstances | Tracks


class Excluded(ValueError):
    """A sequence that its own dataset says not to use. Conversion skips it with this reason; it is no failure."""


class Sequence(ABC):
    """A video with known cameras. Opening it reads and checks the small files; frames are read only when asked for.

    Every reader raises ValueError naming file, rule and remedy; Excluded where there is nothing to mend.
    """

    cameras: Cameras
    frame_numbers: Int64[np.ndarray, "T"]
    """What the raw files call each frame."""
    image_size: tuple[int, int]
    """(H, W) of every frame."""
    prepared: bool = False
    """Whether the files are only those frames that the field's benchmarks take."""
    lacks: frozenset[str] = frozenset()
    """Of "images", "intrinsics", "depth": what is not among the files of a sequence to evaluate on. Intrinsics are then
    made up, the others raise ValueError where they are asked for."""
    notes: tuple[str, ...] = ()
    """What the reader mended or left out, in words: conversion prints it and keeps it in the store."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        """`name` is one that `Dataset.find` returned for this raw folder."""
        self.raw, self.name = raw, name

    def __len__(self) -> int:
        return len(self.frame_numbers)

    def _sized(self, pixels: np.ndarray, path: str) -> np.ndarray:
        """`pixels` as they are; ValueError naming the file they came from if they are not of this sequence's size."""
        if pixels.shape[:2] != self.image_size:
            raise ValueError(
                f"{path} in {self.raw.uri} is {pixels.shape[:2]} (H, W), but the first image of {self.name} is "
                f"{self.image_size}: images and maps of a sequence must have one size; were only some of them resized?"
            )
        return pixels

    def _missing(self, what: str, where: str) -> ValueError:
        """For what `lacks` names."""
        return ValueError(f"{self.name} in {self.raw.uri} has no {what} ({where}): {NEEDS[what]}")

    @abstractmethod
    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB."""

    @abstractmethod
    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        """Along +z; NaN where unknown."""

    @abstractmethod
    def motion(self, frames: Int64[np.ndarray, "t"]) -> Motion:
        """How surface points move over these frames (T of the result is len(frames))."""

    def normal(
        self, t: int, column: Int64[np.ndarray, "N"], row: Int64[np.ndarray, "N"]
    ) -> Float64[np.ndarray, "N 3"] | None:
        """Unit normals of N pixels in the camera axes of frame t, towards the camera, NaN if unknown. None: derive
        them from depth."""
        return None

    def instance(self, t: int) -> Int32[np.ndarray, "H W"] | None:
        """Which object each pixel shows, -1 for what never moves: an index into RigidInstances, or with Tracks any
        number. None where the dataset does not tell."""
        return None

    def neighbours(self, t: int) -> list[int] | None:
        """Of a set of photos without order: the frames that see what frame t sees, the most alike first. None: the
        frames are a video in its order."""
        return None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset in its official layout: how its sequences are found, kept together and opened."""

    key: str
    """Its one name, in catalogs, stores and MLflow: that of its module."""
    layout: str
    """What a raw folder of it looks like, for error messages."""
    names: Callable[[RawFolder], list[str]]
    """Of all sequences below a raw folder, in any order."""
    scene_of: Callable[[str], str]
    """What sequences must share to be kept in one split: the catalog's `splits` lists these. ValueError for a name that
    does not tell it: a guess may put what is for testing into training."""
    open: Callable[[RawFolder, str], Sequence]
    """The sequence of a raw folder that `find` named. ValueError naming file, rule and remedy."""

    def find(self, raw: RawFolder) -> list[str]:
        """Names of all sequences below the raw folder, sorted. ValueError if there is none."""
        return raw.found(self.names(raw), self.layout)
