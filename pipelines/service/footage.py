"""A video that was sent, read through the one door for video."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from model import ModelConfig
from pipelines.raw.video import VideoFrames
from pipelines.service.limits import wrong
from pipelines.truth.clips import resize

WHERE = "the video"
FEWEST = 2  # frames


@dataclass(frozen=True)
class Chosen:
    """Frames start, start + step, ... of a video: `frames` of them, or all."""

    start: int = 0
    step: int = 1
    frames: int | None = None

    def clip_id(self, video: bytes) -> str:
        """Of the content and of what is chosen of it: 32 letters and digits."""
        digest = hashlib.blake2b(video, digest_size=16)
        digest.update(repr((self.start, self.step, self.frames)).encode())
        return digest.hexdigest()


def read_clip(
    video: bytes, chosen: Chosen, config: ModelConfig
) -> tuple[UInt8[np.ndarray, "T S S 3"], tuple[int, int]]:
    """The chosen frames as the model takes them, and (H, W) before. `Refusal` (422), in words, for what is no video, is
    damaged or refused, or has too few or too many frames."""
    most = config.clip_frames
    wanted = chosen.frames or most + 1
    try:
        footage = VideoFrames(io.BytesIO(video), WHERE, first=chosen.start + (wanted - 1) * chosen.step + 1)
        places = range(chosen.start, len(footage), chosen.step)
        if not max(FEWEST, chosen.frames or 0) <= len(places) <= most:
            raise ValueError(_unfit(len(footage), len(places), chosen, most))
        return _frames(footage, places, config.image_size)
    except ValueError as error:
        raise wrong(str(error)) from None


def _frames(footage: VideoFrames, places: range, side: int) -> tuple[UInt8[np.ndarray, "T S S 3"], tuple[int, int]]:
    frames, size = [], None
    for place in places:
        frame = footage.shown(place)
        size = size or frame.shape[:2]
        if frame.shape[:2] != size:
            raise ValueError(f"frame {place} of {WHERE} is {frame.shape[:2]} (H, W), the first is {size}")
        frames.append(resize(frame, side))
    return np.stack(frames), size


def _unfit(total: int, count: int, chosen: Chosen, most: int) -> str:
    if count > most:
        return f"{WHERE} has more than the {most} frames that the model takes: choose with start, step and frames"
    fewest = max(FEWEST, chosen.frames or 0)
    return (
        f"{WHERE} has {total} frames, of which start {chosen.start} and step {chosen.step} leave {count}: at least "
        f"{fewest} are needed"
    )
