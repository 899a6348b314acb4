"""How sure an answer is, told by asking beside it: its spread when the pixel moves by less than half."""

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
    if times < 2:
        raise ValueError(f"times ({times}) must be at least 2: one answer has no spread")
    generator = torch.Generator().manual_seed(seed)
    pixel = torch.tensor([1 / width, 1 / height])
    answers = []
    for _ in range(times):
        offset = (torch.rand(queries.uv_norm.shape, generator=generator) - 0.5) * pixel
        moved = (queries.uv_norm + offset.to(queries.uv_norm)).clamp(0, 1)
        beside = Queries(moved, queries.t_src, queries.t_tgt, queries.t_cam)
        answers.append(model.decode(memory, beside, chunk_size=chunk_size, patch_video=patch_video).xyz)
    xyz = torch.stack(answers)  # (times, B, Q, 3)
    return (xyz - xyz.mean(dim=0)).square().sum(dim=-1).mean(dim=0).sqrt().cpu()
