"""Sim(3) from one set of points to another (Umeyama 1991), as the benchmarks use it: in closed form, or by RANSAC.

`model/recipes/alignment.py` has the robust kind for results; a benchmark's is what its evaluators do, to the letter.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

DRAWS, AT_ONCE = 1000, 50  # triples of RANSAC
NEAR = 0.05  # metres, strictly: inliers
MOST_PAIRS = 16_384  # that RANSAC looks at, of all a sample


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
        return cls.of_moments(Moments.of(source, target), scaled=scaled, as_worldtrack=as_worldtrack)

    @classmethod
    def of_moments(cls, moments: "Moments", *, scaled: bool = True, as_worldtrack: bool = False) -> "Similarity":
        """`fit`, of points that are no longer there."""
        u, singular, vh = np.linalg.svd(moments.covariance)
        if not as_worldtrack and (singular > np.finfo(np.float64).eps).sum() < 2:
            raise Degenerate("the points lie in one place or on one line: they determine no rotation")

        rotation, along = _turned(u, singular, vh, mirrored_too=as_worldtrack)
        scale = float(along / moments.variance) if scaled else 1.0
        return cls(scale, rotation, moments.target - scale * rotation @ moments.source)

    @classmethod
    def ransac(
        cls,
        source: Float[np.ndarray, "N 3"],
        target: Float[np.ndarray, "N 3"],
        rng: np.random.Generator | None = None,
    ) -> "Similarity":
        """As OpenD4RT's evaluator: `DRAWS` triples, of generator 0 if none is given; the first with most pairs nearer
        than `NEAR` after it, then the fit of these pairs. Raises Degenerate for fewer than three finite pairs."""
        if len(source) < 3:
            raise Degenerate("fewer than three pairs of finite points")
        source, target, rng = source.astype(np.float64), target.astype(np.float64), rng or np.random.default_rng(0)
        if len(source) > MOST_PAIRS:
            kept = rng.choice(len(source), MOST_PAIRS, replace=False)
            source, target = source[kept], target[kept]

        triples = np.stack([rng.choice(len(source), 3, replace=False) for _ in range(DRAWS)])
        best = np.zeros(len(source), bool)
        for drawn in np.split(triples, range(AT_ONCE, DRAWS, AT_ONCE)):
            for near in _near(source, target, drawn):
                if near.sum() > best.sum():
                    best = near
        if best.sum() < 3:
            raise Degenerate(f"no three pairs are nearer than {NEAR} m after any of {DRAWS} fits")
        return cls.fit(source[best], target[best], as_worldtrack=True)

    def __call__(self, points: Float[np.ndarray, "*batch 3"]) -> Float64[np.ndarray, "*batch 3"]:
        return self.scale * points @ self.rotation.T + self.translation


@dataclass(frozen=True)
class Moments:
    """What a similarity is fitted to, of pairs of points."""

    source: Float64[np.ndarray, "3"]
    target: Float64[np.ndarray, "3"]
    """Means."""
    covariance: Float64[np.ndarray, "3 3"]
    """Of target and source."""
    variance: float
    """Of the source, its three coordinates together."""

    @classmethod
    def of(cls, source: Float64[np.ndarray, "N 3"], target: Float64[np.ndarray, "N 3"]) -> "Moments":
        source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
        covariance = (target - target_mean).T @ (source - source_mean) / len(source)
        return cls(source_mean, target_mean, covariance, float(((source - source_mean) ** 2).sum(axis=1).mean()))


def _turned(
    u: Float64[np.ndarray, "*batch 3 3"],
    singular: Float64[np.ndarray, "*batch 3"],
    vh: Float64[np.ndarray, "*batch 3 3"],
    *,
    mirrored_too: bool,
) -> tuple[Float64[np.ndarray, "*batch 3 3"], Float64[np.ndarray, "*batch"] | float]:
    """(the rotation, what the scale is made of). `mirrored_too`: that of a mirror image is not made smaller."""
    signs = np.ones_like(singular)
    signs[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vh))
    rotation = u @ (signs[..., :, None] * vh)
    return rotation, singular.sum(axis=-1) if mirrored_too else (singular * signs).sum(axis=-1)


def _near(
    source: Float64[np.ndarray, "N 3"], target: Float64[np.ndarray, "N 3"], drawn: np.ndarray
) -> Bool[np.ndarray, "draws N"]:
    """Which pairs are nearer than `NEAR` after the fit of each of these triples."""
    a, b = source[drawn], target[drawn]
    a_mean, b_mean = a.mean(axis=1, keepdims=True), b.mean(axis=1, keepdims=True)
    covariance = (b - b_mean).swapaxes(1, 2) @ (a - a_mean) / 3
    rotation, along = _turned(*np.linalg.svd(covariance), mirrored_too=True)
    with np.errstate(all="ignore"):  # three points in one place
        scale = along / ((a - a_mean) ** 2).sum(axis=2).mean(axis=1)
        moved = (scale[:, None, None] * rotation) @ source.T
        offset = b_mean[:, 0] - np.einsum("nij,nj->ni", scale[:, None, None] * rotation, a_mean[:, 0])
        return ((moved + offset[:, :, None] - target.T) ** 2).sum(axis=1) < NEAR**2
