"""MPI Sintel, to evaluate on: an animated film with depth and cameras. Dataset notes E3.

    training/final/<sequence>/frame_0001.png           8-bit RGB, 1024 x 436
    training/depth/<sequence>/frame_0001.dpt           float32 metres along z; sky is finite, 1e3 and far more
    training/camdata_left/<sequence>/frame_0001.cam    K and cam_from_world, both float64; K changes in zoom shots

Pixels of K have their origin at the centre of the first one. Things move and are not annotated here.
"""

import posixpath

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pipelines.geometry import inverse
from pipelines.raw.folder import RawFolder
from pipelines.raw.sintel import read_camera, read_depth
from pipelines.sequence import Cameras, Dataset, Sequence, Unknown

LAYOUT = "MPI Sintel: training/final, training/depth and training/camdata_left, each with <sequence>/frame_0001.*"
PARTS = ("final", "depth", "camdata_left")
FARTHEST = 1000.0  # metres; beyond it lies only sky


class Sintel(Sequence):
    """One sequence of the final pass."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        root = posixpath.normpath(posixpath.join(raw.folder_of("training", *PARTS), "."))
        images, depths, cameras = (f"{root}/{part}/{name}" for part in PARTS)
        files = sorted(file for file in raw.listdir(images)[1] if file.startswith("frame_") and file.endswith(".png"))
        numbers = [file.removeprefix("frame_").removesuffix(".png") for file in files]
        if not numbers or not all(map(str.isdecimal, numbers)):
            raise ValueError(f"{images} in {raw.uri} has no images frame_0001.png and so on")
        self.frame_numbers = np.array([int(number) for number in numbers])
        self._images = [f"{images}/{file}" for file in files]
        self._depths = raw.frame_files(depths, "frame_%04d.dpt", self.frame_numbers, images)
        paths = raw.frame_files(cameras, "frame_%04d.cam", self.frame_numbers, images)
        self.image_size = raw.image_size(self._images[0])
        read = [read_camera(raw, path) for path in paths]
        intrinsics = np.stack([matrix for matrix, _ in read])
        intrinsics[:, :2, 2] += 0.5
        self.cameras = Cameras(intrinsics=intrinsics, world_from_cam=inverse(np.stack([pose for _, pose in read])))

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        depth = self._sized(read_depth(self.raw, self._depths[t]), self._depths[t])
        return np.where((depth > 0) & (depth < FARTHEST), depth, np.float32(np.nan))

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Unknown:
        return Unknown()


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "alley_2": those with images, depth and cameras."""
    found = []
    for root in raw.find_folders("camdata_left", max_depth=3):
        folders = [set(raw.listdir(f"{root}/{part}")[0]) if raw.holds(root, part) else set() for part in PARTS]
        found += set.intersection(*folders)
    return found


DATASET = Dataset(key="sintel", layout=LAYOUT, names=sequence_names, scene_of=str, open=Sintel)
