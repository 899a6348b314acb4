"""Seams and loops of a long video brought to agree: one similarity per window, by robust least squares.

A chain of seams adds up their small errors. A loop says directly how a late window lies to an early one, so its error
is spread over the seams between. It is here and not among the recipes because it needs SciPy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.optimize import least_squares
from scipy.sparse import lil_array
from scipy.spatial.transform import Rotation

SOFT = 0.1
"""Radians, shares of the distance and logarithms of scale, from which on a disagreement pulls ever less (Cauchy): a
loop that is wrong does not bend the rest."""

UNKNOWNS = 7  # of a similarity: rotation vector, shift in distances, logarithm of the scale

Similarities = Float64[np.ndarray, "*#batch 4 4"]


@dataclass(frozen=True)
class Edge:
    """What is known of two windows."""

    first: int
    second: int
    first_from_second: Float64[np.ndarray, "4 4"]
    """With a scale: positions in the first camera of window `second` -> in that of `first`."""


@dataclass(frozen=True)
class ClosedPath:
    """All windows in one world."""

    world_from_window: Float64[np.ndarray, "W 4 4"]
    before: float
    """Median disagreement of the loops with the chain of seams: radians, or shares of the distance."""
    after: float
    """And with what is here."""


def close_loops(seams: Sequence[Float64[np.ndarray, "4 4"]], loops: Sequence[Edge], distance: float) -> ClosedPath:
    """The windows' places that seams and loops agree on best; without loops, the chain of seams.

    Args:
        seams: of each window but the last, window_from_next, with a scale.
        loops: between windows that are no neighbours.
        distance: at which points typically are: by it a shift is as grave as a turn.

    Raises:
        ValueError: a seam or loop is not known: NaN.
    """
    edges = [Edge(number, number + 1, seam) for number, seam in enumerate(seams)] + list(loops)
    if not all(np.isfinite(edge.first_from_second).all() for edge in edges):
        raise ValueError("windows that could not be joined have no places to bring to agree: leave loops open")
    chain = [np.eye(4)]
    for seam in seams:
        chain.append(chain[-1] @ seam)
    if not loops:
        return ClosedPath(np.stack(chain), 0.0, 0.0)

    first, second = (np.array([getattr(edge, end) for edge in edges]) for end in ("first", "second"))
    second_from_first = np.linalg.inv(np.stack([edge.first_from_second for edge in edges]))

    def places(unknowns: Float64[np.ndarray, "unknowns"]) -> Float64[np.ndarray, "W 4 4"]:
        return np.concatenate([np.eye(4)[None], _similarity(unknowns.reshape(-1, UNKNOWNS), distance)])

    def disagreement(unknowns: Float64[np.ndarray, "unknowns"]) -> Float64[np.ndarray, "disagreements"]:
        world_from_window = places(unknowns)
        round_trip = second_from_first @ np.linalg.inv(world_from_window[first]) @ world_from_window[second]
        return _unknowns(round_trip, distance).ravel()

    start = _unknowns(np.stack(chain[1:]), distance).ravel()
    found = least_squares(
        disagreement,
        start,
        loss="cauchy",
        f_scale=SOFT,
        ftol=1e-4,
        x_scale="jac",
        tr_options={"atol": 1e-8, "btol": 1e-8, "maxiter": 5000},  # its own are so loose that hundreds of steps follow
        jac_sparsity=_touched(first, second, len(chain)),
    )
    before, after = (
        np.abs(disagreement(at)).reshape(-1, UNKNOWNS)[len(seams) :].max(axis=1) for at in (start, found.x)
    )
    return ClosedPath(places(found.x), float(np.median(before)), float(np.median(after)))


def _unknowns(similarity: Similarities, distance: float) -> Float64[np.ndarray, "*#batch 7"]:
    scale = np.cbrt(np.linalg.det(similarity[..., :3, :3]))[..., None]
    turn = Rotation.from_matrix(similarity[..., :3, :3] / scale[..., None]).as_rotvec()
    return np.concatenate([turn, similarity[..., :3, 3] / distance, np.log(scale)], axis=-1)


def _similarity(unknowns: Float64[np.ndarray, "*#batch 7"], distance: float) -> Similarities:
    similarity = np.tile(np.eye(4), (*unknowns.shape[:-1], 1, 1))
    similarity[..., :3, :3] = np.exp(unknowns[..., 6, None, None]) * Rotation.from_rotvec(unknowns[..., :3]).as_matrix()
    similarity[..., :3, 3] = distance * unknowns[..., 3:6]
    return similarity


def _touched(first: np.ndarray, second: np.ndarray, num_windows: int) -> lil_array:
    """Which disagreements depend on which unknowns; window 0 is the world and has none."""
    touched = lil_array((UNKNOWNS * len(first), UNKNOWNS * (num_windows - 1)), dtype=np.int8)
    for row, ends in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        for window in set(ends) - {0}:
            rows = slice(UNKNOWNS * row, UNKNOWNS * (row + 1))
            touched[rows, UNKNOWNS * (window - 1) : UNKNOWNS * window] = 1
    return touched
