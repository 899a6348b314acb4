"""Tracks: points followed through a clip."""

from typing import Literal

import torch
from torch import Tensor

from model.d4rt import D4RT, Memory
from model.recipes.asking import prepare
from model.recipes.results import Tracks


@torch.inference_mode()
def tracks(
    model: D4RT,
    video: Tensor,
    uv_norm: Tensor,
    t_src: Tensor,
    *,
    aspect: float | None = None,
    t_cam: int | Literal["target"] = "target",
    memory: Memory | None = None,
    native: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tracks:
    """Follow N points, each seen at `uv_norm` (N, 2) in frame `t_src` (N,), through the clip (paper 2.1).

    t_cam: "target" gives positions in each frame's own camera; a frame number gives "world" positions in its camera.
    """
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
