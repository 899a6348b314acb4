"""Errors of any number of clips, in a size that does not grow with them; tallies of parts are merged, in any order.

Means are exact: sums are kept as fractions, so that the order of clips does not show. Medians are true to 0.05 %: values
are counted by sign-less float32 with 10 bits of fraction, and a value is taken as the middle of its bin, which is 0.1 %
wide. 0 and infinity are counted as themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int64

MEDIANS = ("relative", "relative moving", "rotation", "translation")
MEANS = ("hits", "hits moving", "distance", "distance moving", "depth", "visible")

DROPPED_BITS = 13  # of the 23 bits of a float32's fraction


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
    """The median of any number of values from 0 to infinity: how many there are in each bin that is not empty."""

    bins: Int64[np.ndarray, "n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """In ascending order, which is that of the values."""
    counts: Int64[np.ndarray, "n"] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def infinite(self) -> int:
        return int(self.counts[np.isinf(middles(self.bins))].sum())

    def add(self, values: Float[np.ndarray, "n"]) -> None:
        bits = values.astype(np.float32).view(np.int32).astype(np.int64)  # which ascend as the values do
        self.merge(Median(*np.unique(bits >> DROPPED_BITS, return_counts=True)))

    def merge(self, other: "Median") -> None:
        bins, places = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        self.bins, self.counts = bins, counts

    def value(self) -> float | None:
        """The mean of the two in the middle; None if there are no values, or infinite ones in the middle."""
        if not self.count:
            return None
        ranks = [(self.count - 1) // 2, self.count // 2]
        middle = middles(self.bins[np.searchsorted(np.cumsum(self.counts), ranks, side="right")]).mean()
        return float(middle) if np.isfinite(middle) else None


def middles(bins: Int64[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The value that stands for each bin."""
    first = (bins << DROPPED_BITS).astype(np.int32).view(np.float32)
    middle = ((bins << DROPPED_BITS) + (1 << DROPPED_BITS - 1)).astype(np.int32).view(np.float32)
    return np.where((first == 0) | np.isinf(first), first, middle).astype(np.float64)


@dataclass
class Tally:
    """What the scores of `pipelines/evaluation/scores.py` are made of."""

    medians: dict[str, Median] = field(default_factory=lambda: {name: Median() for name in MEDIANS})
    means: dict[str, Mean] = field(default_factory=lambda: {name: Mean() for name in MEANS})

    @classmethod
    def of(cls, clips: Iterable[Mapping[str, Float[np.ndarray, "n"]]]) -> Self:
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

    def merge(self, other: "Tally") -> None:
        for name, part in self.medians.items():
            part.merge(other.medians[name])
        for name, part in self.means.items():
            part.merge(other.means[name])

    def scores(self) -> dict[str, Any]:
        """The scores over the queries of all clips; None where no query asks, and for infinite ones."""
        medians = {name: part.value() for name, part in self.medians.items()}
        means = {name: part.value() for name, part in self.means.items()}
        return {
            "median_relative_error": {"all": medians["relative"], "moving": medians["relative moving"]},
            "apd": {"all": means["hits"], "moving": means["hits moving"]},
            "epe": {"all": means["distance"], "moving": means["distance moving"]},
            "depth_abs_rel": means["depth"],
            "visibility_accuracy": means["visible"],
            "pose": {"rotation_degrees": medians["rotation"], "translation": medians["translation"]},
            "queries": {
                "all": self.medians["relative"].count,
                "moving": self.medians["relative moving"].count,
            },
            "not_finite": self.medians["relative"].infinite,
        }
