"""A large weight for what moves, in place of its confidence (St4RTrack).

The loss confidence * error - 0.2 log confidence lets a model look away from the points it finds hard, and those are
the ones that move. Where this is on (`loss.dynamic_reweight`), the 3D error of a moving point is multiplied by five
times the largest confidence among its clip's other points, without gradient, from 1 to `loss.max_weight`; its
confidence is not trained. With confidences that only tell the error (`loss.confidence`), no point is looked away from,
and none has a weight but 1: moving ones then have five, or `loss.max_weight`, and their confidence is trained.

A point moves if it is asked about at another time, and its displacement, both ends in the camera of t_cam, is longer
than 1 cm and than the threshold of its clip:

    pair_q75_or_mean   mean or 75 % quantile of the lengths, whichever is larger
    median             of the lengths
    relative_mean      mean of |displacement|_1 / |point at t_src|, compared with the same of the point
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.query_batch import QueryBatch
from train.recipe import Motion

MIN_CANDIDATES = 32  # a clip with fewer known displacements says too little about what is much: all keep confidence
MIN_LENGTH = 0.01  # in the dataset's unit, metres if it has one
FACTOR = 5.0


def moving(batch: QueryBatch, rules: dict[str, Motion]) -> Bool[Tensor, "B Q"]:
    """Which queries are about a point that moves, by the rule of their dataset; none where there is no rule."""
    candidates = (batch.t_src != batch.t_tgt) & batch.xyz_valid & batch.displacement_valid
    length = batch.displacement.norm(dim=-1)
    moves = torch.zeros_like(candidates)
    for number, dataset in enumerate(batch.datasets):
        if dataset in rules:
            measure = relative_length(batch) if rules[dataset] == "relative_mean" else length
            beyond = measure > threshold(measure, candidates, rules[dataset])
            moves |= (batch.dataset == number)[:, None] & beyond
    enough = candidates.sum(1, keepdim=True) >= MIN_CANDIDATES
    return moves & candidates & (length > MIN_LENGTH) & enough


def relative_length(batch: QueryBatch) -> Float[Tensor, "B Q"]:
    """Displacements, L1, by the distance of the point at t_src."""
    start = batch.xyz - batch.displacement
    return batch.displacement.abs().sum(-1) / (start.norm(dim=-1) + 1e-8)


def threshold(measure: Float[Tensor, "B Q"], candidates: Bool[Tensor, "B Q"], rule: Motion) -> Float[Tensor, "B 1"]:
    """Of each clip by itself; NaN, which nothing exceeds, for a clip without candidates."""
    measure = measure.masked_fill(~candidates, torch.nan)
    if rule == "median":
        return measure.nanquantile(0.5, dim=1, keepdim=True)
    mean = measure.nanmean(1, keepdim=True)
    return torch.maximum(mean, measure.nanquantile(0.75, dim=1, keepdim=True)) if rule == "pair_q75_or_mean" else mean


def moving_weight(
    confidence: Float[Tensor, "B Q"], others: Bool[Tensor, "B Q"], max_weight: float
) -> Float[Tensor, "B 1"]:
    """Of the moving points of each clip, from the confidence of its other known points."""
    largest = confidence.detach().where(others, 0).amax(1, keepdim=True)
    return (FACTOR * largest).clamp(1, max_weight)
