"""Point clouds: the pixels of all frames in one camera."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.recipes.asking import AnsweringModel, Encoded, ask_frames, frames_of, pixel_centres, prepare
from model.recipes.results import PointCloud

COLUMNS = ("xyz", "rgb", "normal", "confidence", "frame")  # of a PointCloud, a row per point


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
    memory, _ = prepare(model, video, aspect, memory, native)
    shown = video if native is None else native
    options = {"t_cam": t_cam, "stride": stride, "chunk_size": chunk_size}
    parts = []
    for t in range(memory.num_frames):
        patches = None if native is None else native[t]
        parts.append(frame_points(model, memory, t, shown[t], native_frame=patches, **options))
    return without_doubtful(joined_clouds(parts), min_confidence_percentile)


@torch.inference_mode()
def frame_points(
    model: AnsweringModel,
    memory: Encoded,
    t: int,
    shown: Tensor | np.ndarray,
    *,
    t_cam: int = 0,
    stride: int = 1,
    native_frame: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> PointCloud:
    """`point_cloud` of frame t alone, with nothing dropped. `shown`: (H, W, 3) uint8, the frame whose pixels are asked,
    which gives the colours; `native_frame`: the raw frame, to cut query patches from."""
    shown = frames_of(shown)
    uv_norm = pixel_centres(*shown.shape[:2], stride=stride)
    patch_video = None if native_frame is None else frames_of(native_frame).to(model.device)[None, None]
    now, camera = torch.tensor([t]), torch.tensor([t_cam])
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    answers = ask_frames(model, memory, uv_norm, t_src=now, t_cam=camera, **options)
    return PointCloud(
        xyz=answers.xyz[0],
        rgb=shown[stride // 2 :: stride, stride // 2 :: stride].cpu().reshape(-1, 3),
        normal=answers.normal[0],
        confidence=answers.confidence[0],
        frame=torch.full((len(uv_norm),), t),
        left_out=torch.tensor(0.0),
    )


def joined_clouds(clouds: Sequence[PointCloud]) -> PointCloud:
    """All points of clouds of which nothing was dropped."""
    columns = {name: torch.cat([getattr(cloud, name) for cloud in clouds]) for name in COLUMNS}
    return PointCloud(**columns, left_out=torch.tensor(0.0))


def without_doubtful(cloud: PointCloud, percentile: float) -> PointCloud:
    """Without the points that are less confident than all but `percentile` percent; of equally confident ones all stay
    or none."""
    confidence = cloud.confidence.nan_to_num(0.0)
    keep = confidence >= confidence.sort().values[int(len(confidence) * percentile / 100)]
    columns = {name: getattr(cloud, name)[keep] for name in COLUMNS}
    return PointCloud(**columns, left_out=1 - keep.float().mean())
