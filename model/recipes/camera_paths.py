"""Pose and intrinsics of every frame."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.recipes.alignment import fit_robust
from model.recipes.asking import AnsweringModel, Encoded, ask_frames, frames_of, output_size, pixel_centres, prepare
from model.recipes.intrinsics import focal_lengths
from model.recipes.results import CameraPath

MIN_GRID = 4
"""Smallest side of the camera grid: 16 points, below which a rigid fit is not to be trusted."""


@torch.inference_mode()
def cameras(
    model: AnsweringModel,
    video: Tensor | np.ndarray,
    *,
    grid: int = 8,
    reference: int | Literal["sliding"] = 0,
    width: int | None = None,
    height: int | None = None,
    shared_focal: bool = False,
    square_pixels: bool = True,
    aspect: float | None = None,
    memory: Encoded | None = None,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> CameraPath:
    """Pose and intrinsics of every frame, from a grid x grid of points.

    Pose: the same points at the same instant, asked in the reference camera and in camera j, differ by a rigid motion
    alone. Both answers have t_tgt = t_src, so things that move are frozen and need no mask.

    Args:
        reference: the frame whose camera is the world. "sliding" fits each camera to the one before it and chains,
            which suits large camera motion; the world is then frame 0.
        width, height: frame size in pixels that `intrinsics` refer to; by default of `native`, else of `video`.
        shared_focal: one focal length for the clip (median over its frames) instead of one per frame.
        square_pixels: fx = fy in pixels of the raw frames, whose width / height is the aspect; else each is free.
    """
    video, native = frames_of(video), frames_of(native)
    memory, patch_video = prepare(model, video, aspect, memory, native)
    num_frames, (height, width) = memory.num_frames, output_size(video, native, height, width)
    if grid < MIN_GRID:
        raise ValueError(f"grid ({grid}) must be at least {MIN_GRID}: a rigid fit needs {MIN_GRID**2} points")
    if reference != "sliding" and not 0 <= reference < num_frames:
        raise ValueError(f"reference ({reference}) must be 'sliding' or a frame from 0 to {num_frames - 1}")
    t = torch.arange(num_frames)
    anchor = (t - 1).clamp(min=0) if reference == "sliding" else torch.full_like(t, reference)
    uv_norm = pixel_centres(grid, grid)
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    own = ask_frames(model, memory, uv_norm, t_src=t, t_cam=t, **options)
    moved = ask_frames(model, memory, uv_norm, t_src=anchor, t_cam=t, **options)

    anchor_points = own.xyz[anchor]  # (T, P, 3), camera anchor[t]
    weights = own.confidence[anchor] * moved.confidence
    cam_from_anchor, residual, inliers = fit_robust(anchor_points, moved.xyz, weights, scale=False)
    anchor_from_cam = torch.linalg.inv(cam_from_anchor)
    if reference == "sliding":
        path = [anchor_from_cam[0]]
        for step in anchor_from_cam[1:]:
            path.append(path[-1] @ step)
        anchor_from_cam = torch.stack(path)
    focal = focal_lengths(own.xyz, uv_norm, float(memory.aspect[0]), shared=shared_focal, square=square_pixels)
    intrinsics = torch.zeros(num_frames, 3, 3)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = (focal * torch.tensor([width, height])).unbind(-1)
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = width / 2, height / 2, 1
    return CameraPath(anchor_from_cam.float(), intrinsics, residual, inliers)
