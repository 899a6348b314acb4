"""Alignments of MoGe's evaluation, which Track4World's tables have too: errors count by how far away the truth is.

| alignment      | of     | fits                                  | by the smallest sum of        |
|----------------|--------|---------------------------------------|-------------------------------|
| moge_scale     | depth  | s                                     | |s P - G| / G                 |
| moge_affine    | depth  | s and a shift                         | |s P + t - G| / G             |
| moge           | points | s and a shift of each axis            | |s P + t - G|_1 / ||G||       |

over 16 x 16 pixels of each frame, those of a sequence together. The optimum is found exactly, without a start that
matters: for a given s the best t is a weighted median, and what is left is convex in s.
"""

import numpy as np
from jaxtyping import Float, Float64, Shaped
from scipy.optimize import minimize_scalar

GRID = 16


def sampled(maps: Shaped[np.ndarray, "T H W *rest"]) -> Shaped[np.ndarray, "T h w *rest"]:
    """The pixels in the middle of 16 x 16 cells of each frame; all of them where there are fewer."""
    rows, columns = (
        np.arange(count) if count < GRID else (np.arange(GRID) + 0.5) * count // GRID for count in maps.shape[1:3]
    )
    return maps[:, rows.astype(int)][:, :, columns.astype(int)]


def weighted_median(values: Float64[np.ndarray, "n"], weights: Float64[np.ndarray, "n"]) -> float:
    """The value below and above which at most half of the weight lies."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def fit_scale(truth: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n d"]) -> float:
    """s; NaN where nothing tells it."""
    weight = np.abs(predicted) / np.linalg.norm(truth, axis=1, keepdims=True)
    used = weight > 0
    if not used.any():
        return float("nan")
    return weighted_median((truth[used] / predicted[used]), weight[used])


def fit_affine(
    truth: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n d"]
) -> tuple[float, Float64[np.ndarray, "d"]]:
    """(s, the shift of each axis); NaN where nothing tells them."""
    weight = 1 / np.linalg.norm(truth, axis=1)
    start = fit_scale(truth, predicted)
    if len(truth) < 2 or not np.isfinite(start):
        return float("nan"), np.full(truth.shape[1], np.nan)

    def shift(s: float) -> Float64[np.ndarray, "d"]:
        return np.array([weighted_median(axis, weight) for axis in (truth - s * predicted).T])

    def left(s: float) -> float:
        return float((weight[:, None] * np.abs(truth - s * predicted - shift(s))).sum())

    s = float(minimize_scalar(left, bracket=(0.5 * start, 1.5 * start), tol=1e-10).x)
    return s, shift(s)
