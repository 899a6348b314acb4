"""Where points may be after the video ends. The model knows nothing of it: this is motion at a constant velocity."""

import torch
from torch import Tensor

from model.recipes.results import Forecast, Tracks

HISTORY = 5
"""The last so many visible positions give the velocity."""


def extrapolate(tracks: Tracks, num_frames: int) -> Forecast:
    """Positions in the `num_frames` frames after the last, on the straight line of least squares through the last
    `HISTORY` visible positions of each track.

    Raises ValueError for tracks that are not in one camera: how the camera goes on is not known.
    """
    if tracks.t_cam == "target":
        raise ValueError("only tracks in one camera can be extrapolated: ask for them with t_cam=0, not 'target'")
    if num_frames < 1:
        raise ValueError(f"num_frames ({num_frames}) must be at least 1")
    length = tracks.xyz.shape[1]
    usable = tracks.visible & tracks.xyz.isfinite().all(dim=-1)  # (N, T)
    recent = usable & (usable.flip(1).cumsum(dim=1).flip(1) <= HISTORY)
    weights = recent.double()[..., None]  # (N, T, 1)
    count = weights.sum(dim=1, keepdim=True)

    t = torch.arange(length, dtype=torch.float64)[None, :, None]
    xyz = tracks.xyz.double().masked_fill(~recent[..., None], 0)
    mean_t, mean_xyz = ((weights * x).sum(dim=1, keepdim=True) / count for x in (t, xyz))
    variance = (weights * (t - mean_t).square()).sum(dim=1, keepdim=True)
    velocity = (weights * (t - mean_t) * (xyz - mean_xyz)).sum(dim=1, keepdim=True) / variance  # 0 / 0: NaN

    ahead = torch.arange(length, length + num_frames, dtype=torch.float64)[None, :, None]
    last_seen = torch.where(usable, torch.arange(length), -1).amax(dim=1) if length else torch.zeros(0)
    found: Tensor = mean_xyz + (ahead - mean_t) * velocity
    return Forecast(xyz=found.float(), velocity=velocity[:, 0].float(), last_seen=last_seen, t_cam=tracks.t_cam)
