"""The motion between two sets of points of which some are wrong: SE(3), or Sim(3) with a scale.

Kabsch 1976 in closed form, reweighted by what is left (Geman and McClure 1985). The scale is Horn's symmetric one
(1987, section 2.E), the ratio of both spreads: that of least squares (Umeyama 1991) takes the source for exact, and
where both sets are off alike it is too small each time, which over the windows of a long video multiplies. A similarity
is a matrix (4, 4) as a rigid motion is, its upper left being scale times rotation, so both compose and move points
alike.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MIN_POINTS = 16
"""A motion from fewer finite points is not given."""

MIN_SPREAD = 1e-8
"""Nor one from points on a line: of their variances along its direction and across, this is the least ratio."""

ROUNDS = 20
"""Reweighted fits after the first; each costs one 3x3 singular value decomposition."""

RIGHT_SHARE = 0.5
"""Of the points, at least so many are taken to be right: the typical distance left is the median of theirs."""

INLIER_DISTANCE = 0.02
"""A point counts as inlier when what is left of its distance is below this share of the points' typical range."""


class Alignment(NamedTuple):
    """How well one set of points lies on another, once moved."""

    target_from_source: Tensor
    """(..., 4, 4) float64; NaN where there are too few points, or all of them are on a line."""
    residual: Tensor
    """(...,) float32: distance left at a typical point of those that are right, relative to the median range of the
    target points. NaN with the motion."""
    inliers: Tensor
    """(...,) float32: share of the points that are left with less than `INLIER_DISTANCE` of that range."""


def move(target_from_source: Tensor, xyz: Tensor) -> Tensor:
    """Points (..., P, 3) moved by (..., 4, 4), rigid or with a scale, in the dtype of the points."""
    matrix = target_from_source.to(torch.float64)
    moved = xyz.double() @ matrix[..., :3, :3].mT + matrix[..., None, :3, 3]
    return moved.to(xyz.dtype)


def scale_of(similarity: Tensor) -> Tensor:
    """By how much (..., 4, 4) lengthens, (...,)."""
    return torch.linalg.det(similarity[..., :3, :3]).pow(1 / 3)


def move_camera(similarity: Tensor, pose: Tensor) -> Tensor:
    """Where cameras (..., 4, 4) are after a similarity: moved and turned, but rigid as before."""
    moved = similarity @ pose
    moved[..., :3, :3] /= scale_of(similarity)[..., None, None]
    return moved


def fit(source: Tensor, target: Tensor, weights: Tensor, *, scale: bool) -> Tensor:
    """The motion that best takes source to target in weighted least squares; with `scale`, a similarity, whose scale is
    the ratio of their spreads: of target to source it is the inverse.

    Always a proper rotation, also where a mirror image would fit better or the points lie in a plane.

    Args:
        source, target: (..., P, 3), finite.
        weights: (..., P), not negative.

    Returns:
        target_from_source (..., 4, 4) float64.
    """
    source, target = source.double(), target.double()
    weights = weights.double()[..., None] / weights.double().sum(dim=-1)[..., None, None]
    source_centre = (weights * source).sum(dim=-2, keepdim=True)  # (..., 1, 3)
    target_centre = (weights * target).sum(dim=-2, keepdim=True)
    source, target = source - source_centre, target - target_centre
    u, _, vh = torch.linalg.svd((weights * target).mT @ source)
    mirrored = torch.linalg.det(u @ vh)[..., None]
    rotation = torch.cat([u[..., :2], u[..., 2:] * mirrored[..., None]], dim=-1) @ vh  # no reflection
    if scale:
        before, after = ((weights * points.square()).sum(dim=(-1, -2)) for points in (source, target))
        rotation = rotation * (after / before.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()[..., None, None]
    target_from_source = torch.eye(4, dtype=torch.float64).repeat(*rotation.shape[:-2], 1, 1)
    target_from_source[..., :3, :3] = rotation
    target_from_source[..., :3, 3] = (target_centre - source_centre @ rotation.mT).squeeze(-2)
    return target_from_source


def fit_robust(source: Tensor, target: Tensor, weights: Tensor, *, scale: bool) -> Alignment:
    """`fit` for points of which some are wrong: refit with the weights of points lowered by what is left.

    A point at r times the typical distance keeps 1 / (1 + (r / 2)^2)^2 of its weight (Geman and McClure). Points that
    are not finite are ignored.

    Args:
        source, target: (T, P, 3).
        weights: (T, P), for instance confidences.
    """
    finite = source.isfinite().all(-1) & target.isfinite().all(-1)  # (T, P)
    enough = (finite.sum(-1) >= MIN_POINTS) & _spread(source, finite)  # (T,)
    usable = finite | ~enough[:, None]  # what cannot be fitted is fitted to anything, then set to NaN
    source, target = (x.double().masked_fill(~finite[..., None], 0) for x in (source, target))
    weights = weights.double().nan_to_num().masked_fill(~usable, 0).clamp(min=1e-12 * usable)
    far = _quantile(target.norm(dim=-1), finite, 0.5)  # (T,)

    reduced = weights
    for _ in range(1 + ROUNDS):
        target_from_source = fit(source, target, reduced, scale=scale)
        distance = (move(target_from_source, source) - target).norm(dim=-1)  # (T, P)
        left = _quantile(distance, finite, RIGHT_SHARE / 2)  # (T,)
        typical = torch.maximum(left, 1e-9 * far).nan_to_num(1.0)[:, None]
        typical = typical.clamp(min=torch.finfo(torch.float64).tiny)  # where all points are one
        reduced = weights / (1 + (distance / typical / 2).square()).square()
    share = ((distance < INLIER_DISTANCE * far[:, None]) & finite).double().mean(-1)
    return Alignment(
        torch.where(enough[:, None, None], target_from_source, torch.nan),
        torch.where(enough, left / far, torch.nan).float(),
        torch.where(enough, share, 0.0).float(),
    )


def _quantile(values: Tensor, usable: Tensor, share: float) -> Tensor:
    return values.masked_fill(~usable, torch.nan).nanquantile(share, dim=-1)


def _spread(points: Tensor, usable: Tensor) -> Tensor:
    """Do the points (T, P, 3) lie in more than one direction, (T,)?"""
    count = usable.sum(-1).clamp(min=1)[:, None, None]
    points = points.double().masked_fill(~usable[..., None], 0)
    centred = (points - points.sum(-2, keepdim=True) / count).masked_fill(~usable[..., None], 0)
    variances = torch.linalg.eigvalsh(centred.mT @ centred / count)  # ascending
    return variances[:, 1] > MIN_SPREAD * variances[:, 2]
