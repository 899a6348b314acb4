"""Errors of any number of clips, in a size that does not grow with them; tallies of parts are merged, in any order.

Means are exact: sums are kept as fractions, so that the order of clips does not show. Medians are true to 0.1 %: values
are counted in bins that are so wide. Where no other value is that near, they are exact too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

MEDIANS = ("relative", "relative moving", "rotation", "translation")
MEANS = ("hits", "hits moving", "distance", "distance moving", "depth", "visible")

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
class Tally:
    """What the scores of `pipelines/evaluation/scores.py` are made of."""

    medians: dict[str, Median] = field(default_factory=lambda: {name: Median() for name in MEDIANS})
    means: dict[str, Mean] = field(default_factory=lambda: {name: Mean() for name in MEANS})

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
