"""What the recipes share: what they need of a model, the pixels they ask about, and how they ask."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from model.decoder import Prediction
from model.queries import Queries

Numbers = Tensor | np.ndarray | Sequence | int
"""What a caller may give where a tensor is meant."""


@runtime_checkable
class Encoded(Protocol):
    """What a model keeps of the clips it has looked at, as `model.Memory` does."""

    @property
    def tokens(self) -> Tensor: ...

    @property
    def video(self) -> Tensor: ...

    @property
    def aspect(self) -> Tensor: ...

    @property
    def num_frames(self) -> int: ...


class Limits(Protocol):
    """Of a model's config: what recipes go by."""

    @property
    def image_size(self) -> int: ...

    @property
    def clip_frames(self) -> int: ...

    @property
    def tubelet(self) -> int: ...


@runtime_checkable
class AnsweringModel(Protocol):
    """A model that answers, which is all that recipes need: `model.D4RT`, or what stands in its place."""

    @property
    def config(self) -> Limits: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, video: Tensor, aspect: Tensor) -> Encoded: ...

    def decode(
        self, memory: Encoded, queries: Queries, *, chunk_size: int | None = None, patch_video: Tensor | None = None
    ) -> Prediction: ...

    def decode_times(
        self,
        memory: Encoded,
        uv_norm: Tensor,
        t_src: Tensor,
        t_tgt: Tensor,
        t_cam: Tensor,
        *,
        chunk_size: int | None = None,
        patch_video: Tensor | None = None,
    ) -> Prediction: ...


def frames_of(video: Tensor | np.ndarray | None) -> Tensor | None:
    """A video as a tensor, without a copy where none is needed."""
    return video if video is None or isinstance(video, Tensor) else torch.from_numpy(np.ascontiguousarray(video))


def points_at(uv_norm: Numbers, t_src: Numbers) -> tuple[Tensor, Tensor]:
    """Points (N, 2) float32 and the frames (N,) int64 in which they are seen; one frame may stand for all.

    Raises ValueError for other shapes, and for frames that are no whole numbers.
    """
    points, frames = torch.as_tensor(uv_norm), torch.as_tensor(t_src)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"uv_norm has shape {tuple(points.shape)}; it must be (N, 2): u and v from 0 to 1")
    if frames.is_floating_point() or frames.is_complex() or frames.dtype == torch.bool:
        raise ValueError(f"t_src is {str(frames.dtype).removeprefix('torch.')}; frames are whole numbers, from 0")
    if frames.ndim > 1 or (frames.ndim == 1 and len(frames) != len(points)):
        raise ValueError(
            f"t_src has shape {tuple(frames.shape)}; it must be one frame, or one for each of {len(points)}"
        )
    return points.float(), frames.long().expand(len(points))


def pixel_centres(height: int, width: int, stride: int = 1) -> Tensor:
    """uv_norm of every stride-th pixel, row by row: (P, 2) float32."""
    y, x = (torch.arange(stride // 2, length, stride).add(0.5) / length for length in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def output_size(video: Tensor, native: Tensor | None, height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width): as asked for, else of the native frames, else of the video."""
    default = (video if native is None else native).shape[1:3]
    height, width = height or default[0], width or default[1]
    return int(height), int(width)


def prepare(
    model: AnsweringModel, video: Tensor, aspect: float | None, memory: Encoded | None, native: Tensor | None
) -> tuple[Encoded, Tensor | None]:
    """The memory of one clip and the video to cut patches from, both on the model's device. Raises ValueError."""
    size = model.config.image_size
    if video.ndim != 4 or (memory is None and tuple(video.shape[1:]) != (size, size, 3)):
        raise ValueError(
            f"video has shape {tuple(video.shape)}; recipes take one clip (T, {size}, {size}, 3), already resized to "
            "the model's square without cropping, and the raw width / height as `aspect`; or, of another size, a "
            "`memory` that you encoded"
        )
    if native is not None and (native.ndim != 4 or len(native) != len(video)):
        raise ValueError(f"native has shape {tuple(native.shape)}; it must hold the same {len(video)} raw frames")
    patch_video = None if native is None else native.to(model.device)[None]
    if memory is None:
        if aspect is None:
            aspect = 1.0 if native is None else native.shape[2] / native.shape[1]
        clip_aspect = torch.tensor([aspect], dtype=torch.float32, device=model.device)
        return model.encode(video.to(model.device)[None], clip_aspect), patch_video
    if memory.video.shape != (1, *video.shape):
        raise ValueError(
            f"memory is of videos {tuple(memory.video.shape)}, this one is {tuple(video.shape)}: encode it by itself"
        )
    if aspect is not None and abs(float(memory.aspect[0]) - aspect) > 1e-3 * aspect:
        raise ValueError(f"aspect ({aspect}) is not that of the memory ({float(memory.aspect[0]):g}); give one of them")
    return memory, patch_video


def ask_frames(
    model: AnsweringModel,
    memory: Encoded,
    uv_norm: Tensor,
    *,
    t_src: Tensor,
    t_cam: Tensor,
    chunk_size: int | None,
    patch_video: Tensor | None,
) -> Prediction:
    """Where are the points seen at `uv_norm` (P, 2) in each frame of t_src (F,), then, in the cameras t_cam (F,)?

    The answers are (F, P, ...), on the CPU.
    """
    shape = (len(t_src), len(uv_norm))
    uv_norm = uv_norm.to(model.device).repeat(len(t_src), 1)[None]  # (1, F * P, 2)
    t_src, t_cam = (t.to(model.device).repeat_interleave(shape[1])[None] for t in (t_src, t_cam))
    queries = Queries(uv_norm, t_src, t_src, t_cam)
    answers = model.decode(memory, queries, chunk_size=chunk_size, patch_video=patch_video)
    return Prediction(*(x.cpu().view(*shape, *x.shape[2:]) for x in vars(answers).values()))
