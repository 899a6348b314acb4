"""How far tracks are from those of a truth that was written as results are."""

import numpy as np
from jaxtyping import Float

from pipelines.geometry import distance
from pipelines.results.viewer.opened import Opened


def track_errors(said: Opened, truth: Opened) -> tuple[Float[np.ndarray, "N T"], float]:
    """(N, T) distance as a share of the true distance from the origin, after one scale for all, and that scale: median
    of the true distances over median of those said. NaN where either is unknown.

    ValueError if they are not of the same points and frames.
    """
    ours, theirs = said.arrays.get("tracks"), truth.arrays.get("tracks")
    if ours is None or theirs is None:
        raise ValueError(f"{said.name} cannot be compared: both need tracks")
    if ours["xyz"].shape != theirs["xyz"].shape or not np.allclose(ours["points"], theirs["points"], atol=1e-3):
        raise ValueError(
            f"{said.name} cannot be compared: its tracks are {ours['xyz'].shape}, the true ones {theirs['xyz'].shape} "
            "(N, T, 3), or of other points"
        )
    far, true_far = np.linalg.norm(ours["xyz"], axis=-1), np.linalg.norm(theirs["xyz"], axis=-1)
    both = np.isfinite(far) & np.isfinite(true_far)
    if not both.any():
        raise ValueError(f"{said.name} cannot be compared: no track is known in both")
    scale = float(np.median(true_far[both]) / np.median(far[both]))
    return distance(scale * ours["xyz"], theirs["xyz"]) / true_far, scale
