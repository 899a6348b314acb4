"""What a benchmark offers: which clips there are, how one is loaded, what is asked about it, and what answers score.

What a model answers about a clip is kept as plain arrays, its *prediction* (`predictions.py`), and scores follow from
truth and prediction alone: they can be had again, or under another alignment, without the model.

A row of scores is flat: "VARIANT.METRIC" to a number, None where there is nothing to count. Means are over the clips
that have the score, and say how many these are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from pipelines.raw.folder import RawFolder
from pipelines.results.asked import Asked
from pipelines.results.sources import Video

MOST_STRETCHED = 1.4  # of images that are resized to whole patches

NOT_PUBLISHED = ", NOT the published subset"
"""At the end of a title."""

Scores = dict[str, float | int | str | None]
Prediction = dict[str, np.ndarray]


@dataclass(frozen=True, order=True)
class ClipName:
    subset: str
    name: str
    data: str
    """The folder given after --data in which it lies."""

    @property
    def file(self) -> str:
        """What its prediction is called: SUBSET/NAME.npz, without folders in NAME."""
        return f"{self.subset}/{self.name.replace('/', '__')}.npz"

    @property
    def called(self) -> tuple[str, ...]:
        """What others call it, its own name first: without the folder above it, as evaluation codes call Bonn's and
        KITTI's sequences."""
        last = self.name.rpartition("/")[2]
        others = [last, last.removeprefix("rgbd_bonn_"), *([f"{last}_02"] if last.endswith("_sync") else [])]
        return tuple(dict.fromkeys([self.name.replace("/", "__"), *others]))

    def __str__(self) -> str:
        return f"{self.subset}/{self.name}"


@dataclass(frozen=True)
class Found:
    clips: Sequence[ClipName]
    missing: Sequence[str]
    """Clips of the published list that are not there, as SUBSET/NAME."""
    title: str
    """Which list it is; if it is not a whole one, that says so."""
    subsets: dict[str, str]
    """Of each subset, how much of it there is."""


@runtime_checkable
class Truth(Protocol):
    """A clip with its truth."""

    @property
    def digest(self) -> str:
        """Of images and truth."""

    def __len__(self) -> int: ...

    def video(self, name: str, image_size: int) -> Video: ...


class Benchmark(ABC):
    key: ClassVar[str]
    title: ClassVar[str]
    headline: ClassVar[str]
    """The score by which clips are compared."""
    higher_is_better: ClassVar[bool]
    shown: ClassVar[dict[str, str]]
    """Metrics of the table of all variants, and their headings."""
    rules: ClassVar[str]
    """By which rules numbers are made, in words: part of every report."""

    @abstractmethod
    def find(self, data: Sequence[str]) -> Found:
        """ValueError if there is no clip in these folders."""

    @abstractmethod
    def open(self, clip: ClipName) -> Truth:
        """ValueError naming file, rule and remedy."""

    @abstractmethod
    def asked(self, truth: Truth, *, known_intrinsics: bool) -> Asked:
        """What the model is asked about a clip; through the windows of `infer` where it is longer than the model's."""

    @abstractmethod
    def prediction(self, truth: Truth, results: dict[str, dict[str, np.ndarray]]) -> Prediction:
        """What is kept of the arrays that `reconstruct` gives."""

    @abstractmethod
    def scores(self, truth: Truth, prediction: Prediction) -> Scores:
        """ValueError for a prediction of another shape than the truth's."""

    def missed(self) -> Scores:
        """Of a clip without a prediction: nothing, and so it is left out of all means and listed."""
        return {}

    def summary(self, rows: Sequence[Scores]) -> Scores:
        """Of one subset: means over its clips, and `clips`; what is text is left out."""
        return plain_means(rows) | {"clips": len(rows)}

    def overall(self, subsets: dict[str, Scores]) -> Scores | None:
        """Over subsets; None where the field defines no such number."""
        return None

    @abstractmethod
    def picture(self, truth: Truth, prediction: Prediction, title: str) -> np.ndarray:
        """RGB, of one clip."""


def npz_clips(data: Sequence[str], subsets: Iterable[str]) -> list[ClipName]:
    """The files SUBSET/NAME.npz of these folders."""
    clips = []
    for place in data:
        raw = RawFolder(place)
        for subset in subsets:
            if subset in raw.listdir()[0]:
                names = [name for name in raw.listdir(subset)[1] if name.endswith(".npz")]
                clips += [ClipName(subset, name.removesuffix(".npz"), place) for name in names]
    return sorted(clips)


def require_clips(clips: list[ClipName], data: Sequence[str], title: str, layout: str) -> list[ClipName]:
    """ValueError if there is none."""
    if not clips:
        raise ValueError(f"no clips of {title} in {', '.join(data)}: {layout}")
    return clips


def plain_means(rows: Sequence[Scores]) -> Scores:
    """The unweighted mean of every score over the clips that have it; "SCORE#" says how many, where not all do."""
    means: Scores = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        given = [row.get(key) for row in rows]
        if any(isinstance(value, str) for value in given):
            continue
        known = [float(value) for value in given if value is not None and np.isfinite(value)]
        means[key] = float(np.mean(known)) if known else None
        if len(known) < len(rows):
            means[f"{key}#"] = len(known)
    return means


def require_shape(prediction: Prediction, key: str, shape: tuple[int, ...], where: Any) -> np.ndarray:
    """That array of a prediction, in float64 if it is of numbers. ValueError if it is missing, or of another shape."""
    if key not in prediction:
        raise ValueError(f"the prediction for {where} has no {key}, but {', '.join(sorted(prediction)) or 'nothing'}")
    array = prediction[key]
    if array.shape != shape:
        raise ValueError(
            f"{key} of the prediction for {where} is {array.shape}, the truth is {shape}: was it made of other frames?"
        )
    return array if array.dtype == bool else array.astype(np.float64)


def require_aspect(said: tuple[int, ...], size: tuple[int, ...], what: str, where: str) -> None:
    """ValueError for maps of (H, W) that cannot be of the same images, but turned or cropped ones of them."""
    ratio = said[1] / said[0] * size[0] / size[1]
    if not 1 / MOST_STRETCHED < ratio < MOST_STRETCHED:
        raise ValueError(
            f"{what} of the prediction for {where} is {said} (H, W), the truth is {size}: turned, or of cropped images?"
        )


def number(value: float) -> float | None:
    """None if it is not finite."""
    return float(value) if np.isfinite(value) else None
