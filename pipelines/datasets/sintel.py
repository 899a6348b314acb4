"""MPI Sintel, to evaluate on: an animated film with depth and cameras. Dataset notes E3.

    training/final/<sequence>/frame_0001.png           8-bit RGB, 1024 x 436
    training/depth/<sequence>/frame_0001.dpt           float32 metres along z; sky is finite, 1e3 and far more
    training/camdata_left/<sequence>/frame_0001.cam    K and cam_from_world, both float64; K changes in zoom shots

Pixels of K have their origin at the centre of the first one. Things move and are not annotated here. Whoever scores
stored predictions of depth, or of poses, needs that part alone.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pipelines.geometry import inverse
from pipelines.raw.folder import RawFolder
from pipelines.raw.sintel import read_camera, read_depth
from pipelines.sequence import Cameras, Dataset, Sequence, Unknown

LAYOUT = "MPI Sintel: training/final, training/depth and training/camdata_left, each with <sequence>/frame_0001.*"
FILES = {"final": "frame_%04d.png", "depth": "frame_%04d.dpt", "camdata_left": "frame_%04d.cam"}
LACKED = {"final": "images", "depth": "depth", "camdata_left": "intrinsics"}
SIZE = 436, 1024
FARTHEST = 1000.0  # metres; beyond it lies only sky


class Sintel(Sequence):
    """One sequence of the final pass."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        root = next(_roots(raw), "training")
        folders = {part: f"{root}/{part}/{name}" for part in FILES}
        there = {part: raw.frame_numbers(folder, FILES[part]) for part, folder in folders.items()}
        there = {part: numbers for part, numbers in there.items() if len(numbers)}
        if not there:
            raise ValueError(f"{name} in {raw.uri} has no files frame_0001.png and so on: download it again")
        first = next(iter(there))
        self.lacks = frozenset(LACKED[part] for part in FILES if part not in there)
        self.frame_numbers = there[first]
        self._files = {
            part: raw.frame_files(folders[part], FILES[part], self.frame_numbers, folders[first]) for part in there
        }
        if "final" in there:
            self.image_size = raw.image_size(self._files["final"][0])
        elif "depth" in there:
            self.image_size = read_depth(raw, self._files["depth"][0]).shape
        else:
            self.image_size = SIZE
        if "camdata_left" not in there:
            height, width = self.image_size
            matrix = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
            intrinsics, poses = np.tile(matrix, (len(self), 1, 1)), np.full((len(self), 4, 4), np.nan)
        else:
            read = [read_camera(raw, path) for path in self._files["camdata_left"]]
            intrinsics = np.stack([matrix for matrix, _ in read])
            intrinsics[:, :2, 2] += 0.5
            poses = inverse(np.stack([pose for _, pose in read]))
        self.cameras = Cameras(intrinsics=intrinsics, world_from_cam=poses)

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        if "images" in self.lacks:
            raise self._missing("images", "training/final/")
        path = self._files["final"][t]
        return self._sized(self.raw.rgb(path), path)

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        if "depth" in self.lacks:
            raise self._missing("depth", "training/depth/")
        path = self._files["depth"][t]
        depth = self._sized(read_depth(self.raw, path), path)
        return np.where((depth > 0) & (depth < FARTHEST), depth, np.float32(np.nan))

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Unknown:
        return Unknown()


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "alley_2": those that all parts have which are there."""
    found = []
    for root in _roots(raw):
        folders = [set(raw.listdir(f"{root}/{part}")[0]) for part in FILES]
        found += set.intersection(*filter(None, folders)) if any(folders) else []
    return found


def _roots(raw: RawFolder) -> Iterator[str]:
    """Folders with parts of it."""
    for folder in raw.find_folders(*FILES, max_depth=3):
        if raw.holds(folder, "camdata_left") or raw.name_of(folder, parts=1).rpartition("/")[2] == "training":
            yield folder


DATASET = Dataset(key="sintel", layout=LAYOUT, names=sequence_names, scene_of=str, open=Sintel)
