"""Tracks: points followed through a clip."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.recipes.asking import AnsweringModel, Encoded, Numbers, frames_of, points_at, prepare
from model.recipes.results import Tracks


@torch.inference_mode()
def tracks(
    model: AnsweringModel,
    video: Tensor | np.ndarray,
    uv_norm: Numbers,
    t_src: Numbers,
    *,
    aspect: float | None = None,
    t_cam: int | Literal["target"] = "target",
    memory: Encoded | None = None,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> Tracks:
    """Follow N points, each seen at `uv_norm` (N, 2) in frame `t_src` (N,), or one for all, through the clip (2.1).

    t_cam: "target" gives positions in each frame's own camera; a frame number gives "world" positions in its camera.
    """
    uv_norm, t_src = points_at(uv_norm, t_src)
    video, native = frames_of(video), frames_of(native)
    memory, patch_video = prepare(model, video, aspect, memory, native)
    times = torch.arange(memory.num_frames, device=model.device)[None]  # (1, T)
    answers = model.decode_times(
        memory,
        uv_norm.to(model.device)[None],
        t_src.to(model.device)[None],
        times,
        times if t_cam == "target" else torch.full_like(times, t_cam),
        chunk_size=chunk_size,
        patch_video=patch_video,
    )
    shape = (len(uv_norm), memory.num_frames)
    return Tracks(
        xyz=answers.xyz.cpu().view(*shape, 3),
        uv_norm=answers.uv_tgt.cpu().view(*shape, 2),
        visible=answers.visible.cpu().view(shape),
        confidence=answers.confidence.cpu().view(shape),
        t_cam=t_cam,
    )
