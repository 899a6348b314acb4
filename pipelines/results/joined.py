"""The answers of all windows as the arrays of the result files, in one world and one unit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from model import recipes
from model.recipes.alignment import move, scale_of
from model.recipes.dense_following import join_all
from model.recipes.following import Followed
from model.recipes.joining import join_cameras
from model.recipes.long_video import LongTracks, join_tracks
from model.recipes.results import PointCloud
from model.recipes.windows import WindowPlan
from pipelines.results.across import Across
from pipelines.results.arrays import Arrays, Rows
from pipelines.results.files import FIELDS
from pipelines.results.questions import Questions
from pipelines.results.windowed import WindowAnswers

DOUBTFUL = 10.0  # percent of the points of a video, the least confident, are left out


def joined(
    plan: WindowPlan,
    answers: Sequence[WindowAnswers],
    questions: Questions,
    across: Across,
    world_from_window: torch.Tensor,
) -> dict[str, Arrays]:
    """Task -> the arrays of its .npz file (see `results/files.py`). NaN after a seam that could not be joined.

    `answers` may lie on disk (`results/kept.py`): what is large is asked of them window by window, when it is written.
    """
    scales = [scale_of(world).float() for world in world_from_window]
    results: dict[str, dict[str, torch.Tensor | Rows]] = {}
    if "tracks" in questions.tasks:
        followed = [said.followed for said in answers]
        tracks = join_tracks(plan, world_from_window, questions.t_src, followed, across.backwards)
        results["tracks"] = _track_arrays(tracks, questions.points, questions.t_src)
        if questions.forecast:
            whole = recipes.Tracks(tracks.xyz, tracks.uv_norm, tracks.visible, tracks.confidence, t_cam=0)
            ahead = recipes.extrapolate(whole, questions.forecast)
            results["forecast"] = {name: getattr(ahead, name) for name in FIELDS["forecast.npz"]}
        if "uncertainty" in questions.tasks:
            results["uncertainty"] = {
                "jitter": _jitter(plan, answers, questions, across, scales),
                "windows": _between_windows(plan, followed, world_from_window),
            }
    if "dense_tracks" in questions.tasks:
        begun = answers[-1].begun
        tracks = join_all(plan, world_from_window, begun, [said.dense for said in answers])
        results["dense_tracks"] = _track_arrays(tracks, begun.points, begun.t_src)
    if "depth" in questions.tasks:
        results["depth"] = {
            "depth": _rows(plan, lambda number: answers[number].depth.depth * scales[number]),
            "normal": _rows(plan, lambda number: answers[number].depth.normal),
            "confidence": _rows(plan, lambda number: answers[number].depth.confidence),
        }
    if "flow" in questions.tasks:
        results["flow"] = {
            "xyz": _rows(plan, lambda number: answers[number].flow.xyz * scales[number], last=False),
            "flow": _rows(plan, lambda number: answers[number].flow.flow * scales[number], last=False),
            "visible": _rows(plan, lambda number: answers[number].flow.visible, last=False),
            "confidence": _rows(plan, lambda number: answers[number].flow.confidence, last=False),
        }
    if "points" in questions.tasks:
        clouds = [_in_world(said.points, world) for said, world in zip(answers, world_from_window, strict=True)]
        cloud = recipes.joined_clouds(clouds)
        results["points"] = vars(cloud if questions.all_pixels else recipes.without_doubtful(cloud, DOUBTFUL))
    if "cameras" in questions.tasks:
        path = join_cameras(plan, [said.geometry for said in answers], world_from_window)
        if questions.shared_focal:
            path = replace(path, intrinsics=path.intrinsics.nanmedian(dim=0).values.repeat(plan.num_frames, 1, 1))
        results["cameras"] = {name: getattr(path, name) for name in FIELDS["cameras.npz"]}
    return {
        task: {key: x if isinstance(x, Rows) else x.numpy() for key, x in arrays.items()}
        for task, arrays in results.items()
    }


def _track_arrays(tracks: LongTracks, points: torch.Tensor, t_src: torch.Tensor) -> dict[str, torch.Tensor]:
    asked = {"points": points, "t_src": t_src}
    return asked | {name: getattr(tracks, name) for name in FIELDS["tracks.npz"] if name not in asked}


def _jitter(
    plan: WindowPlan,
    answers: Sequence[WindowAnswers],
    questions: Questions,
    across: Across,
    scales: Sequence[torch.Tensor],
) -> torch.Tensor:
    """(N, T), each frame as its window says; what begins later as it was followed backwards."""
    begin = plan.owner[questions.t_src]
    parts = []
    for number, window in enumerate(plan.windows):
        mine = plan.owner[window.start : window.stop] == number
        distance = answers[number].jitter.distance[:, mine]
        if number in across.jitter:
            distance = torch.where((begin <= number)[:, None], distance, across.jitter[number].distance[:, mine])
        parts.append(distance * scales[number])
    return torch.cat(parts, dim=1)


def _between_windows(plan: WindowPlan, followed: Sequence[Followed], world_from_window: torch.Tensor) -> torch.Tensor:
    """(N, T): how far apart two windows put a track in the frames that they share; NaN where one alone answers."""
    apart = torch.full((len(followed[0].status), plan.num_frames), torch.nan)
    for number in range(len(plan) - 1):
        shared = plan.shared(number)
        before, after = (
            move(world_from_window[side], followed[side].xyz[:, shared.start - plan.windows[side].start :])
            for side in (number, number + 1)
        )
        apart[:, shared.start : shared.stop] = (after[:, : len(shared)] - before).norm(dim=-1)
    return apart


def _rows(plan: WindowPlan, part: Callable[[int], torch.Tensor], *, last: bool = True) -> Rows:
    """A row per frame; `part` gives those that a window answers for. Without `last`, none for the last of the video."""

    def parts() -> Iterator:
        return (part(number).numpy() for number in range(len(plan)) if last or _has_flow(plan, number))

    return Rows(plan.num_frames if last else plan.num_frames - 1, parts)


def _has_flow(plan: WindowPlan, number: int) -> bool:
    """Not if it answers for nothing but the last frame of the video."""
    return bool((plan.owner[:-1] == number).any())


def _in_world(cloud: PointCloud, world_from_window: torch.Tensor) -> PointCloud:
    turn = world_from_window[:3, :3] / scale_of(world_from_window)
    return replace(cloud, xyz=move(world_from_window, cloud.xyz), normal=(cloud.normal.double() @ turn.T).float())
