"""WorldTrack's scores of world tracks, by the rules of both its evaluators (St4RTrack's and OpenD4RT's).

g true, p predicted points (T, N, 3) of tracks that are visible in frame 0, in the camera of frame 0. All times count,
hidden ones and frame 0 too.

    error     e = ||p' - g|| in metres, with p' as aligned; hit: e <= 0.1, 0.3, 0.5, 1.0, inclusive
    APD       mean over the four of the share of hits; EPE: mean of e
    dynamic   tracks whose path, the sum of ||g(t + 1) - g(t)||, is longer than 0.01 m, aligned by themselves

| alignment    | p'                                                                                     |
|--------------|----------------------------------------------------------------------------------------|
| global       | s p, s = median ||g|| / median ||p|| of the clip; the headline                         |
| per_traj     | the same, each track by its own                                                        |
| sim3_closed  | least squares Sim(3) over all pairs; the scale of a mirrored one is not Umeyama's      |
| sim3         | Sim(3) by RANSAC, generator 0; St4RTrack has it too, but unseeded and off              |

| what is not finite | counts in APD | in EPE                                                    |
|--------------------|---------------|-----------------------------------------------------------|
| `st4rtrack`        | as a miss     | left out; but one NaN spoils the scale of global          |
| `opend4rt`         | left out      | left out                                                  |
| `misses`           | as a miss     | left out, and counted; our own, fair to both              |
"""

import warnings
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64

from pipelines.evaluation.similarity import Degenerate, Similarity

Alignment = Literal["global", "per_traj", "sim3_closed", "sim3"]
Rule = Literal["misses", "st4rtrack", "opend4rt"]
ALIGNMENTS: tuple[Alignment, ...] = Alignment.__args__
THRESHOLDS = (0.1, 0.3, 0.5, 1.0)  # metres
MOVES = 0.01  # metres of path

Points = Float64[np.ndarray, "T N 3"]


def dynamic_tracks(truth: Float[np.ndarray, "T N 3"]) -> Bool[np.ndarray, "N"]:
    """Those whose path is longer than a centimetre."""
    steps = np.linalg.norm(np.diff(truth.astype(np.float64), axis=0), axis=-1)
    return steps.sum(axis=0) > MOVES


def align(truth: Points, predicted: Points, alignment: Alignment, rule: Rule) -> Points:
    """p' of the definition. Raises Degenerate for a Sim(3) without enough points."""
    known = np.isfinite(truth).all(axis=-1)
    finite = known & np.isfinite(predicted).all(axis=-1)
    if alignment in ("sim3_closed", "sim3"):
        if finite.sum() < 3:
            raise Degenerate("fewer than three pairs of finite points")
        if alignment == "sim3":
            return Similarity.ransac(predicted[finite], truth[finite])(predicted)
        return Similarity.fit(predicted[finite], truth[finite], as_worldtrack=True)(predicted)
    axis = 0 if alignment == "per_traj" else None
    used = known if rule == "st4rtrack" else finite
    far, said = (np.where(used, np.linalg.norm(points, axis=-1), np.nan) for points in (truth, predicted))
    scale = np.nanmedian(far, axis=axis) / np.nanmedian(said, axis=axis)
    if rule == "st4rtrack":
        scale = np.where((known & np.isnan(said)).any(axis=axis), np.nan, scale)
    return predicted * scale[..., None]


def scores(
    truth: Float[np.ndarray, "T N 3"],
    predicted: Float[np.ndarray, "T N 3"],
    alignment: Alignment = "global",
    rule: Rule = "misses",
) -> dict[str, float | list[float] | int | None]:
    """As `errors` has it, after the alignment. Entries whose truth is not finite are not looked at."""
    g, p = truth.astype(np.float64), predicted.astype(np.float64)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a track of which nothing is finite
        return errors(g, align(g, p, alignment, rule), rule)


def errors(truth: Points, aligned: Points, rule: Rule) -> dict[str, float | list[float] | int | None]:
    """APD, the four fractions it is made of, EPE (None where nothing is finite), entries and those not finite."""
    error = np.linalg.norm(aligned - truth, axis=-1)[np.isfinite(truth).all(axis=-1)]
    finite = np.isfinite(error)
    counted = error[finite] if rule == "opend4rt" else error
    fractions = [float(np.mean(counted <= threshold)) if counted.size else 0.0 for threshold in THRESHOLDS]
    return {
        "apd": float(np.mean(fractions)),
        "fractions": fractions,
        "epe": float(error[finite].mean()) if finite.any() else None,
        "entries": int(error.size),
        "not_finite": int((~finite).sum()),
    }


def mean_over_clips(values: list[float | None], *, divide_by: int | None = None) -> float | None:
    """The unweighted mean over the clips that have the score.

    `divide_by`: St4RTrack divides every EPE by the number of clips with a finite global EPE, also where fewer have
    tracks that move; that halves its dynamic EPE on ADT.
    """
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(sum(known) / (divide_by or len(known))) if known else None
