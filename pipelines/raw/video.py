"""The one door for video: frames of a file by their number, decoded when asked for.

A video file is a program for FFmpeg, and somebody else wrote it. So what it is is told by its content alone, few kinds
are opened and no other file (`ffmpeg.py`), and sizes are checked before a frame is decoded (`limits.py`).

One thread decodes: every further one holds frames of its own, and what FFmpeg says about damage could not be told to
belong to a frame. Going forward costs one pass over the file; going back, or far ahead, starts again at a key frame.
"""

import hashlib
import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float64, UInt8

from pipelines.raw.display import Display, display_notes
from pipelines.raw.ffmpeg import CODECS, open_container
from pipelines.raw.images import format_of, unreadable
from pipelines.raw.limits import MAX_VIDEO_FRAMES, MAX_VIDEO_PIXELS

REORDERED = 64  # packets; no codec shows a frame more than 16 later than it is stored


class Index(NamedTuple):
    """What a pass over the packets tells, without decoding."""

    count: int
    """Frames that are shown."""
    times: list[int] | None
    """When each is shown, in order; None if the file does not tell, or one time twice. Then frames are counted."""
    key_times: list[int]
    """Of the frames that can be decoded on their own; some may come before the first that is shown."""
    left_out: int
    """Frames at the start that cannot be decoded: what they are made of is not in the file."""
    digest: str
    """Of the packets, and of what is said about them."""


