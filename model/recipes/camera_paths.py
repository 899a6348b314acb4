"""Pose and intrinsics of every frame."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.decoder import Prediction
from model.recipes.alignment import Alignment, fit_robust
from model.recipes.asking import AnsweringModel, Encoded, ask_frames, frames_of, output_size, pixel_centres, prepare
from model.recipes.intrinsics import centred, focal_lengths
from model.recipes.known_intrinsics import WithIntrinsics, norm_intrinsics
from model.recipes.results import CameraPath

MIN_GRID = 4
"""Smallest side of the camera grid: 16 points, below which a rigid fit is not to be trusted."""

MIN_OVERLAP = 0.6
"""A keyframe serves as reference while so much of its grid is still inside the frame."""

Reference = int | Literal["keyframes", "sliding"]


@torch.inference_mode()
def cameras(
    model: AnsweringModel,
    video: Tensor | np.ndarray,
    *,
    grid: int = 8,
    reference: Reference = "keyframes",
    width: int | None = None,
    height: int | None = None,
    shared_focal: bool = False,
    square_pixels: bool = True,
    intrinsics: Tensor | np.ndarray | None = None,
    aspect: float | None = None,
    memory: Encoded | None = None,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> CameraPath:
    """Pose and intrinsics of every frame, from a grid x grid of points.

    Pose: the same points at the same instant, asked in the reference camera and in camera j, differ by a rigid motion
    alone. Both answers have t_tgt = t_src, so things that move are frozen and need no mask.

    Args:
        reference: the frame whose camera is the world. Or the world is frame 0 and each camera is fitted to an earlier
            one: to the one before it ("sliding"), or to the last keyframe ("keyframes"), of which there is a new one
            when less than `MIN_OVERLAP` of the grid is left in view. One reference for all sees too little of where a
            moving camera ends; a chain of every frame gathers the error of every frame.
        width, height: frame size in pixels that `intrinsics` refer to; by default of `native`, else of `video`.
        shared_focal: one focal length for the clip (median over its frames) instead of one per frame.
        square_pixels: fx = fy in pixels of the raw frames, whose width / height is the aspect; else each is free.
        intrinsics: known ones, (3, 3) or (T, 3, 3), in pixels of width x height, the principal point anywhere. They are
            the result's, and poses are fitted to points that appear where they do under them (`known_intrinsics`). A
            `WithIntrinsics` model needs none.

    Raises:
        ValueError: a grid too small, a reference outside the clip, intrinsics of another shape or without focal length.
    """
    video, native = frames_of(video), frames_of(native)
    memory, patch_video = prepare(model, video, aspect, memory, native)
    num_frames, (height, width) = memory.num_frames, output_size(video, native, height, width)
    if grid < MIN_GRID:
        raise ValueError(f"grid ({grid}) must be at least {MIN_GRID}: a rigid fit needs {MIN_GRID**2} points")
    if not isinstance(reference, str) and not 0 <= reference < num_frames:
        raise ValueError(
            f"reference ({reference}) must be 'keyframes', 'sliding' or a frame from 0 to {num_frames - 1}"
        )
    if intrinsics is not None:
        model = WithIntrinsics(model, norm_intrinsics(intrinsics, width, height, num_frames))
        memory = model.calibrated(memory)

    t = torch.arange(num_frames)
    uv_norm = pixel_centres(grid, grid)
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    own = ask_frames(model, memory, uv_norm, t_src=t, t_cam=t, **options)
    if isinstance(model, WithIntrinsics):
        lens = model.known.expand(num_frames, 3, 3)
    else:
        focal = focal_lengths(own.xyz, uv_norm, float(memory.aspect[0]), shared=shared_focal, square=square_pixels)
        lens = centred(focal)

    def fit(anchor: Tensor, frames: Tensor) -> tuple[Alignment, Prediction]:
        """cam_from_anchor of each of the frames, and the answers about the anchors' points in their cameras."""
        moved = ask_frames(model, memory, uv_norm, t_src=anchor, t_cam=frames, **options)
        weights = own.confidence[anchor] * moved.confidence
        return fit_robust(own.xyz[anchor], moved.xyz, weights, scale=False), moved

    if reference == "keyframes":
        world_from_cam, residual, inliers = _by_keyframes(fit, lens)
    elif reference == "sliding":
        cam_from_before, residual, inliers = fit((t - 1).clamp(min=0), t)[0]
        world_from_cam = _chained(torch.linalg.inv(cam_from_before))
    else:
        cam_from_world, residual, inliers = fit(torch.full_like(t, reference), t)[0]
        world_from_cam = torch.linalg.inv(cam_from_world)
    in_pixels = lens * torch.tensor([width, height, 1.0])[:, None]
    return CameraPath(world_from_cam.float(), in_pixels.float(), residual, inliers)


def _by_keyframes(fit, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """world_from_cam (T, 4, 4), residual and inliers (T,), the world being camera 0. `lens`: (T, 3, 3), what projects
    positions in each camera to uv_norm."""
    num_frames = len(lens)
    world_from_cam = torch.full((num_frames, 4, 4), torch.nan, dtype=torch.float64)
    residual, inliers = torch.zeros(num_frames), torch.ones(num_frames)
    world_from_cam[0] = torch.eye(4, dtype=torch.float64)
    key = 0
    while key < num_frames - 1:
        frames = torch.arange(key + 1, num_frames)
        (cam_from_key, left, share), moved = fit(torch.full_like(frames, key), frames)
        uv = (moved.xyz / moved.xyz[..., 2:] @ lens[frames].float().mT)[..., :2]
        finite = moved.xyz.isfinite().all(-1)
        inside = finite & (moved.xyz[..., 2] > 0) & (uv >= 0).all(-1) & (uv <= 1).all(-1)
        in_view = (inside.sum(-1) >= MIN_OVERLAP * finite.sum(-1)).int()

        # Up to the last of the frames that see enough of the grid; it is the next keyframe, so its pose must be known.
        reached = int(in_view.argmin()) if not in_view.all() else len(frames)
        known = cam_from_key.isfinite().all(-1).all(-1).nonzero()[:, 0] + 1
        if reached < len(frames):
            near = known[known <= reached]
            reached = int(near[-1]) if len(near) else int(known[0]) if len(known) else len(frames)
        part = slice(key + 1, key + 1 + reached)
        world_from_cam[part] = world_from_cam[key] @ torch.linalg.inv(cam_from_key[:reached])
        residual[part], inliers[part] = left[:reached], share[:reached]
        key += reached
    return world_from_cam, residual, inliers


def _chained(steps: Tensor) -> Tensor:
    """Each (T, 4, 4) after all before it."""
    path = [steps[0]]
    for step in steps[1:]:
        path.append(path[-1] @ step)
    return torch.stack(path)
