"""Points followed through one window of a long video, from what the window before it said.

Windows depend on one another by this alone, and by little: which pixel of which frame to ask about. All that a window
hands on is in the arrays of `Followed`, so windows of one video are followed one after the other, but each as a task of
its own, and whatever else is asked of windows (`joining.look`, depth, points) waits for none.

A track goes on from the shared frame in which it is best seen, at the pixel the model itself gave there, if what both
windows say of that point through all shared frames agrees in 3D. What is hidden, or out of view, in all shared frames
is asked in a second look at the window: earlier frames that saw it, the *memory frames*, are shown along with it, in
place of shared frames that the other window answers for. What cannot be found again so that the windows agree is lost:
its positions are NaN from there on.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from model.recipes.alignment import move
from model.recipes.asking import AnsweringModel, Encoded
from model.recipes.identity import (
    CANDIDATES,
    MEMORY_FRAMES,
    Sightings,
    choose,
    choose_memory,
    compare,
    how_well_seen,
)
from model.recipes.joining import Seam
from model.recipes.views import Frames, View
from model.recipes.windows import WindowPlan, places

ABSENT, FOLLOWED, RECALLED, LOST = range(4)
"""Of a point in a window: not begun yet; followed from a shared frame; found again by memory frames; lost."""


@dataclass(frozen=True)
class Followed:
    """N points in the F frames of a window, in its first camera and its unit. NaN, and unseen, where not followed."""

    status: Tensor
    """(N,) int8: ABSENT, FOLLOWED, RECALLED or LOST."""
    t_src: Tensor
    """(N,) int64: the frame of the video in which the point was shown to the model; -1 where it was not."""
    uv_src: Tensor
    """(N, 2) float32: the pixel."""
    xyz: Tensor
    """(N, F, 3) float32, in the window's first camera."""
    xyz_cam: Tensor
    """(N, F, 3) float32, each in the camera of its own frame."""
    uv_norm: Tensor
    """(N, F, 2) float32."""
    visible: Tensor
    """(N, F) bool."""
    confidence: Tensor
    """(N, F) float32."""
    seen: Tensor
    """(N, F) float32: visibility times confidence, 0 where it is not seen."""
    onward: Tensor
    """(N, C, 3) float32: the points in the frames shared with the window to come, in the camera both have."""
    memory_frames: Tensor
    """(M,) int64: earlier frames that saw what was hidden when the window began."""
    memory_uv: Tensor
    """(N, M, 2) float32: where they saw it."""
    memory_seen: Tensor
    """(N, M) float32: how well; 0 where they did not."""

    @classmethod
    def nobody(cls, num_points: int, num_frames: int, num_onward: int) -> Self:
        """Rows to be filled in."""
        shape = (num_points, num_frames)
        return cls(
            status=torch.full((num_points,), ABSENT, dtype=torch.int8),
            t_src=torch.full((num_points,), -1),
            uv_src=torch.full((num_points, 2), torch.nan),
            xyz=torch.full((*shape, 3), torch.nan),
            xyz_cam=torch.full((*shape, 3), torch.nan),
            uv_norm=torch.full((*shape, 2), torch.nan),
            visible=torch.zeros(shape, dtype=torch.bool),
            confidence=torch.zeros(shape),
            seen=torch.zeros(shape),
            onward=torch.full((num_points, num_onward, 3), torch.nan),
            memory_frames=torch.zeros(0, dtype=torch.int64),
            memory_uv=torch.zeros(num_points, 0, 2),
            memory_seen=torch.zeros(num_points, 0),
        )


@torch.inference_mode()
def follow(
    model: AnsweringModel,
    video: Frames,
    plan: WindowPlan,
    number: int,
    uv_norm: Tensor,
    t_src: Tensor,
    *,
    aspect: float,
    before: Followed | None = None,
    seam: Seam | None = None,
    backwards: bool = False,
    memory: Encoded | None = None,
    chunk_size: int | None = None,
) -> Followed:
    """Follow N points, seen at uv_norm (N, 2) in frames t_src (N,) of the video, through window `number`.

    Points of frames that this window answers for begin here, the others go on from `before`.

    Args:
        video: needs to have the frames of this window, those of the window before, and `before.memory_frames`.
        before: what was followed through the window before; None for the first one. Going `backwards`, "before" is the
            next window, and points are followed towards the begin of the video.
        seam: between those two windows.
        memory: of this window, if it is encoded already.
    """
    view = View.of(model, video, plan.windows[number], aspect=aspect, memory=memory, chunk_size=chunk_size)
    here = Place(plan, number, backwards)
    followed = Followed.nobody(len(t_src), len(here.window), len(here.onward))
    begins = plan.owner[t_src] == number
    write_rows(followed, here, view, torch.where(begins)[0], t_src[begins], uv_norm[begins], FOLLOWED)
    if before is None:
        return followed

    followed.status[before.status == LOST] = LOST
    missing = torch.where((before.status == FOLLOWED) | (before.status == RECALLED))[0]
    shared = here.shared_sightings(before)
    missing = _go_on(followed, here, view, before, seam, missing, shared, FOLLOWED)
    earlier = here.earlier_sightings(before)
    columns = choose_memory(earlier.seen[missing], here.gap(earlier.frames), here.room(model.config.clip_frames))
    earlier = earlier.of(columns)
    if columns:
        frames = here.with_memory(earlier.frames.tolist(), model.config.clip_frames)
        again = View.of(model, video, frames, aspect=aspect, chunk_size=chunk_size)
        again = again.in_unit_of(view, here.cameras)
        missing = _go_on(followed, here, again, before, seam, missing, earlier, RECALLED)
    followed.status[missing] = LOST
    return replace(followed, memory_frames=earlier.frames, memory_uv=earlier.uv_norm, memory_seen=earlier.seen)


