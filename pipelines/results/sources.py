"""A video and the frames of it that are wanted, read when they are asked for."""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from pipelines.results.footage import IMAGES, VIDEOS, Footage, Known, open_footage
from pipelines.results.selection import Selection
from pipelines.truth.clips import resize

SHOWN_SIDE = 1280  # pixels; more are not wanted in pictures


@dataclass(frozen=True)
class Source:
    """Where a video is: a file or a folder of images; with a dataset, one sequence of a raw folder."""

    uri: str
    dataset: str | None = None
    sequence: str | None = None
    images: tuple[str, ...] = ()
    """Files that are its frames, in place of `uri`, which is the first of them."""
    within: str | None = None
    """The folder of videos in which it was found."""

    @property
    def name(self) -> str:
        """What to call its results: the file's name without suffix, the folder's, or the sequence's."""
        if self.sequence is not None:
            return self.sequence.replace("/", "__")
        if self.images:
            return f"{_stem(self.images[0])}__{_stem(self.images[-1])}"
        if self.within is None:
            return _stem(self.uri)
        folder, _, last = self.uri.removeprefix(f"{self.within.rstrip('/')}/").rpartition("/")
        return "__".join([*folder.split("/"), _stem(last)] if folder else [_stem(last)])

    @property
    def place(self) -> tuple[str, str | None, str | None, tuple[str, ...]]:
        """As `open_footage` has it."""
        return self.uri, self.dataset, self.sequence, self.images

    def __str__(self) -> str:
        return self.uri if self.sequence is None else f"{self.sequence} in {self.uri}"


def _stem(uri: str) -> str:
    """The last part of a place, without what only tells that a file is a video or an image."""
    stem, suffix = posixpath.splitext(posixpath.basename(uri))
    return stem if suffix.lower() in (*VIDEOS, *IMAGES) else stem + suffix


@runtime_checkable
class Clip(Protocol):
    """Frames as the model sees them, by their places among those chosen."""

    def __len__(self) -> int: ...

    def __getitem__(self, frames: list[int], /) -> UInt8[np.ndarray, "F S S 3"]: ...


@runtime_checkable
class Shown(Protocol):
    """Frames to look at, one after the other, as often as one likes."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]: ...


@dataclass(frozen=True, kw_only=True)
class Video:
    """Chosen frames, RGB, upright, with square pixels."""

    name: str
    clip: Clip
    """T, as the model sees them."""
    frames: Shown
    """T, as pictures show them: native, or smaller where the long side would be over `SHOWN_SIDE`. They are read again
    each time one goes through them, so one at a time is in memory."""
    size: tuple[int, int]
    """(H, W) of the source."""
    frame_numbers: Int64[np.ndarray, "T"]
    """Counted from 0 in the source; of a raw sequence, what its files call them."""
    seconds: Float64[np.ndarray, "T"] | None = None
    """When each is shown, from the first of the source on; None where that is not known."""
    fps: float
    """Of the chosen frames."""
    digest: str
    """Of the content of these frames in the source."""
    version: str | None = None
    """Of the file that the source is, when it was read (`version_of`)."""
    native: Callable[[Sequence[int]], Iterator[UInt8[np.ndarray, "H W 3"]]] | None = None
    """Frames as the source has them, by their places among those chosen, one after the other; None where there is no
    source."""
    notes: tuple[str, ...]
    """What a user should know of the source."""


@contextmanager
def _opened(
    source: Source, selection: Selection, known: Known | None = None
) -> Iterator[tuple[Footage, Sequence[int]]]:
    """A source and the numbers of the chosen frames. ValueError, naming the source, if they cannot be chosen."""
    with open_footage(*source.place, first=selection.first, known=known) as footage:
        seconds = None if selection.fps is None else footage.seconds
        yield footage, selection.of(len(footage), seconds, str(source))


@dataclass(frozen=True)
class ReadAgain:
    """`Shown` frames of a source."""

    source: Source
    selection: Selection
    count: int
    known: Known | None = None
    longest: int | None = SHOWN_SIDE
    """Pixels of the longer side, at most; None: native."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        with _opened(self.source, self.selection, self.known) as (footage, chosen):
            for t in chosen:
                frame = footage.frame(t)
                yield frame if self.longest is None else _shrunk(frame, self.longest)


