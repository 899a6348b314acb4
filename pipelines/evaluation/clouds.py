"""Point clouds in one camera: L1 after mean-shift alignment (the paper's words), and nearest-neighbour scores.

P predicted, G true points at the pixels that have truth and are finite in both; s = median ||G|| / median ||P||.

| alignment          | compared with G                  |
|--------------------|----------------------------------|
| scale_mean_shift   | s P - mean(s P) + mean(G)        |
| mean_shift         | P - mean(P) + mean(G)            |
| scale              | s P                              |
| none               | P                                |

`l1_sum` is the mean over points of |dx| + |dy| + |dz|, `l1_mean_axis` a third of it, `l2` the mean distance. The paper
prints an "L1" without saying which.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

ALIGNMENTS = ("scale_mean_shift", "mean_shift", "scale", "none")
NEAR = 0.05  # metres, strictly: of the completion ratio


def cloud_scores(
    truth: Float[np.ndarray, "*pixels 3"], predicted: Float[np.ndarray, "*pixels 3"], valid: Bool[np.ndarray, "*pixels"]
) -> dict[str, Any]:
    """The three errors under each alignment, `s`, `points_expected` (with truth) and `points_used`."""
    used = valid & np.isfinite(truth).all(axis=-1) & np.isfinite(predicted).all(axis=-1)
    g, p = truth[used].astype(np.float64), predicted[used].astype(np.float64)
    expected = int((valid & np.isfinite(truth).all(axis=-1)).sum())
    if not len(g):
        return {"points_expected": expected, "points_used": 0, "s": float("nan")}

    scale = float(np.median(np.linalg.norm(g, axis=1)) / np.median(np.linalg.norm(p, axis=1)))
    found: dict[str, Any] = {"points_expected": expected, "points_used": len(g), "s": scale}
    for name in ALIGNMENTS:
        aligned = scale * p if "scale" in name else p
        if "mean_shift" in name:
            aligned = aligned - aligned.mean(axis=0) + g.mean(axis=0)
        off = np.abs(aligned - g)
        found[name] = {
            "l1_sum": float(off.sum(axis=1).mean()),
            "l1_mean_axis": float(off.mean()),
            "l2": float(np.linalg.norm(off, axis=1).mean()),
        }
    return found


def nearest_scores(
    truth: Float[np.ndarray, "N 3"],
    predicted: Float[np.ndarray, "M 3"],
    truth_normals: Float[np.ndarray, "N 3"],
    normals: Float[np.ndarray, "M 3"],
) -> dict[str, Any]:
    """`accuracy` (prediction to truth) and `completion` (truth to prediction): distance to the nearest point and
    |cosine| with its normal, mean and median; `completion_ratio`, the share of truth nearer than 5 cm."""

    def one_way(points: Any, ours: Any, others: Any, theirs: Any) -> tuple[dict[str, float], np.ndarray]:
        distance, nearest = KDTree(others).query(points)
        cosine = np.abs((ours * theirs[nearest]).sum(axis=1))
        summary = {
            "mean": float(distance.mean()),
            "median": float(np.median(distance)),
            "normal_mean": float(cosine.mean()),
            "normal_median": float(np.median(cosine)),
        }
        return summary, distance

    accuracy, _ = one_way(predicted, normals, truth, truth_normals)
    completion, distance = one_way(truth, truth_normals, predicted, normals)
    return {
        "accuracy": accuracy,
        "completion": completion,
        "completion_ratio": float(np.mean(distance < NEAR)),
    }
