"""Frames that are encoded together, and questions about them by their numbers in the whole video."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from model.decoder import Prediction
from model.recipes.alignment import fit_robust, move, scale_of
from model.recipes.asking import AnsweringModel, Encoded, ask_frames, pixel_centres, prepare
from model.recipes.windows import places, spread

LANDMARK_GRID = 12
"""Points along each side of a frame that are asked about to lay two views on one another."""

LANDMARK_FRAMES = 4
"""At so many instants."""


class Frames(Protocol):
    """A video by frame numbers: an array (T, S, S, 3) uint8, a tensor, a memory map, or what reads when asked."""

    def __getitem__(self, frames: list[int], /) -> Tensor | np.ndarray: ...


@dataclass(frozen=True)
class View:
    """Some frames of a video, looked at together by a model."""

    model: AnsweringModel
    memory: Encoded
    frames: tuple[int, ...]
    """Their numbers in the video, ascending."""
    chunk_size: int | None = None
    unit: dict[int, Tensor] = field(default_factory=dict)
    """By the number of a frame: the similarity, for positions in its camera, to those of another view, in which
    `track` answers then. The first is that of the camera whose scale counts for all."""

    @classmethod
    def of(
        cls,
        model: AnsweringModel,
        video: Frames,
        frames: Sequence[int],
        *,
        aspect: float,
        memory: Encoded | None = None,
        chunk_size: int | None = None,
    ) -> Self:
        """Encodes them, unless `memory` is of these very frames."""
        clip = torch.as_tensor(video[list(frames)])
        memory, _ = prepare(model, clip, aspect, memory, None)
        return cls(model, memory, tuple(frames), chunk_size)

    def track(self, uv_norm: Tensor, t_src: Tensor, times: Sequence[int], t_cam: int | None = None) -> Prediction:
        """Where are P points, seen at uv_norm (P, 2) in frames t_src (P,), at these times: answers (P, K, ...).

        In the camera of frame `t_cam`, or of None: each in that of its own time.
        """
        t_tgt = places(times, self.frames)
        cameras = t_tgt if t_cam is None else places([t_cam] * len(times), self.frames)
        questions = (uv_norm, places(t_src.tolist(), self.frames), t_tgt, cameras)
        questions = (question.to(self.model.device)[None] for question in questions)
        answers = self.model.decode_times(self.memory, *questions, chunk_size=self.chunk_size)
        shape = (len(uv_norm), len(times))
        answers = Prediction(*(x.cpu().view(*shape, *x.shape[2:]) for x in vars(answers).values()))
        if not self.unit:
            return answers
        first = next(iter(self.unit.values()))
        xyz = answers.xyz * scale_of(first).float() if t_cam is None else move(self.unit[t_cam], answers.xyz)
        return replace(answers, xyz=xyz)

    def landmarks(self, instants: Sequence[int], t_cam: int) -> tuple[Tensor, Tensor]:
        """A grid of points of each of these frames, at its own instant, in one camera: xyz (Q, 3), confidence (Q,)."""
        answers = ask_frames(
            self.model,
            self.memory,
            pixel_centres(LANDMARK_GRID, LANDMARK_GRID),
            t_src=places(instants, self.frames),
            t_cam=places([t_cam] * len(instants), self.frames),
            chunk_size=self.chunk_size,
            patch_video=None,
        )
        return answers.xyz.flatten(0, 1), answers.confidence.flatten()

    def in_unit_of(self, other: "View", cameras: Sequence[int]) -> Self:
        """This view, its tracks in the cameras of these frames, which both have, being as the other has them.

        By the very same questions asked of both views, as at a seam.
        """
        instants = spread([frame for frame in self.frames if frame in other.frames], LANDMARK_FRAMES)
        unit = {}
        for camera in cameras:
            (here, sure_here), (there, sure_there) = (view.landmarks(instants, camera) for view in (self, other))
            found = fit_robust(here[None], there[None], (sure_here * sure_there)[None], scale=True)
            unit[camera] = found.target_from_source[0]
        return replace(self, unit=unit)
