"""Reading the frames of a user's video, and writing videos to look at.

A video is a file that FFmpeg can read, a folder of images, or a sequence of a raw dataset; local or s3://.
"""

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import fsspec
import numpy as np
from jaxtyping import Int64, UInt8

from pipelines.datasets import DATASETS
from pipelines.raw.folder import RawFolder

IMAGES = (".png", ".jpg", ".jpeg")
IMAGE_FPS = 10.0  # images do not say how fast they were taken; only the speed of the pictures depends on it

av.logging.set_level(None)  # what FFmpeg prints about a damaged file is in the exception too


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
        fs, path = fsspec.core.url_to_fs(self.uri)
        last = posixpath.basename(path.rstrip("/"))
        return last if fs.isdir(path) else posixpath.splitext(last)[0]

    def __str__(self) -> str:
        return self.uri if self.sequence is None else f"{self.sequence} in {self.uri}"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Frames start, start + step, ... of a video: `num_frames` of them, or all there are, but no more than `longest`.

    Raises ValueError for what no video can satisfy.
    """

    start: int = 0
    step: int = 1
    num_frames: int | None = None
    longest: int
    """The most frames the model takes."""

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"--start {self.start} must not be negative: frames are counted from 0")
        if self.step < 1:
            raise ValueError(f"--step {self.step} must be at least 1")
        if self.num_frames is not None and not 2 <= self.num_frames <= self.longest:
            raise ValueError(f"--num-frames {self.num_frames} must be from 2 to {self.longest}, what this model takes")

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
        if wanted > self.longest:
            raise ValueError(
                f"{video} has {total} frames{left}, this model takes {self.longest}: "
                f"give --num-frames {self.longest} (and --start, --step)"
            )
        return range(self.start, self.start + wanted * self.step, self.step)


@dataclass(frozen=True, kw_only=True)
class Video:
    """Chosen frames as they are in the source."""

    name: str
    frames: UInt8[np.ndarray, "T H W 3"]
    """RGB, upright, with square pixels."""
    frame_numbers: Int64[np.ndarray, "T"]
    """Counted from 0 in the source; of a raw sequence, what its files call them."""
    fps: float
    """Of the chosen frames."""


def find_sources(videos: list[str], dataset: str | None) -> list[Source]:
    """One Source per video; with a dataset, per sequence found in these raw folders.

    ValueError if there is none, if one is missing, or if two would have results of the same name.
    """
    if not videos:
        raise ValueError("no video given: name at least one after --video")
    sources = []
    for uri in videos:
        if dataset is not None:
            sources += [Source(uri, dataset, name) for name in DATASETS[dataset].find(RawFolder(uri))]
            continue
        fs, path = fsspec.core.url_to_fs(uri)
        if not fs.exists(path):
            raise ValueError(f"video {uri} does not exist: check --video")
        sources.append(Source(uri))
    first: dict[str, Source] = {}
    for source in sources:
        if (other := first.setdefault(source.name, source)) is not source:
            raise ValueError(f"{other} and {source} would both be written to {source.name}/: rename one")
    return sources


def read_video(source: Source, selection: Selection) -> Video:
    """The chosen frames of a video.

    ValueError, naming the source, for what is no video, damaged, too short or too long, or changes its size.
    """
    if source.dataset is not None:
        sequence = DATASETS[source.dataset].open(RawFolder(source.uri), source.sequence)
        chosen = selection.of(len(sequence), str(source))
        frames, fps = [sequence.image(t) for t in chosen], IMAGE_FPS
        numbers = sequence.frame_numbers[list(chosen)]
    else:
        fs, path = fsspec.core.url_to_fs(source.uri)
        read = _read_images if fs.isdir(path) else _read_file
        frames, chosen, fps = read(source.uri, selection)
        numbers = np.array(chosen)
    for number, frame in zip(numbers, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"{source}: frame {number} is {frame.shape[:2]} (H, W), the first is {frames[0].shape[:2]}: the frames "
                "of a video must have one size"
            )
    return Video(
        name=source.name, frames=np.stack(frames), frame_numbers=numbers.astype(np.int64), fps=fps / selection.step
    )


def _read_images(uri: str, selection: Selection) -> tuple[list[np.ndarray], range, float]:
    folder = RawFolder(uri)
    names = sorted((name for name in folder.listdir()[1] if name.lower().endswith(IMAGES)), key=_natural)
    if not names:
        raise ValueError(f"no .png or .jpg images in {uri}: give a video file or a folder of images, or its --dataset")
    chosen = selection.of(len(names), uri)
    return [folder.rgb(names[i]) for i in chosen], chosen, IMAGE_FPS


def _natural(name: str) -> list[tuple[int, str]]:
    """frame9 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_file(uri: str, selection: Selection) -> tuple[list[np.ndarray], range, float]:
    limit = selection.num_frames or selection.longest + 1
    frames, total = [], 0
    with _opened(uri) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or IMAGE_FPS)
        for frame in container.decode(stream):
            if total in range(selection.start, total + 1, selection.step):
                frames.append(_rgb(frame, float(stream.sample_aspect_ratio or 1)))
            total += 1
            if len(frames) == limit:
                break
    if len(frames) > selection.longest:  # refused; how long it is can be told without decoding it
        with _opened(uri) as container:
            total = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    return frames, selection.of(total, uri), fps


@contextmanager
def _opened(uri: str) -> Iterator[av.container.InputContainer]:
    try:
        with fsspec.open(uri, "rb") as file, av.open(file) as container:
            if not container.streams.video:
                raise ValueError(f"{uri} has no video stream: not a video, or truncated; give another --video")
            yield container
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{uri} cannot be read as a video ({error.strerror}): not a video, or truncated; convert or copy it again"
        ) from None


def _rgb(frame: av.VideoFrame, pixel_aspect: float) -> UInt8[np.ndarray, "H W 3"]:
    """RGB as it is meant to be shown: with square pixels, and turned as the file says."""
    pixels = frame.to_ndarray(format="rgb24", width=round(frame.width * pixel_aspect))
    return np.rot90(pixels, round(frame.rotation / 90))
