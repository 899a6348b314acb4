"""MoGe's alignments against what they must find: an optimum that no other scale and shift betters, exact where most of
the answers are."""

import numpy as np
import pytest

from pipelines.evaluation import clouds, moge
from pipelines.evaluation.depth import depth_scores


def depths(seed: int = 0, frames: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 20, (frames, 40, 56))
    return truth, (truth - 1.7) / 2.5 * rng.lognormal(0, 0.05, truth.shape)


def test_a_truth_that_is_wrong_in_a_third_of_the_places_moves_nothing() -> None:
    truth, _ = depths()
    said = (truth - 1.7) / 2.5
    truth[np.random.default_rng(1).random(truth.shape) < 0.3] = 55
    found = depth_scores(truth, said, "moge_affine")
    assert (found["scale"], found["shift"]) == pytest.approx((2.5, 1.7), abs=1e-6)
    assert depth_scores(truth, truth / 4, "moge_scale")["abs_rel"] < 1e-12
    assert found["delta_1.25"] == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("alignment", ["moge_scale", "moge_affine"])
def test_no_other_scale_and_shift_has_a_smaller_relative_error(alignment: str) -> None:
    truth, said = depths()
    found = depth_scores(truth, said, alignment)
    g, p = moge.sampled(truth), moge.sampled(said)

    def left(s: float, t: float) -> float:
        return float((np.abs(s * p + t - g) / g).sum())

    best = left(found["scale"], found["shift"])
    for s, t in np.random.default_rng(2).normal(0, [0.01, 0.05], (200, 2)):
        other = found["scale"] * (1 + s), found["shift"] + (t if alignment == "moge_affine" else 0)
        assert best <= left(*other) + 1e-9
    assert found["abs_rel"] < depth_scores(truth, said, "scale_exact")["abs_rel"]


def test_only_the_sample_is_fitted_to_and_all_is_scored() -> None:
    """256 pixels a frame, whatever its size, in the middle of their cells."""
    places = np.arange(48 * 64).reshape(1, 48, 64)
    taken = moge.sampled(places)
    assert taken.shape == (1, 16, 16)
    assert taken[0, 0].tolist() == [64 + 4 * k + 2 for k in range(16)]
    assert moge.sampled(places[:, :7]).shape == (1, 7, 16)
    truth = np.full((1, 48, 64), 3.0)
    said = np.full(truth.shape, 9.0)
    said.reshape(-1)[taken] = 1.5
    found = depth_scores(truth, said, "moge_scale")
    assert found["scale"] == 2
    assert found["delta_1.25"] == pytest.approx(256 / truth.size)


def test_points_are_shifted_on_every_axis() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal([0, 0, 6], 1, (2, 24, 32, 3))
    said = (truth - [0.4, -0.2, 1.0]) / 3
    truth[rng.random(said.shape[:3]) < 0.25] += 5
    valid = np.ones(truth.shape[1:3], bool)
    frames = [clouds.Maps(g, p, valid) for g, p in zip(truth, said, strict=True)]
    found = clouds.cloud_scores(frames)
    s, shift = moge.fit_affine(
        *(np.concatenate([moge.sampled(x[None]).reshape(-1, 3) for x in side]) for side in (truth, said))
    )
    assert s == pytest.approx(3, abs=1e-6)
    np.testing.assert_allclose(shift, [0.4, -0.2, 1.0], atol=1e-6)
    right = float(np.mean(np.linalg.norm(3 * said + [0.4, -0.2, 1.0] - truth, axis=-1) < 0.01))
    assert found["moge"]["delta"] == pytest.approx(right, abs=0.01)
    off = np.linalg.norm(3 * said + [0.4, -0.2, 1.0] - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
    assert found["moge"]["rel"] == pytest.approx(off.mean(), rel=1e-6)


def test_nothing_to_fit_gives_no_number() -> None:
    truth = np.full((1, 20, 20), 3.0)
    assert np.isnan(depth_scores(truth, np.zeros_like(truth), "moge_scale")["scale"])
    assert np.isnan(depth_scores(truth, np.full_like(truth, np.nan), "moge_affine")["abs_rel"])
