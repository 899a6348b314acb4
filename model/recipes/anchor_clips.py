"""Long videos as OpenD4RT's own code asks about them: the source frame first, then what leads to the target.

For parity alone: it encodes nearly as many clips as there are frames, and does not align their scales. What is ours is
in `long_video.py`. The frames of a clip are not neighbours in time: the model sees no gap where there is one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.recipes.asking import AnsweringModel, Numbers, points_at
from model.recipes.results import Tracks
from model.recipes.views import Frames


@dataclass(frozen=True)
class AnchorClip:
    """Frames that are encoded together, and which targets they are for."""

    frames: tuple[int, ...]
    """Ascending; with the source frame 0, the first clip has that twice."""
    targets: tuple[int, ...]


def anchor_clips(num_frames: int, t_src: int, clip_frames: int) -> list[AnchorClip]:
    """The clips for all targets of points of frame `t_src`; targets with the same frames share a clip.

    A video that fits into one clip is one.
    """
    if num_frames <= clip_frames:
        return [AnchorClip(tuple(range(num_frames)), tuple(range(num_frames)))]
    targets: dict[tuple[int, ...], list[int]] = {}
    for target in range(num_frames):
        frames = _from_first(num_frames, target, clip_frames) if t_src == 0 else _around(t_src, target, clip_frames)
        targets.setdefault(frames, []).append(target)
    return [AnchorClip(frames, tuple(of)) for frames, of in targets.items()]


def _from_first(num_frames: int, target: int, clip_frames: int) -> tuple[int, ...]:
    """Frame 0 and as many up to the target as fit, or the first ones; target 0 stands in place of the last of these."""
    tail = clip_frames - 1
    start = max(1, target + 1 - tail)
    end = min(num_frames, start + tail)
    start = max(1, end - tail)
    frames = [*range(start, end)]
    if target == 0:
        frames[-1] = 0
    return tuple(sorted([0, *frames]))


def _around(t_src: int, target: int, clip_frames: int) -> tuple[int, ...]:
    """The source frame, and as many as fit up to the target."""
    return tuple(sorted({t_src, *range(max(0, target - clip_frames + 2), target + 1)}))


@torch.inference_mode()
def anchored_tracks(
    model: AnsweringModel,
    video: Frames,
    uv_norm: Numbers,
    t_src: int,
    num_frames: int,
    *,
    in_first_camera: bool = False,
    aspect: float = 1.0,
    chunk_size: int | None = None,
) -> Tracks:
    """Follow N points, seen at `uv_norm` (N, 2) in frame `t_src`, through all frames.

    Positions are in each frame's own camera, or all in that of frame 0, which only points of frame 0 have in all their
    clips: for others OpenD4RT takes whatever frame comes first, which is refused here.
    """
    points, frames = points_at(uv_norm, t_src)
    if in_first_camera and t_src != 0:
        raise ValueError(f"points of frame {t_src} have no clips with frame 0: ask for each frame's own camera")
    times: list[int] = []
    parts: list[tuple[Tensor, ...]] = []
    for clip in anchor_clips(num_frames, t_src, model.config.clip_frames):
        shown = torch.as_tensor(video[list(clip.frames)]).to(model.device)
        memory = model.encode(shown[None], torch.tensor([aspect], device=model.device))
        t_tgt = torch.tensor([[clip.frames.index(target) for target in clip.targets]], device=model.device)
        answers = model.decode_times(
            memory,
            points.to(model.device)[None],
            torch.full_like(frames, clip.frames.index(t_src)).to(model.device)[None],
            t_tgt,
            torch.zeros_like(t_tgt) if in_first_camera else t_tgt,
            chunk_size=chunk_size,
        )
        said = (answers.xyz, answers.uv_tgt, answers.visible, answers.confidence)
        times += clip.targets
        parts.append(tuple(x.cpu().view(len(points), len(clip.targets), *x.shape[2:]) for x in said))
    in_order = torch.tensor(times).argsort()
    whole = (torch.cat(part, dim=1)[:, in_order] for part in zip(*parts, strict=True))
    return Tracks(*whole, t_cam=0 if in_first_camera else "target")
