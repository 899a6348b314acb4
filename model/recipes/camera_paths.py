"""Pose and intrinsics of every frame."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.decoder import Prediction
from model.recipes.alignment import Alignment, fit_robust
from model.recipes.asking import AnsweringModel, Encoded, ask_frames, frames_of, output_size, pixel_centres, prepare
from model.recipes.intrinsics import focal_lengths
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
            the result's, and points are moved in x and y to where they appear under them before poses are fitted.

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
    known = None if intrinsics is None else _known_intrinsics(intrinsics, num_frames, width, height)

    t = torch.arange(num_frames)
    uv_norm = pixel_centres(grid, grid)
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    own = ask_frames(model, memory, uv_norm, t_src=t, t_cam=t, **options)
    focal = focal_lengths(own.xyz, uv_norm, float(memory.aspect[0]), shared=shared_focal, square=square_pixels)
    rays = Rays(focal, known)

    def fit(anchor: Tensor, frames: Tensor) -> tuple[Alignment, Prediction]:
        """cam_from_anchor of each of the frames, and the answers about the anchors' points in their cameras."""
        moved = ask_frames(model, memory, uv_norm, t_src=anchor, t_cam=frames, **options)
        weights = own.confidence[anchor] * moved.confidence
        points = rays.corrected(own.xyz[anchor], anchor), rays.corrected(moved.xyz, frames)
        return fit_robust(*points, weights, scale=False), moved

    if reference == "keyframes":
        world_from_cam, residual, inliers = _by_keyframes(fit, rays, num_frames)
    elif reference == "sliding":
        cam_from_before, residual, inliers = fit((t - 1).clamp(min=0), t)[0]
        world_from_cam = _chained(torch.linalg.inv(cam_from_before))
    else:
        cam_from_world, residual, inliers = fit(torch.full_like(t, reference), t)[0]
        world_from_cam = torch.linalg.inv(cam_from_world)
    return CameraPath(world_from_cam.float(), rays.intrinsics(width, height), residual, inliers)


class Rays:
    """Where points appear: by the focal lengths that the answers have among themselves, and by known intrinsics.

    All in units of the image's width and height.
    """

    def __init__(self, focal: Tensor, known: Tensor | None) -> None:
        self.focal, self.known = focal, known  # (T, 2), (T, 3, 3) or None

    def corrected(self, xyz: Tensor, frames: Tensor) -> Tensor:
        """Points (F, P, 3) in cameras of the frames (F,), moved in x and y to where those see them under the known
        intrinsics: X = z K^-1 (u, v, 1), with u and v where the model's own focal length has them."""
        if self.known is None:
            return xyz
        depth = xyz[..., 2:]
        uv = self.project(xyz, frames)
        known = self.known[frames]
        focal, centre = known[:, None, (0, 1), (0, 1)], known[:, None, :2, 2]
        return torch.cat([(uv - centre) / focal * depth, depth], dim=-1)

    def project(self, xyz: Tensor, frames: Tensor) -> Tensor:
        """(F, P, 3) -> uv_norm (F, P, 2) by the model's own focal length."""
        return xyz[..., :2] / xyz[..., 2:] * self.focal[frames][:, None] + 0.5

    def intrinsics(self, width: int, height: int) -> Tensor:
        """(T, 3, 3) float32 in pixels."""
        size = torch.tensor([width, height, 1.0])
        if self.known is not None:
            return (self.known * size[:, None]).float()
        result = torch.zeros(len(self.focal), 3, 3)
        result[:, 0, 0], result[:, 1, 1] = (self.focal * size[:2]).unbind(-1)
        result[:, 0, 2], result[:, 1, 2], result[:, 2, 2] = width / 2, height / 2, 1
        return result


def _by_keyframes(fit, rays: Rays, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """world_from_cam (T, 4, 4), residual and inliers (T,), the world being camera 0."""
    world_from_cam = torch.full((num_frames, 4, 4), torch.nan, dtype=torch.float64)
    residual, inliers = torch.zeros(num_frames), torch.ones(num_frames)
    world_from_cam[0] = torch.eye(4, dtype=torch.float64)
    key = 0
    while key < num_frames - 1:
        frames = torch.arange(key + 1, num_frames)
        (cam_from_key, left, share), moved = fit(torch.full_like(frames, key), frames)
        uv = rays.project(moved.xyz, frames)
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


def _known_intrinsics(intrinsics: Tensor | np.ndarray, num_frames: int, width: int, height: int) -> Tensor:
    """(T, 3, 3) float64 in units of the image's width and height. Raises ValueError."""
    known = torch.as_tensor(intrinsics).double()
    if known.shape not in ((3, 3), (num_frames, 3, 3)):
        raise ValueError(
            f"intrinsics have shape {tuple(known.shape)}; they must be (3, 3), or ({num_frames}, 3, 3), one per frame"
        )
    known = known.expand(num_frames, 3, 3)
    if not (known.isfinite().all() and (known[:, (0, 1), (0, 1)] > 0).all()):
        raise ValueError("intrinsics must be finite, with fx and fy above 0")
    return known / torch.tensor([width, height, 1.0], dtype=torch.float64)[:, None]
