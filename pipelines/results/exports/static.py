"""What of a result stands still: other programs take a video for photos of something rigid."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from scipy.spatial import KDTree

from pipelines.geometry import distance, finite, inverse, project, transform
from pipelines.results.files import LOST
from pipelines.results.reading import Arrays, Result

MOVES = 3.0  # times what the median track strays from where it mostly is: further, and it does not stand still
STRAYS = 0.002, 0.05  # what that limit is at least and at most, as shares of the distance from the camera
REPROJECTION = 0.03  # of the image's long side: an observation further from where the camera has the point is no view
VIEWS = 2  # that a point needs at least
CLOUD = 100_000  # points of the cloud, at most


@dataclass(frozen=True)
class StaticTracks:
    """N points of the world that stand still, with the frames that see them."""

    xyz: Float[np.ndarray, "N 3"]
    """In the world: the median over the frames that see it."""
    uv: Float[np.ndarray, "N T 2"]
    """Native pixels."""
    seen: Bool[np.ndarray, "N T"]
    error: Float[np.ndarray, "N"]
    """Mean distance, in native pixels, between where it was seen and where the cameras have it."""
    source: Float[np.ndarray, "N 2"]
    """Where it was asked, as uv_norm."""
    t_src: Int64[np.ndarray, "N"]


def known_cameras(cameras: Arrays, where: str) -> Bool[np.ndarray, "T"]:
    """Frames with pose and intrinsics. ValueError if there are fewer than two."""
    known = np.isfinite(cameras["world_from_cam"]).all(axis=(1, 2)) & np.isfinite(cameras["intrinsics"]).all(
        axis=(1, 2)
    )
    if known.sum() < 2:
        raise ValueError(f"{where} has {known.sum()} frames with a known camera: this needs at least 2")
    return known


def first_from_world(cameras: Arrays) -> Float[np.ndarray, "4 4"]:
    """From the world to the camera of frame 0. They are the same, unless poses were given to `infer`."""
    pose = cameras["world_from_cam"][0].astype(np.float64)
    return inverse(pose) if np.isfinite(pose).all() else np.eye(4)


def moving(tracks: Arrays, world_from_cam: Float[np.ndarray, "T 4 4"]) -> Bool[np.ndarray, "N"]:
    """Tracks that do not stand still; those that nothing is known of count as moving.

    Most of what a video shows stands still, so the median track says how much answers about such points differ.
    """
    xyz = _where_seen(tracks)
    with np.errstate(invalid="ignore"), _quiet():
        middle = np.nanmedian(xyz, axis=1)
        far = distance(xyz, world_from_cam[:, :3, 3])
        strays = np.nanquantile(distance(xyz, middle[:, None]) / far, 0.9, axis=1)
        limit = np.clip(MOVES * np.nanmedian(strays), *STRAYS)
    return ~(strays <= limit)


def static_tracks(result: Result) -> StaticTracks:
    """ValueError if no track stands still and is seen by two known cameras."""
    tracks, cameras, video = result.arrays("tracks"), result.arrays("cameras"), result.video
    known = known_cameras(cameras, result.uri)
    pose, intrinsics = cameras["world_from_cam"].astype(np.float64), cameras["intrinsics"].astype(np.float64)
    size = np.array([video.width, video.height])
    uv_norm, rows = tracks["uv_norm"].astype(np.float64), np.arange(len(tracks["points"]))
    uv_norm[rows, tracks["t_src"]] = tracks["points"]  # exactly where it was asked

    with _quiet():
        xyz = np.nanmedian(_where_seen(tracks), axis=1)
    in_camera = transform(inverse(pose), xyz[:, None])
    error = distance(project(in_camera, intrinsics), uv_norm * size)
    seen = tracks["visible"] & finite(uv_norm) & known & (tracks["status"] != LOST)
    seen &= (in_camera[..., 2] > 0) & (error <= REPROJECTION * size.max())

    kept = ~moving(tracks, pose) & (seen.sum(axis=1) >= VIEWS)
    if not kept.any():
        raise ValueError(f"{result.uri} has no track that stands still and is seen from {VIEWS} known cameras")
    seen, error = seen[kept], error[kept]
    return StaticTracks(
        xyz=xyz[kept],
        uv=uv_norm[kept] * size,
        seen=seen,
        error=np.where(seen, error, 0).sum(axis=1) / seen.sum(axis=1),
        source=tracks["points"][kept],
        t_src=tracks["t_src"][kept],
    )


def static_cloud(result: Result) -> tuple[Float[np.ndarray, "P 3"], UInt8[np.ndarray, "P 3"]]:
    """Positions and colours of points whose nearest track, at the moment they were seen, stands still; none if there is
    no cloud. They say where something is, not which frames see it."""
    if "points" not in result.tasks:
        return np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    points, tracks = result.arrays("points"), result.arrays("tracks")
    moves = moving(tracks, result.arrays("cameras")["world_from_cam"])
    kept = finite(points["xyz"])
    for t in np.unique(points["frame"]):
        there = np.flatnonzero(finite(tracks["xyz"][:, t]))
        now = np.flatnonzero(kept & (points["frame"] == t))
        if len(there):
            _, nearest = KDTree(tracks["xyz"][there, t]).query(points["xyz"][now])
            kept[now] = ~moves[there[nearest]]
    chosen = np.flatnonzero(kept)
    chosen = chosen[:: max(1, -(-len(chosen) // CLOUD))]
    return points["xyz"][chosen].astype(np.float64), points["rgb"][chosen]


def _where_seen(tracks: Arrays) -> Float[np.ndarray, "N T 3"]:
    """`xyz`, NaN where a point is hidden or lost."""
    seen = tracks["visible"] & (tracks["status"] != LOST)
    return np.where(seen[..., None], tracks["xyz"], np.nan).astype(np.float64)


def _quiet() -> warnings.catch_warnings:
    """Of tracks that are seen nowhere: their median is NaN, and that is what is wanted."""
    return warnings.catch_warnings(action="ignore", category=RuntimeWarning)
