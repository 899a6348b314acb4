"""CO3D v2: photographers walk around everyday objects of 51 categories. Dataset notes D8.

Raw layout:
    <category>/
        frame_annotations.jgz             gzipped JSON list, see `pytorch3d`; paths begin with <category>/
        sequence_annotations.jgz          another: sequence_name, viewpoint_quality_score (null: not known)
        set_lists/set_lists_<set>.json    {"train": [[sequence, frame_number, path], ...], "val": ..., "test": ...}
        <sequence>/
            images/frame000001.jpg                  8-bit RGB, of one size within a sequence; the number counts in time,
                                                    which frame_number need not
            depths/frame000001.jpg.geometric.png    float16 bits along +z, to be multiplied by scale_adjustment
            depth_masks/frame000001.png             1-bit: where views agree about depth, mostly the object

Units differ between sequences, so nothing here is metric. Depth is unknown outside depth_masks: it is noise there as
often as not. Frames that no list has in train or val were blanked for the benchmark, and are left out, like those
without viewpoint or depth.
"""

import posixpath
import re
from collections import Counter

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from pipelines.datasets.co3d_set_lists import usable_frames
from pipelines.datasets.pytorch3d import Frame, depth_of
from pipelines.raw import json_list
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Dataset, Excluded, Sequence, Static

LAYOUT = (
    "CO3D v2: <category>/ with frame_annotations.jgz, sequence_annotations.jgz, set_lists/ and folders of sequences"
)
FRAMES, SEQUENCES = "frame_annotations.jgz", "sequence_annotations.jgz"
MIN_QUALITY = 0.5  # of the viewpoints, as other users of the dataset ask for
FARTHEST = 1e5  # a camera beyond it was not reconstructed
EMPTY_SHARE = 1 / 64  # of the raw bytes: a larger depth file is not blank, which would deflate to a thousandth
EMPTY_BYTES = 1024  # nor is a larger one than this, where images are tiny


