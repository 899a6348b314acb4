"""Sim(3) from one set of points to another in closed form (Umeyama 1991), as the benchmarks use it.

`model/recipes/alignment.py` has the robust kind for results; a benchmark's is plain least squares over all points.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64


class Degenerate(ValueError):
    """The points determine no rotation: they lie in one place or on one line."""


@dataclass(frozen=True)
class Similarity:
    """b = scale * rotation @ a + translation."""

    scale: float
    rotation: Float64[np.ndarray, "3 3"]
    translation: Float64[np.ndarray, "3"]

    @classmethod
    def fit(
        cls,
        source: Float[np.ndarray, "N 3"],
        target: Float[np.ndarray, "N 3"],
        *,
        scaled: bool = True,
        as_worldtrack: bool = False,
    ) -> "Similarity":
        """Least squares over pairs of finite points; always a proper rotation.

        Args:
            scaled: else the scale is 1.
            as_worldtrack: as WorldTrack's evaluators do it: nothing is refused, and where a mirror image would fit
                better the scale is the plain sum of singular values, from which Umeyama subtracts the smallest.

        Raises:
            Degenerate: fewer than two singular values of the covariance are above 2.2e-16.
        """
        source, target = source.astype(np.float64), target.astype(np.float64)
        source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
        covariance = (target - target_mean).T @ (source - source_mean) / len(source)
        u, singular, vh = np.linalg.svd(covariance)
        if not as_worldtrack and (singular > np.finfo(np.float64).eps).sum() < 2:
            raise Degenerate("the points lie in one place or on one line: they determine no rotation")

        signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vh))])
        rotation = u @ (signs[:, None] * vh)
        scale = 1.0
        if scaled:
            along = singular.sum() if as_worldtrack else (singular * signs).sum()
            scale = float(along / ((source - source_mean) ** 2).sum(axis=1).mean())
        return cls(scale, rotation, target_mean - scale * rotation @ source_mean)

    def __call__(self, points: Float[np.ndarray, "*batch 3"]) -> Float64[np.ndarray, "*batch 3"]:
        return self.scale * points @ self.rotation.T + self.translation
