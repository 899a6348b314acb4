"""From answers about held-out clips to what their confidences stand for, and how well these rank the answers."""

from itertools import pairwise

import numpy as np
from jaxtyping import Float

from model.confidence import SHARES, Calibration

MOST_BINS = 24  # of equally many answers
FEWEST = 200  # answers in a bin: one in twenty are enough of them to tell a 95 % quantile
FLOOR, CEILING = 1e-4, 1e3  # of errors


def fit(logits: Float[np.ndarray, "n"], errors: Float[np.ndarray, "n"]) -> Calibration | None:
    """Confidence logits and relative errors of some answers. None if there are fewer than `FEWEST`.

    Quantiles of the errors in bins of the logit. Neighbouring bins whose medians do not fall become one (pool adjacent
    violators); the other quantiles are then kept from rising.
    """
    order = np.argsort(logits, kind="stable")[: np.isfinite(logits).sum()]  # what is no number comes last
    if len(order) < FEWEST:
        return None
    logits, errors = logits[order].astype(float), np.clip(np.nan_to_num(errors[order], nan=np.inf), FLOOR, CEILING)

    edges = np.linspace(0, len(logits), min(MOST_BINS, len(logits) // FEWEST) + 1).astype(int)
    edges = np.unique([*np.searchsorted(logits, logits[edges[:-1]]), len(logits)])  # equal logits are in one bin
    medians: list[float] = []
    bins: list[slice] = []
    for start, stop in pairwise(edges.tolist()):
        bins.append(slice(start, stop))
        medians.append(_quantile(errors[bins[-1]], 0.5))
        while len(bins) > 1 and medians[-1] >= medians[-2]:
            bins[-2:] = [slice(bins[-2].start, stop)]
            medians[-2:] = [_quantile(errors[bins[-1]], 0.5)]

    table = np.array([[_quantile(errors[one], share) for one in bins] for share in SHARES])
    table = np.maximum.accumulate(table[:, ::-1], axis=1)[:, ::-1]
    places = tuple(float(np.median(logits[one])) for one in bins)
    return Calibration(places, tuple(tuple(map(float, row)) for row in table))


def _quantile(values: Float[np.ndarray, "n"], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def rank_correlation(one: Float[np.ndarray, "n"], other: Float[np.ndarray, "n"]) -> float | None:
    """Spearman's; None if one side is constant."""
    ranks = []
    for values in (one, other):  # equal values share the mean of their places
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            return None
        ranks.append((np.cumsum(counts) - (counts + 1) / 2)[place])
    return float(np.corrcoef(ranks)[0, 1])
