"""Scene flow: how far the surface point of each pixel moves until the next frame."""

from collections.abc import Sequence
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
    memory, _ = prepare(model, video, aspect, memory, native)
    if memory.num_frames < 2:
        raise ValueError("scene flow is between two frames; the video has one")
    size = {"height": height, "width": width, "chunk_size": chunk_size}
    frames = [None] * memory.num_frames if native is None else native
    return joined_flow(
        [
            frame_flow(model, memory, t, t_cam=t_cam, native_frame=frames[t], **size)
            for t in range(memory.num_frames - 1)
        ]
    )


@torch.inference_mode()
def frame_flow(
    model: AnsweringModel,
    memory: Encoded,
    t: int,
    *,
    height: int,
    width: int,
    t_cam: int | Literal["source", "target"] = "source",
    native_frame: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> SceneFlow:
    """`scene_flow` of frame t alone, T = 2. `native_frame`: (H, W, 3) uint8, the raw frame t, to cut patches from."""
    points = pixel_centres(height, width).to(model.device)[None]
    times = torch.tensor([[t, t + 1]], device=model.device)
    camera = {"source": t, "target": t + 1}.get(t_cam, t_cam)
    answers = model.decode_times(
        memory,
        points,
        torch.full(points.shape[:2], t, device=model.device),
        times,
        torch.full_like(times, camera),
        chunk_size=chunk_size,
        patch_video=None if native_frame is None else frames_of(native_frame).to(model.device)[None, None],
    )
    now, then = answers.xyz.cpu().view(1, height, width, 2, 3).unbind(dim=3)
    visible, confidence = (x.cpu().view(1, height, width, 2) for x in (answers.visible, answers.confidence))
    return SceneFlow(now, then - now, visible[..., 1], confidence.amin(dim=-1), t_cam)


def joined_flow(parts: Sequence[SceneFlow]) -> SceneFlow:
    """One after the other, all in the same choice of camera."""
    names = ("xyz", "flow", "visible", "confidence")
    arrays = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return SceneFlow(**arrays, t_cam=parts[0].t_cam)