@dataclass(frozen=True)
class ClipAgain:
    """The `Clip` of a source, its frames read each time they are asked for."""

    source: Source
    selection: Selection
    image_size: int
    size: tuple[int, int]
    """(H, W) of the source."""
    digest: str
    count: int
    known: Known | None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, frames: list[int], /) -> UInt8[np.ndarray, "F S S 3"]:
        ((part, _),) = self.parts([frames])
        return part

    def parts(self, parts: Sequence[Sequence[int]]) -> Iterator[tuple[UInt8[np.ndarray, "F S S 3"], tuple[str, ...]]]:
        """One part of the frames after the other, with the notes on all frames so far.

        ValueError, naming the source, for what is damaged, changes its size, or is another video by now.
        """
        with _opened(self.source, self.selection, self.known) as (footage, chosen):
            if footage.digest(chosen) != self.digest:
                raise ValueError(f"{self.source} has changed since its first frame was read: run it again")
            for part in parts:
                frames = []
                for t in part:
                    frame = footage.frame(chosen[t])
                    if frame.shape[:2] != self.size:
                        raise ValueError(
                            f"{self.source}: frame {footage.number(chosen[t])} is {frame.shape[:2]} (H, W), the first "
                            f"is {self.size}: the frames of a video must have one size"
                        )
                    frames.append(resize(frame, self.image_size))
                yield np.stack(frames), tuple(footage.notes)


def native_frames(
    source: Source, selection: Selection, known: Known | None, places: Sequence[int]
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Frames as the source has them, by their places among those chosen, one in memory at a time."""
    with _opened(source, selection, known) as (footage, chosen):
        for place in places:
            yield footage.frame(chosen[place])


def check_video(
    source: Source, selection: Selection, least: int | None = None
) -> tuple[Int64[np.ndarray, "T"], tuple[int, int]]:
    """`Video.frame_numbers` and `size`. ValueError, naming the source, for all that can be known of it without decoding
    more than a frame.

    `least`: of the chosen frames it is enough to know so many, if there are more. A file is then read no further than
    they are, and not even so far if its head lists them.
    """
    count = None if least is None else max(least, 2, selection.num_frames or 0)
    first = None if count is None else selection.first_of(count)
    while True:
        with open_footage(*source.place, first=first) as footage:
            size, total = footage.size, footage.told
            seconds = None if selection.fps is None else footage.seconds
            there = selection.among(total, seconds, str(source))
            if total == first and len(there) < count:  # frames are not even, and there may be more
                first *= 2
                continue
            chosen = selection.of(total, seconds, str(source))
            return np.array([footage.number(t) for t in chosen], np.int64), size


def video_digest(source: Source, selection: Selection) -> str:
    """Of the content of the chosen frames, as `Video.digest` has it."""
    with _opened(source, selection) as (footage, chosen):
        return footage.digest(chosen)


def look_at(source: Source, selection: Selection, image_size: int) -> Video:
    """A video of which nothing but the first frame is decoded yet. ValueError, naming the source, for what is no video,
    or too short."""
    with _opened(source, selection) as (footage, chosen):
        size, digest, count = footage.frame(chosen[0]).shape[:2], footage.digest(chosen), len(chosen)
        seconds, known = footage.seconds, footage.known
        return Video(
            name=source.name,
            clip=ClipAgain(source, selection, image_size, size, digest, count, known),
            frames=ReadAgain(source, selection, count, known),
            size=size,
            frame_numbers=np.array([footage.number(t) for t in chosen], np.int64),
            seconds=None if seconds is None else seconds[chosen],
            fps=selection.fps or footage.fps / selection.step,
            digest=digest,
            version=known and known.version,
            native=partial(native_frames, source, selection, known),
            notes=tuple(footage.notes),
        )


def read_video(source: Source, selection: Selection, image_size: int) -> Video:
    """The chosen frames of a video, resized one after the other, all in memory.

    ValueError, naming the source, for what is no video, damaged or too short, or changes its size.
    """
    video = look_at(source, selection, image_size)
    ((clip, notes),) = video.clip.parts([range(len(video.clip))])
    return replace(video, clip=clip, notes=notes)


def _shrunk(frame: UInt8[np.ndarray, "H W 3"], longest: int) -> UInt8[np.ndarray, "h w 3"]:
    height, width = frame.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return frame
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
