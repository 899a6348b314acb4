"""Errors of any number of clips, in a size that does not grow with them; tallies of parts are merged, in any order.

Means are exact: sums are kept as fractions, so that the order of clips does not show. Medians are true to 0.1 %: values
are counted in bins that are so wide. Where no other value is that near, they are exact too. What is said of confidence
is of a sample of 8,192 answers at most.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt64

from model.confidence import SHARES, Calibration
from pipelines.evaluation.calibration import fit, rank_correlation

MEDIANS = ("relative", "relative moving", "rotation", "translation")
MEANS = ("hits", "hits moving", "distance", "distance moving", "depth", "visible")
WITHIN = tuple(f"within_{100 * share:.0f}" for share in SHARES)  # the error that a calibrated confidence tells

REST_BITS = 13  # of the 23 bits of a float32's fraction; the other ten make bins 0.1 % wide


@dataclass
class Mean:
    """The mean of any number of values."""

    count: int = 0
    total: Fraction = Fraction(0)
    finite: bool = True

    def add(self, values: Float[np.ndarray, "n"]) -> None:
        total = values.sum()
        self.merge(Mean(len(values), Fraction(float(total) if np.isfinite(total) else 0), bool(np.isfinite(total))))

    def merge(self, other: "Mean") -> None:
        self.count += other.count
        self.total += other.total
        self.finite &= other.finite

    def value(self) -> float | None:
        """None if there are no values, or some that are not finite."""
        return float(self.total / self.count) if self.count and self.finite else None


@dataclass
class Median:
    """The median of any number of values from 0 to infinity.

    The bits of float32 ascend as its values do: the first of them number the bins, in ascending order and without the
    empty ones, and a bin stands for the mean of its values. All that is kept are whole numbers, so merging is exact.
    """

    bins: Int64[np.ndarray, "n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Int64[np.ndarray, "n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """How many values are in each."""
    rests: Int64[np.ndarray, "n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The sum of their other bits."""

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def infinite(self) -> int:
        return int(self.counts[np.isinf(self.means())].sum())

    def add(self, values: Float[np.ndarray, "n"]) -> None:
        bits = values.astype(np.float32).view(np.int32).astype(np.int64)
        self.merge(Median(bits >> REST_BITS, np.ones_like(bits), bits & (1 << REST_BITS) - 1))

    def merge(self, other: "Median") -> None:
        bins, places = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        for name in ("counts", "rests"):
            sums = np.zeros(len(bins), np.int64)
            np.add.at(sums, places, np.concatenate([getattr(self, name), getattr(other, name)]))
            setattr(self, name, sums)
        self.bins = bins

    def means(self) -> Float32[np.ndarray, "n"]:
        """Of each bin."""
        bits = (self.bins << REST_BITS) + np.rint(self.rests / self.counts).astype(np.int64)
        return bits.astype(np.int32).view(np.float32)

    def value(self) -> float | None:
        """The mean of the two in the middle; None if there are no values, or infinite ones in the middle."""
        if not self.count:
            return None
        ranks = [(self.count - 1) // 2, self.count // 2]
        middle = self.means()[np.searchsorted(np.cumsum(self.counts), ranks, side="right")].astype(float).mean()
        return float(middle) if np.isfinite(middle) else None


@dataclass
class Pairs:
    """A fair sample of any number of pairs of confidence logit and relative error.

    Those are kept whose bits, well mixed, are the smallest numbers: the same ones in whatever order they came.
    """

    mixed: UInt64[np.ndarray, "n"] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Ascending, at most `MOST_PAIRS`."""

    def add(self, logits: Float[np.ndarray, "n"], errors: Float[np.ndarray, "n"]) -> None:
        pairs = np.ascontiguousarray(np.stack([logits, errors], axis=1), np.float32)
        self.merge(Pairs(_mix(pairs.view(np.uint64)[:, 0])))

    def merge(self, other: "Pairs") -> None:
        self.mixed = np.sort(np.concatenate([self.mixed, other.mixed]))[:MOST_PAIRS]

    def values(self) -> tuple[Float32[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
        """(logits, errors)."""
        logits, errors = _unmix(self.mixed)[:, None].view(np.float32).T
        return logits, errors


MOST_PAIRS = 1 << 13
FACTOR = 0x9E3779B97F4A7C15  # odd: what it multiplies can be had back
INVERSE = pow(FACTOR, -1, 1 << 64)


def _mix(bits: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    for _ in range(2):
        bits = bits * np.uint64(FACTOR)
        bits = bits ^ (bits >> np.uint64(32))
    return bits


def _unmix(bits: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    for _ in range(2):
        bits = bits ^ (bits >> np.uint64(32))
        bits = bits * np.uint64(INVERSE)
    return bits


@dataclass
class Tally:
    """What the scores of `pipelines/evaluation/scores.py` are made of."""

    medians: dict[str, Median] = field(default_factory=lambda: {name: Median() for name in MEDIANS})
    means: dict[str, Mean] = field(default_factory=lambda: {name: Mean() for name in (*MEANS, *WITHIN)})
    pairs: dict[str, Pairs] = field(default_factory=lambda: {name: Pairs() for name in ("all", "moving")})

    @classmethod
    def of(cls, clips: Iterable[Mapping[str, Float[np.ndarray, "n"]]]) -> "Tally":
        """The errors of each of these clips, as `measure` gives them."""
        tally = cls()
        for errors in clips:
            tally.add(errors)
        return tally

    def add(self, errors: Mapping[str, Float[np.ndarray, "n"]]) -> None:
        """One more clip."""
        moving = errors["moving"] > 0
        values = {**errors, **{f"{name} moving": errors[name][moving] for name in ("relative", "hits", "distance")}}
        for name, part in (self.medians | self.means).items():
            part.add(values[name])
        logits, relative = errors["logit"], errors["relative"]
        self.pairs["all"].add(logits, relative)
        self.pairs["moving"].add(logits[moving], relative[moving])

    def merge(self, other: "Tally") -> None:
        for name, part in self.medians.items():
            part.merge(other.medians[name])
        for name, part in self.means.items():
            part.merge(other.means[name])
        for name, part in self.pairs.items():
            part.merge(other.pairs[name])

    def calibration(self) -> Calibration | None:
        """What the confidences of these answers, not calibrated yet, stand for; None if they are too few."""
        return fit(*self.pairs["all"].values())

    def scores(self) -> dict[str, Any]:
        """The scores over the queries of all clips; None where no query asks, and for infinite ones."""
        calibration = self.calibration()
        medians = {name: part.value() for name, part in self.medians.items()}
        means = {name: part.value() for name, part in self.means.items()}
        return {
            "median_relative_error": {"all": medians["relative"], "moving": medians["relative moving"]},
            "apd": {"all": means["hits"], "moving": means["hits moving"]},
            "epe": {"all": means["distance"], "moving": means["distance moving"]},
            "depth_abs_rel": means["depth"],
            "visibility_accuracy": means["visible"],
            "confidence": {
                "rank_correlation": {name: rank_correlation(*part.values()) for name, part in self.pairs.items()},
                "coverage": {name: means[name] for name in WITHIN},
                "calibration": calibration and calibration.to_json(),
            },
            "pose": {"rotation_degrees": medians["rotation"], "translation": medians["translation"]},
            "queries": {
                "all": self.medians["relative"].count,
                "moving": self.medians["relative moving"].count,
            },
            "not_finite": self.medians["relative"].infinite,
        }
