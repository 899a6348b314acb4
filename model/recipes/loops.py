"""Where a camera comes back to a place, and how the windows that saw it lie to each other.

Windows that look alike are *proposed* by what the encoder makes of their first frames. A *loop window*, of first frames
of both, then decides: questions that must have one answer are asked in it two ways. How far the camera moved from one
end to the other is told by points seen at either end; and points of one end must be seen from the other, and seen from
there be where they came from. Only what agrees becomes a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.recipes.alignment import fit_robust, move
from model.recipes.asking import AnsweringModel, pixel_centres
from model.recipes.joining import WindowGeometry, landmark_frames
from model.recipes.views import LANDMARK_FRAMES, LANDMARK_GRID, Frames, View
from model.recipes.windows import WindowPlan, spread

ALIKE = 0.5
"""Cosine of what is special about two windows, that is, different from the mean of all, from which they look alike."""

MAX_PROPOSALS = 20
"""Loop windows that are looked at, at most; the most alike first."""

MAX_DISAGREEMENT = 0.03
"""Share of its distance by which a point may lie elsewhere if the other end tells how the camera moved."""

SEEN_BACK = 0.1
"""Share of the points of a frame, at least, that are seen from one of the other end and found again from there."""

BACK_AT = 0.02
"""Image sizes from where it came from, within which a point is found again."""


@dataclass(frozen=True)
class Loop:
    """Two windows that may have seen one place, and what a loop window says of them."""

    first: int
    second: int
    first_from_second: Tensor
    """(4, 4) float64, with a scale: positions in the first camera of window `second` -> in that of `first`."""
    alike: float
    disagreement: float
    """Median over the points, of where both ends put them, as a share of the distance."""
    seen_back: float

    @property
    def closed(self) -> bool:
        """Whether it is one place."""
        return self.disagreement <= MAX_DISAGREEMENT and self.seen_back >= SEEN_BACK


def propose_loops(geometry: Sequence[WindowGeometry]) -> list[tuple[int, int, float]]:
    """(first, second, how alike) for windows that are no neighbours: for each the earlier one it is most like."""
    appearance = torch.stack([one.appearance for one in geometry]).double()
    special = torch.nn.functional.normalize(appearance - appearance.mean(dim=0), dim=1)
    alike = special @ special.mT
    proposals = []
    for second in range(2, len(geometry)):
        first = int(alike[second, : second - 1].argmax())
        if alike[second, first] >= ALIKE:
            proposals.append((first, second, float(alike[second, first])))
    return sorted(proposals, key=lambda proposal: -proposal[2])[:MAX_PROPOSALS]


@torch.inference_mode()
def look_for_loop(
    model: AnsweringModel,
    video: Frames,
    plan: WindowPlan,
    geometry: Sequence[WindowGeometry],
    first: int,
    second: int,
    alike: float,
    *,
    aspect: float,
    chunk_size: int | None = None,
) -> Loop:
    """Decide on one proposal, by a window of its own. `video` needs to have `loop_frames` only."""
    frames = loop_frames(plan, first, second, model.config.clip_frames)
    view = View.of(model, video, frames, aspect=aspect, chunk_size=chunk_size)
    cameras = [plan.windows[first].start, plan.windows[second].start]
    told = []  # by the points of either end: in the first camera, in the second, how surely
    for number in (first, second):
        instants = landmark_frames(plan, number)
        (in_first, sure), (in_second, sure_second) = (view.landmarks(instants, camera) for camera in cameras)
        told.append((in_first, in_second, sure * sure_second))
    in_first, in_second, sure = (torch.cat(part) for part in zip(*told, strict=True))
    by_first, by_second, by_both = (
        fit_robust(source[None], target[None], weights[None], scale=False).target_from_source[0]
        for source, target, weights in (*told, (in_first, in_second, sure))
    )
    apart = (move(by_first, in_first) - move(by_second, in_first)).norm(dim=-1) / in_second.norm(dim=-1)

    to_windows = []
    for number, end, mine in ((first, 0, told[0]), (second, 1, told[1])):
        there = geometry[number]
        weights = mine[2] * there.landmark_confidence
        to_windows.append(
            fit_robust(mine[end][None], there.landmarks[None], weights[None], scale=True).target_from_source[0]
        )
    first_from_loop, second_from_loop = to_windows
    return Loop(
        first=first,
        second=second,
        first_from_second=first_from_loop @ torch.linalg.inv(by_both) @ torch.linalg.inv(second_from_loop),
        alike=alike,
        disagreement=float(apart.nanmedian()),
        seen_back=max(
            min(_seen_back(view, here, there), _seen_back(view, there, here))
            for here in landmark_frames(plan, first)[:: LANDMARK_FRAMES - 1]
            for there in landmark_frames(plan, second)[:: LANDMARK_FRAMES - 1]
        ),
    )


def loop_frames(plan: WindowPlan, first: int, second: int, clip_frames: int) -> list[int]:
    """The frames of a loop window: of the landmarks of both ends, and between them as many as there is room for."""
    chosen: set[int] = set()
    for number in (first, second):
        needed = landmark_frames(plan, number)
        between = range(needed[0], needed[-1] + 1)
        chosen |= {*needed, *spread(between, max(1, clip_frames // 2 - LANDMARK_FRAMES))}
    return sorted(chosen)


def _seen_back(view: View, here: int, there: int) -> float:
    """Share of the points of frame `here` that are seen in `there`, and from there found again in `here`."""
    uv_norm = pixel_centres(LANDMARK_GRID, LANDMARK_GRID)
    away = view.track(uv_norm, torch.full((len(uv_norm),), here), [there])
    position = away.uv_tgt[:, 0]
    seen = away.visible[:, 0] & ((position >= 0) & (position <= 1)).all(-1)
    back = view.track(position[seen], torch.full((int(seen.sum()),), there), [here])
    found = (back.uv_tgt[:, 0] - uv_norm[seen]).norm(dim=-1) < BACK_AT
    return float(found.sum()) / len(uv_norm)
