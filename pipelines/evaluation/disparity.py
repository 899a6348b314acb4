"""Video depth as DepthCrafter's family prints it: aligned in disparity, errors frame by frame.

    P' = max(1 / P, 1e-3)    s, t: least squares of s P' + t against 1 / (G + 1e-8), over the whole sequence
    A = 1 / max(s P' + t, 1e-3), cut off to 1e-3 to `cap`; valid: 1e-3 < G < cap

The scores of a sequence are means over its frames, those of a dataset the plain mean over sequences: they stand beside
those of `depth.py` and in no column with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from pipelines.evaluation.depth import DELTAS, METRICS, errors, fit_lstsq

NAME = "disparity_lstsq"
LEAST = 1e-3  # of depth and of disparity


@dataclass(frozen=True)
class Rule:
    """How a dataset is scored this way."""

    cap: float
    """Metres."""
    frames: int | None = None
    """The first ones, alone."""
    border: Sequence[int] = (0, 0)
    """Rows, columns that are cut off on each side."""


def disparity_scores(
    truth: Float[np.ndarray, "T H W"], predicted: Float[np.ndarray, "T H W"], rule: Rule
) -> dict[str, Any]:
    """`METRICS`, `scale` and `shift` (of disparity). What is not finite, or not above 0, is left out of fit and errors
    and counts as wrong in the deltas. NaN where there is nothing to score."""
    rows, columns = rule.border
    inner = (slice(rule.frames), slice(rows, truth.shape[1] - rows), slice(columns, truth.shape[2] - columns))
    truth, predicted = truth[inner].astype(np.float64), predicted[inner].astype(np.float64)
    with np.errstate(invalid="ignore"):
        valid = (truth > LEAST) & (truth < rule.cap)
        said = valid & np.isfinite(predicted) & (predicted > 0)
    nothing = dict.fromkeys((*METRICS, "scale", "shift"), float("nan"))
    if said.sum() < 2:
        return nothing

    s, t = fit_lstsq(1 / (truth[said] + 1e-8), np.maximum(1 / predicted[said], LEAST))
    frames = []
    for g, p, known, finite in zip(truth, predicted, valid, said, strict=True):
        if finite.any():
            aligned = 1 / np.maximum(s * np.maximum(1 / p[finite], LEAST) + t, LEAST)
            found = errors(g[finite], np.clip(aligned, LEAST, rule.cap))
            frames.append(found | {name: found[name] * finite.sum() / known.sum() for name in DELTAS})
        elif known.any():
            frames.append(dict.fromkeys(METRICS, float("nan")) | dict.fromkeys(DELTAS, 0.0))
    means = {name: np.array([frame[name] for frame in frames]) for name in METRICS}
    return {name: float(values[np.isfinite(values)].mean()) for name, values in means.items()} | {
        "scale": s,
        "shift": t,
    }
