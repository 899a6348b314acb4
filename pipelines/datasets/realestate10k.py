"""RealEstate10K, to evaluate on: walks through houses, with cameras by structure from motion and nothing else.

    test/0bf152ef84195293.txt                the address of a video, then a line per frame: time in microseconds,
                                             fx fy cx cy by width and height, 0 0, cam_from_world row by row
    test/0bf152ef84195293/67433.png          that frame, by its time; .jpg too

Images are not part of it: everybody takes them out of the videos, of which many are gone. Lines without an image are
left out; without any image, stored predictions can still be scored. Each video has a unit of length of its own.
"""

from fnmatch import filter as fitting
from typing import NoReturn

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from pipelines.geometry import inverse
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Dataset, Sequence, Static

LAYOUT = "RealEstate10K: test/<video>.txt as published, and test/<video>/<time>.png, its frames"
MARKER = "[0-9a-f]" * 16 + ".txt"
COLUMNS = 19
ENDINGS = (".png", ".jpg")
SIZE = 360, 640  # where there are no images to tell it


class RealEstate10k(Sequence):
    """One clip of a video."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder, _, video = name.rpartition("/")
        path = f"{raw.folder_of(folder, MARKER)}/{video}"
        rows = _rows(raw, f"{path}.txt")
        images = {file[: -len(ENDINGS[0])]: f"{path}/{file}" for file in raw.listdir(path)[1] if file.endswith(ENDINGS)}
        self.lacks = frozenset({"depth"} if images else {"depth", "images"})
        if images:
            there = np.array([str(int(time)) in images for time in rows[:, 0]])
            if not there.any():
                raise ValueError(
                    f"no image in {path}/ of {raw.uri} is called by a time of {path}.txt, such as {rows[0, 0]:.0f}.png"
                )
            if not there.all():
                self.notes = (f"{(~there).sum()} of {len(rows)} frames have no image: left out",)
            rows = rows[there]
        self.frame_numbers = rows[:, 0].astype(np.int64)
        self._images = [images[str(time)] for time in self.frame_numbers] if images else []
        self.image_size = height, width = raw.image_size(self._images[0]) if images else SIZE

        intrinsics = np.tile(np.eye(3), (len(rows), 1, 1))
        intrinsics[:, (0, 1, 0, 1), (0, 1, 2, 2)] = rows[:, 1:5] * [width, height, width, height]
        cam_from_world = np.tile(np.eye(4), (len(rows), 1, 1))
        cam_from_world[:, :3] = rows[:, 7:].reshape(-1, 3, 4)
        self.cameras = Cameras(intrinsics=intrinsics, world_from_cam=inverse(cam_from_world))

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        if not self._images:
            raise self._missing("images", "test/<video>/<time>.png")
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> NoReturn:
        raise self._missing("depth", "the dataset has none")

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Static:
        return Static()


def _rows(raw: RawFolder, path: str) -> Float64[np.ndarray, "T 19"]:
    """Of the frames, in the order of time."""
    rows = raw.table(path, columns=COLUMNS, skip_rows=1)
    if not len(rows) or not np.isfinite(rows).all() or (np.diff(rows[:, 0]) <= 0).any():
        raise ValueError(
            f"{path} in {raw.uri} must have a line of numbers for each frame, whose times ascend: download it again"
        )
    return rows


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "test/0bf152ef84195293"."""
    names = []
    for folder in raw.find_folders(MARKER):
        above = raw.name_of(folder, parts=1)
        names += [f"{above}/{file.removesuffix('.txt')}" for file in fitting(raw.listdir(folder)[1], MARKER)]
    return names


DATASET = Dataset(key="realestate10k", layout=LAYOUT, names=sequence_names, scene_of=str, open=RealEstate10k)
