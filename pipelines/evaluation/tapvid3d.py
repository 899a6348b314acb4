"""TAPVid-3D's scores (Koppula et al. 2024), as its published code computes them.

g true, p predicted points, v and w visible in truth and prediction, over all T x N entries of a clip, frames before a
track's query and the query itself included.

    threshold    d = k g_z / f for k in 1, 2, 4, 8, 16, with f = sqrt(fx fy) of an image whose short side is 256
    hit          ||s p - g|| < d, strictly; a p that is not finite never hits
    APD          mean over k of hits among the visible ones; w plays no part
    AJ           mean over k of #(hit, v, w) / (#v + #(w without being such a hit))
    OA           share of v == w

| scaling              | s                                                                                           |
|----------------------|---------------------------------------------------------------------------------------------|
| median               | median ||g|| / median ||p|| over entries with v and w; all tables                           |
| mean                 | the same with means                                                                         |
| none                 | 1                                                                                           |
| per_trajectory       | g_z / p_z of each track at its query's frame                                                |
| median_on_queries    | as median, over each track's query frame                                                    |
| reproduce_2d         | g_z / p_z of each entry                                                                     |
| local_neighborhood   | of each track in turn, as per_trajectory, for all entries within 5 cm of it                 |
| fixed_metric         | as median, thresholds 0.01, 0.04, 0.16, 0.64, 2.56 m                                        |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from pipelines.geometry import inverse, transform

Scaling = Literal[
    "median",
    "mean",
    "none",
    "per_trajectory",
    "median_on_queries",
    "reproduce_2d",
    "local_neighborhood",
    "fixed_metric",
]
SCALINGS: tuple[Scaling, ...] = Scaling.__args__
PIXELS = (1, 2, 4, 8, 16)
METRES = (0.01, 0.04, 0.16, 0.64, 2.56)  # of fixed_metric
SHORT_SIDE = 256
NEIGHBOURHOOD = 0.05  # metres
SMALLEST = 1e-12  # of a depth that divides, and of a squared norm


@dataclass(frozen=True)
class Clip:
    """Truth and prediction of one clip."""

    truth: Float[np.ndarray, "T N 3"]
    """Metres, each in the camera of its own frame."""
    truth_visible: Bool[np.ndarray, "T N"]
    predicted: Float[np.ndarray, "T N 3"]
    """Any unit."""
    visible: Bool[np.ndarray, "T N"]
    focal: float
    """sqrt(fx fy), in pixels of an image whose short side is 256."""
    query_frames: Int64[np.ndarray, "N"]


def focal_length(fx_fy_cx_cy: Float[np.ndarray, "4"], size: tuple[int, int]) -> float:
    """`Clip.focal`, from the intrinsics of an image of `size` (H, W)."""
    return float(np.sqrt(fx_fy_cx_cy[0] * fx_fy_cx_cy[1]) * SHORT_SIDE / min(size))


def query_frames(queries_xyt: Float[np.ndarray, "N 3"]) -> Int64[np.ndarray, "N"]:
    """The frame of each query; halves are rounded to the even one."""
    return np.rint(queries_xyt[:, 2]).astype(np.int64)


def scores(clip: Clip, scaling: Scaling) -> dict[str, float]:
    """AJ (`average_jaccard`), APD (`average_pts_within_thresh`), OA (`occlusion_accuracy`) and the parts of the first
    two per k. NaN where there is nothing to count, such as truth that is never visible."""
    g, p = clip.truth.astype(np.float64), clip.predicted.astype(np.float64)
    found = {"occlusion_accuracy": float(np.mean(clip.truth_visible == clip.visible))}
    with np.errstate(all="ignore"):  # NaN and infinity are counted as misses
        if scaling == "local_neighborhood":
            found["occlusion_accuracy"] = _near_accuracy(clip, g)
            counts = [_near_counts(clip, g, p, k) for k in PIXELS]
        else:
            scaled = p * _scale(clip, g, p, scaling)
            bounds = METRES if scaling == "fixed_metric" else [k * g[..., 2] / clip.focal for k in PIXELS]
            counts = [_counts(clip, _hits(g, scaled, bound)) for bound in bounds]
        for k, (right, seen, both, false) in zip(PIXELS, counts, strict=True):
            found[f"pts_within_{k}"] = float(np.float64(right) / seen)
            found[f"jaccard_{k}"] = float(np.float64(both) / (seen + false))
    found["average_jaccard"] = float(np.mean([found[f"jaccard_{k}"] for k in PIXELS]))
    found["average_pts_within_thresh"] = float(np.mean([found[f"pts_within_{k}"] for k in PIXELS]))
    return found


def in_first_camera(
    tracks: Float[np.ndarray, "T N 3"], cam_from_world: Float[np.ndarray, "T 4 4"]
) -> Float64[np.ndarray, "T N 3"]:
    """Points, each in the camera of its own frame, in that of frame 0, which is the world of the scores there."""
    poses = cam_from_world.astype(np.float64)
    first_from_cam = poses[:1] @ inverse(poses)
    return transform(first_from_cam[:, None], tracks.astype(np.float64))


def world_hits(
    truth: Float[np.ndarray, "T N 3"],
    predicted: Float[np.ndarray, "T N 3"],
    counted: Bool[np.ndarray, "T N"],
    depth: Float[np.ndarray, "T N"],
    focal: float,
    scaling: Literal["median", "none"] = "median",
) -> dict[str, float]:
    """APD and its parts in world coordinates, over the entries that are `counted`: those visible in truth, as a rule.

    Args:
        truth, predicted: in the camera of frame 0.
        depth: from which thresholds follow: z in the camera of each frame, or, as official code fed with such tracks
            has it, in that of frame 0.
    """
    g, p = truth.astype(np.float64), predicted.astype(np.float64)
    with np.errstate(all="ignore"):
        s = np.nanmedian(_norm(g[counted])) / np.nanmedian(_norm(p[counted])) if scaling == "median" else 1.0
        hits = [_hits(g, s * p, k * depth / focal)[counted] for k in PIXELS]
        found = {f"pts_within_{k}": float(np.mean(hit)) for k, hit in zip(PIXELS, hits, strict=True)}
    return found | {"average_pts_within_thresh": float(np.mean(list(found.values())))}


def _hits(
    g: Float64[np.ndarray, "*n 3"], scaled: Float64[np.ndarray, "*n 3"], bound: Float64[np.ndarray, "*n"] | float
) -> Bool[np.ndarray, "*n"]:
    """Squares are compared, so a point behind the camera keeps the threshold of its distance."""
    return ((scaled - g) ** 2).sum(axis=-1) < np.square(bound)


def _counts(clip: Clip, hits: Bool[np.ndarray, "T N"]) -> tuple[int, int, int, int]:
    """Hits among the visible; the visible; hits that are also predicted visible; what is wrongly so."""
    v, w = clip.truth_visible, clip.visible
    return int((hits & v).sum()), int(v.sum()), int((hits & v & w).sum()), int((w & ~(v & hits)).sum())


def _norm(points: Float64[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n"]:
    return np.sqrt(np.maximum((points**2).sum(axis=-1), SMALLEST))


def _scale(
    clip: Clip, g: Float64[np.ndarray, "T N 3"], p: Float64[np.ndarray, "T N 3"], scaling: Scaling
) -> Float64[np.ndarray, "..."] | float:
    """What p is multiplied by: a number, (N, 1) or (T, N, 1)."""
    if scaling == "none":
        return 1.0
    if scaling == "reproduce_2d":
        return g[..., 2:] / p[..., 2:]
    tracks = np.arange(g.shape[1])
    if scaling == "per_trajectory":
        return _track_scales(clip, g, p)[:, None]
    joint = clip.truth_visible & clip.visible
    if scaling == "median_on_queries":
        chosen = np.zeros_like(joint)
        chosen[clip.query_frames, tracks] = True
        joint = joint & chosen
    far, said = _norm(g[joint]), _norm(p[joint])
    if np.isnan(far).all() or np.isnan(said).all():
        return float("nan")
    middle = np.nanmean if scaling == "mean" else np.nanmedian
    return float(middle(far) / middle(said))


def _track_scales(
    clip: Clip, g: Float64[np.ndarray, "T N 3"], p: Float64[np.ndarray, "T N 3"]
) -> Float64[np.ndarray, "N"]:
    """g_z / p_z of each track at its query's frame."""
    tracks = np.arange(g.shape[1])
    depths = [np.maximum(points[clip.query_frames, tracks, 2], SMALLEST) for points in (g, p)]
    return depths[0] / depths[1]


