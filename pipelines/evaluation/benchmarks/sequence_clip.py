"""Frames of a sequence of a benchmark's dataset, as the field takes them: `catalogs/benchmarks/sequences.yaml`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float32, Float64, UInt8

from pipelines.catalog import FOLDER, Catalog
from pipelines.datasets import open_sequence, reader
from pipelines.evaluation.benchmarks.benchmark import NOT_PUBLISHED, ClipName, Found
from pipelines.geometry import inverse
from pipelines.problems import counted
from pipelines.raw.folder import RawFolder
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, Video, read_video, video_digest
from pipelines.sequence import Excluded
from pipelines.sequence import Sequence as RawSequence

LAYOUT = "give the folders of its datasets as they are shipped"


@cache
def protocol(key: str) -> dict[str, Any]:
    """Of a benchmark: dataset -> which sequences and frames, and what else its scores go by."""
    return yaml.safe_load((FOLDER / "benchmarks/sequences.yaml").read_text())[key]


@dataclass(frozen=True)
class SequenceClip:
    name: ClipName
    selection: Selection

    @property
    def where(self) -> str:
        return f"{self.name.name} in {self.name.data}"

    @property
    def sequence(self) -> RawSequence:
        return open_sequence(self.name.subset, self.name.data, self.name.name)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        return self.sequence.image_size

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """Grey where there are none."""
        if "images" in self.sequence.lacks:
            return np.full((*self.size, 3), 128, np.uint8)
        return self.sequence.image(self.frames[t])

    @property
    def source(self) -> Source:
        return Source(self.name.data, self.name.subset, self.name.name)

    @cached_property
    def frames(self) -> Sequence[int]:
        """Places in the sequence."""
        return self.selection.of(len(self.sequence), None, self.where)

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def digest(self) -> str:
        """Of the frames and the poses; depth is part of the scores alone."""
        images = "" if "images" in self.sequence.lacks else video_digest(self.source, self.selection)
        digest = hashlib.blake2b(images.encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.world_from_cam))
        return digest.hexdigest()

    def digest_with(self, depth: Float32[np.ndarray, "T H W"]) -> str:
        """Of the true depth too."""
        return hashlib.blake2b(self.digest.encode() + depth.tobytes(), digest_size=16).hexdigest()

    @property
    def depth(self) -> Float32[np.ndarray, "T H W"]:
        """Metres; NaN where there is none."""
        return np.stack([self.sequence.depth(t) for t in self.frames])

    @property
    def world_from_cam(self) -> Float64[np.ndarray, "T 4 4"]:
        return self.sequence.cameras.world_from_cam[self.frames]

    @property
    def first_from_cam(self) -> Float64[np.ndarray, "T 4 4"]:
        """NaN where the pose is not known."""
        poses = self.world_from_cam
        return inverse(poses[:1]) @ poses

    @property
    def corner_intrinsics(self) -> Float64[np.ndarray, "T 3 3"]:
        return self.sequence.cameras.intrinsics[self.frames]

    def video(self, name: str, image_size: int) -> Video:
        return read_video(self.source, self.selection, image_size)


def find_sequences(key: str, data: Sequence[str]) -> Found:
    """Of each dataset that lies in the folders, the sequences that the field takes; if none of these is there, all.

    No clips if there is no dataset.
    """
    clips, missing, told, whole = [], [], {}, True
    for subset, rule in protocol(key).items():
        there = [
            ClipName(subset, name, place) for place in data for name in sorted(reader(subset).names(RawFolder(place)))
        ]
        if not there:
            continue
        if "sequences" in rule:
            chosen, gone, told[subset] = _listed(there, set(rule["sequences"]))
            missing += sorted(f"{subset}/{name}" for name in gone)
            whole &= not gone and bool(chosen)
        else:
            chosen, told[subset] = _held_out(there, rule.get("least", 2))
            whole = False
        clips += chosen or there
    return Found(clips, missing, ", ".join(told) + ("" if whole else NOT_PUBLISHED), told)


def _listed(there: Sequence[ClipName], listed: set[str]) -> tuple[list[ClipName], set[str], str]:
    """Those of a published list, what is missing of it, and how much of it there is."""
    chosen = [clip for clip in there if clip.name.rpartition("/")[2] in listed]
    if not chosen:
        return [], set(), f"{counted(len(there), 'sequence')}, none of the published list"
    gone = listed - {clip.name.rpartition("/")[2] for clip in chosen}
    return chosen, gone, f"{len(chosen)} of {len(listed)} sequences"


def _held_out(there: Sequence[ClipName], least: int) -> tuple[list[ClipName], str]:
    """Those of the catalog's test split with so many frames, where no list is published."""
    subset = there[0].subset
    catalog, dataset = Catalog.load(subset), reader(subset)
    chosen = [clip for clip in there if catalog.split_of(dataset.scene_of(clip.name)) == "test"]
    if least > 2:
        chosen = [clip for clip in chosen if _is_as_long(clip, least)]
    rule = f" of the test split with at least {least} frames" if least > 2 else ""
    if not chosen:
        return [], f"{counted(len(there), 'sequence')}, none{rule}"
    return chosen, f"{counted(len(chosen), 'sequence')}{rule}"


def _is_as_long(clip: ClipName, least: int) -> bool:
    """Also where it cannot be opened, so that it is not passed over in silence; False if its dataset leaves it out."""
    try:
        return len(open_sequence(clip.subset, clip.data, clip.name)) >= least
    except Excluded:
        return False
    except ValueError:
        return True


def open_clip(key: str, clip: ClipName) -> SequenceClip:
    """The frames that the field takes of it; fewer where it is shorter. ValueError if these are fewer than two."""
    rule = protocol(key)[clip.subset]
    sequence = open_sequence(clip.subset, clip.data, clip.name)
    first, step = rule.get("first", 0), rule.get("step", 1)
    start = int(np.searchsorted(sequence.frame_numbers, first)) if rule.get("by_number") else 0
    last = len(sequence)
    if rule.get("by_number") and rule.get("beyond"):
        last = int(np.searchsorted(sequence.frame_numbers, rule["beyond"]))
    if sequence.prepared:  # what is there was chosen already
        start, last, step = 0, len(sequence), 1
    if last - start < 2:  # a shorter recording than the published ones: all of it
        start, last = 0, len(sequence)
    count = len(range(start, last, step))
    return SequenceClip(clip, Selection(start=start, step=step, num_frames=max(2, min(count, rule.get("most", count)))))
