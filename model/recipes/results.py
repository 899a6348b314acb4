"""What the recipes return: tensors on the CPU, lengths in the model's unit (one per clip, arbitrary)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Tracks:
    """N points followed through T frames."""

    xyz: Tensor
    """(N, T, 3) float32, in the camera of frame t_cam."""
    uv_norm: Tensor
    """(N, T, 2) float32: where the point appears in each frame; outside [0, 1] when out of view."""
    visible: Tensor
    """(N, T) bool."""
    confidence: Tensor
    """(N, T) float32, from 0 to 1. Of a calibrated model, 0.1 / (0.1 + b), where half of such answers are within b
    times their distance from the camera (`model/confidence.py`); so too below."""
    t_cam: int | Literal["target"]
    """The frame whose camera `xyz` is in; "target": each position is in its own frame's camera."""


@dataclass(frozen=True)
class AllTracks(Tracks):
    """K tracks that together pass through the pixels of all frames."""

    points: Tensor
    """(K, 2) float32: the pixel each began with, as uv_norm in frame `t_src`."""
    t_src: Tensor
    """(K,) int64."""
    visited: float
    """Share of all pixels through which a track passes while visible; 1 unless a budget was spent."""
    queries: int
    """That were asked. One track for each pixel of each frame would be T * T * height * width."""


@dataclass(frozen=True)
class Forecast:
    """Positions after the video, extrapolated at a constant velocity: no answer of the model."""

    xyz: Tensor
    """(N, F, 3) float32, in the camera of frame `t_cam`; NaN for a track seen less than twice."""
    velocity: Tensor
    """(N, 3) float32, per frame."""
    last_seen: Tensor
    """(N,) int64: the last frame in which the model saw the point; -1: in none."""
    t_cam: int


@dataclass(frozen=True)
class SceneFlow:
    """Motion of the surface seen in each pixel of frame t, until frame t + 1."""

    xyz: Tensor
    """(T - 1, H, W, 3) float32: where it is at t."""
    flow: Tensor
    """(T - 1, H, W, 3) float32: where it is at t + 1, in the same camera, less `xyz`."""
    visible: Tensor
    """(T - 1, H, W) bool: still seen at t + 1."""
    confidence: Tensor
    """(T - 1, H, W) float32, from 0 to 1: the lower one of the two answers."""
    t_cam: int | Literal["source", "target"]
    """Whose camera: of one frame, of frame t ("source") or of frame t + 1 ("target")."""


@dataclass(frozen=True)
class Depth:
    """A depth map per frame."""

    depth: Tensor
    """(T, H, W) float32 along +z; NaN where the model puts the point behind the camera."""
    normal: Tensor
    """(T, H, W, 3) float32, unit length, in the camera of each frame."""
    confidence: Tensor
    """(T, H, W) float32, from 0 to 1."""


@dataclass(frozen=True)
class PointCloud:
    """P points, all in the camera of one frame."""

    xyz: Tensor
    """(P, 3) float32."""
    rgb: Tensor
    """(P, 3) uint8, of the pixel."""
    normal: Tensor
    """(P, 3) float32, unit length."""
    confidence: Tensor
    """(P,) float32, from 0 to 1."""
    frame: Tensor
    """(P,) int64: the frame each point was seen in."""
    left_out: Tensor
    """() float32: share of the pixels asked that are not among the points."""


@dataclass(frozen=True)
class CameraPath:
    """A pinhole camera per frame."""

    world_from_cam: Tensor
    """(T, 4, 4) float32; the world is the camera of the reference frame. NaN where too few points were finite."""
    intrinsics: Tensor
    """(T, 3, 3) float32, in pixels of the size asked for; the principal point is the centre. NaN where unknown."""
    residual: Tensor
    """(T,) float32: typical distance left between the two point sets of the pose fit, relative to their depth."""
    inliers: Tensor
    """(T,) float32: share of the grid whose relative distance is below `alignment.INLIER_DISTANCE`."""
