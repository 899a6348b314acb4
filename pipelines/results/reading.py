"""A result folder, read again: what is made of results begins here, without the model.

Somebody may have cut it short, edited it, or written it with another program. Nothing in it is executed, and no other
file is opened but the video it was made of, to show its frames.
"""

import io
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, MinLen

from pipelines import documents
from pipelines.raw.limits import MAX_PIXELS
from pipelines.results.files import FIELDS, RESULT, UNIT, read_answer
from pipelines.results.selection import Selection
from pipelines.results.shapes import check_arrays
from pipelines.results.sources import ReadAgain, Source, video_digest
from pipelines.whole import listed, read_file

REMEDY = "make it again with infer, into another --out"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class VideoFacts:
    """As in result.json; sizes are of the source."""

    name: str
    frame_numbers: Annotated[list[Annotated[int, Interval(ge=0, lt=2**63)]], MinLen(1)]
    fps: Annotated[float, Interval(gt=0, le=1e6)]
    width: Annotated[int, Interval(gt=0, le=MAX_PIXELS)]
    height: Annotated[int, Interval(gt=0, le=MAX_PIXELS)]
    notes: list[str]
    seconds: list[Annotated[float, Interval(gt=-1e9, lt=1e9)]] | None = None
    """When each frame is shown, from the first of the source on; None where that is not known."""

    def __post_init__(self) -> None:
        if self.seconds is not None and len(self.seconds) != len(self.frame_numbers):
            raise ValueError(f"has {len(self.seconds)} seconds and {len(self.frame_numbers)} frame_numbers")

    def __len__(self) -> int:
        return len(self.frame_numbers)

    @property
    def times(self) -> list[float]:
        """Seconds from the first of these frames on."""
        if self.seconds is None:
            return [t / self.fps for t in range(len(self))]
        return [second - self.seconds[0] for second in self.seconds]


@dataclass(frozen=True)
class WindowFacts:
    """Frames `first` to `last` of the clip, and how they are joined to the window before."""

    first: int
    last: int
    seam: dict[str, Any] | None


@dataclass(frozen=True)
class Document:
    """Of result.json, what is used of it."""

    request: dict[str, Any]
    video: VideoFacts
    unit: str
    world: str
    all_files: list[str]
    lengths: str = UNIT
    model: dict[str, Any] = field(default_factory=dict)
    source: Source | None = None
    windows: list[WindowFacts] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any(not 0 <= window.first <= window.last < len(self.video) for window in self.windows):
            raise ValueError(f"a window has frames that are not of the clip, from 0 to {len(self.video) - 1}")

    @property
    def seams(self) -> list[int]:
        """Frames of the clip at which a new window begins."""
        return [window.first for window in self.windows[1:]]


@dataclass(frozen=True)
class Result:
    """What a model said about one video; `arrays` as the table in `results/files.py` has them."""

    uri: str
    document: Document

    @property
    def video(self) -> VideoFacts:
        return self.document.video

    @property
    def model(self) -> str:
        """Digest of the model."""
        return self.document.model.get("digest", "not known")

    @property
    def tasks(self) -> list[str]:
        return [name.removesuffix(".npz") for name in FIELDS if name in self.document.all_files]

    def require(self, *tasks: str) -> None:
        """ValueError, naming those that are missing and the remedy."""
        if missing := [task for task in tasks if task not in self.tasks]:
            raise ValueError(
                f"{self.uri} has no {' and no '.join(missing)}, which this needs: run infer with --tasks "
                f"{','.join([*self.tasks, *missing])} into another --out"
            )

    def arrays(self, task: str) -> Arrays:
        """The arrays of TASK.npz. ValueError for what is missing, damaged, or of another shape than the video."""
        self.require(task)
        name = f"{task}.npz"
        content = read_file(f"{self.uri}/{name}")
        if content is None:
            raise ValueError(f"{self.uri} lacks {name}, which its {RESULT} lists: {REMEDY}")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {key: file[key] for key in FIELDS[name]}
        except Exception as error:  # zip and NumPy raise anything on damage
            raise ValueError(f"{name} in {self.uri} is damaged ({error}): {REMEDY}") from None
        try:
            check_arrays(task, arrays, len(self.video))
        except ValueError as error:
            raise ValueError(f"{name} in {self.uri} is damaged ({error}): {REMEDY}") from None
        return arrays

    @cached_property
    def frames(self) -> ReadAgain:
        """The frames of the video, as pictures show them. ValueError if it is gone, or another lies there now."""
        request, gone = self.document.request, f"the frames of {self.video.name} cannot be shown"
        if self.document.source is None:
            raise ValueError(f"{gone}: {RESULT} does not say where the video is")
        chosen = {option.name: request[option.name] for option in fields(Selection) if option.name in request}
        try:
            source, selection = self.document.source, Selection(**chosen)
            there = video_digest(source, selection)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{gone}: {error}") from None
        if there != request.get("video"):
            raise ValueError(f"{gone}: {source} is no longer the video that was looked at")
        return ReadAgain(source, selection, len(self.video))

    @property
    def native_frames(self) -> ReadAgain:
        """The same, in the size of the source."""
        return replace(self.frames, longest=None)


def read_result(uri: str) -> Result:
    """ValueError if there are no results at `uri`, only a part of them, or those of another version."""
    uri = uri.rstrip("/")
    if read_answer(uri) is None:
        raise ValueError(f"{uri} holds no results ({RESULT} is missing): give a folder that infer has written")
    return Result(uri, documents.read(f"{uri}/{RESULT}", Document, REMEDY, others="ignore"))


def find_results(place: str) -> list[str]:
    """The result folders at `place`: itself, or those in it. ValueError if there is none."""
    place = place.rstrip("/")
    names = listed(place)
    if RESULT in names:
        return [place]
    found = [f"{place}/{name}" for name in sorted(names) if RESULT in listed(f"{place}/{name}")]
    if not found:
        raise ValueError(f"{place} holds no results: give --out of infer, or one video's folder in it")
    return found
