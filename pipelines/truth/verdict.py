"""What the audit of a sequence says: do its depth and cameras fit together as they are read?"""

from dataclasses import asdict, dataclass, replace
from typing import Literal

from pipelines.sequence import Sequence
from pipelines.truth.reprojection import (
    DECLARED,
    NO_OVERLAP,
    OTHER_READINGS,
    PIXEL_READINGS,
    Fit,
    Reading,
    Reprojection,
)

LOSS = 1.5  # the declared reading has lost if another one's median error is smaller by this factor
WIN = 3  # and wins clearly if every other one, but for those of half a pixel's size, is worse by this factor
WORST = 0.1  # median error beyond which nothing fits, whatever the others say
MIN_LANDED = 0.25  # of the points that land in the reading where most do: fewer are a coincidence
MIN_PARALLAX = 1 / 200  # of the image's width: less says nothing about poses

Outcome = Literal["fits", "unclear", "undecidable", "misfit"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the audit of one sequence says. Errors are medians of |found - predicted depth| / predicted."""

    outcome: Outcome
    """misfit: another reading fits better, or none fits. undecidable: too little motion or overlap; no pass. unclear:
    none fits better, but a very different one fits nearly as well."""
    reason: str
    error: float
    close: float
    """Share of points with an error below 5 %."""
    parallax: float
    """Pixels."""
    seen_through: float
    """Share of points that lie before what is found there: something moves, or a frame is wrong."""
    landed: int
    """Points that were compared."""
    best_other: str
    best_other_error: float
    errors: dict[str, float]
    """By reading."""

    def index_columns(self) -> dict[str, str | float]:
        """What the index of a clip store keeps of it."""
        margin = self.best_other_error / self.error if self.error else float("inf")
        return {
            "audit": self.outcome,
            "audit_error": self.error,
            "audit_margin": margin,
            "seen_through": self.seen_through,
        }


def judge(sequence: Sequence) -> Verdict:
    """Measure every reading on a sample of frames (dataset notes 4). ValueError where a frame cannot be read."""
    return verdict_of(Reprojection(sequence), sequence.image_size[1])


def verdict_of(measured: Reprojection, width: int) -> Verdict:
    declared = measured.fit(DECLARED)
    fits = {reading: measured.fit(reading) for reading in (*PIXEL_READINGS, *OTHER_READINGS)}
    most = max(declared.landed, *(fit.landed for fit in fits.values()))

    others = {
        reading: fit if fit.landed >= MIN_LANDED * most else replace(fit, error=NO_OVERLAP)
        for reading, fit in fits.items()
    }

    outcome, reason = _outcome(declared, others, width)
    best = min(others, key=lambda reading: others[reading].error)
    return Verdict(
        outcome=outcome,
        reason=reason,
        **asdict(declared),
        best_other=best.name,
        best_other_error=others[best].error,
        errors={reading.name: fit.error for reading, fit in {DECLARED: declared, **others}.items()},
    )


def _outcome(declared: Fit, others: dict[Reading, Fit], width: int) -> tuple[Outcome, str]:
    best = min(others, key=lambda reading: others[reading].error)
    fit = others[best]
    if fit.error * LOSS < declared.error and fit.error < WORST and fit.parallax >= MIN_PARALLAX * width:
        return "misfit", (
            f"depth and cameras agree better ({fit.error:.2g} instead of {declared.error:.2g}) if {best.name}"
        )

    if declared.error == NO_OVERLAP:
        return "undecidable", "hardly any point of one frame lands on a known surface of another"
    if declared.parallax < MIN_PARALLAX * width:
        return "undecidable", f"the camera hardly moves: parallax {declared.parallax:.2g} pixels"
    if declared.error > WORST:
        return "misfit", f"depth and cameras disagree by {declared.error:.2g}, and no known mistake explains it"

    gross = [reading for reading in others if reading not in PIXEL_READINGS and not reading.lag and reading.focal == 1]
    near = min(gross, key=lambda reading: others[reading].error)
    if others[near].error < WIN * declared.error:
        return "unclear", f"it fits nearly as well ({others[near].error:.2g} to {declared.error:.2g}) if {near.name}"
    return "fits", f"declared {declared.error:.2g}, the next best {fit.error:.2g} (if {best.name})"
