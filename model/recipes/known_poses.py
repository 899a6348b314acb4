"""Known camera poses, for a model that takes none: what it says is laid into their world, in their unit.

One similarity for all cameras: its rotation from how they are turned, which is known even if they stand on a line; its
scale and shift from where they are, by least squares. So a model without a scale gets the unit of the poses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_BASELINE = 1e-4
"""Of cameras that stand within so much of one another, relative to their distance from the points, no scale is told."""


@dataclass(frozen=True)
class PoseFit:
    """How cameras lie on known ones."""

    known_from_world: Tensor
    """(4, 4) float64, with a scale."""
    position: float
    """Root mean square distance left between the cameras, in the unit of the known poses."""
    rotation: float
    """Median angle left, in degrees."""
    cameras: int
    """How many are in both."""


def fit_poses(world_from_cam: Tensor, known: Tensor, distance: float) -> PoseFit:
    """The similarity between cameras (T, 4, 4) and known ones (T, 4, 4), either NaN where it is not known.

    Args:
        distance: of typical points from the cameras, in the unit of `world_from_cam`.

    Raises:
        ValueError: fewer than two cameras in both, or they do not move.
    """
    both = world_from_cam.isfinite().all(-1).all(-1) & known.isfinite().all(-1).all(-1)
    poses, known = world_from_cam[both].double(), known[both].double()
    if len(poses) < 2:
        raise ValueError(f"{len(poses)} of the known poses are of frames whose camera was found: two are needed")
    u, _, vh = torch.linalg.svd((known[:, :3, :3] @ poses[:, :3, :3].mT).sum(dim=0))
    proper = torch.diag(torch.tensor([1.0, 1.0, float(torch.det(u @ vh))], dtype=torch.float64))
    rotation = u @ proper @ vh

    centre, known_centre = poses[:, :3, 3].mean(dim=0), known[:, :3, 3].mean(dim=0)
    moved, there = (poses[:, :3, 3] - centre) @ rotation.T, known[:, :3, 3] - known_centre
    if moved.norm(dim=-1).max() < MIN_BASELINE * distance or there.norm(dim=-1).max() == 0:
        raise ValueError("the cameras of the known poses, or those that were found, do not move: no scale can be told")
    scale = (moved * there).sum() / moved.square().sum()
    if scale <= 0:
        raise ValueError("the cameras that were found move against the known poses: are these world_from_cam?")
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[:3, :3] = scale * rotation
    similarity[:3, 3] = known_centre - scale * rotation @ centre
    cosine = ((known[:, :3, :3].mT @ rotation @ poses[:, :3, :3]).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return PoseFit(
        known_from_world=similarity,
        position=float((scale * moved - there).square().sum(dim=-1).mean().sqrt()),
        rotation=float(cosine.clamp(-1, 1).acos().rad2deg().median()),
        cameras=len(poses),
    )
