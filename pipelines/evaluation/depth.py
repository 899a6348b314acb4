"""Video depth: alignments and errors under the names by which papers print them (definitions of CUT3R's evaluation).

All frames of a sequence are pooled: G and P are truth and prediction at its valid pixels, where 0 < G < cap; validity
looks at the truth alone. A = s P + t is compared with G.

| alignment             | s and t                                                                                    |
|-----------------------|--------------------------------------------------------------------------------------------|
| metric                | 1, 0                                                                                       |
| median                | median G / median P (the lower of two in the middle), 0                                    |
| scale                 | ten rounds of reweighted least squares from mean G / mean P; s >= 1e-3                     |
| scale_shift           | 1,000 steps of Adam (1e-4) on the sum of |A - G|, from the median's                        |
| lstsq                 | least squares                                                                              |
| scale_exact           | the s that makes the sum of |A - G| smallest; where `scale` was to arrive                  |
| scale_shift_exact     | the same with t; where `scale_shift` was to arrive                                         |
| moge_scale            | the s that makes the sum of |A - G| / G smallest over 16 x 16 pixels a frame (`moge.py`)   |
| moge_affine           | the same with t                                                                            |

`scale` and `scale_shift` do not converge: a shift of 1.6 m is not found in 1,000 steps of 1e-4. They are what tables
hold all the same, so they are kept to the letter, in float64.
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.optimize import minimize_scalar

from pipelines.evaluation import moge

MIN_SCALE = 1e-3
ROUNDS = 10
STEPS, LEARNING_RATE, BETAS, EPSILON, STALLED = 1000, 1e-4, (0.9, 0.999), 1e-8, 1e-6
POSITIVE = 1e-5  # for ratios and logarithms
DELTAS = {f"delta_1.25{'' if power == 1 else f'^{power}'}": 1.25**power for power in (1, 2, 3)}
METRICS = ("abs_rel", "sq_rel", "rmse", "log_rmse", *DELTAS)

Pixels = Float64[np.ndarray, "n"]


def valid_pixels(truth: Float[np.ndarray, "*shape"], cap: float | None) -> Bool[np.ndarray, "*shape"]:
    """Where there is truth: above 0, finite, and below `cap` metres, strictly."""
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(truth) & (truth > 0)
        return valid if cap is None else valid & (truth < cap)


def resized(predicted: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """A prediction at the truth's `size` (H, W) as the official code makes it: bicubic (a = -0.75), not smoothed, in
    the precision that it came in."""
    return cv2.resize(predicted, size[::-1], interpolation=cv2.INTER_CUBIC)


def lower_median(values: Pixels) -> float:
    """The lower of the two in the middle; NaN if one is."""
    if np.isnan(values).any():
        return float("nan")
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])


def fit_median(truth: Pixels, predicted: Pixels) -> tuple[float, float]:
    return lower_median(truth) / lower_median(predicted), 0.0


def fit_scale(truth: Pixels, predicted: Pixels) -> tuple[float, float]:
    s = truth.mean() / predicted.mean()
    for _ in range(ROUNDS):
        weight = 1 / (np.abs(s * predicted - truth) + 1e-8)
        s = (weight * predicted * truth).sum() / (weight * predicted**2).sum()
    return float(np.maximum(s, MIN_SCALE)), 0.0  # of NaN: NaN


def fit_scale_shift(truth: Pixels, predicted: Pixels) -> tuple[float, float]:
    x = np.array(fit_median(truth, predicted))
    first, second, before = np.zeros(2), np.zeros(2), None
    for step in range(1, STEPS + 1):
        residual = x[0] * predicted + x[1] - truth
        loss = np.abs(residual).sum()
        sign = np.sign(residual)
        gradient = np.array([(sign * predicted).sum(), sign.sum()])

        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        mean, square = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
        x = x - LEARNING_RATE * mean / (np.sqrt(square) + EPSILON)

        if before is not None and abs(before - loss) < STALLED:
            break
        before = loss
    return float(x[0]), float(x[1])


def fit_lstsq(truth: Pixels, predicted: Pixels) -> tuple[float, float]:
    columns = np.stack([predicted, np.ones_like(predicted)], axis=1)
    s, t = np.linalg.lstsq(columns, truth, rcond=None)[0]
    return float(s), float(t)


def fit_scale_exact(truth: Pixels, predicted: Pixels) -> tuple[float, float]:
    """The median of G / P with weights |P|, which minimises the sum of |s P - G|."""
    used = predicted != 0
    ratio, weight = truth[used] / predicted[used], np.abs(predicted[used])
    if not len(ratio):
        return float("nan"), 0.0
    order = np.argsort(ratio)
    below = np.cumsum(weight[order])
    return float(ratio[order][np.searchsorted(below, below[-1] / 2)]), 0.0


def fit_scale_shift_exact(truth: Pixels, predicted: Pixels) -> tuple[float, float]:
    """For each s the best t is the median of G - s P, and what is left is convex in s."""
    start, _ = fit_scale_exact(truth, predicted)

    def left(s: float) -> float:
        rest = truth - s * predicted
        return float(np.abs(rest - np.median(rest)).sum())

    s = float(minimize_scalar(left, bracket=(0.5 * start, 1.5 * start), tol=1e-10).x)
    return s, float(np.median(truth - s * predicted))


def fit_moge_scale(truth: Pixels, predicted: Pixels) -> tuple[float, float]:
    return moge.fit_scale(truth[:, None], predicted[:, None]), 0.0


def fit_moge_affine(truth: Pixels, predicted: Pixels) -> tuple[float, float]:
    s, t = moge.fit_affine(truth[:, None], predicted[:, None])
    return s, float(t[0])


FITS = {
    "metric": lambda truth, predicted: (1.0, 0.0),
    "median": fit_median,
    "scale": fit_scale,
    "scale_shift": fit_scale_shift,
    "lstsq": fit_lstsq,
    "scale_exact": fit_scale_exact,
    "scale_shift_exact": fit_scale_shift_exact,
    "moge_scale": fit_moge_scale,
    "moge_affine": fit_moge_affine,
}
SAMPLED = ("moge_scale", "moge_affine")
"""Fitted to a sample."""


def depth_scores(
    truth: Float[np.ndarray, "T H W"],
    predicted: Float[np.ndarray, "T H W"],
    alignment: str,
    *,
    cap: float | None = None,
    clip: float | None = None,
    parity: bool = False,
) -> dict[str, Any]:
    """The errors of one sequence under one alignment.

    Args:
        truth: in metres; invalid where it is not above 0, not finite, or not below `cap`.
        predicted: at the pixels of the truth, in any unit.
        clip: what is predicted is cut off above it, after the alignment (70 m on Sintel).
        parity: as the official code, where one NaN spoils the fit. Else what is not finite is left out of fit and
            means, counts as wrong in the deltas, and its share is told.

    Returns:
        `METRICS`, `scale`, `shift`, `valid_pixels`, `not_finite` (share of the valid ones). Without a valid pixel all
        metrics are 0, and so is the sequence's weight in `weighted_mean`.
    """
    valid = valid_pixels(truth, cap)
    g, p = truth[valid].astype(np.float64), predicted[valid].astype(np.float64)
    finite = np.isfinite(p)
    counts = {"valid_pixels": len(g), "not_finite": float(1 - finite.mean()) if len(g) else 0.0}
    if not len(g):
        return dict.fromkeys(METRICS, 0.0) | counts | {"scale": float("nan"), "shift": float("nan")}
    if not parity:
        g, p = g[finite], p[finite]
    if not len(g):
        wrong = dict.fromkeys(METRICS, float("nan")) | dict.fromkeys(DELTAS, 0.0)
        return wrong | counts | {"scale": float("nan"), "shift": float("nan")}

    with np.errstate(all="ignore"):  # parity has NaN
        s, t = FITS[alignment](*(_sample(truth, predicted, cap) if alignment in SAMPLED else (g, p)))
        aligned = s * p + t
        if clip is not None:
            aligned = np.minimum(aligned, clip)
        scores = errors(g, aligned)
    for name in DELTAS:
        scores[name] *= len(g) / counts["valid_pixels"]
    return scores | counts | {"scale": s, "shift": t}


def _sample(truth: np.ndarray, predicted: np.ndarray, cap: float | None) -> tuple[Pixels, Pixels]:
    """Of both, where there is truth and something finite was predicted."""
    truth, predicted = (moge.sampled(depth).astype(np.float64) for depth in (truth, predicted))
    used = valid_pixels(truth, cap) & np.isfinite(predicted)
    return truth[used], predicted[used]


def errors(g: Pixels, aligned: Pixels) -> dict[str, float]:
    """`METRICS` over valid pixels."""
    off = np.abs(aligned - g)
    positive = np.maximum(aligned, POSITIVE)
    ratio = np.maximum(positive / g, g / positive)
    scores = {
        "abs_rel": (off / g).mean(),
        "sq_rel": (off**2 / g).mean(),
        "rmse": np.sqrt((off**2).mean()),
        "log_rmse": np.sqrt(((np.log(positive) - np.log(g)) ** 2).mean()),
        **{name: (ratio < bound).mean() for name, bound in DELTAS.items()},
    }
    return {name: float(value) for name, value in scores.items()}


def weighted_mean(sequences: list[dict[str, Any]]) -> dict[str, float]:
    """The scores of a dataset: the mean over sequences, weighted by valid pixels, RMSE too."""
    weights = np.array([scores["valid_pixels"] for scores in sequences], np.float64)
    if not weights.sum():
        return dict.fromkeys(METRICS, float("nan"))
    return {name: float(np.average([scores[name] for scores in sequences], weights=weights)) for name in METRICS}