@dataclass(frozen=True)
class Place:
    """A window among those it is reached from and left to."""

    plan: WindowPlan
    number: int
    backwards: bool

    @property
    def window(self) -> range:
        return self.plan.windows[self.number]

    @property
    def other(self) -> int:
        """The window before; going backwards, the next one."""
        return self.number + 1 if self.backwards else self.number - 1

    @property
    def arriving(self) -> range:
        """Frames shared with it. The first of them is the camera both are compared in."""
        return self.plan.shared(min(self.number, self.other))

    @property
    def onward(self) -> range:
        """Frames shared with the window to come; none if this is the last."""
        first = self.number - 1 if self.backwards else self.number
        return self.plan.shared(first) if 0 <= first < len(self.plan) - 1 else range(0)

    @property
    def cameras(self) -> list[int]:
        """Those that questions are asked in: of the window, which comes first, and where it meets the others."""
        return list(dict.fromkeys([self.window.start, self.arriving.start, *self.onward[:1]]))

    @property
    def spare(self) -> list[int]:
        """Frames that may be left out of a second look: the other window answers for them."""
        needed = {*self.cameras, *self.onward}
        return [t for t in self.arriving if self.plan.owner[t] != self.number and t not in needed]

    def room(self, clip_frames: int) -> int:
        """For how many memory frames there is room."""
        return min(MEMORY_FRAMES, clip_frames - len(self.window) + len(self.spare))

    def with_memory(self, memory_frames: list[int], clip_frames: int) -> list[int]:
        """The window and memory frames, without as many of the spare frames as do not fit."""
        too_many = max(0, len(self.window) + len(memory_frames) - clip_frames)
        return sorted({*self.window, *memory_frames} - set(self.spare[:too_many]))

    def gap(self, frames: Tensor) -> Tensor:
        """How far away frames are, in windows."""
        return (frames - self.arriving.start).abs() / len(self.window)

    def shared_sightings(self, before: Followed) -> Sightings:
        """In the shared frames, by the other window."""
        columns = places(self.arriving, self.plan.windows[self.other])
        return Sightings(torch.tensor(self.arriving), before.uv_norm[:, columns], before.seen[:, columns])

    def earlier_sightings(self, before: Followed) -> Sightings:
        """In the frames of the other window, and in its memory, that are not of this one."""
        frames = torch.cat([before.memory_frames, torch.tensor(self.plan.windows[self.other])])
        uv_norm = torch.cat([before.memory_uv, before.uv_norm], dim=1)
        seen = torch.cat([before.memory_seen, before.seen], dim=1)
        return Sightings(frames, uv_norm, seen).of([i for i, t in enumerate(frames.tolist()) if t not in self.window])


def _go_on(
    followed: Followed,
    here: Place,
    view: View,
    before: Followed,
    seam: Seam,
    rows: Tensor,
    sightings: Sightings,
    status: int,
) -> Tensor:
    """Go on with these rows from where they were seen, if that is they; gives the rows for which nothing is."""
    if len(rows) == 0:
        return rows
    there_from_here = torch.linalg.inv(seam.before_from_after) if here.backwards else seam.before_from_after
    times = [t for t in here.arriving if t in view.frames]
    there = before.onward[rows][:, places(times, here.arriving)]  # (P, C, 3)
    candidates = sightings.best(rows, CANDIDATES)  # frames, uv_norm and seen: (P, K, ...)
    asked = candidates.seen > 0
    xyz = torch.full((*asked.shape, len(times), 3), torch.nan)
    answers = view.track(candidates.uv_norm[asked], candidates.frames[asked], times, here.arriving.start)
    xyz[asked] = move(there_from_here, answers.xyz)

    found = choose(candidates.seen, compare(there, xyz, seam.residual), seam.residual)
    known = found >= 0
    picked = (torch.where(known)[0], found[known])
    write_rows(followed, here, view, rows[known], candidates.frames[picked], candidates.uv_norm[picked], status)
    return rows[~known]


def write_rows(
    followed: Followed, here: Place, view: View, rows: Tensor, t_src: Tensor, uv_norm: Tensor, status: int
) -> None:
    """Ask where points are in all frames of the window that the view has, and write it down."""
    times = [t for t in here.window if t in view.frames]
    cells = (rows[:, None], places(times, here.window))
    own = view.track(uv_norm, t_src, times)
    followed.status[rows] = status
    followed.t_src[rows] = t_src
    followed.uv_src[rows] = uv_norm
    followed.xyz[cells] = view.track(uv_norm, t_src, times, here.window.start).xyz
    followed.xyz_cam[cells] = own.xyz
    followed.uv_norm[cells] = own.uv_tgt
    followed.visible[cells] = own.visible
    followed.confidence[cells] = own.confidence
    followed.seen[cells] = how_well_seen(own)
    if here.onward:
        followed.onward[rows] = view.track(uv_norm, t_src, here.onward, here.onward.start).xyz