class Co3d(Sequence):
    """One video of one object, in the order of the numbers in its file names."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        category, _, sequence = name.rpartition("/")
        self._folder, self._category = raw.folder_of(category, FRAMES), category.split("/")[-1]
        self._check_quality(sequence)
        path = f"{self._folder}/{FRAMES}"
        where = f"{path} in {raw.uri}"
        records = json_list.groups(raw, path, "sequence_name").records((sequence,))
        frames = [Frame.parse(record, where, self._located) for record in records]
        if len({frame.number for frame in frames}) < max(len(frames), 1):
            raise ValueError(f"{where} must list frames of {sequence!r}, each once; it lists {len(frames)}")
        self._left_out, self._frames = Counter(), []
        open_numbers = usable_frames(raw, self._folder).get(sequence, set())
        for frame in frames:
            if reason := self._unusable(frame, open_numbers):
                self._left_out[reason] += 1
            else:
                self._frames.append(frame)
        self._drop_blank()
        self.notes = tuple(f"{count} frames {reason}" for reason, count in sorted(self._left_out.items()))
        if not self._frames:
            raise Excluded(f"{name} in {raw.uri} has no usable frame: {', '.join(self.notes)}")
        self._frames.sort(key=lambda frame: file_number(frame.image))
        self.frame_numbers = np.array([file_number(frame.image) for frame in self._frames], np.int64)
        if (np.diff(self.frame_numbers) < 1).any():
            raise ValueError(f"{where} lists one image of {sequence!r} for two frames: download it again")
        self.image_size = raw.image_size(self._frames[0].image)
        if sizes := {frame.size for frame in self._frames} - {self.image_size}:
            raise ValueError(
                f"{self._frames[0].image} in {raw.uri} is {self.image_size} (H, W), but {path} also says {min(sizes)} "
                "for this sequence: use the images of v2 as shipped"
            )
        self.cameras = Cameras(
            intrinsics=np.stack([frame.intrinsics for frame in self._frames]),
            world_from_cam=np.stack([frame.world_from_cam for frame in self._frames]),
        )
        if np.abs(self.cameras.world_from_cam).max() > FARTHEST:
            raise Excluded(f"{name} in {raw.uri} has cameras farther than {FARTHEST:g} away: not reconstructed")

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._frames[t].image), self._frames[t].image)

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        frame = self._frames[t]
        depth = depth_of(self._sized(self.raw.grey16(frame.depth), frame.depth), frame.depth_scale)
        trusted = self._sized(self.raw.mask(frame.depth_mask), frame.depth_mask)
        return np.where(trusted, depth, np.float32(np.nan))

    def normal(self, t: int, column: Int64[np.ndarray, "N"], row: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3"]:
        """Not known: the depth is too noisy to derive them."""
        return np.full((len(row), 3), np.nan)

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Static:
        return Static()

    def _check_quality(self, sequence: str) -> None:
        path = f"{self._folder}/{SEQUENCES}"
        records = json_list.groups(self.raw, path, "sequence_name").records((sequence,))
        quality = records[0].get("viewpoint_quality_score") if len(records) == 1 else ""
        if not (quality is None or isinstance(quality, int | float)):
            raise ValueError(
                f"{path} in {self.raw.uri} must have one record of {sequence!r} with a viewpoint_quality_score that is "
                f"a number or null; it has {len(records)}: download it again"
            )
        if quality is not None and not quality >= MIN_QUALITY:
            raise Excluded(
                f"viewpoint_quality_score of {self.name} is {quality:g}, below {MIN_QUALITY}: its cameras are wrong"
            )

    def _located(self, path: str) -> str:
        """A path of the list, which begins with the category, below the raw folder."""
        category, _, inner = path.partition("/")
        if category != self._category:
            raise ValueError(
                f"{path!r} in {self._folder}/{FRAMES} in {self.raw.uri} does not begin with its folder's name "
                f"{self._category!r}: give that folder the name of its category"
            )
        return posixpath.join(self._folder, inner)

    @staticmethod
    def _unusable(frame: Frame, open_numbers: set[int]) -> str:
        if frame.number not in open_numbers:
            return "in no train or val list"
        if frame.world_from_cam is None:
            return "without viewpoint"
        return "" if frame.depth and frame.depth_mask else "without depth"

    def _drop_blank(self) -> None:
        """Leave out frames without any depth, and check that the files of all others are there."""
        sizes = self.raw.sizes(frame.depth for frame in self._frames)
        self.raw.sizes(path for frame in self._frames for path in (frame.image, frame.depth_mask))
        kept = []
        for frame, size in zip(self._frames, sizes, strict=True):
            height, width = frame.size
            may_be_blank = size <= max(EMPTY_BYTES, 2 * height * width * EMPTY_SHARE)
            if may_be_blank and np.isnan(depth_of(self.raw.grey16(frame.depth), frame.depth_scale)).all():
                self._left_out["with blank depth"] += 1
            else:
                kept.append(frame)
        self._frames = kept


def file_number(path: str) -> int:
    """1 of ".../frame000001.jpg". ValueError if it has none."""
    if not (found := re.search(r"(\d+)\.\w+$", path)):
        raise ValueError(f"{path} has no number before its extension, by which frames are ordered: not CO3D v2")
    return int(found[1])


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "apple/110_13051_23361", of those with annotation the ones whose folder was extracted."""
    names = []
    for folder in raw.find_folders(FRAMES):
        inside = raw.listdir(folder)[0]
        annotated = {name for (name,) in json_list.groups(raw, f"{folder}/{SEQUENCES}", "sequence_name")}
        names += [f"{raw.name_of(folder, parts=1)}/{name}" for name in inside if name in annotated]
    return names


def scene_of(name: str) -> str:
    """The category: the lists of the dataset split frames, which leaves one object in several of its sets."""
    return name.split("/")[-2]


DATASET = Dataset(key="co3d", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=Co3d)