def _neighbourhoods(
    clip: Clip, g: Float64[np.ndarray, "T N 3"]
) -> Iterator[tuple[Bool[np.ndarray, "T N"], np.floating]]:
    """Of each track: the entries within 5 cm of it at the same time, and their weight, which gives a neighbourhood as
    much as the track has visible entries."""
    v = clip.truth_visible
    for track in range(g.shape[1]):
        near = ((g - g[:, track : track + 1]) ** 2).sum(axis=-1) < NEIGHBOURHOOD**2
        yield near, v[:, track].sum() / np.float64(max(1, (v & near).sum()))


def _near_accuracy(clip: Clip, g: Float64[np.ndarray, "T N 3"]) -> float:
    """OA of local_neighborhood."""
    same, total = 0.0, 0.0
    for near, weight in _neighbourhoods(clip, g):
        same += weight * (near & (clip.truth_visible == clip.visible)).sum()
        total += weight * near.sum()
    return float(np.float64(same) / total)


def _near_counts(
    clip: Clip, g: Float64[np.ndarray, "T N 3"], p: Float64[np.ndarray, "T N 3"], k: int
) -> tuple[float, float, float, float]:
    """`_counts` of local_neighborhood."""
    v, w = clip.truth_visible, clip.visible
    bound = k * g[..., 2] / clip.focal
    total = np.zeros(4)
    for s, (near, weight) in zip(_track_scales(clip, g, p), _neighbourhoods(clip, g), strict=True):
        hits = _hits(g, s * p, bound)
        parts = (hits & v, v, hits & v & w, w & ~(v & hits))
        total += weight * np.array([(part & near).sum() for part in parts])
    return tuple(total.tolist())
