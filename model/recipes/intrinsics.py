"""From answers to focal lengths (paper 2.1)."""

import torch
from torch import Tensor

CENTRE_MARGIN = 0.05
"""Points this close to the centre of the image, in its widths, say next to nothing about the focal length."""


def focal_lengths(xyz: Tensor, uv_norm: Tensor, aspect: float, *, shared: bool, square: bool) -> Tensor:
    """(fx, fy) of each frame, (T, 2), in units of the image's width and height, from P points (T, P, 3) at (P, 2).

    fx = z (u - 0.5) / x and fy = z (v - 0.5) / y, median over the points; those near the centre and behind the camera
    are left out (paper 2.1). The points of a frame must be in that frame's own camera. NaN for a frame that no point
    tells it of, or that would be mirrored.
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
    focal = focal.masked_fill(focal <= 0, torch.nan)
    return focal.nanmedian(dim=0).values.expand(len(xyz), 2) if shared else focal


def centred(focal: Tensor) -> Tensor:
    """Intrinsics (T, 3, 3) from focal lengths (T, 2), all in units of the image's width and height: the principal point
    is the centre."""
    result = torch.eye(3, dtype=focal.dtype).repeat(len(focal), 1, 1)
    result[:, 0, 0], result[:, 1, 1] = focal.unbind(-1)
    result[:, :2, 2] = 0.5
    return result
