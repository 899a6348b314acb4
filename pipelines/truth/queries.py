"""Drawing query samples: which points, which times (specification 9.1). The answers come from `ground_truth`."""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64

from pipelines.query_table import FLAG_BITS, VALID_BITS, query_dtype
from pipelines.sequence import Tracks
from pipelines.truth.ground_truth import GroundTruth, Points

EDGE_SHARE = 0.3  # of queries, near depth or motion edges
SAME_TIME_SHARE = 0.4  # of queries, t_cam = t_tgt
EDGE_GRID = 128  # cells, at most, along each side of the map of edges
EDGE_QUANTILE = 0.9  # of the depth gradient's magnitude, over every other cell: what lies above is an edge
TRACK_SHARE = 0.7  # of queries, where a dataset annotates tracks; the rest are pixels at their own time
MAX_TRIES = 64  # positions drawn for each that is asked for, where depth is sparse
MAX_ROUNDS = 16  # of drawing and dropping what has no known surface

Normals = Callable[
    [int, Int64[np.ndarray, "N"], Int64[np.ndarray, "N"]], Float64[np.ndarray, "N 3"] | None
]  # of frame t at N (column, row)


class TooLittleSurface(ValueError):
    """A clip in which almost nothing is known."""


def edge_map(
    depth: Float[np.ndarray, "H W"], instance: Int32[np.ndarray, "H W"] | None, size: int
) -> Bool[np.ndarray, "S S"]:
    """Cells of an S x S grid near a depth discontinuity or an instance boundary (specification 9.1).

    Sobel magnitude of depth smoothed by a 5 x 5 Gaussian (sigma 1.2) that weighs valid pixels only, the top tenth of
    them, widened by one cell. False wherever depth is unknown.
    """
    small = cv2.resize(depth, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    valid = np.isfinite(small)
    if not valid.any():
        return valid

    weight = cv2.GaussianBlur(valid.astype(np.float32), (5, 5), 1.2)
    smooth = cv2.GaussianBlur(np.where(valid, small, 0), (5, 5), 1.2) / np.maximum(weight, 1e-6)
    steepness = np.square(cv2.Sobel(smooth, cv2.CV_32F, 1, 0)) + np.square(cv2.Sobel(smooth, cv2.CV_32F, 0, 1))

    some = steepness[::2, ::2][valid[::2, ::2]]
    rank = int(EDGE_QUANTILE * len(some))
    edge = valid & (steepness > (np.partition(some, rank)[rank] if len(some) else 0))

    if instance is not None:
        ids = cv2.resize(instance, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
        edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
        edge[1:, :] |= ids[1:, :] != ids[:-1, :]
    return cv2.dilate(edge.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & valid


def draw_queries(
    truth: GroundTruth, normal: Normals, rng: np.random.Generator, *, samples: int, queries: int, image_size: int
) -> np.ndarray:
    """(samples, queries) rows of `query_dtype`, every one on a known surface.

    `normal` gives the dataset's own normals of a frame at some pixels, or None. TooLittleSurface if the clip shows too
    little known surface to draw from.
    """
    size, maps = min(image_size, EDGE_GRID), truth.maps
    edges = np.stack(
        [
            edge_map(maps.depth[t], None if maps.instance is None else maps.instance[t], size)
            for t in range(truth.num_frames)
        ]
    )

    total = samples * queries
    num_edge = round(EDGE_SHARE * total)
    tracked = isinstance(truth.motion, Tracks) and len(truth.motion.visible) > 0
    num_tracks = round(TRACK_SHARE * total) if tracked else 0
    edge_tracks = min(num_edge, round(EDGE_SHARE * num_tracks))

    drawn = [
        _draw(truth, rng, _edge_pixels(truth, edges, rng), num_edge - edge_tracks),
        _draw(truth, rng, _any_pixels(truth, rng), total - num_edge - num_tracks + edge_tracks),
    ]
    if tracked:
        drawn.append(_draw_tracks(truth, rng, num_tracks, edges, edge_tracks))

    points = _concatenate(drawn)
    if (missing := total - len(points.t_src)) > 0:  # few edges, or few visible tracks: fill up from anywhere
        points = _concatenate([points, _draw(truth, rng, _any_pixels(truth, rng), missing)])
    if len(points.t_src) < total:
        raise TooLittleSurface(
            f"only {len(points.t_src)} of {total} query points found a known surface: depth is missing, broken by "
            "edges or without pose almost everywhere in this clip"
        )

    points = points.take(rng.permutation(total))
    points = truth.with_normals(points, _stored_normals(points, normal))
    t_tgt, t_cam = _draw_times(truth, points, rng)
    return _rows(truth, points, t_tgt, t_cam, edges).reshape(samples, queries)


def _edge_pixels(truth: GroundTruth, edges: np.ndarray, rng: np.random.Generator) -> Callable:
    """Draws positions in edge cells; frames alike, cells of a frame alike."""
    size = edges.shape[1]
    cells = np.flatnonzero(edges)  # ordered by frame
    count = edges.sum(axis=(1, 2))
    first, frames = np.cumsum(count) - count, np.flatnonzero(count)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        if len(frames) == 0:
            return np.zeros((0, 2)), np.zeros(0, np.int64)
        t = rng.choice(frames, n)
        cell = cells[first[t] + (rng.random(n) * count[t]).astype(np.int64)]
        uv = np.stack([cell % size, cell // size % size], axis=1) + rng.random((n, 2))
        return uv / size * [truth.width, truth.height], t

    return draw


def _any_pixels(truth: GroundTruth, rng: np.random.Generator) -> Callable:
    """Draws positions whose pixel has depth, which in some datasets is one of ten; about n of them."""
    share = np.isfinite(truth.maps.depth[:, ::8, ::8]).mean()
    tries = min(1 / max(share, 1e-9), MAX_TRIES)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        uv = rng.random((int(tries * n), 2)) * [truth.width, truth.height]
        t = rng.integers(truth.num_frames, size=len(uv))
        column, row = uv.astype(np.int64).T
        known = np.flatnonzero(np.isfinite(truth.maps.depth[t, row, column]))
        return uv[known], t[known]

    return draw


def _draw(truth: GroundTruth, rng: np.random.Generator, pixels: Callable, count: int) -> Points:
    """Up to `count` points lifted from drawn pixels; those without a known surface are drawn again."""
    found, missing = [], count
    for _ in range(MAX_ROUNDS):
        points = truth.lift(*pixels(missing + missing // 4 + 16))
        found.append(points.take(np.flatnonzero(points.known)[:missing]))
        missing -= len(found[-1].t_src)
        if missing == 0:
            break
    return _concatenate(found)


def _draw_tracks(
    truth: GroundTruth, rng: np.random.Generator, count: int, edges: np.ndarray, count_edge: int
) -> Points:
    """Up to `count` (track, frame) pairs seen in their frame, `count_edge` of them near edges if there are so many."""
    track, t = np.nonzero(truth.motion.visible)
    order = rng.permutation(len(track))

    missing_edge, missing_other, found = count_edge, count - count_edge, []
    for first in range(0, min(len(order), MAX_ROUNDS * count), count):  # near an edge are few: look at more pairs
        pick = order[first : first + count]
        points = truth.lift_tracks(track[pick], t[pick])
        near = _near_edge(truth, points, edges)
        edge = np.flatnonzero(points.known & near)[:missing_edge]
        other = np.flatnonzero(points.known & ~near)[:missing_other]
        found.append(points.take(np.concatenate([edge, other])))
        missing_edge, missing_other = missing_edge - len(edge), missing_other - len(other)
        if missing_edge == missing_other == 0:
            break

    points = _concatenate(found) if found else truth.lift_tracks(track, t)
    few = 0 < len(points.t_src) < count
    return points.take(rng.choice(len(points.t_src), count)) if few else points


def _near_edge(truth: GroundTruth, points: Points, edges: np.ndarray) -> np.ndarray:
    cell = (points.uv / [truth.width, truth.height] * edges.shape[1]).astype(np.int64).clip(0, edges.shape[1] - 1)
    return edges[points.t_src, cell[:, 1], cell[:, 0]]


def _draw_times(truth: GroundTruth, points: Points, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """t_tgt and t_cam, uniform and equal with probability 0.4."""
    n = len(points.t_src)
    t_tgt = rng.integers(truth.num_frames, size=n)
    t_tgt = np.where(truth.followed(points), t_tgt, points.t_src)
    t_cam = np.where(rng.random(n) < SAME_TIME_SHARE, t_tgt, rng.integers(truth.num_frames, size=n))
    return t_tgt, t_cam


def _stored_normals(points: Points, normal: Normals) -> Float64[np.ndarray, "N 3"] | None:
    stored = np.full(points.xyz_world.shape, np.nan)
    column, row = points.uv.astype(np.int64).T
    for t in np.unique(points.t_src):
        here = points.t_src == t
        if (found := normal(int(t), column[here], row[here])) is None:
            return None
        stored[here] = found
    return stored


def _rows(truth: GroundTruth, points: Points, t_tgt: np.ndarray, t_cam: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Query rows as stored: what is not known is zero, and its bit in `valid` is off."""
    targets = truth.ask(points, t_tgt, t_cam)
    size = [truth.width, truth.height]
    rows = np.zeros(len(t_tgt), query_dtype(truth.num_frames))
    # A float32 just below 1 may round up to it; uv in [0, 1] stays in the image.
    rows["uv_norm"] = points.uv / size
    rows["t_src"], rows["t_tgt"], rows["t_cam"] = points.t_src, t_tgt, t_cam

    known = {
        "xyz": (targets.xyz, targets.xyz_valid),
        "uv_tgt": (targets.uv_tgt / size, targets.uv_valid),
        "visible": (targets.visible, targets.visible_valid),
        "displacement": (targets.displacement, targets.xyz_valid),
        "normal": (targets.normal, targets.normal_valid),
    }
    for name, (value, mask) in known.items():
        rows[name] = np.where(mask[:, None] if value.ndim == 2 else mask, value, 0)
        rows["valid"] |= np.where(mask, VALID_BITS[name], 0).astype(np.uint8)

    rows["flags"] |= np.where(_near_edge(truth, points, edges), FLAG_BITS["edge"], 0).astype(np.uint8)
    rows["flags"] |= np.where(points.dynamic, FLAG_BITS["dynamic"], 0).astype(np.uint8)
    return rows


def _concatenate(parts: list[Points]) -> Points:
    return Points(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})
