"""What counts as moving, and with what weight: one query after the other, as St4RTrack's rules are worded."""

import dataclasses

import numpy as np
import pytest
import torch
from test_losses import NO_WARMUP, numbers, random_batch, random_prediction

from train import losses
from train.reweight import moving

RULES = ("pair_q75_or_mean", "median", "relative_mean")
QUERIES = 80


def expected_moving(batch, clip: int, rule: str) -> np.ndarray:
    candidates, lengths, relative = [], {}, {}
    for q in range(batch.xyz.shape[1]):
        if batch.t_src[clip, q] == batch.t_tgt[clip, q]:
            continue
        if not (batch.xyz_valid[clip, q] and batch.displacement_valid[clip, q]):
            continue
        end, motion = numbers(batch.xyz)[clip, q], numbers(batch.displacement)[clip, q]
        candidates.append(q)
        lengths[q] = np.sqrt((motion**2).sum())
        relative[q] = np.abs(motion).sum() / (np.sqrt(((end - motion) ** 2).sum()) + 1e-8)
    moves = np.zeros(batch.xyz.shape[1], bool)
    if len(candidates) < 32:
        return moves
    values = np.array([lengths[q] for q in candidates])
    theta = {
        "pair_q75_or_mean": max(values.mean(), np.quantile(values, 0.75)),
        "median": np.median(values),
        "relative_mean": np.mean([relative[q] for q in candidates]),
    }[rule]
    for q in candidates:
        moves[q] = (relative if rule == "relative_mean" else lengths)[q] > theta and lengths[q] > 0.01
    return moves


def clips(kind: str):
    """Four clips whose displacements are skewed in different ways."""
    batch = random_batch(seed=5, queries=QUERIES)
    g = torch.Generator().manual_seed(6)
    size = torch.rand(4, QUERIES, 1, generator=g)
    batch.displacement.mul_({"many small": size**4, "few large": (size > 0.9) * 1.0, "tiny": 0.001 * size}[kind])
    return batch


@pytest.mark.parametrize("kind", ["many small", "few large", "tiny"])
@pytest.mark.parametrize("rule", RULES)
def test_moving_points_are_those_of_the_rule_clip_by_clip(rule, kind):
    batch = clips(kind)
    batch.xyz_valid[1, 40:] = False  # below 32 candidates
    found = numbers(moving(batch, {"kubric": rule, "scannet": rule})).astype(bool)
    for clip in range(4):
        np.testing.assert_array_equal(found[clip], expected_moving(batch, clip, rule))
    assert not found[1].any()
    assert found.any() == (kind != "tiny")


def test_each_dataset_has_its_own_rule_and_others_none():
    batch = clips("many small")
    both = numbers(moving(batch, {"kubric": "median", "scannet": "relative_mean"})).astype(bool)
    for clip, rule in enumerate(("median", "relative_mean") * 2):
        np.testing.assert_array_equal(both[clip], expected_moving(batch, clip, rule))
    alone = moving(batch, {"kubric": "median"})
    assert alone[0].any() and not alone[1].any()


def test_equal_lengths_do_not_exceed_their_own_threshold():
    batch = clips("many small")
    batch.displacement[:] = torch.tensor([0.0, 3.0, 4.0])
    for rule in ("pair_q75_or_mean", "median"):
        assert not moving(batch, {"kubric": rule, "scannet": rule}).any()


@pytest.mark.parametrize("max_weight", [5.0, 2.0])
def test_moving_points_get_a_large_weight_and_no_penalty(max_weight):
    rules = {"kubric": "median", "scannet": "median"}
    paper = dataclasses.replace(NO_WARMUP, confidence="paper")
    config = dataclasses.replace(paper, dynamic_reweight=rules, max_weight=max_weight)
    batch, prediction = clips("many small"), random_prediction(queries=QUERIES)
    prediction.confidence_logit[2] -= 9  # so unsure that the weight is at its floor
    prediction.confidence_logit.requires_grad_()
    plain, changed = (losses.loss_terms(prediction, batch, c, 0) for c in (paper, config))
    moves = numbers(moving(batch, rules)).astype(bool)
    known, c = numbers(batch.xyz_valid).astype(bool), 1 / (1 + np.exp(-numbers(prediction.confidence_logit)))
    error = numbers(plain["l3d"][0]) / c
    for clip in range(4):
        weight = min(max(5 * c[clip, known[clip] & ~moves[clip]].max(), 1), max_weight)
        expected = np.where(moves[clip], weight, c[clip]) * error[clip]
        np.testing.assert_allclose(numbers(changed["l3d"][0])[clip], expected, rtol=1e-4)
        np.testing.assert_allclose(
            numbers(changed["lconf"][0])[clip], np.where(moves[clip], 0, -np.log(c[clip])), rtol=1e-4, atol=1e-6
        )
    for name in losses.TERMS:
        assert torch.equal(changed[name][1], plain[name][1])  # the same queries count
        if name not in ("l3d", "lconf"):
            assert torch.equal(changed[name][0], plain[name][0])
    moving_part = (changed["l3d"][0] + changed["lconf"][0])[torch.from_numpy(moves)].sum()
    (gradient,) = torch.autograd.grad(moving_part, prediction.confidence_logit)
    assert not gradient.any()
