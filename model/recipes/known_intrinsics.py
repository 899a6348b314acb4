"""Known intrinsics, for a model that takes none: its answers are moved to where the known camera sees them.

A model believes in a focal length of its own: the one by which its points appear where they were asked (paper 2.1).
What it says is at depth z and appears at u = f x / z + 1/2 is, under known f' and c', at x' = z (u - c') / f' (our
choice; the paper does not say how intrinsics enter). That is one linear map per camera, here put around a model, so
that all recipes go by it: tracks, points, flow, seams and poses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.decoder import Prediction
from model.queries import Queries
from model.recipes.asking import AnsweringModel, Encoded, Limits, ask_frames, pixel_centres
from model.recipes.intrinsics import focal_lengths

GRID = 8
"""Points along each side of a frame from which the model's own focal length is told."""


@dataclass(frozen=True)
class Calibrated:
    """An encoded clip, and what its answers are multiplied by."""

    inner: Encoded
    known_from_model: Tensor
    """(T, 3, 3) float32: positions in the camera of each frame, as the model says them -> under known intrinsics."""

    @property
    def tokens(self) -> Tensor:
        return self.inner.tokens

    @property
    def video(self) -> Tensor:
        return self.inner.video

    @property
    def aspect(self) -> Tensor:
        return self.inner.aspect

    @property
    def num_frames(self) -> int:
        return self.inner.num_frames


@dataclass(frozen=True)
class WithIntrinsics:
    """A model whose answers agree with known intrinsics."""

    inner: AnsweringModel
    known: Tensor
    """(3, 3) float64, or (T, 3, 3) for clips of T frames, in units of the image's width and height."""

    @property
    def config(self) -> Limits:
        return self.inner.config

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def encode(self, video: Tensor, aspect: Tensor) -> Calibrated:
        return self.calibrated(self.inner.encode(video, aspect))

    def calibrated(self, memory: Encoded) -> Calibrated:
        """For a clip that the model itself has encoded."""
        t, points = torch.arange(memory.num_frames), pixel_centres(GRID, GRID)
        own = ask_frames(self.inner, memory, points, t_src=t, t_cam=t, chunk_size=None, patch_video=None)
        focal = focal_lengths(own.xyz, points, float(memory.aspect[0]), shared=False, square=True).double()
        known = self.known.expand(len(t), 3, 3)
        matrix = torch.eye(3, dtype=torch.float64).repeat(len(t), 1, 1)
        for axis in (0, 1):
            matrix[:, axis, axis] = focal[:, axis] / known[:, axis, axis]
            matrix[:, axis, 2] = (0.5 - known[:, axis, 2]) / known[:, axis, axis]
        return Calibrated(memory, matrix.float().to(self.device))

    def decode(
        self,
        memory: Calibrated,
        queries: Queries,
        *,
        chunk_size: int | None = None,
        patch_video: Tensor | None = None,
    ) -> Prediction:
        answers = self.inner.decode(memory.inner, queries, chunk_size=chunk_size, patch_video=patch_video)
        return _moved(answers, memory.known_from_model[queries.t_cam])

    def decode_times(
        self,
        memory: Calibrated,
        uv_norm: Tensor,
        t_src: Tensor,
        t_tgt: Tensor,
        t_cam: Tensor,
        *,
        chunk_size: int | None = None,
        patch_video: Tensor | None = None,
    ) -> Prediction:
        options = {"chunk_size": chunk_size, "patch_video": patch_video}
        answers = self.inner.decode_times(memory.inner, uv_norm, t_src, t_tgt, t_cam, **options)
        return _moved(answers, memory.known_from_model[t_cam.repeat(1, t_src.shape[1])])


def _moved(answers: Prediction, matrix: Tensor) -> Prediction:
    """Answers (B, Q, ...) by (B, Q, 3, 3); a normal stays at right angles to what was at right angles to it."""
    xyz, displacement = (
        (matrix @ x[..., None]).squeeze(-1).to(x.dtype) for x in (answers.xyz.float(), answers.displacement.float())
    )
    turned = (torch.linalg.inv(matrix).mT @ answers.normal.float()[..., None]).squeeze(-1)
    normal = torch.nn.functional.normalize(turned, dim=-1)
    return replace(answers, xyz=xyz, displacement=displacement, normal=normal)


def norm_intrinsics(
    intrinsics: Tensor | np.ndarray | Sequence, width: int, height: int, num_frames: int | None = None
) -> Tensor:
    """Intrinsics in pixels of width x height -> in units of the image's width and height, float64, of the same shape.

    Raises ValueError unless they are (3, 3), or one for each of `num_frames`, finite, of a pinhole, and with a focal
    length above 0.
    """
    known = torch.as_tensor(intrinsics).double()
    shapes = [(3, 3)] if num_frames is None else [(3, 3), (num_frames, 3, 3)]
    if tuple(known.shape) not in shapes:
        more = "" if num_frames is None else f", or ({num_frames}, 3, 3), one per frame"
        raise ValueError(f"intrinsics have shape {tuple(known.shape)}; they must be (3, 3){more}")
    if not (known.isfinite().all() and (known[..., (0, 1), (0, 1)] > 0).all()):
        raise ValueError("intrinsics must be finite, with fx and fy above 0")
    return known / torch.tensor([width, height, 1.0], dtype=torch.float64)[:, None]
