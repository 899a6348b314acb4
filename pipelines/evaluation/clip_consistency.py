"""Query consistency on the clips of a store: one point at one time, asked in several ways (`consistency.py`).

| axis  | members of a group                                                                                          |
|-------|-------------------------------------------------------------------------------------------------------------|
| `src` | the point asked at (uv, t_src), and where it is at (uv_tgt, t_tgt), if it is seen there; in the camera t_cam |
| `cam` | the same query in up to `CAMERAS` cameras, each answer brought to camera 0 by the true poses and the scale   |
| `window`        | the same query when the whole clip is looked at, its first two thirds, or its last; in one camera  |
| `window_scaled` | the same, each window with a scale of its own                                                      |
| `batch`         | the same query, its clip encoded alone or beside another clip, which must change nothing          |

Of each clip `GROUPS` queries whose xyz is known, the first that there are; one scale per clip and axis.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from model import Queries
from model.precision import half_on_gpu
from model.recipes import AnsweringModel
from pipelines.evaluation.consistency import FAR, consistency
from pipelines.geometry import inverse, transform
from pipelines.query_table import VALID_BITS
from pipelines.store.reader import Clip

GROUPS, CAMERAS = 256, 8
AXES = ("src", "cam", "window", "window_scaled", "batch")


@dataclass
class Consistency:
    """Sums over groups, of any number of clips."""

    sums: dict[str, np.ndarray] = field(default_factory=lambda: {axis: np.zeros(6) for axis in AXES})
    """Of each axis: groups, spread, error, spreads over `FAR`, members asked, members lost."""

    def add(self, axis: str, found: dict) -> None:
        spread, error = np.array(found["group_spread"]), np.array(found["group_epe"])
        counts = (found["members_asked"], found["members_lost"])
        self.sums[axis] += (len(spread), spread.sum(), error.sum(), (spread > FAR).sum(), *counts)

    def merge(self, other: "Consistency") -> None:
        for axis in AXES:
            self.sums[axis] += other.sums[axis]

    def scores(self) -> dict[str, dict[str, float | int | None]]:
        """Means over all groups, in metres or the datasets' units; `ratio` is of the two means, None without error."""
        return {axis: _summary(*sums.tolist()) for axis, sums in self.sums.items()}


def _summary(groups: float, spread: float, error: float, far: float, asked: float, lost: float) -> dict:
    means = {"spread": spread, "epe": error, "share_above_0p1": far}
    found = {name: total / groups if groups else None for name, total in means.items()}
    ratio = spread / error if error > 0 else None
    return found | {"ratio": ratio, "groups": int(groups), "members_asked": int(asked), "members_lost": int(lost)}


@torch.inference_mode()
def measure_consistency(model: AnsweringModel, clip: Clip) -> Consistency:
    """Of one clip."""
    device, truth, found = model.device, clip.all_queries(), Consistency()
    video = torch.from_numpy(clip.video)[None].to(device)
    aspect = torch.tensor([clip.aspect], device=device)
    with half_on_gpu(device):
        memory = model.encode(video, aspect)
        for axis, (point, uv, times, asked, first_from_cam) in groups_of(truth, clip.world_from_cam).items():
            if not len(point):
                continue
            members = _answers(model, memory, uv, times)
            if first_from_cam is not None:
                # Its own scale first: rotations do not feel it, positions of cameras do.
                finite = asked & np.isfinite(members).all(axis=-1)
                own = transform(inverse(first_from_cam), point[:, None])
                members = transform(first_from_cam, _scale(own[finite], members[finite]) * members)
            found.add(axis, consistency(point, members, asked))

        point, uv, times = _among(truth, clip.world_from_cam, *_windows(len(clip.video)))
        if len(point):
            members = np.stack(
                [
                    _answers(model, model.encode(video[:, a:b], aspect), uv, tuple(t - a for t in times))[:, 0]
                    for a, b in _windows(len(clip.video))
                ],
                axis=1,
            )
            asked = np.ones(members.shape[:2], bool)
            found.add("window", consistency(point, members, asked))
            scales = [_scale(point, said) for said in members.swapaxes(0, 1)]
            found.add("window_scaled", consistency(point, members * np.array(scales)[:, None], asked))

        point, uv, times = _among(truth, clip.world_from_cam, (0, len(clip.video)))
        if len(point):
            both = model.encode(torch.cat([video, video.flip(1)]), aspect.repeat(2))
            members = np.concatenate([_answers(model, each, uv, times) for each in (memory, both)], axis=1)
            found.add("batch", consistency(point, members, np.ones(members.shape[:2], bool)))
    return found


