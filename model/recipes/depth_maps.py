"""Depth and normals: of every pixel of the frames of a clip, or at points."""

import numpy as np
import torch
from torch import Tensor

from model.queries import Queries
from model.recipes.asking import (
    AnsweringModel,
    Encoded,
    Numbers,
    frames_of,
    output_size,
    pixel_centres,
    points_at,
    prepare,
)
from model.recipes.results import Depth


def depth(
    model: AnsweringModel,
    video: Tensor | np.ndarray,
    *,
    height: int | None = None,
    width: int | None = None,
    aspect: float | None = None,
    memory: Encoded | None = None,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> Depth:
    """Depth of every pixel of every frame, at any resolution: by default that of `native`, else of `video`.

    Pixel (x, y) of the output is asked at ((x + 0.5) / width, (y + 0.5) / height). Of `native` one frame at a time is
    on the model's device; to have no more of them in memory at all, call `frame_depth` for one after the other.
    """
    video, native = frames_of(video), frames_of(native)
    if memory is None and aspect is None and native is not None:
        aspect = native.shape[2] / native.shape[1]
    memory, _ = prepare(model, video, aspect, memory, None)
    if native is not None and len(native) != len(video):
        raise ValueError(f"native has shape {tuple(native.shape)}; it must hold the same {len(video)} raw frames")
    height, width = output_size(video, native, height, width)
    size = {"height": height, "width": width, "chunk_size": chunk_size}
    frames = [None] * memory.num_frames if native is None else native
    maps = [frame_depth(model, memory, t, native_frame=frame, **size) for t, frame in enumerate(frames)]
    return Depth(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in maps), strict=True)))


@torch.inference_mode()
def frame_depth(
    model: AnsweringModel,
    memory: Encoded,
    t: int,
    *,
    height: int,
    width: int,
    native_frame: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> Depth:
    """`depth` of frame t alone, T = 1. `native_frame`: (H, W, 3) uint8, the raw frame, to cut query patches from."""
    uv_norm = pixel_centres(height, width).to(model.device)[None]
    now = torch.full(uv_norm.shape[:2], t, device=model.device)
    patch_video = None if native_frame is None else frames_of(native_frame).to(model.device)[None, None]
    queries = Queries(uv_norm, now, now, now)
    answers = model.decode(memory, queries, chunk_size=chunk_size, patch_video=patch_video)
    z = answers.xyz[0, :, 2].cpu()
    return Depth(
        depth=torch.where(z > 0, z, torch.nan).view(1, height, width),
        normal=answers.normal[0].cpu().view(1, height, width, 3),
        confidence=answers.confidence[0].cpu().view(1, height, width),
    )


@torch.inference_mode()
def depth_at(
    model: AnsweringModel,
    memory: Encoded,
    uv_norm: Numbers,
    t_src: Numbers,
    *,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Depth of N points seen at `uv_norm` (N, 2) in frames `t_src` (N,), or in one frame: (N,) float32, NaN where the
    model puts it behind the camera."""
    points, frames = points_at(uv_norm, t_src)
    frames = frames.to(model.device)[None]
    queries = Queries(points.to(model.device)[None], frames, frames, frames)
    patch_video = None if native is None else frames_of(native).to(model.device)[None]
    z = model.decode(memory, queries, chunk_size=chunk_size, patch_video=patch_video).xyz[0, :, 2].cpu()
    return torch.where(z > 0, z, torch.nan)
