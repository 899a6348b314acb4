"""What a video can be, all alike: a file, images, an array of frames, a sequence of a raw dataset."""

import hashlib
import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float64, UInt8

from pipelines.datasets import open_sequence
from pipelines.raw.folder import RawFolder
from pipelines.raw.images import decode_shown, size_shown
from pipelines.raw.npz import Npz
from pipelines.raw.place import open_place, reachable, version_of
from pipelines.raw.video import Index, VideoFrames
from pipelines.whole import read_file

IMAGES = (".png", ".jpg", ".jpeg")
NPZ = ".npz"
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".ogv", ".ogg"),
    *(".flv", ".wmv", ".asf", ".3gp", ".3g2", ".mj2", ".gif", ".y4m", NPZ),
)
"""How a file in a folder ends that is a video. One that is named by itself may be called as it likes."""
VIDEO_KEY = "video"
BLOCK = 4 << 20  # bytes of a remote file that are asked for together, where only its first frames are wanted
IMAGE_FPS = 10.0  # images do not say how fast they were taken; only the speed of the pictures depends on it


class Known(NamedTuple):
    """What a pass over a video file told: another one is not needed as long as nobody touched the file."""

    version: str
    index: Index


class Footage(Protocol):
    """Frames by their number, decoded when asked for. ValueError, naming the video, for what cannot be read."""

    fps: float
    seconds: Float64[np.ndarray, "T"] | None
    """When each frame is shown, from the first on; None where that is not known."""
    notes: list[str]
    """What is not as one would expect in the frames that were asked for."""

    def __len__(self) -> int: ...

    @property
    def known(self) -> Known | None:
        """Of a file; None for all else, whose frames are found without a pass over them."""

    @property
    def told(self) -> int:
        """As `len`, but of a file as its head tells it, if it does."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the first frame."""

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB, upright, with square pixels."""

    def number(self, t: int) -> int:
        """What the source calls frame t."""

    def digest(self, chosen: Sequence[int]) -> str:
        """Of what these frames are made of: another content, another digest, wherever it lies."""


@contextmanager
def open_footage(
    uri: str,
    dataset: str | None = None,
    sequence: str | None = None,
    images: tuple[str, ...] = (),
    *,
    first: int | None,
    known: Known | None = None,
) -> Iterator[Footage]:
    """Of a `Source`. `first`: how many of its first frames may be asked for; a file is not read further, and its length
    is at most that. `known`: of the file, when it was opened before; ValueError if it has another content now."""
    if dataset is not None:
        yield SequenceFootage(dataset, uri, sequence)
        return
    if images:
        yield ImagesFootage(images)
        return
    fs, path = open_place(uri)
    with reachable(uri):
        is_folder = fs.isdir(path)
    if is_folder:
        yield ImagesFootage(images_in(uri))
        return
    if uri.lower().endswith(NPZ):
        yield ArrayFootage(uri)
        return
    current = version_of(uri)
    touched = known is not None and known.version != current
    with reachable(uri):
        file = fs.open(path, "rb", block_size=None if first is None else BLOCK)
    index = None if known is None or touched else known.index
    with file, closing(VideoFrames(file, uri, first=first, index=index)) as video:
        if touched and video.index != known.index:
            raise ValueError(f"{uri} has changed since its first frame was read: run it again")
        yield FileFootage(video, current)


class FileFootage:
    """A video file."""

    def __init__(self, video: VideoFrames, version: str) -> None:
        self._video, self._version = video, version
        self.fps, self.notes = video.fps or IMAGE_FPS, video.notes

    def __len__(self) -> int:
        return len(self._video)

    @property
    def known(self) -> Known:
        return Known(self._version, self._video.index)

    @property
    def told(self) -> int:
        return self._video.told

    @property
    def size(self) -> tuple[int, int]:
        return self._video.shown_size

    @property
    def seconds(self) -> Float64[np.ndarray, "T"] | None:
        return self._video.seconds

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._video.shown(t)

    def number(self, t: int) -> int:
        return t

    def digest(self, chosen: Sequence[int]) -> str:
        return self._video.digest


class Apart:
    """What all have in common whose frames lie apart, so that none is looked for in others."""

    fps, seconds, known = IMAGE_FPS, None, None

    @property
    def told(self) -> int:
        return len(self)

    @property
    def size(self) -> tuple[int, int]:
        return self.frame(0).shape[:2]

    def number(self, t: int) -> int:
        return t


def images_in(folder: str) -> list[str]:
    """In the order of the numbers in their names. ValueError if there are none."""
    names = [name for name in RawFolder(folder).listdir()[1] if name.lower().endswith(IMAGES)]
    if not names:
        raise ValueError(
            f"no .png or .jpg images in {folder}: give a video file or a folder of images, or its --dataset"
        )
    return [posixpath.join(folder, name) for name in sorted(names, key=natural)]


class ImagesFootage(Apart):
    """Images, one after the other."""

    def __init__(self, images: Sequence[str]) -> None:
        self._images, self.notes = images, []

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, t: int) -> bytes:
        image = self._images[t]
        content = read_file(image)
        if content is None:
            raise ValueError(f"{image} is gone: it was there when the video was looked for")
        return content

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        pixels, notes = decode_shown(self._read(t), self._images[t])
        self.notes += [note for note in notes if note not in self.notes]
        return pixels

    def digest(self, chosen: Sequence[int]) -> str:
        """ValueError, naming it, for an image that is none, or of another size than the first."""
        return _digest(self._of_one_size(chosen))

    def _of_one_size(self, chosen: Sequence[int]) -> Iterator[bytes]:
        first = None
        for t in chosen:
            content = self._read(t)
            size = size_shown(content, self._images[t])
            first = first or size
            if size != first:
                raise ValueError(
                    f"{self._images[t]} is {size} (H, W), {self._images[chosen[0]]} is {first}: the frames of a video "
                    "must have one size"
                )
            yield content


class ArrayFootage(Apart):
    """An array of frames in an .npz file: (T, H, W, 3) or (T, H, W) uint8, called `video`, or the only array."""

    def __init__(self, uri: str) -> None:
        folder, name = posixpath.split(uri)
        self._arrays, self.notes = Npz(RawFolder(folder), name), []
        keys = self._arrays.keys()
        self._key = VIDEO_KEY if VIDEO_KEY in keys or len(keys) != 1 else keys[0]
        self._shape = self._arrays.shape(self._key) if self._key in keys else None
        if self._shape is None:
            raise ValueError(f"{uri} has no array {VIDEO_KEY!r}, but {', '.join(keys) or 'none'}: name its frames so")
        first = self._arrays.rows(self._key, np.arange(min(1, self._shape[0])))
        if first.dtype != np.uint8 or not (len(self._shape) == 3 or (len(self._shape) == 4 and self._shape[3] == 3)):
            raise ValueError(
                f"{self._key} of {uri} is {self._shape} {first.dtype}: frames are (T, H, W, 3) or (T, H, W) uint8"
            )

    def __len__(self) -> int:
        return self._shape[0]

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        (frame,) = self._arrays.rows(self._key, np.array([t]))
        return np.repeat(frame[..., None], 3, axis=-1) if frame.ndim == 2 else frame

    def digest(self, chosen: Sequence[int]) -> str:
        return _digest(np.ascontiguousarray(self.frame(t)).data for t in chosen)


class SequenceFootage(Apart):
    """A sequence of a raw dataset."""

    def __init__(self, dataset: str, raw: str, name: str) -> None:
        self._sequence, self.notes = open_sequence(dataset, raw, name), []

    def __len__(self) -> int:
        return len(self._sequence)

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sequence.image(t)

    def number(self, t: int) -> int:
        return int(self._sequence.frame_numbers[t])

    def digest(self, chosen: Sequence[int]) -> str:
        return _digest(np.ascontiguousarray(self.frame(t)).data for t in chosen)


def _digest(contents: Iterator[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(hashlib.blake2b(content).digest())
    return digest.hexdigest()


def natural(name: str) -> list[tuple[int, str]]:
    """frame9 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
