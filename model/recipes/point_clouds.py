"""Point clouds: the pixels of all frames in one camera."""

import numpy as np
import torch
from torch import Tensor

from model.recipes.asking import AnsweringModel, Encoded, ask_frames, frames_of, output_size, pixel_centres, prepare
from model.recipes.results import PointCloud


@torch.inference_mode()
def point_cloud(
    model: AnsweringModel,
    video: Tensor | np.ndarray,
    *,
    t_cam: int = 0,
    stride: int = 1,
    min_confidence_percentile: float = 10.0,
    aspect: float | None = None,
    memory: Encoded | None = None,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> PointCloud:
    """The pixels of all frames as points in the camera of frame `t_cam`, each at the time it was seen.

    Colours come from `native` if given, else from `video`; so does the pixel grid, of which every `stride`-th row and
    column is asked. Dropped is what is less confident than all but `min_confidence_percentile` percent of the clip:
    of equally confident points all or none.
    """
    if stride < 1:
        raise ValueError(f"stride ({stride}) must be at least 1 pixel")
    if not 0 <= min_confidence_percentile < 100:
        raise ValueError(f"min_confidence_percentile ({min_confidence_percentile}) must be in [0, 100)")
    video, native = frames_of(video), frames_of(native)
    memory, patch_video = prepare(model, video, aspect, memory, native)
    frames = (video if native is None else native)[:, stride // 2 :: stride, stride // 2 :: stride].cpu()
    uv_norm = pixel_centres(*output_size(video, native, None, None), stride=stride)
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    parts = []
    for t in range(memory.num_frames):
        now, camera = torch.tensor([t]), torch.tensor([t_cam])
        answers = ask_frames(model, memory, uv_norm, t_src=now, t_cam=camera, **options)
        parts.append((answers.xyz[0], answers.normal[0], answers.confidence[0]))
    xyz, normal, confidence = (torch.cat(part) for part in zip(*parts, strict=True))
    doubtful = int(len(xyz) * min_confidence_percentile / 100)
    keep = confidence >= confidence.sort().values[doubtful]
    return PointCloud(
        xyz=xyz[keep],
        rgb=frames.reshape(-1, 3)[keep],
        normal=normal[keep],
        confidence=confidence[keep],
        frame=torch.arange(memory.num_frames).repeat_interleave(len(uv_norm))[keep],
        left_out=1 - keep.float().mean(),
    )
