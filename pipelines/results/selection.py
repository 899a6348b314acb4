"""Which frames of a video are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

MAX_FPS = 1000
WITHIN = 1e-6  # seconds by which times may be off: containers round them


def check_windows(window: int | None, common: int | None) -> None:
    """ValueError for what makes no windows, whatever the model takes; None is for it to choose."""
    if window is not None and window < 2:
        raise ValueError(f"--window {window} must be at least 2 frames")
    if common is not None and common < 1:
        raise ValueError(f"--common {common} must be at least 1 frame, or windows cannot be joined")
    if window is not None and common is not None and common >= window:
        raise ValueError(f"--common {common} must be less than --window {window}")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Frames start, start + step, ... of a video, or so many a second from frame `start` on: `num_frames` of them, or
    all there are.

    Raises ValueError for what no video can satisfy.
    """

    start: int = 0
    step: int = 1
    fps: float | None = None
    """Of the frames chosen, by the times at which they are shown; in place of `step`."""
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"--start {self.start} must not be negative: frames are counted from 0")
        if self.step < 1:
            raise ValueError(f"--step {self.step} must be at least 1")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise ValueError(f"--fps {self.fps:g} must be above 0, and at most {MAX_FPS}: frames per second")
        if self.fps is not None and self.step != 1:
            raise ValueError(f"--fps {self.fps:g} and --step {self.step} both say which frames to take: give one")
        if self.num_frames is not None and self.num_frames < 2:
            raise ValueError(f"--num-frames {self.num_frames} must be at least 2")

    @property
    def first(self) -> int | None:
        """How many of a video's first frames have to be known; None: all."""
        return None if self.num_frames is None or self.fps is not None else self.first_of(self.num_frames)

    def first_of(self, count: int) -> int:
        """How many of a video's first frames have to be known for `count` to be chosen; more, perhaps, with `fps`."""
        return self.start + (count - 1) * self.step + 1

    def among(self, total: int, seconds: Float64[np.ndarray, "T"] | None, video: str) -> Sequence[int]:
        """All that may be chosen of a video with `total` frames, shown at `seconds`."""
        return range(self.start, total, self.step) if self.fps is None else self._by_time(total, seconds, video)

    def of(self, total: int, seconds: Float64[np.ndarray, "T"] | None, video: str) -> Sequence[int]:
        """The frames chosen of a video with `total`, shown at `seconds`; ValueError naming the video if that cannot be
        done."""
        if total < 2:
            raise ValueError(f"{video} has {total} frame(s): a video needs at least 2")
        there = self.among(total, seconds, video)
        by = f"--step {self.step}" if self.fps is None else f"--fps {self.fps:g}"
        left = "" if len(there) == total else f", --start {self.start} {by} leave {len(there)}"
        wanted = self.num_frames or len(there)
        if len(there) < max(wanted, 2):
            raise ValueError(
                f"{video} has {total} frames{left}: fewer than {max(wanted, 2)}; lower --num-frames, --start or --step"
            )
        return there[:wanted]

    def _by_time(self, total: int, seconds: Float64[np.ndarray, "T"] | None, video: str) -> list[int]:
        """At each instant the frame that is shown then; none twice."""
        if seconds is None:
            raise ValueError(f"{video} does not say when its frames were taken: give --step in place of --fps")
        if self.start >= total:
            return []
        instants = np.arange(seconds[self.start], seconds[-1] + WITHIN, 1 / self.fps)
        shown = np.searchsorted(seconds, instants + WITHIN, side="right") - 1  # the last that began before
        return np.unique(shown).tolist()
