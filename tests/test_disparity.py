"""Depth aligned in disparity, against closed forms."""

import numpy as np
import pytest

from pipelines.evaluation.depth import depth_scores
from pipelines.evaluation.disparity import Rule, disparity_scores

TRUTH = np.random.default_rng(0).uniform(0.5, 9, (3, 20, 30))


def test_an_affine_change_of_disparity_is_found_and_none_of_depth() -> None:
    changed = 1 / (0.4 / TRUTH + 0.3)
    found = disparity_scores(TRUTH, changed, Rule(cap=10.0))
    assert found["abs_rel"] < 1e-6
    assert found["delta_1.25"] == 1
    assert found["scale"] == pytest.approx(1 / 0.4, rel=1e-6)
    assert found["shift"] == pytest.approx(-0.75, rel=1e-6)
    assert depth_scores(TRUTH, changed, "scale_shift_exact")["abs_rel"] > 0.05
    assert disparity_scores(TRUTH, TRUTH + 3, Rule(cap=10.0))["abs_rel"] > 0.02


def test_frames_weigh_alike_and_what_is_cut_off_does_not_count() -> None:
    truth = TRUTH.copy()
    truth[0, :, 3:] = np.nan  # a frame with a tenth of the pixels
    said = truth.copy()
    said[0, :, :3] *= 1.1
    found = disparity_scores(truth, said, Rule(cap=10.0))
    alone = disparity_scores(truth, said, Rule(cap=10.0, frames=1))
    assert alone["abs_rel"] < 1e-6
    assert found["abs_rel"] > 0.02  # a third of a tenth, less what the fit takes; a thirtieth of that by pixels

    spoiled = TRUTH.copy()
    spoiled[:, :2], spoiled[:, :, -5:] = 100, 100
    assert disparity_scores(TRUTH, spoiled, Rule(cap=10.0))["abs_rel"] > 0.05
    assert disparity_scores(TRUTH, spoiled, Rule(cap=10.0, border=(2, 5)))["abs_rel"] < 1e-6
    assert disparity_scores(np.where(TRUTH > 5, 50, TRUTH), TRUTH, Rule(cap=10.0))["abs_rel"] < 1e-6  # beyond the cap


def test_what_is_no_depth_counts_as_wrong() -> None:
    said = TRUTH.copy()
    said[:, :10] = np.nan
    said[:, 10, :15] = -1
    found = disparity_scores(TRUTH, said, Rule(cap=10.0))
    assert found["abs_rel"] < 1e-6
    assert found["delta_1.25"] == pytest.approx(1 - (10 * 30 + 15) / 600)
    assert np.isnan(disparity_scores(TRUTH, np.full_like(TRUTH, np.nan), Rule(cap=10.0))["abs_rel"])
