"""Scene flow: how far the surface point of each pixel moves until the next frame."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.recipes.asking import AnsweringModel, Encoded, frames_of, pixel_centres, prepare
from model.recipes.results import SceneFlow


@torch.inference_mode()
def scene_flow(
    model: AnsweringModel,
    video: Tensor | np.ndarray,
    *,
    height: int,
    width: int,
    t_cam: int | Literal["source", "target"] = "source",
    aspect: float | None = None,
    memory: Encoded | None = None,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> SceneFlow:
    """Where the point of each pixel of frame t is at t + 1, less where it is at t, frames seen as height x width.

    Both in one camera: a scene at rest has no flow, however the camera moves.

    Args:
        t_cam: that camera: of frame t ("source"), of frame t + 1 ("target"), or of one frame for all.

    Raises:
        ValueError: a clip of one frame.
    """
    video, native = frames_of(video), frames_of(native)
    memory, patch_video = prepare(model, video, aspect, memory, native)
    if memory.num_frames < 2:
        raise ValueError("scene flow is between two frames; the video has one")
    points = pixel_centres(height, width).to(model.device)[None]
    parts = []
    for t in range(memory.num_frames - 1):
        camera = {"source": t, "target": t + 1}.get(t_cam, t_cam)
        times = torch.tensor([[t, t + 1]], device=model.device)
        answers = model.decode_times(
            memory,
            points,
            torch.full(points.shape[:2], t, device=model.device),
            times,
            torch.full_like(times, camera),
            chunk_size=chunk_size,
            patch_video=patch_video,
        )
        xyz = answers.xyz.cpu().view(height, width, 2, 3)
        visible, confidence = (x.cpu().view(height, width, 2) for x in (answers.visible, answers.confidence))
        parts.append((xyz[:, :, 0], xyz[:, :, 1] - xyz[:, :, 0], visible[:, :, 1], confidence.amin(dim=-1)))
    return SceneFlow(*(torch.stack(part) for part in zip(*parts, strict=True)), t_cam=t_cam)
