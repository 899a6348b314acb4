"""From answers to cameras: rigid motion and focal lengths (paper 2.1; Kabsch 1976, Umeyama 1991)."""

import torch
from torch import Tensor

MIN_POINTS = 16
"""A pose from fewer finite points is not given."""

ROUNDS = 5
"""Reweighted fits after the first; each costs one 3x3 singular value decomposition."""

INLIER_DISTANCE = 0.02
"""A point counts as inlier when what is left of its distance is below this share of the points' typical range."""

CENTRE_MARGIN = 0.05
"""Points this close to the centre of the image, in its widths, say next to nothing about the focal length."""


def fit_rigid(source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The rotation and translation, no scale, that best take source to target in weighted least squares.

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
    covariance = (weights * (target - target_centre)).mT @ (source - source_centre)
    u, _, vh = torch.linalg.svd(covariance)
    u = torch.cat([u[..., :2], u[..., 2:] * torch.linalg.det(u @ vh)[..., None, None]], dim=-1)  # no reflection
    rotation = u @ vh
    target_from_source = torch.eye(4, dtype=torch.float64).repeat(*rotation.shape[:-2], 1, 1)
    target_from_source[..., :3, :3] = rotation
    target_from_source[..., :3, 3] = (target_centre - source_centre @ rotation.mT).squeeze(-2)
    return target_from_source


def fit_rigid_robust(source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`fit_rigid` for points of which some are wrong: refit with the weights of points lowered by what is left.

    A point at r times the median distance keeps 1 / (1 + (r / 2)^2)^2 of its weight (Geman and McClure). Points that
    are not finite are ignored.

    Args:
        source, target: (T, P, 3).
        weights: (T, P), for instance confidences.

    Returns:
        target_from_source (T, 4, 4) float64; the median distance left, relative to the median range of the source
        points, (T,) float32; the share of points below `INLIER_DISTANCE`, (T,) float32. For a frame with fewer than
        `MIN_POINTS` finite points: NaN, NaN and 0.
    """
    finite = source.isfinite().all(-1) & target.isfinite().all(-1)  # (T, P)
    enough = finite.sum(-1) >= MIN_POINTS  # (T,)
    usable = finite | ~enough[:, None]  # frames without enough points are fitted to zeros, then set to NaN
    source, target = (x.double().masked_fill(~finite[..., None], 0) for x in (source, target))
    weights = weights.double().nan_to_num().masked_fill(~usable, 0).clamp(min=1e-12 * usable)
    far = source.norm(dim=-1).masked_fill(~finite, torch.nan).nanmedian(-1).values  # (T,)

    reduced = weights
    for _ in range(1 + ROUNDS):
        target_from_source = fit_rigid(source, target, reduced)
        moved = source @ target_from_source[:, :3, :3].mT + target_from_source[:, None, :3, 3]
        distance = (moved - target).norm(dim=-1)  # (T, P)
        median = distance.masked_fill(~finite, torch.nan).nanmedian(-1).values  # (T,)
        typical = torch.maximum(median, 1e-9 * far)[:, None]
        reduced = weights / (1 + (distance / typical.nan_to_num(1.0) / 2).square()).square()
    share = ((distance < INLIER_DISTANCE * far[:, None]) & finite).double().mean(-1)
    target_from_source = torch.where(enough[:, None, None], target_from_source, torch.nan)
    residual = torch.where(enough, median / far, torch.nan)
    return target_from_source, residual.float(), torch.where(enough, share, 0.0).float()


def focal_lengths(xyz: Tensor, uv_norm: Tensor, aspect: float, *, shared: bool, square: bool) -> Tensor:
    """(fx, fy) of each frame, (T, 2), in units of the image's width and height, from P points (T, P, 3) at (P, 2).

    fx = z (u - 0.5) / x and fy = z (v - 0.5) / y, median over the points; those near the centre and behind the camera
    are left out (paper 2.1). The points of a frame must be in that frame's own camera.
    """
    offset = uv_norm - 0.5  # (P, 2)
    focal = xyz[..., 2:] * offset / xyz[..., :2]  # (T, P, 2)
    usable = (offset.abs() >= CENTRE_MARGIN) & (xyz[..., 2:] > 0) & focal.isfinite()
    focal = focal.masked_fill(~usable, torch.nan)
    if square:  # fx in widths is fx * aspect in heights, so all points estimate the same number
        in_heights = torch.tensor([aspect, 1.0])
        focal = ((focal * in_heights).flatten(1).nanmedian(dim=1).values)[:, None] / in_heights
    else:
        focal = focal.nanmedian(dim=1).values
    return focal.nanmedian(dim=0).values.expand(len(xyz), 2) if shared else focal
