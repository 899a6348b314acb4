"""What is asked of videos, as the command says it. Needs no PyTorch."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.geometry import check_fit
from pipelines.problems import Problems
from pipelines.results.files import TASKS, USUAL_TASKS
from pipelines.results.given import Intrinsics, Points, Poses

MAX_GRID = 1024  # a million tracks
MAX_SIDE = 1 << 14  # pixels of a depth map
MAX_FRAMES = 1 << 24
MAX_FORECAST = 1 << 27  # positions, in 1.6 GB


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of every video of a request."""

    tasks: tuple[str, ...] = USUAL_TASKS
    grid: int = 16
    """Points tracked along each side of frame `query_frame`, row by row, unless there are `points`."""
    query_frame: int = 0
    points: Points | None = None
    dense_grid: int = 64
    """Cells along the long side of a frame, each of which dense tracks pass through."""
    depth_size: int | None = None
    """Long side of depth and flow maps; None: the model's image size, or, if native, that of the source."""
    all_pixels: bool = False
    """Whether the points are those of all pixels of the depth maps, in their order, and the doubtful ones too."""
    native: bool = False
    """Whether query patches of depth and flow are cut from the frames of the source."""
    shared_focal: bool = False
    """Whether all frames have one focal length, the median of theirs."""
    intrinsics: Intrinsics | None = None
    poses: Poses | None = None
    loops: bool = False
    forecast: int = 0
    """Frames after the last, for which tracks are continued."""

    def __post_init__(self) -> None:
        """ValueError, with all problems at once, for what can be asked of no video."""
        problems = Problems()
        for option, value, least, most in (
            ("--grid", self.grid, 1, MAX_GRID),
            ("--dense-grid", self.dense_grid, 1, MAX_GRID),
            ("--depth-size", 1 if self.depth_size is None else self.depth_size, 1, MAX_SIDE),
            ("--query-frame", self.query_frame, 0, MAX_FRAMES),
            ("--forecast", self.forecast, 0, MAX_FRAMES),
        ):
            if not least <= value <= most:
                problems.reasons.append(f"{option} {value} must be from {least} to {most}")
        if self.points is not None and self.query_frame:
            problems.reasons.append("--query-frame is of the grid: points of --points have a frame of their own, t")
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            problems.reasons.append(f"--tasks has {', '.join(map(repr, unknown))}: choose from {', '.join(TASKS)}")
        for name, wanted in (("--tasks uncertainty", "uncertainty" in self.tasks), ("--forecast", self.forecast > 0)):
            if wanted and "tracks" not in self.tasks:
                problems.reasons.append(f"{name} is of tracks: add tracks to --tasks")
        positions = self.num_points * self.forecast
        if positions > MAX_FORECAST:
            given = f"--forecast {self.forecast} of {self.num_points} tracks gives {positions} positions"
            problems.reasons.append(f"{given}: at most {MAX_FORECAST}")
        problems.refuse()

    @property
    def num_points(self) -> int:
        """How many are tracked."""
        return self.grid**2 if self.points is None else len(self.points.points)

    def told(self) -> dict[str, Any]:
        """As it stands in result.json: another request, another answer."""
        digests = {
            "points": _digest(self.points and (self.points.points, self.points.t_src)),
            "poses": _digest(self.poses and (self.poses.world_from_cam, self.poses.frames)),
        }
        intrinsics = None if self.intrinsics is None else list(vars(self.intrinsics).values())
        return vars(self) | {"tasks": list(self.tasks), "intrinsics": intrinsics} | digests

    @property
    def least(self) -> int | None:
        """Of how many of its frames a video has to be known, to be checked; None: of all."""
        return None if self.poses is not None else self.latest + 1

    @property
    def latest(self) -> int:
        """The last frame in which a point to be tracked is."""
        return self.query_frame if self.points is None else int(self.points.t_src.max())

    def check(self, frame_numbers: np.ndarray, size: tuple[int, int], where: str) -> None:
        """ValueError, naming the video, for what cannot be asked of one with (H, W) and these frames: all, or the first
        ones, `least` at the least."""
        problems, count = Problems(), len(frame_numbers)
        if self.latest >= count:
            option = "--query-frame" if self.points is None else "--points"
            problems.reasons.append(f"{option} has frame {self.latest}; {where} has {count}, counted from 0")
        if self.intrinsics is not None:
            with problems.noted():
                check_fit(self.intrinsics.matrix, size, f"--intrinsics, of {where},")
        if self.poses is not None:
            with problems.noted():
                self.poses.of(frame_numbers, where)
        problems.refuse()


def _digest(arrays: tuple[np.ndarray | None, ...] | None) -> str | None:
    if arrays is None:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