def _answers(
    model: AnsweringModel, memory: Any, uv: Float64[np.ndarray, "G K 2"], times: tuple[np.ndarray, ...]
) -> Float64[np.ndarray, "G K 3"]:
    """About the first clip in memory; all others are asked the same."""
    clips = len(memory.video) if hasattr(memory, "video") else 1
    rows = [torch.from_numpy(np.ascontiguousarray(t.reshape(-1))).to(model.device).repeat(clips, 1) for t in times]
    where = torch.from_numpy(uv.reshape(1, -1, 2).astype(np.float32)).to(model.device).repeat(clips, 1, 1)
    said = model.decode(memory, Queries(where, *rows)).xyz[0]
    return said.float().cpu().numpy().astype(np.float64).reshape(*uv.shape[:2], 3)


def _scale(true: Float64[np.ndarray, "n 3"], said: Float64[np.ndarray, "n 3"]) -> float:
    finite = np.isfinite(said).all(axis=-1)
    middle = np.median(np.linalg.norm(said[finite], axis=-1)) if finite.any() else 0.0
    return float(np.median(np.linalg.norm(true[finite], axis=-1)) / middle) if middle > 0 else float("nan")


def _windows(frames: int) -> list[tuple[int, int]]:
    """The whole clip, its first two thirds, and its last; of a clip too short for that none."""
    length = -(-2 * frames // 3)
    return [(0, frames), (0, length), (frames - length, frames)] if frames >= 4 else []


def _among(
    truth: dict[str, np.ndarray], world_from_cam: np.ndarray, *windows: tuple[int, int]
) -> tuple[Float64[np.ndarray, "G 3"], Float64[np.ndarray, "G 1 2"], tuple[np.ndarray, ...]]:
    """Queries whose frames are in all windows, in the camera of the frame in their middle: (points, uv, times)."""
    first, last = max((a for a, _ in windows), default=0), min((b for _, b in windows), default=0)
    inside = truth["valid"] & VALID_BITS["xyz"] > 0
    for name in ("t_src", "t_tgt"):
        inside &= (truth[name] >= first) & (truth[name] < last)
    rows, camera = np.flatnonzero(inside)[:GROUPS], (first + last) // 2
    here_from_cam = inverse(world_from_cam.astype(np.float64))[camera] @ world_from_cam[truth["t_cam"][rows]]
    points = transform(here_from_cam, truth["xyz"][rows].astype(np.float64))
    src, tgt = (truth[name][rows, None].astype(np.int64) for name in ("t_src", "t_tgt"))
    return points, truth["uv_norm"][rows, None].astype(np.float64), (src, tgt, np.full_like(src, camera))


Group = tuple[
    Float64[np.ndarray, "G 3"],
    Float64[np.ndarray, "G K 2"],
    tuple[Int64[np.ndarray, "G K"], Int64[np.ndarray, "G K"], Int64[np.ndarray, "G K"]],
    Bool[np.ndarray, "G K"],
    Float64[np.ndarray, "G K 4 4"] | None,
]


def groups_of(truth: dict[str, np.ndarray], world_from_cam: np.ndarray) -> dict[str, Group]:
    """Axis -> true points in the frame of comparison, uv, (t_src, t_tgt, t_cam), what is asked, first_from_cam."""
    known = truth["valid"] & VALID_BITS["xyz"] > 0
    seen_again = known & (truth["valid"] & VALID_BITS["uv_tgt"] > 0) & truth["visible"]
    seen_again &= truth["t_src"] != truth["t_tgt"]
    rows = np.flatnonzero(seen_again)[:GROUPS]
    src, tgt, cam = (truth[name][rows].astype(np.int64) for name in ("t_src", "t_tgt", "t_cam"))
    uv = np.stack([truth["uv_norm"][rows], truth["uv_tgt"][rows]], axis=1).astype(np.float64)
    times = (np.stack([src, tgt], axis=1), np.stack([tgt, tgt], axis=1), np.stack([cam, cam], axis=1))
    inside = ((uv >= 0) & (uv <= 1)).all(axis=-1)
    groups = {"src": (truth["xyz"][rows].astype(np.float64), uv.clip(0, 1), times, inside, None)}

    rows = np.flatnonzero(known)[:GROUPS]
    frames = len(world_from_cam)
    cameras = np.unique(np.linspace(0, frames - 1, min(CAMERAS, frames)).astype(np.int64))
    first_from_cam = inverse(world_from_cam[:1].astype(np.float64)) @ world_from_cam
    points = transform(first_from_cam[truth["t_cam"][rows]], truth["xyz"][rows].astype(np.float64))
    shape = (len(rows), len(cameras))
    src, tgt = (np.broadcast_to(truth[name][rows, None].astype(np.int64), shape) for name in ("t_src", "t_tgt"))
    uv = np.broadcast_to(truth["uv_norm"][rows, None].astype(np.float64), (*shape, 2))
    times = (src, tgt, np.broadcast_to(cameras, shape))
    asked = np.ones(shape, bool)
    groups["cam"] = (points, uv, times, asked, np.broadcast_to(first_from_cam[cameras], (*shape, 4, 4)))
    return groups
