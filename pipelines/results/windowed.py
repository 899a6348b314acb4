"""What a model says of a video of any length: each window by itself, then all of them joined to one world.

A video no longer than the model takes has one window, and its answers are those of the recipes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from model import recipes
from model.recipes.alignment import move, scale_of
from model.recipes.asking import AnsweringModel
from model.recipes.following import LOST, Followed, follow
from model.recipes.joining import Seam, WindowGeometry, chain, join, join_cameras, look
from model.recipes.long_video import join_tracks
from model.recipes.results import Depth, PointCloud
from model.recipes.views import View
from model.recipes.windows import WindowPlan
from pipelines.results.arrays import Arrays, Rows
from pipelines.results.files import FIELDS
from pipelines.results.sources import Video

MAX_POINTS = 500_000  # of a cloud; beyond that every second, third, ... row and column of the frames is asked
DOUBTFUL = 10.0  # percent of the points of a video, the least confident, are left out


@dataclass(frozen=True)
class Questions:
    """What is asked of a video, whatever its windows."""

    tasks: tuple[str, ...]
    points: torch.Tensor
    """(N, 2) float32: what is tracked, as uv_norm in the first frame."""
    depth_size: tuple[int, int]
    """(H, W)"""
    cloud_stride: int

    @classmethod
    def of(cls, video: Video, image_size: int, tasks: tuple[str, ...], grid: int) -> "Questions":
        shrink = image_size / max(video.size)
        stride = 1
        while len(video.clip) * (image_size // stride) ** 2 > MAX_POINTS:
            stride += 1
        return cls(
            tasks=tasks,
            points=recipes.pixel_centres(grid, grid),
            depth_size=tuple(max(1, round(side * shrink)) for side in video.size),
            cloud_stride=stride,
        )

    @property
    def t_src(self) -> torch.Tensor:
        return torch.zeros(len(self.points), dtype=torch.int64)


@dataclass(frozen=True)
class WindowAnswers:
    """Of one window, in its own unit and in the camera of its first frame; depth and points of the frames for which it
    answers alone. None: not asked for."""

    geometry: WindowGeometry
    seam: Seam | None
    """To the window before."""
    followed: Followed | None
    depth: Depth | None
    points: PointCloud | None


@torch.inference_mode()
def ask_window(
    model: AnsweringModel,
    video: Video,
    plan: WindowPlan,
    number: int,
    questions: Questions,
    before: WindowAnswers | None,
) -> WindowAnswers:
    """Window `number`, encoded once. `before`: the answers of the window before it."""
    window, (height, width) = plan.windows[number], video.size
    shared: dict[str, Any] = {"aspect": width / height}
    memory = View.of(model, video.clip, window, **shared).memory
    shared |= {"memory": memory}
    geometry = look(model, video.clip, plan, number, width=width, height=height, **shared)
    seam = None if before is None else join(before.geometry, geometry)
    mine = [t for t, frame in enumerate(window) if plan.owner[frame] == number]

    followed = depth = points = None
    if "tracks" in questions.tasks:
        origin = {} if before is None else {"before": before.followed, "seam": seam}
        followed = follow(model, video.clip, plan, number, questions.points, questions.t_src, **origin, **shared)
    if "depth" in questions.tasks:
        height, width = questions.depth_size
        maps = [recipes.frame_depth(model, memory, t, height=height, width=width) for t in mine]
        depth = Depth(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in maps), strict=True)))
    if "points" in questions.tasks:
        stride = questions.cloud_stride
        clouds = [recipes.frame_points(model, memory, t, video.clip[[window[t]]][0], stride=stride) for t in mine]
        points = recipes.joined_clouds(clouds)
        points = replace(points, frame=points.frame + window.start)
    return WindowAnswers(geometry, seam, followed, depth, points)


def joined(plan: WindowPlan, answers: Sequence[WindowAnswers], questions: Questions) -> dict[str, Arrays]:
    """Task -> the arrays of its .npz file (see `results/files.py`), all in the world and the unit of the first window.

    NaN after a seam that could not be joined. `answers` may lie on disk (`results/kept.py`): what is large is asked of
    them window by window, when it is written.
    """
    world_from_window = chain([said.seam for said in answers[1:]])
    results = {}
    if "tracks" in questions.tasks:
        followed = [said.followed for said in answers]
        tracks = join_tracks(plan, world_from_window, questions.t_src, followed, {})
        asked = {"points": questions.points, "t_src": questions.t_src}
        names = [name for name in FIELDS["tracks.npz"] if name not in asked]
        results["tracks"] = asked | {name: getattr(tracks, name) for name in names}
    if "depth" in questions.tasks:
        scales = [scale_of(world).float() for world in world_from_window]
        results["depth"] = {
            "depth": _rows(plan, lambda number: answers[number].depth.depth * scales[number]),
            "normal": _rows(plan, lambda number: answers[number].depth.normal),
            "confidence": _rows(plan, lambda number: answers[number].depth.confidence),
        }
    if "points" in questions.tasks:
        clouds = [_in_world(said.points, world) for said, world in zip(answers, world_from_window, strict=True)]
        results["points"] = vars(recipes.without_doubtful(recipes.joined_clouds(clouds), DOUBTFUL))
    if "cameras" in questions.tasks:
        path = join_cameras(plan, [said.geometry for said in answers], world_from_window)
        results["cameras"] = {name: getattr(path, name) for name in FIELDS["cameras.npz"]}
    return {
        task: {key: x if isinstance(x, Rows) else x.numpy() for key, x in arrays.items()}
        for task, arrays in results.items()
    }


def _rows(plan: WindowPlan, part: Callable[[int], torch.Tensor]) -> Rows:
    """A row per frame; `part` gives those that a window answers for."""
    return Rows(plan.num_frames, lambda: (part(number).numpy() for number in range(len(plan))))


def _in_world(cloud: PointCloud, world_from_window: torch.Tensor) -> PointCloud:
    turn = world_from_window[:3, :3] / scale_of(world_from_window)
    return replace(cloud, xyz=move(world_from_window, cloud.xyz), normal=(cloud.normal.double() @ turn.T).float())


def window_report(plan: WindowPlan, answers: Sequence[WindowAnswers]) -> list[dict[str, Any]]:
    """For result.json: the frames of each window, counted within the clip, and how it is joined to the one before."""
    report = []
    for window, said in zip(plan.windows, answers, strict=True):
        seam = None if said.seam is None else said.seam.describe()
        report.append({"first": window.start, "last": window.stop - 1, "seam": seam})
    return report


def notes_on(results: dict[str, dict[str, np.ndarray]], windows: list[dict[str, Any]]) -> tuple[str, ...]:
    """What a user should know of how the windows went together, and of answers that are no numbers.

    ValueError if no answer is one.
    """
    notes = []
    for task, arrays in results.items():
        if share := _nameless(arrays.get("confidence")):
            notes.append(f"{share:.1%} of the answers for its {task} are no numbers (NaN)")
        if share == 1:
            raise ValueError(
                f"no answer of the model for its {task} is a number, all are NaN: its training diverged, or it is "
                "damaged"
            )
    for window in windows[1:]:
        if not window["seam"]["joined"]:
            notes.append(
                f"its window from frame {window['first']} could not be joined to those before: NaN from there on"
            )
            break
    if "tracks" in results and (lost := float((results["tracks"]["status"][:, -1] == LOST).mean())):
        worst = max((window["seam"]["residual"] for window in windows[1:]), default=0.0)
        notes.append(
            f"{lost:.0%} of its tracks are lost before the end, where windows did not agree on them (the same points "
            f"differ by up to {worst:.1%} between two windows)"
        )
    return tuple(notes)


def _nameless(confidence: np.ndarray | None) -> float:
    """Share that is NaN, which confidence is only where the model's answer is; row by row, as it may lie on disk."""
    if confidence is None or not confidence.size:
        return 0.0
    return float(np.mean([np.isnan(row).mean() for row in confidence]))
