"""The three things a video can be, alike: a file, a folder of images, a sequence of a raw dataset."""

import hashlib
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from pipelines.datasets import open_sequence
from pipelines.raw.folder import RawFolder
from pipelines.raw.images import decode_shown
from pipelines.raw.place import open_place, reachable
from pipelines.raw.video import VideoFrames

IMAGES = (".png", ".jpg", ".jpeg")
IMAGE_FPS = 10.0  # images do not say how fast they were taken; only the speed of the pictures depends on it


class Footage(Protocol):
    """Frames by their number, decoded when asked for. ValueError, naming the video, for what cannot be read."""

    fps: float
    notes: list[str]
    """What is not as one would expect in the frames that were asked for."""

    def __len__(self) -> int: ...

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB, upright, with square pixels."""

    def number(self, t: int) -> int:
        """What the source calls frame t."""

    def digest(self, chosen: range) -> str:
        """Of what these frames are made of: another content, another digest, wherever it lies."""


@contextmanager
def open_footage(uri: str, dataset: str | None, sequence: str | None, *, first: int | None = None) -> Iterator[Footage]:
    """`first`: how many of its first frames may be asked for; a file is not read further, and its length is at most
    that."""
    if dataset is not None:
        yield SequenceFootage(dataset, uri, sequence)
        return
    fs, path = open_place(uri)
    with reachable(uri):
        is_folder = fs.isdir(path)
    if is_folder:
        yield FolderFootage(uri)
        return
    with reachable(uri):
        file = fs.open(path, "rb")
    with file:
        yield FileFootage(VideoFrames(file, uri, first=first))


class FileFootage:
    """A video file."""

    def __init__(self, video: VideoFrames) -> None:
        self._video = video
        self.fps, self.notes = video.fps or IMAGE_FPS, video.notes

    def __len__(self) -> int:
        return len(self._video)

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._video.shown(t)

    def number(self, t: int) -> int:
        return t

    def digest(self, chosen: range) -> str:
        return self._video.digest


class FolderFootage:
    """A folder of images, in the order of the numbers in their names."""

    fps = IMAGE_FPS

    def __init__(self, uri: str) -> None:
        self._folder, self.notes = RawFolder(uri), []
        names = [name for name in self._folder.listdir()[1] if name.lower().endswith(IMAGES)]
        self._names = sorted(names, key=_natural)
        if not names:
            raise ValueError(
                f"no .png or .jpg images in {uri}: give a video file or a folder of images, or its --dataset"
            )

    def __len__(self) -> int:
        return len(self._names)

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        name = self._names[t]
        pixels, notes = decode_shown(self._folder.read(name), posixpath.join(self._folder.uri, name))
        self.notes += [note for note in notes if note not in self.notes]
        return pixels

    def number(self, t: int) -> int:
        return t

    def digest(self, chosen: range) -> str:
        return _digest(self._folder.read(self._names[t]) for t in chosen)


class SequenceFootage:
    """A sequence of a raw dataset."""

    fps = IMAGE_FPS

    def __init__(self, dataset: str, raw: str, name: str) -> None:
        self._sequence, self.notes = open_sequence(dataset, raw, name), []

    def __len__(self) -> int:
        return len(self._sequence)

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sequence.image(t)

    def number(self, t: int) -> int:
        return int(self._sequence.frame_numbers[t])

    def digest(self, chosen: range) -> str:
        return _digest(np.ascontiguousarray(self.frame(t)).data for t in chosen)


def _digest(contents: Iterator[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(hashlib.blake2b(content).digest())
    return digest.hexdigest()


def _natural(name: str) -> list[tuple[int, str]]:
    """frame9 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
