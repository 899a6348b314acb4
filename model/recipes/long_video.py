"""A video of any length: windows that a model can take, joined to one world (paper App. B, and beyond it).

`track_long_video` does all of it in one go. It is made of functions, each from arrays to arrays that can be kept, so
that a job can run windows as tasks of their own and join them again at will:

| step                      | of          | needs                                     | gives                 |
|---------------------------|-------------|-------------------------------------------|-----------------------|
| `windows.plan_windows`    | the video   | its length                                | `WindowPlan`          |
| `joining.look`            | each window | its frames                                | `WindowGeometry`      |
| `joining.join`            | each seam   | the geometry of both windows              | `Seam`                |
| `following.follow`        | each window | its frames; `Followed`, `Seam` before     | `Followed`            |
| `joining.chain`           | the video   | all seams                                 | world_from_window     |
| `joining.join_cameras`    | the video   | all geometry, world_from_window           | `CameraPath`          |
| `join_tracks`             | the video   | all `Followed`, world_from_window         | `LongTracks`          |

Whatever else a window gives is in the world by `alignment.move(world_from_window[w], xyz)`, and lengths are by
`alignment.scale_of(world_from_window[w])`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.recipes.alignment import move, scale_of
from model.recipes.asking import AnsweringModel, Numbers, points_at
from model.recipes.following import LOST, Followed, follow
from model.recipes.joining import Seam, WindowGeometry, chain, join, join_cameras, look
from model.recipes.results import CameraPath
from model.recipes.views import Frames, View
from model.recipes.windows import WindowPlan, plan_windows


@dataclass(frozen=True)
class LongTracks:
    """N points followed through all T frames. NaN, and not visible, where a track is lost."""

    xyz: Tensor
    """(N, T, 3) float32, in the world: the camera of frame 0, in the unit of window 0."""
    xyz_cam: Tensor
    """(N, T, 3) float32, each in the camera of its own frame, in the same unit."""
    uv_norm: Tensor
    """(N, T, 2) float32: where the point appears in each frame; outside [0, 1] when out of view."""
    visible: Tensor
    """(N, T) bool."""
    confidence: Tensor
    """(N, T) float32, from 0 to 1; 0 where lost."""
    status: Tensor
    """(N, T) int8: `following.FOLLOWED`, RECALLED by memory frames, or LOST."""

    @property
    def known(self) -> Tensor:
        """(N, 2) int64: the first and the last frame between which each track is known; beyond them it is lost."""
        known = (self.status != LOST).byte()
        last = known.shape[1] - 1 - known.flip(1).argmax(dim=1)
        return torch.stack([known.argmax(dim=1), last], dim=1)


@dataclass(frozen=True)
class LongVideo:
    """A long video as one world."""

    plan: WindowPlan
    tracks: LongTracks
    cameras: CameraPath
    geometry: list[WindowGeometry]
    seams: list[Seam]
    forwards: list[Followed]
    """What each window says of the tracks, going forwards."""
    world_from_window: Tensor
    """(W, 4, 4) float64, with scales; NaN after a seam that could not be joined."""


@torch.inference_mode()
def track_long_video(
    model: AnsweringModel,
    video: Frames,
    uv_norm: Numbers,
    t_src: Numbers,
    *,
    num_frames: int | None = None,
    plan: WindowPlan | None = None,
    scale: bool = True,
    aspect: float = 1.0,
    width: int | None = None,
    height: int | None = None,
    chunk_size: int | None = None,
) -> LongVideo:
    """Follow N points, each seen at `uv_norm` (N, 2) in frame `t_src`, through a video of any length, and its cameras.

    Args:
        video: (T, S, S, 3) uint8, resized to the model's square; only the frames of one window are read at a time.
        num_frames: T, where `video` cannot tell its length.
        plan: by default windows as long as the model takes, a third in common.
        scale: whether windows may differ in their unit of length; False where the model's unit is known.
        aspect: raw width / height.
        width, height: frame size in pixels that the intrinsics refer to; by default of `video`.
    """
    num_frames = len(video) if num_frames is None else num_frames
    plan = plan or plan_windows(num_frames, model.config.clip_frames)
    uv_norm, t_src = points_at(uv_norm, t_src)
    if len(t_src) and not 0 <= t_src.min() <= t_src.max() < num_frames:
        raise ValueError(f"t_src runs from {t_src.min()} to {t_src.max()}; the video has frames 0 to {num_frames - 1}")
    options = {"aspect": aspect, "chunk_size": chunk_size}
    geometry: list[WindowGeometry] = []
    seams: list[Seam] = []
    forwards: list[Followed] = []
    for number, window in enumerate(plan.windows):
        memory = View.of(model, video, window, **options).memory
        geometry.append(look(model, video, plan, number, width=width, height=height, memory=memory, **options))
        if number:
            seams.append(join(geometry[-2], geometry[-1], scale=scale))
        origin = {"before": forwards[-1], "seam": seams[-1]} if number else {}
        forwards.append(follow(model, video, plan, number, uv_norm, t_src, memory=memory, **origin, **options))

    backwards: dict[int, Followed] = {}
    latest = int(plan.owner[t_src].max()) if len(t_src) else 0
    for number in reversed(range(latest + 1) if latest else []):
        origin = {"before": backwards[number + 1], "seam": seams[number]} if number < latest else {}
        backwards[number] = follow(model, video, plan, number, uv_norm, t_src, backwards=True, **origin, **options)
    world_from_window = chain(seams)
    return LongVideo(
        plan=plan,
        tracks=join_tracks(plan, world_from_window, t_src, forwards, backwards),
        cameras=join_cameras(plan, geometry, world_from_window),
        geometry=geometry,
        seams=seams,
        forwards=forwards,
        world_from_window=world_from_window,
    )


def join_tracks(
    plan: WindowPlan,
    world_from_window: Tensor,
    t_src: Tensor,
    forwards: Sequence[Followed],
    backwards: dict[int, Followed],
) -> LongTracks:
    """The tracks of all windows as one, each frame as its window says.

    Args:
        world_from_window: (W, 4, 4), with scales.
        t_src: (N,) the frames in which the points were given.
        forwards: of all windows.
        backwards: of the windows before the last one in which a point begins; none if all begin in the first.
    """
    begin = plan.owner[t_src]
    parts = []
    for number, window in enumerate(plan.windows):
        mine = plan.owner[window.start : window.stop] == number
        ahead, back = forwards[number], backwards.get(number)
        is_ahead = begin <= number
        said = {}
        for name in ("xyz", "xyz_cam", "uv_norm", "visible", "confidence"):
            rows = getattr(ahead, name)[:, mine]
            if back is not None:
                told = is_ahead.view(-1, *[1] * (rows.ndim - 1))
                rows = torch.where(told, rows, getattr(back, name)[:, mine])
            said[name] = rows
        status = ahead.status if back is None else torch.where(is_ahead, ahead.status, back.status)
        world = world_from_window[number]
        said["xyz"] = move(world, said["xyz"])
        said["xyz_cam"] = said["xyz_cam"] * scale_of(world).float()
        said["status"] = status[:, None].expand(-1, int(mine.sum()))
        parts.append(said)
    return LongTracks(**{name: torch.cat([said[name] for said in parts], dim=1) for name in parts[0]})