class VideoFrames:
    """A video file. ValueError that names it for what is no video, of a refused kind or size, damaged or too short."""

    def __init__(self, file: io.IOBase, where: str, *, first: int | None = None, index: Index | None = None) -> None:
        """`file` is binary and can seek, `where` names it in errors. `first`: how many of its first frames will be
        asked for at most; what comes after them is not even looked for. `index`: of this file, if it was made before.
        """
        self._file, self._where, self._first = file, where, first
        self._container: av.container.InputContainer | None = None
        if index is not None:
            self.index = index
        if file.seek(0, io.SEEK_END) == 0:
            raise ValueError(f"{where} is empty: copy or download it again")
        file.seek(0)
        if (kind := format_of(file.read(16))) not in (None, "GIF"):
            raise ValueError(f"{where} is one image ({kind}): give a video file, or a folder of PNG or JPEG images")
        self._open()
        self._display = Display(where)
        self.notes: list[str] = []
        """What is not as one would expect in the frames that were shown."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames as they are stored, not turned."""
        return self._stream.height, self._stream.width

    @property
    def shown_size(self) -> tuple[int, int]:
        """(H, W) of the frames as they are `shown`. Of the file, no more is read than its first frame."""
        self._open()
        frame = next(self._decode(), None)
        self._open()
        if frame is None:
            raise unreadable(self._where, "a video", "frame 0 does not decode")
        return self._display.rgb(frame, _pixel_aspect(self._stream)).shape[:2]

    @property
    def told(self) -> int:
        """How many frames there are, as `len`, but where the head of the file lists them this is believed, and they are
        not counted."""
        listed = sum(not entry.is_discard for entry in self._stream.index_entries) if self._has_list else 0
        return self._first if self._first is not None and listed >= self._first else len(self)

    @property
    def _has_list(self) -> bool:
        """Whether all frames are listed in the head, as in an .mp4; others are listed as far as one has read."""
        return "mp4" in self._container.format.name.split(",")

    @property
    def fps(self) -> float | None:
        """Frames per second, None if the file does not say."""
        return float(self._stream.average_rate or 0) or None

    @property
    def seconds(self) -> Float64[np.ndarray, "T"] | None:
        """(T,) when each frame is shown, from the first on; None if the file does not say."""
        times = self.index.times
        if times is None:
            return None if self.fps is None else np.arange(len(self)) / self.fps  # as an AVI has it
        return (np.array(times[: len(self)]) - times[0]) * float(self._stream.time_base)

    @property
    def digest(self) -> str:
        """Of the frames that are counted and how they are to be shown: another content, another digest."""
        shown = f"{self.index.digest} {self._display.matrix(self._decoded(0))}"
        return hashlib.blake2b(shown.encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        """How many frames there are, or `first` if there are more. Nothing is decoded for it."""
        return self.index.count if self._first is None else min(self.index.count, self._first)

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB as it is stored: neither turned, nor with square pixels."""
        return self._decoded(t).to_ndarray(format="rgb24", threads=1)

    def shown(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB as it is meant to be seen: upright, and with square pixels."""
        frame = self._decoded(t)
        if left_out := self.index.left_out:
            self._note(f"its first {left_out} frames are made of others, which are not in it: frame 0 comes after them")
        for note in display_notes(frame):
            self._note(note)
        return self._display.rgb(frame, _pixel_aspect(self._stream))

    def close(self) -> None:
        """Let go of what FFmpeg holds, some frames that were decoded among it, without waiting to be collected."""
        self._decoder = None
        if self._container is not None:
            self._container.close()

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _open(self) -> None:
        """At its start, with nothing decoded."""
        self.close()
        self._next = 0
        self._file.seek(0)
        with self._reading():
            self._container = open_container(self._file)
            self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise unreadable(self._where, "a video", "it has no video stream")
        context = self._stream.codec_context
        if context is None or context.codec.name not in CODECS.split(","):
            raise unreadable(self._where, "a video", "its codec is not known")
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_VIDEO_PIXELS)}
        height, width = self.size
        if not 0 < height * width * max(1.0, _pixel_aspect(self._stream)) <= MAX_VIDEO_PIXELS:
            raise ValueError(
                f"{self._where} has frames of {width} x {height} pixels, each {_pixel_aspect(self._stream):.4g} wide: "
                f"there must be from 1 to {MAX_VIDEO_PIXELS}; scale the video down"
            )

    @cached_property
    def index(self) -> Index:
        """Made by one pass over the file, when it is first asked for."""
        self._open()
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.size, self.fps, _pixel_aspect(self._stream))).encode())
        digest.update(self._stream.codec_context.extradata or b"")
        shown, keys, skipped = [], [], []
        for packet in self._packets(skipped):
            if packet.size == 0:
                break
            digest.update(f"{packet.pts} ".encode())
            digest.update(bytes(packet))
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard:
                shown.append(packet.pts)
            if len(shown) > MAX_VIDEO_FRAMES:
                raise ValueError(f"{self._where} has more than {MAX_VIDEO_FRAMES} frames: cut it into shorter videos")
            if self._first is not None and len(shown) >= self._first + REORDERED:
                break
        if not keys:
            raise unreadable(self._where, "a video", "no frame of it can be decoded on its own")
        self._open()
        # An AVI does not tell when a frame is shown, though FFmpeg makes up something.
        told = self._container.format.name != "avi" and None not in shown and len(set(shown)) == len(shown)
        return Index(
            count=len(shown),
            times=sorted(shown) if told else None,
            key_times=sorted(keys) if told else [],
            left_out=len(skipped),
            digest=digest.hexdigest(),
        )

    def _packets(self, skipped: list[av.Packet] | None = None) -> Iterator[av.Packet]:
        """From the next key frame on, without those after it that are shown before it, as what they are made of is
        missing. At the end of the file comes an empty packet."""
        start, packets = None, self._container.demux(self._stream)
        while True:
            with self._reading(by=self._container.format.name) as said:
                packet = next(packets, None)
            if said:
                raise unreadable(self._where, "a video", said[-1])
            if packet is None:
                return
            if packet.size == 0 or (start is None and packet.is_keyframe):
                start = packet
            if start is None or (None not in (packet.pts, start.pts) and packet.pts < start.pts):
                if skipped is not None and not packet.is_discard:
                    skipped.append(packet)
                continue
            yield packet

    def _decode(self) -> Iterator[av.VideoFrame]:
        """From the next key frame on. What FFmpeg would make up in place of damaged parts is refused."""
        for packet in self._packets():
            with self._reading() as said:
                frames = packet.decode()
            if said or any(frame.is_corrupt for frame in frames):
                times = self.index.times
                known = times is not None and packet.pts is not None
                number = bisect_left(times, packet.pts) if known else self._next
                raise unreadable(
                    self._where, "a video", f"frame {number} is damaged: {said[-1] if said else 'it is marked so'}"
                )
            yield from frames

    def _decoded(self, t: int) -> av.VideoFrame:
        if t >= len(self):
            raise ValueError(
                f"{self._where} has {len(self)} frames, number {t} is asked for: truncated, or annotations of another "
                "video; download it again"
            )
        try:
            frame = self._counted(t) if self.index.times is None else self._timed(t)
        except ValueError:
            self._decoder = None  # it has ended
            raise
        if frame is None:
            raise unreadable(self._where, "a video", f"frame {t} does not decode")
        self._next = t + 1
        return frame

    def _counted(self, t: int) -> av.VideoFrame | None:
        if self._decoder is None or t < self._next:
            self._open()
            self._decoder = self._decode()
        for frame in self._decoder:
            self._next += 1
            if self._next > t:
                return frame
        return None

    def _timed(self, t: int) -> av.VideoFrame | None:
        times, key_times = self.index.times, self.index.key_times
        key_time = key_times[bisect_right(key_times, times[t]) - 1]
        if self._decoder is None or t < self._next or bisect_left(times, key_time) > self._next:
            with self._reading():
                self._container.seek(key_time, stream=self._stream)
            self._decoder = self._decode()
        frame = next((frame for frame in self._decoder if frame.pts >= times[t]), None)
        if frame is None or frame.pts != times[t]:  # where a container has no index, seeking may end too late
            self._open()
            self._decoder = self._decode()
            frame = next((frame for frame in self._decoder if frame.pts >= times[t]), None)
        return frame if frame is not None and frame.pts == times[t] else None

    @contextmanager
    def _reading(self, by: str | None = None) -> Iterator[list[str]]:
        """Gives what FFmpeg, or one part of it, says of errors meanwhile, when it is through."""
        said = []
        try:
            with av.logging.Capture() as log:
                yield said
            said += [message.strip() for _, name, message in log if by in (None, name)]
        except av.error.FFmpegError as error:
            raise unreadable(self._where, "a video", f"{error.strerror}{': ' if log else ''}{_last(log)}") from None


def _pixel_aspect(stream: av.VideoStream) -> float:
    """Width of a pixel, in its height."""
    return float(stream.sample_aspect_ratio or 0) or 1.0


def _last(log: list[tuple[int, str, str]]) -> str:
    return log[-1][2].strip() if log else ""
