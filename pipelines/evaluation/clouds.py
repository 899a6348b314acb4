"""Point clouds in one camera: the paper's L1 after a mean shift, WorldTrack's reconstruction, and nearest points.

P predicted, G true points at the pixels that have truth and are finite in both; s = median ||G|| / median ||P||.

| alignment          | compared with G                                                        |
|--------------------|------------------------------------------------------------------------|
| scale_mean_shift   | s P - mean(s P) + mean(G): the paper's words                           |
| mean_shift         | P - mean(P) + mean(G)                                                  |
| scale              | s P; WorldTrack's `global`                                             |
| none               | P                                                                      |
| moge               | s P + t, of the smallest relative error over a sample (`moge.py`)      |
| sim3_closed, sim3  | as WorldTrack's evaluators fit them, in closed form and by RANSAC      |

`l1_sum` is the mean over points of |dx| + |dy| + |dz|, `l1_mean_axis` a third of it, `l2` the mean distance
(WorldTrack's EPE). The paper prints an "L1" without saying which. MoGe's `rel` is the mean of distances by ||G||, and
`delta` the share of distances below a quarter of the smaller of ||P|| and ||G||, P after the alignment. `apd` is
WorldTrack's, of all pixels with truth: what is not finite is a miss.

Frame by frame, several times over, so that a clip of a hundred maps needs the memory of a few.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.spatial import KDTree

from pipelines.evaluation import moge
from pipelines.evaluation.similarity import MOST_PAIRS, Degenerate, Moments, Similarity
from pipelines.evaluation.worldtrack import THRESHOLDS
from pipelines.geometry import finite

ALIGNMENTS = ("scale_mean_shift", "mean_shift", "scale", "none", "moge", "sim3_closed", "sim3")
NEARER = 0.25  # of the shorter of two distances, strictly: of delta
NEAR = 0.05  # metres, strictly: of the completion ratio
NEAREST_POINTS = 50_000  # of each side, a sample


@dataclass(frozen=True)
class Maps:
    """One frame."""

    truth: Float[np.ndarray, "*pixels 3"]
    predicted: Float[np.ndarray, "*pixels 3"]
    valid: Bool[np.ndarray, "*pixels"]

    @property
    def expected(self) -> Bool[np.ndarray, "*pixels"]:
        return self.valid & finite(self.truth)

    @property
    def used(self) -> Bool[np.ndarray, "*pixels"]:
        return self.expected & finite(self.predicted)

    @property
    def pairs(self) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 3"]]:
        """Truth and prediction, where both are."""
        used = self.used
        return self.truth[used].astype(np.float64), self.predicted[used].astype(np.float64)


def cloud_scores(frames: Iterable[Maps]) -> dict[str, Any]:
    """The errors under each alignment that can be fitted, `s`, `points_expected` (with truth) and `points_used`;
    of maps of pixels also `nearest`. `frames` is gone through several times.
    """
    expected, lengths, sums = 0, [], np.zeros((2, 3))
    for maps in frames:
        g, p = maps.pairs
        expected += int(maps.expected.sum())
        lengths.append(np.stack([np.linalg.norm(g, axis=1), np.linalg.norm(p, axis=1)]))
        sums += [g.sum(axis=0), p.sum(axis=0)]
    far, said = np.concatenate(lengths, axis=1) if lengths else np.zeros((2, 0))
    found: dict[str, Any] = {"points_expected": expected, "points_used": len(far), "s": float("nan")}
    if not len(far):
        return found
    with np.errstate(all="ignore"):
        found["s"] = s = float(np.median(far) / np.median(said))

    fits = _alignments(frames, s, len(far), *sums / len(far))
    totals = {name: np.zeros(4 + len(THRESHOLDS)) for name in fits}
    for maps in frames:
        g, p = maps.pairs
        for name, fit in fits.items():
            said = fit(p)
            length, away, said_away = (np.linalg.norm(points, axis=1) for points in (said - g, g, said))
            near = length < NEARER * np.minimum(away, said_away)
            with np.errstate(all="ignore"):
                sums = [np.abs(said - g).sum(), length.sum(), (length / away).sum(), near.sum()]
            totals[name] += [*sums, *((length <= bound).sum() for bound in THRESHOLDS)]
    for name, (l1, l2, rel, near, *hits) in totals.items():
        means = {"l1_sum": l1, "l1_mean_axis": l1 / 3, "l2": l2, "rel": rel, "delta": near}
        found[name] = {metric: float(total / len(far)) for metric, total in means.items()}
        found[name]["apd"] = float(np.mean(hits) / expected)
    if maps.truth.ndim == 3:
        found["nearest"] = nearest_of(frames, fits["scale_mean_shift"], len(far))
    return found


def _alignments(
    frames: Iterable[Maps], s: float, count: int, target: Float64[np.ndarray, "3"], source: Float64[np.ndarray, "3"]
) -> dict[str, Similarity]:
    """Those that there are; `target` and `source` are the means of both sides, of `count` pairs."""
    same = np.eye(3)
    fits = {
        "scale_mean_shift": Similarity(s, same, target - s * source),
        "mean_shift": Similarity(1.0, same, target - source),
        "scale": Similarity(s, same, np.zeros(3)),
        "none": Similarity(1.0, same, np.zeros(3)),
    }
    if moge_fit := _moge(frames):
        fits["moge"] = moge_fit
    rng = np.random.default_rng(0)
    chosen = rng.choice(count, MOST_PAIRS, replace=False) if count > MOST_PAIRS else np.arange(count)
    sample, begin = np.zeros((2, len(chosen), 3)), 0
    covariance, variance = np.zeros((3, 3)), 0.0
    for maps in frames:
        g, p = maps.pairs
        covariance += (g - target).T @ (p - source) / count
        variance += float(((p - source) ** 2).sum() / count)
        here = (chosen >= begin) & (chosen < begin + len(g))
        sample[:, here] = g[chosen[here] - begin], p[chosen[here] - begin]
        begin += len(g)
    if count < 3 or not variance:
        return fits
    fits["sim3_closed"] = Similarity.of_moments(Moments(source, target, covariance, variance), as_worldtrack=True)
    with suppress(Degenerate):
        fits["sim3"] = Similarity.ransac(sample[1], sample[0], rng)
    return fits


def _moge(frames: Iterable[Maps]) -> Similarity | None:
    """None where nothing tells it, and of points that are no maps of pixels."""
    sides: list[list[np.ndarray]] = [[], []]
    for maps in frames:
        if maps.truth.ndim != 3:
            return None
        used = moge.sampled(maps.used[None])
        for side, points in zip(sides, (maps.truth, maps.predicted), strict=True):
            side.append(moge.sampled(points[None])[used].astype(np.float64))
    s, shift = moge.fit_affine(*(np.concatenate(side) for side in sides))
    return Similarity(s, np.eye(3), shift) if np.isfinite(s) else None


def nearest_of(frames: Iterable[Maps], fit: Similarity, count: int) -> dict[str, Any]:
    """`nearest_scores` after `fit`, of the same `NEAREST_POINTS` pixels of both sides, or all if there are fewer.

    Normals are those of the maps, from neighbouring pixels.
    """
    chosen = np.random.default_rng(0).permutation(count)[:NEAREST_POINTS]
    sides: list[list[np.ndarray]] = [[], [], [], []]
    begin = 0
    for maps in frames:
        used = maps.used
        end = begin + int(used.sum())
        here = chosen[(chosen >= begin) & (chosen < end)] - begin
        begin = end
        said = fit(maps.predicted.astype(np.float64))
        for side, points in zip(sides, (maps.truth, said, normals_of(maps.truth), normals_of(said)), strict=True):
            side.append(points[used][here])
    return nearest_scores(*map(np.concatenate, sides))


def normals_of(points: Float[np.ndarray, "H W 3"]) -> Float64[np.ndarray, "H W 3"]:
    """Unit length, of either sign; NaN beside what is not known."""
    with np.errstate(all="ignore"):
        down, right = np.gradient(points.astype(np.float64), axis=(0, 1))
        normals = np.cross(right, down)
        return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def nearest_scores(
    truth: Float[np.ndarray, "N 3"],
    predicted: Float[np.ndarray, "M 3"],
    truth_normals: Float[np.ndarray, "N 3"],
    normals: Float[np.ndarray, "M 3"],
) -> dict[str, Any]:
    """`accuracy` (prediction to truth) and `completion` (truth to prediction): distance to the nearest point and
    |cosine| with its normal, mean and median, a normal that is not finite being left out; `completion_ratio`, the share
    of truth nearer than 5 cm."""

    def one_way(points: Any, ours: Any, others: Any, theirs: Any) -> tuple[dict[str, float], np.ndarray]:
        distance, nearest = KDTree(others).query(points)
        cosine = np.abs((ours * theirs[nearest]).sum(axis=1))
        known = cosine[np.isfinite(cosine)]
        summary = {
            "mean": float(distance.mean()),
            "median": float(np.median(distance)),
            "normal_mean": float(known.mean()) if len(known) else float("nan"),
            "normal_median": float(np.median(known)) if len(known) else float("nan"),
        }
        return summary, distance

    accuracy, _ = one_way(predicted, normals, truth, truth_normals)
    completion, distance = one_way(truth, truth_normals, predicted, normals)
    return {
        "accuracy": accuracy,
        "completion": completion,
        "completion_ratio": float(np.mean(distance < NEAR)),
    }
