"""Depth maps of the frames of a clip."""

import numpy as np
import torch
from torch import Tensor

from model.recipes.asking import AnsweringModel, Encoded, ask_frames, frames_of, output_size, pixel_centres, prepare
from model.recipes.results import Depth


@torch.inference_mode()
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

    Pixel (x, y) of the output is asked at ((x + 0.5) / width, (y + 0.5) / height).
    """
    video, native = frames_of(video), frames_of(native)
    memory, patch_video = prepare(model, video, aspect, memory, native)
    height, width = output_size(video, native, height, width)
    uv_norm = pixel_centres(height, width)
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    maps, confidences = [], []
    for t in range(memory.num_frames):
        now = torch.tensor([t])
        answers = ask_frames(model, memory, uv_norm, t_src=now, t_cam=now, **options)
        z = answers.xyz[0, :, 2]
        maps.append(torch.where(z > 0, z, torch.nan).view(height, width))
        confidences.append(answers.confidence.view(height, width))
    return Depth(depth=torch.stack(maps), confidence=torch.stack(confidences))
