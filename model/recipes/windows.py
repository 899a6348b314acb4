"""Which frames of a long video are looked at together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

COMMON_SHARE = 3
"""Windows have a third of their frames in common with the next: 16 of 48."""

MIN_COMMON = 2
"""But at least so many, where they are so short that it would be one: what moves is then seen to move."""


@dataclass(frozen=True)
class WindowPlan:
    """Windows over frames 0 to `num_frames` - 1, each overlapping the next.

    The last window is moved back so that it has all its frames too; it then shares more of them with the one before. A
    video that is no longer than one window has one, of its own length.

    Raises ValueError for numbers that make no windows.
    """

    num_frames: int
    length: int
    """Frames of a window, at most the model's `clip_frames`."""
    common: int
    """Frames that a window shares with the next."""

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a video of {self.num_frames} frames has no windows")
        if not 1 <= self.common < self.length:
            raise ValueError(
                f"windows of {self.length} frames cannot have {self.common} in common with the next: from 1 to "
                f"{self.length - 1}"
            )

    @cached_property
    def windows(self) -> tuple[range, ...]:
        """The frames of each window."""
        last = max(0, self.num_frames - self.length)
        starts = [*range(0, last, self.length - self.common), last]
        return tuple(range(start, min(start + self.length, self.num_frames)) for start in starts)

    def __len__(self) -> int:
        """How many windows."""
        return len(self.windows)

    def shared(self, number: int) -> range:
        """The frames that window `number` shares with the next; the first of them is the next one's first."""
        return range(self.windows[number + 1].start, self.windows[number].stop)

    @cached_property
    def owner(self) -> Tensor:
        """(T,) int64: the window whose answer counts for each frame. Half of the shared frames go to either window."""
        owner = torch.zeros(self.num_frames, dtype=torch.int64)
        for number in range(len(self) - 1):
            shared = self.shared(number)
            owner[shared[len(shared) // 2] :] = number + 1
        return owner


def plan_windows(
    num_frames: int, clip_frames: int, *, length: int | None = None, common: int | None = None
) -> WindowPlan:
    """Windows for a model that takes `clip_frames`: as long as it can, a third in common but at least
    two, unless told otherwise.

    Raises ValueError for windows longer than the model takes.
    """
    length = clip_frames if length is None else length
    if length > clip_frames:
        raise ValueError(f"windows of {length} frames are longer than the model takes: at most {clip_frames}")
    if common is None:
        common = min(max(MIN_COMMON, length // COMMON_SHARE), length - 1)
    return WindowPlan(num_frames, length, common)


def places(frames: Sequence[int], among: Sequence[int]) -> Tensor:
    """Where each of `frames` is in a window of the frames `among`: (n,) int64."""
    where = {frame: place for place, frame in enumerate(among)}
    return torch.tensor([where[frame] for frame in frames], dtype=torch.int64)


def spread(frames: Sequence[int], count: int) -> list[int]:
    """At most `count` of the frames, from the first to the last, evenly."""
    count = min(count, len(frames))
    return [frames[i] for i in torch.linspace(0, len(frames) - 1, count).round().long().tolist()]
