"""What a model says of a video of any length, each window by itself; `joined.py` makes one world of them.

A video no longer than the model takes has one window, and its answers are those of the recipes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from model import recipes
from model.recipes.asking import AnsweringModel, Encoded
from model.recipes.dense_following import Begun, follow_all
from model.recipes.following import LOST, Followed, follow
from model.recipes.joining import Seam, WindowGeometry, join, look
from model.recipes.results import Depth, PointCloud, SceneFlow
from model.recipes.views import View
from model.recipes.windows import WindowPlan
from pipelines.results.questions import Questions
from pipelines.results.sources import Video

MOST_DRIFT = 30.0
"""By which the unit of length may change over a video: rooms and streets are in it, and what is nearer than that."""

VALUES_AT_ONCE = 1 << 22  # that are looked at together, of an array that may lie on disk


@dataclass(frozen=True)
class Jitter:
    """How far answers of a window's tracks spread when they are asked beside their pixel."""

    distance: torch.Tensor
    """(N, F) float32: root mean square, in each frame's camera; NaN where the window was not shown the pixel."""


@dataclass(frozen=True)
class WindowAnswers:
    """Of one window, in its own unit and in the camera of its first frame; depth and points of the frames for which it
    answers alone. None: not asked for."""

    geometry: WindowGeometry
    seam: Seam | None
    """To the window before."""
    followed: Followed | None
    jitter: Jitter | None
    begun: Begun | None
    """The points of `dense`."""
    dense: Followed | None
    depth: Depth | None
    flow: SceneFlow | None
    """Of all these frames but the last of the video."""
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
    model, window, (height, width) = questions.model(model), plan.windows[number], video.size
    shared: dict[str, Any] = {"aspect": width / height}
    memory = View.of(model, video.clip, window, **shared).memory
    shared |= {"memory": memory}
    geometry = look(model, video.clip, plan, number, width=width, height=height, **shared)
    seam = None if before is None else join(before.geometry, geometry)

    tracks: dict[str, Any] = dict.fromkeys(("followed", "jitter", "begun", "dense"))
    if "tracks" in questions.tasks:
        origin = {} if before is None else {"before": before.followed, "seam": seam}
        asked = (questions.points, questions.t_src)
        tracks["followed"] = follow(model, video.clip, plan, number, *asked, **origin, **shared)
    if "uncertainty" in questions.tasks:
        tracks["jitter"] = jitter_of(model, memory, window, tracks["followed"], questions)
    if "dense_tracks" in questions.tasks:
        origin = {} if before is None else {"before": (before.begun, before.dense), "seam": seam}
        cells = dict(zip(("height", "width"), questions.dense_size, strict=True))
        begun, dense = follow_all(model, video.clip, plan, number, **cells, **origin, **shared)
        tracks |= {"begun": begun, "dense": dense}
    return WindowAnswers(geometry, seam, **tracks, **_maps(model, memory, video, plan, number, questions))


def _maps(
    model: AnsweringModel, memory: Encoded, video: Video, plan: WindowPlan, number: int, questions: Questions
) -> dict[str, Any]:
    """Depth, flow and points, frame by frame, of which one native one is in memory at a time."""
    window = plan.windows[number]
    mine = [t for t, frame in enumerate(window) if plan.owner[frame] == number]
    size = dict(zip(("height", "width"), questions.depth_size, strict=True))
    native = video.native([window[t] for t in mine]) if questions.native else [None] * len(mine)
    depth, flow, points = [], [], []
    for t, native_frame in zip(mine, native, strict=True):
        patches = {"native_frame": native_frame}
        if "depth" in questions.tasks:
            depth.append(recipes.frame_depth(model, memory, t, **size, **patches))
        if "flow" in questions.tasks and window[t] + 1 < plan.num_frames:
            flow.append(recipes.frame_flow(model, memory, t, **size, **patches))
        if "points" in questions.tasks:
            shown = video.clip[[window[t]]][0]
            if questions.all_pixels:
                shown = cv2.resize(shown, questions.depth_size[::-1], interpolation=cv2.INTER_LINEAR)
            points.append(recipes.frame_points(model, memory, t, shown, stride=questions.cloud_stride, **patches))
    maps: dict[str, Any] = dict.fromkeys(("depth", "flow", "points"))
    if depth:
        maps["depth"] = Depth(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in depth), strict=True)))
    if flow:
        maps["flow"] = recipes.joined_flow(flow)
    if points:
        cloud = recipes.joined_clouds(points)
        maps["points"] = replace(cloud, frame=cloud.frame + window.start)
    return maps


def jitter_of(
    model: AnsweringModel, memory: Encoded, window: range, followed: Followed, questions: Questions
) -> Jitter:
    """Of the tracks whose pixel is in one of the window's own frames."""
    height, width = questions.size
    asked = (followed.t_src >= window.start) & (followed.t_src < window.stop)
    distance = torch.full(followed.visible.shape, torch.nan)
    source = (followed.uv_src[asked], followed.t_src[asked] - window.start)
    distance[asked] = recipes.jitter_tracks(model, memory, *source, height=height, width=width)
    return Jitter(distance)


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
    units = np.cumprod([window["seam"]["scale"] for window in windows[1:]] or [1.0])
    if units.max() > MOST_DRIFT or units.min() * MOST_DRIFT < 1:
        notes.append(
            f"its windows do not agree on a unit of length: that of the last is {units[-1]:.2g} of the first. "
            "Sizes are comparable within a window, hardly over the video; longer windows or known --poses help"
        )
    if "tracks" in results and (lost := float((results["tracks"]["status"] == LOST).any(axis=1).mean())):
        least = min((window["seam"]["inliers"] for window in windows[1:]), default=1.0)
        notes.append(
            f"{lost:.0%} of its tracks are lost on the way, where two windows did not agree on them or did not see them"
            f" (of the points asked of both, {least:.0%} agree at the worst seam)"
        )
    return tuple(notes)


def _nameless(confidence: np.ndarray | None) -> float:
    """Share that is NaN, which confidence is only where the model's answer is; part by part, as it may lie on disk."""
    if confidence is None or not confidence.size:
        return 0.0
    rows = max(1, len(confidence) * VALUES_AT_ONCE // confidence.size)
    parts = (confidence[start : start + rows] for start in range(0, len(confidence), rows))
    return sum(int(np.isnan(part).sum()) for part in parts) / confidence.size
