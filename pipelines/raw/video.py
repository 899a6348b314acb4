"""Frames of a video file by their number, decoded when asked for.

Going forward costs one pass over the file; going back, or far ahead, starts again at a key frame.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import av
import numpy as np
from jaxtyping import UInt8

from pipelines.raw.folder import RawFolder
from pipelines.raw.images import MAX_PIXELS, unreadable

av.logging.set_level(None)  # what FFmpeg prints about a damaged file is in the exception too


class VideoFrames:
    """A video in a raw folder. ValueError for what is no video, damaged or too short."""

    def __init__(self, raw: RawFolder, path: str) -> None:
        self._where = f"{path} in {raw.uri}"
        with self._reading():
            self._container = av.open(raw.open(path), metadata_errors="replace")
            if not self._container.streams.video:
                raise unreadable(self._where, "a video", "it has no video stream")
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:
                raise unreadable(self._where, "a video", "its codec is not known")
        self.size = (self._stream.height, self._stream.width)
        """(H, W) of the frames, not turned."""
        if not 0 < self._stream.height * self._stream.width <= MAX_PIXELS:
            raise unreadable(self._where, "a video", f"frames of {self.size} (H, W)")
        self._next, self._decoder = 0, None

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB."""
        times, key_frames = self._index
        if t >= len(times):
            raise ValueError(
                f"{self._where} has {len(times)} frames, number {t} is asked for: truncated, or annotations of another "
                "video; download it again"
            )
        key_frame = key_frames[bisect_right(key_frames, t) - 1]
        with self._reading():
            if self._decoder is None or t < self._next or key_frame > self._next:
                self._container.seek(times[key_frame], stream=self._stream)
                self._next, self._decoder = key_frame, self._container.decode(self._stream)
            for frame in self._decoder:
                if frame.pts >= times[t]:
                    break
            else:
                raise unreadable(self._where, "a video", f"frame {t} does not decode")
            self._next = t + 1
            if frame.pts != times[t]:
                raise unreadable(self._where, "a video", f"frame {t} does not decode")
            return frame.to_ndarray(format="rgb24")

    @cached_property
    def _index(self) -> tuple[list[int], list[int]]:
        """When each frame is shown, and which ones can be decoded on their own. Nothing is decoded for it."""
        with self._reading():
            self._container.seek(0)
            packets = [p for p in self._container.demux(self._stream) if p.size and not p.is_discard]
            if any(packet.pts is None for packet in packets):
                raise unreadable(self._where, "a video", "it does not tell when its frames are shown")
            packets = sorted((packet.pts, packet.is_keyframe) for packet in packets)
        times = [time for time, _ in packets]
        key_frames = [t for t, (_, is_key_frame) in enumerate(packets) if is_key_frame]
        if not key_frames or key_frames[0] != 0 or len(set(times)) < len(times):
            raise unreadable(self._where, "a video", "no key frame at its start, or two frames at one time")
        return times, key_frames

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except av.error.FFmpegError as error:
            raise unreadable(self._where, "a video", error) from None
