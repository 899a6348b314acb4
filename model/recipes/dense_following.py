"""All pixels of all frames of a long video: each surface point is followed from where it is first seen.

In each window, what was begun before is followed as any track is (`following.follow`) and marks the cells of the
window's frames; what is then unvisited of the frames the window answers for begins there (`dense_tracking`). So
points are many, but each is one track through all windows, and none is followed from two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.recipes.asking import AnsweringModel, Encoded
from model.recipes.dense_tracking import VisitedGrid, track_unvisited
from model.recipes.following import FOLLOWED, Followed, Place, follow, write_rows
from model.recipes.joining import Seam
from model.recipes.long_video import LongTracks, join_tracks
from model.recipes.views import Frames, View
from model.recipes.windows import WindowPlan


@dataclass(frozen=True)
class Begun:
    """The N points that have begun in a window or in one before it."""

    points: Tensor
    """(N, 2) float32: the pixel, as uv_norm in frame `t_src`."""
    t_src: Tensor
    """(N,) int64."""


@torch.inference_mode()
def follow_all(
    model: AnsweringModel,
    video: Frames,
    plan: WindowPlan,
    number: int,
    *,
    height: int,
    width: int,
    aspect: float,
    before: tuple[Begun, Followed] | None = None,
    seam: Seam | None = None,
    memory: Encoded | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
) -> tuple[Begun, Followed]:
    """Follow all pixels of window `number`, its frames seen as height x width.

    Args:
        before: the same of the window before; None for the first one.
        seam: between those two windows.
        video, memory: as in `follow`.
    """
    view = View.of(model, video, plan.windows[number], aspect=aspect, memory=memory, chunk_size=chunk_size)
    here = Place(plan, number, backwards=False)
    grid = VisitedGrid(len(here.window), height, width, model.device)
    mine = plan.owner[here.window.start : here.window.stop] == number
    grid.visit_frames((~mine).nonzero()[:, 0])
    points, t_src = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
    followed = Followed.nobody(0, len(here.window), len(here.onward))
    if before is not None:
        points, t_src = before[0].points, before[0].t_src
        options = {"aspect": aspect, "before": before[1], "seam": seam, "memory": view.memory, "chunk_size": chunk_size}
        followed = follow(model, video, plan, number, points, t_src, **options)
        grid.visit(followed.uv_norm.to(model.device), followed.visible.to(model.device))
    if grid.share() < 1:
        found = track_unvisited(model, view.memory, grid, grid.cells.numel(), seed=seed, chunk_size=chunk_size)
        fresh = torch.arange(len(points), len(points) + len(found.points))
        points = torch.cat([points, found.points])
        t_src = torch.cat([t_src, found.t_src + here.window.start])
        followed = grown(followed, len(points))
        write_rows(followed, here, view, fresh, t_src[fresh], points[fresh], FOLLOWED)
    return Begun(points, t_src), followed


def grown(followed: Followed, num_points: int) -> Followed:
    """With rows for points that are absent in this window, up to so many."""
    more = num_points - len(followed.status)
    absent = Followed.nobody(more, followed.visible.shape[1], followed.onward.shape[1])
    memory = followed.memory_seen.shape[1]
    absent = replace(absent, memory_uv=torch.full((more, memory, 2), torch.nan), memory_seen=torch.zeros(more, memory))
    rows = {name: torch.cat([value, getattr(absent, name)]) for name, value in vars(followed).items()}
    return Followed(**rows | {"memory_frames": followed.memory_frames})


def join_all(plan: WindowPlan, world_from_window: Tensor, begun: Begun, followed: Sequence[Followed]) -> LongTracks:
    """The tracks of all windows as one; `begun` is that of the last window. Before a track begins, it is absent."""
    rows = [grown(said, len(begun.points)) for said in followed]
    return join_tracks(plan, world_from_window, begun.t_src, rows, {})
