"""Clips of point tracks as TAPVid-3D and WorldTrack ship them: an .npz per clip.

| key                 | shape, dtype          | is                                                                     |
|---------------------|-----------------------|------------------------------------------------------------------------|
| `images_jpeg_bytes` | (T,) bytes            | JPEG of each frame, of fixed length or as Python objects               |
| `tracks_XYZ`        | (T, N, 3) float       | metres, each in the camera of its own frame, OpenCV axes               |
| `visibility`        | (T, N) bool           | true: visible; in clips without tracks another shape, and unused       |
| `fx_fy_cx_cy`       | (4,) float            | pixels of the stored images                                            |
| `extrinsics_w2c`    | (T, 4, 4) float       | cam_from_world; absent where the camera stands still                   |
| `queries_xyt`       | (N, 3) float          | TAPVid-3D: pixel and frame from which each track is asked              |
| `depth_map`         | (T, H, W) float32     | WorldTrack: metres along z, of some subsets                            |
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from pipelines.geometry import check_fit, inverse, transform
from pipelines.raw.folder import RawFolder
from pipelines.raw.images import decode_rgb
from pipelines.raw.npz import Npz
from pipelines.results.sources import Video
from pipelines.truth.clips import resize

FARTHEST = 500.0  # metres in the median; a street is a tenth of that
FPS = 30.0  # of the pictures alone


@dataclass(frozen=True, kw_only=True)
class TrackClip:
    """One clip, read whole but for its images, which are decoded when they are asked for."""

    where: str
    jpegs: list[bytes] = field(repr=False)
    tracks: Float64[np.ndarray, "T N 3"]
    """Metres, each in the camera of its own frame."""
    visible: Bool[np.ndarray, "T N"]
    fx_fy_cx_cy: Float64[np.ndarray, "4"]
    cam_from_world: Float64[np.ndarray, "T 4 4"] | None
    queries: Float64[np.ndarray, "N 3"] | None
    """x, y in pixels, frame."""

    def __len__(self) -> int:
        return len(self.jpegs)

    @property
    def intrinsics(self) -> Float64[np.ndarray, "3 3"]:
        """In the file's own pixels."""
        fx, fy, cx, cy = self.fx_fy_cx_cy
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])

    def first(self, frames: int) -> "TrackClip":
        """Its first frames only."""
        return replace(
            self,
            jpegs=self.jpegs[:frames],
            tracks=self.tracks[:frames],
            visible=self.visible[:frames],
            cam_from_world=None if self.cam_from_world is None else self.cam_from_world[:frames],
        )

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

    @cached_property
    def digest(self) -> str:
        """Of images and truth."""
        digest = hashlib.blake2b(digest_size=16)
        for content in (*self.jpegs, self.tracks, self.visible, self.fx_fy_cx_cy, self.cam_from_world, self.queries):
            digest.update(b"" if content is None else np.ascontiguousarray(content) if len(content) else b"")
        return digest.hexdigest()

    @cached_property
    def first_from_cam(self) -> Float64[np.ndarray, "T 4 4"]:
        """The camera of frame 0 is the world; identities where the camera stands still."""
        if self.cam_from_world is None:
            return np.tile(np.eye(4), (len(self), 1, 1))
        return self.cam_from_world[:1] @ inverse(self.cam_from_world)

    @cached_property
    def tracks_in_first(self) -> Float64[np.ndarray, "T N 3"]:
        """Metres, all in the camera of frame 0."""
        return transform(self.first_from_cam[:, None], self.tracks)

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

    clip: TrackClip

    def __len__(self) -> int:
        return len(self.clip)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        return (self.clip.image(t) for t in range(len(self.clip)))


def read_track_clip(folder: str, path: str) -> TrackClip:
    """ValueError naming the file for what is missing, damaged or pickled."""
    npz = Npz(RawFolder(folder), path)
    where = f"{path} in {folder}"

    def numbers(key: str) -> np.ndarray | None:
        if npz.shape(key) is None:
            return None
        array = npz.rows(key)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{key} of {where} is {array.dtype}: it must be numbers")
        return array.astype(np.float64)

    found = {key: numbers(key) for key in ("tracks_XYZ", "visibility", "fx_fy_cx_cy", "extrinsics_w2c", "queries_xyt")}
    if missing := [key for key in ("tracks_XYZ", "visibility", "fx_fy_cx_cy") if found[key] is None]:
        raise ValueError(f"{where} has no {', '.join(missing)}: not this benchmark's file, or without its annotations")
    if "images_jpeg_bytes" not in npz:
        raise ValueError(f"{where} has no images_jpeg_bytes: its images come from a script of the benchmark's authors")
    jpegs = npz.byte_strings("images_jpeg_bytes")
    _check(found, len(jpegs), where)
    clip = TrackClip(
        where=where,
        jpegs=jpegs,
        tracks=found["tracks_XYZ"],
        visible=found["visibility"] > 0,
        fx_fy_cx_cy=found["fx_fy_cx_cy"],
        cam_from_world=found["extrinsics_w2c"],
        queries=found["queries_xyt"],
    )
    check_fit(clip.intrinsics, clip.size, where)
    return clip


def _check(found: dict[str, np.ndarray | None], frames: int, where: str) -> None:
    """ValueError naming file and array for what does not fit together, or is not finite where it counts."""
    tracks = found["tracks_XYZ"]
    count = tracks.shape[1] if tracks.ndim == 3 else -1
    shapes = {"tracks_XYZ": (frames, count, 3), "visibility": (frames, count), "fx_fy_cx_cy": (4,)}
    shapes |= {"extrinsics_w2c": (frames, 4, 4), "queries_xyt": (count, 3)}
    for key, shape in shapes.items():
        if found[key] is not None and found[key].shape != shape:
            raise ValueError(
                f"{key} of {where} is {found[key].shape}, of {frames} images it must be {shape}: download it again"
            )
    focal = found["fx_fy_cx_cy"]
    if not (np.isfinite(focal).all() and (focal[:2] > 0).all()):
        raise ValueError(f"fx_fy_cx_cy of {where} are {focal.tolist()}: focal lengths are above 0")
    seen = tracks[found["visibility"] > 0]
    if not np.isfinite(seen).all():
        raise ValueError(f"tracks_XYZ of {where} are not finite where they are visible: download it again")
    if len(seen) and (far := float(np.median(np.linalg.norm(seen, axis=-1)))) > FARTHEST:
        raise ValueError(f"tracks_XYZ of {where} are {far:.0f} m away in the median: are they in millimetres?")
