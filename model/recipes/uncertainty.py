"""How sure an answer is, told by asking beside it: its spread when the pixel moves by less than half."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.queries import Queries
from model.recipes.asking import AnsweringModel, Encoded


@torch.inference_mode()
def jitter(
    model: AnsweringModel,
    memory: Encoded,
    queries: Queries,
    *,
    height: int,
    width: int,
    times: int = 8,
    seed: int = 0,
    chunk_size: int | None = None,
    patch_video: Tensor | None = None,
) -> Tensor:
    """The root mean square distance of `times` answers from their mean, (B, Q) float32, in the model's unit.

    Each is asked at a place drawn evenly from the pixel of a height x width frame around `uv_norm`, and kept inside the
    frame. On a smooth surface this is about what a pixel spans; where it is much more, the answer hangs on an edge.

    Raises ValueError for fewer than two times.
    """
    answers = [
        model.decode(memory, replace(queries, uv_norm=moved), chunk_size=chunk_size, patch_video=patch_video).xyz
        for moved in _beside(queries.uv_norm, height, width, times, seed)
    ]
    return _spread(answers)


@torch.inference_mode()
def jitter_tracks(
    model: AnsweringModel,
    memory: Encoded,
    uv_norm: Tensor,
    t_src: Tensor,
    *,
    height: int,
    width: int,
    times: int = 8,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Tensor:
    """`jitter` of tracks of N points, seen at uv_norm (N, 2) in frames t_src (N,): (N, T), in each frame's camera."""
    frames = torch.arange(memory.num_frames, device=model.device)[None]
    t_src = t_src.to(model.device)[None]
    answers = [
        model.decode_times(memory, moved, t_src, frames, frames, chunk_size=chunk_size).xyz
        for moved in _beside(uv_norm.to(model.device)[None], height, width, times, seed)
    ]
    return _spread(answers).view(len(uv_norm), memory.num_frames)


def _beside(uv_norm: Tensor, height: int, width: int, times: int, seed: int) -> Iterator[Tensor]:
    """Places in the pixels around, so many times."""
    if times < 2:
        raise ValueError(f"times ({times}) must be at least 2: one answer has no spread")
    generator = torch.Generator().manual_seed(seed)
    pixel = torch.tensor([1 / width, 1 / height])
    for _ in range(times):
        offset = (torch.rand(uv_norm.shape, generator=generator) - 0.5) * pixel
        yield (uv_norm + offset.to(uv_norm)).clamp(0, 1)


def _spread(answers: Sequence[Tensor]) -> Tensor:
    """Of positions (..., 3) about their mean, (...)."""
    xyz = torch.stack(list(answers))
    return (xyz - xyz.mean(dim=0)).square().sum(dim=-1).mean(dim=0).sqrt().cpu()
