"""What a confidence stands for: how far off answers of that confidence were, on clips that nothing was learnt from.

A confidence ranks the answers of a model. How large their errors are in scenes it has not seen, no loss tells it: that
is counted, on held-out clips, and kept with the weights (`checkpoints.save`). Errors are relative: the distance between
a point and the true one, by the true one's distance from the camera, after one scale per clip.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

SHARES = (0.5, 0.8, 0.95)
"""Of answers, that are within the errors of a `Calibration`."""
EVEN_ERROR = 0.1
"""The relative error that a confidence of one half stands for."""
MOST_KNOTS = 1000


@dataclass(frozen=True)
class Calibration:
    """A table: at each confidence logit, the relative errors within which 50, 80 and 95 % of the answers were.

    Between two logits the logarithms of the errors are interpolated, beyond the last ones they stay what they are.
    """

    logits: tuple[float, ...]
    """Ascending."""
    errors: tuple[tuple[float, ...], ...]
    """For each of `SHARES`, the error at each logit: falling with it, the first strictly; and rising with the share."""

    def __post_init__(self) -> None:
        size = len(self.logits)
        if not 1 <= size <= MOST_KNOTS or [len(row) for row in self.errors] != [size] * len(SHARES):
            raise ValueError(f"a calibration has from 1 to {MOST_KNOTS} logits, and an error at each for {SHARES}")
        numbers = [x for row in self.errors for x in row]
        if not all(map(math.isfinite, self.logits)) or not all(1e-9 < x < 1e9 for x in numbers):
            raise ValueError("a calibration has finite logits, and errors that are positive and finite")
        rising = all(a < b for a, b in pairwise(self.logits)) and all(a > b for a, b in pairwise(self.errors[0]))
        falling = all(a >= b for row in self.errors for a, b in pairwise(row))
        ordered = all(a <= b for rows in pairwise(self.errors) for a, b in zip(*rows, strict=True))
        if not (rising and falling and ordered):
            raise ValueError("a calibration has ascending logits, errors that fall with them and rise with their share")

    def apply(self, confidence_logit: Tensor) -> Tensor:
        """The logit of the confidence 0.1 / (0.1 + b), where half of the answers of such a logit are within b."""
        return _interpolate(confidence_logit, self.logits, [math.log(EVEN_ERROR / error) for error in self.errors[0]])

    def error(self, confidence_logit: Tensor, share: float) -> Tensor:
        """The relative error within which are so many, one of `SHARES`, of the answers that have this logit, which
        comes from `apply`."""
        applied = [math.log(EVEN_ERROR / error) for error in self.errors[0]]
        return _interpolate(confidence_logit, applied, [math.log(x) for x in self.errors[SHARES.index(share)]]).exp()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """ValueError for a text that is no calibration."""
        try:
            values = json.loads(text)
            return cls(tuple(map(float, values["logits"])), tuple(tuple(map(float, row)) for row in values["errors"]))
        except (KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"no calibration: {error!r}") from None


def _interpolate(x: Tensor, places: Sequence[float], values: Sequence[float]) -> Tensor:
    """Piecewise linear, constant beyond the ends: ramps, added one after the other, because ONNX's runtime stumbles
    over a further axis where there are no queries."""
    slopes = [(b - a) / (d - c) for (a, b), (c, d) in zip(pairwise(values), pairwise(places), strict=True)]
    turns = [after - before for before, after in pairwise([0.0, *slopes, 0.0])]  # of the slope, at each place
    result = torch.full_like(x, values[0], dtype=torch.float32)
    for place, turn in zip(places, turns, strict=True):
        result = result + turn * (x.float() - place).clamp(min=0)
    return result
