"""Which videos there are, which of their frames are wanted, and reading these."""

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from pipelines.datasets import DATASETS
from pipelines.problems import Problems
from pipelines.raw.folder import RawFolder
from pipelines.raw.place import open_place, reachable
from pipelines.results.footage import Footage, open_footage
from pipelines.truth.clips import resize

SHOWN_SIDE = 1280  # pixels; more are not wanted in pictures


@dataclass(frozen=True)
class Source:
    """Where a video is: a file or a folder of images; with a dataset, one sequence of a raw folder."""

    uri: str
    dataset: str | None = None
    sequence: str | None = None

    @property
    def name(self) -> str:
        """What to call its results: the file's name without suffix, the folder's, or the sequence's."""
        if self.sequence is not None:
            return self.sequence.replace("/", "__")
        fs, path = open_place(self.uri)
        last = posixpath.basename(path)
        with reachable(self.uri):
            return last if fs.isdir(path) else posixpath.splitext(last)[0]

    def __str__(self) -> str:
        return self.uri if self.sequence is None else f"{self.sequence} in {self.uri}"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Frames start, start + step, ... of a video: `num_frames` of them, or all there are.

    Raises ValueError for what no video can satisfy.
    """

    start: int = 0
    step: int = 1
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"--start {self.start} must not be negative: frames are counted from 0")
        if self.step < 1:
            raise ValueError(f"--step {self.step} must be at least 1")
        if self.num_frames is not None and self.num_frames < 2:
            raise ValueError(f"--num-frames {self.num_frames} must be at least 2")

    @property
    def first(self) -> int | None:
        """How many of a video's first frames have to be known; None: all."""
        return None if self.num_frames is None else self.start + (self.num_frames - 1) * self.step + 1

    def of(self, total: int, video: str) -> range:
        """The frames chosen of a video with `total`; ValueError naming the video if that cannot be done."""
        if total < 2:
            raise ValueError(f"{video} has {total} frame(s): a video needs at least 2")
        there = len(range(self.start, total, self.step))
        left = "" if (self.start, self.step) == (0, 1) else f", --start {self.start} --step {self.step} leave {there}"
        wanted = self.num_frames or there
        if there < max(wanted, 2):
            raise ValueError(
                f"{video} has {total} frames{left}: fewer than {max(wanted, 2)}; lower --num-frames, --start or --step"
            )
        return range(self.start, self.start + wanted * self.step, self.step)


@runtime_checkable
class Shown(Protocol):
    """Frames to look at, one after the other, as often as one likes."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]: ...


@dataclass(frozen=True, kw_only=True)
class Video:
    """Chosen frames, RGB, upright, with square pixels."""

    name: str
    clip: UInt8[np.ndarray, "T S S 3"]
    """As the model sees them."""
    frames: Shown
    """T, as pictures show them: native, or smaller where the long side would be over `SHOWN_SIDE`. They are read again
    each time one goes through them, so one at a time is in memory."""
    size: tuple[int, int]
    """(H, W) of the source."""
    frame_numbers: Int64[np.ndarray, "T"]
    """Counted from 0 in the source; of a raw sequence, what its files call them."""
    fps: float
    """Of the chosen frames."""
    digest: str
    """Of the content of these frames in the source."""
    notes: tuple[str, ...]
    """What a user should know of the source."""


def find_sources(videos: list[str], dataset: str | None) -> list[Source]:
    """One Source per video; with a dataset, per sequence found in these raw folders.

    ValueError, with all problems at once, if there is none, if one is missing, or if two would have the same results.
    """
    if not videos:
        raise ValueError("no video given: name at least one after --video")
    problems, sources, first = Problems(), [], {}
    for uri in videos:
        with problems.noted():
            sources += _sources_in(uri, dataset)
    for source in sources:
        other = first.setdefault(source.name, source)
        if other is not source:
            problems.reasons.append(f"{other} and {source} would both be written to {source.name}/: rename one")
    problems.refuse()
    return sources


def _sources_in(uri: str, dataset: str | None) -> list[Source]:
    if dataset is not None:
        return [Source(uri, dataset, name) for name in DATASETS[dataset].find(RawFolder(uri))]
    fs, path = open_place(uri)
    with reachable(uri):
        there = fs.exists(path)
    if not there:
        raise ValueError(f"video {uri} does not exist: check --video")
    with reachable(uri):
        kept = fs.isfile(path) or fs.isdir(path)
    if not kept:  # a pipe can be read once only, and opening it may wait for ever
        raise ValueError(f"video {uri} is neither a file nor a folder: save what comes out of it to a file first")
    return [Source(uri)]


@contextmanager
def _opened(source: Source, selection: Selection) -> Iterator[tuple[Footage, range]]:
    """A source and the numbers of the chosen frames. ValueError, naming the source, if they cannot be chosen."""
    with open_footage(source.uri, source.dataset, source.sequence, first=selection.first) as footage:
        yield footage, selection.of(len(footage), str(source))


@dataclass(frozen=True)
class ReadAgain:
    """`Shown` frames of a source."""

    source: Source
    selection: Selection
    count: int
    longest: int | None = SHOWN_SIDE
    """Pixels of the longer side, at most; None: native."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        with _opened(self.source, self.selection) as (footage, chosen):
            for t in chosen:
                frame = footage.frame(t)
                yield frame if self.longest is None else _shrunk(frame, self.longest)


def check_video(source: Source, selection: Selection) -> None:
    """ValueError, naming the source, for all that can be known of it without decoding more than a frame."""
    with _opened(source, selection) as (footage, chosen):
        footage.frame(chosen[0])


def video_digest(source: Source, selection: Selection) -> str:
    """Of the content of the chosen frames, as `Video.digest` has it."""
    with _opened(source, selection) as (footage, chosen):
        return footage.digest(chosen)


def read_video(source: Source, selection: Selection, image_size: int) -> Video:
    """The chosen frames of a video, resized one after the other.

    ValueError, naming the source, for what is no video, damaged or too short, or changes its size.
    """
    clip, first = [], None
    with _opened(source, selection) as (footage, chosen):
        for t in chosen:
            frame = footage.frame(t)
            first = first or frame.shape
            if frame.shape != first:
                raise ValueError(
                    f"{source}: frame {footage.number(t)} is {frame.shape[:2]} (H, W), the first is {first[:2]}: the "
                    "frames of a video must have one size"
                )
            clip.append(resize(frame, image_size))
        return Video(
            name=source.name,
            clip=np.stack(clip),
            frames=ReadAgain(source, selection, len(chosen)),
            size=first[:2],
            frame_numbers=np.array([footage.number(t) for t in chosen], np.int64),
            fps=footage.fps / selection.step,
            digest=footage.digest(chosen),
            notes=tuple(footage.notes),
        )


def _shrunk(frame: UInt8[np.ndarray, "H W 3"], longest: int) -> UInt8[np.ndarray, "h w 3"]:
    height, width = frame.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return frame
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
