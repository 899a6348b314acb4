"""KITTI depth, to evaluate on: a car's video with depth of its laser scanner, gathered over some frames.

    data_depth_annotated/val/<drive>_sync/proj_depth/groundtruth/image_02/0000000005.png    uint16, 256 to the metre
    <date>/<drive>_sync/image_02/data/0000000005.png                                        8-bit RGB
    <date>/calib_cam_to_cam.txt                                                             P_rect_02, S_rect_02

or, as evaluation codes gather the 110 frames of a drive (not cropped, in spite of the name):

    depth_selection/val_selection_cropped/{image_gathered,groundtruth_depth_gathered}/<drive>_sync_02/0000000005.png

Sizes differ from drive to drive, and truth begins at frame 5. There are no poses here: they are unknown (NaN), so
`audit` has nothing to compare. Without the calibration, intrinsics are those of most drives, as wide as the image.
"""

import re

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Dataset, Sequence, Unknown

LAYOUT = (
    "KITTI: data_depth_annotated/val/<drive>_sync/proj_depth/groundtruth/image_02/*.png and "
    "<date>/<drive>_sync/image_02/data/*.png, or val_selection_cropped/ with both gathered"
)
GATHERED = "groundtruth_depth_gathered"
CALIBRATION = "calib_cam_to_cam.txt"
TRUTH = "proj_depth/groundtruth/image_02"
PER_METRE = 256
USUAL_FOCAL, USUAL_WIDTH = 721.5377, 1242


class Kitti(Sequence):
    """The left colour camera of one drive, in the frames that have truth."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        gathered = next(raw.find_folders(GATHERED), None)
        depths = f"{gathered}/{GATHERED}/{name}_02" if gathered else f"{_depth_root(raw)}/{name}/{TRUTH}"
        files = sorted(file for file in raw.listdir(depths)[1] if re.fullmatch(r"\d{10}\.png", file))
        if not files:
            raise ValueError(f"{depths} in {raw.uri} has no 0000000005.png and so on: download the drive again")
        self.frame_numbers = np.array([int(file.removesuffix(".png")) for file in files])
        self._depths = [f"{depths}/{file}" for file in files]
        where = f"{gathered}/image_gathered/{name}_02" if gathered else self._raw_images()
        there = set(raw.listdir(where)[1])
        if gathered and not there:
            self.lacks |= {"images"}
        elif missing := sorted(set(files) - there):
            raise ValueError(f"{where} in {raw.uri} lacks {missing[0]}, which has depth: download the drive again")
        self._images = [f"{where}/{file}" for file in files]
        self.image_size = height, width = raw.image_size((self._depths if "images" in self.lacks else self._images)[0])
        calibration = next(
            (
                f"{folder}/{CALIBRATION}"
                for folder in raw.find_folders(CALIBRATION, max_depth=4)
                if folder.split("/")[-1] == name[:10]
            ),
            None,
        )
        if calibration is None:
            self.lacks |= {"intrinsics"}
            focal = USUAL_FOCAL * width / USUAL_WIDTH
            matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        else:
            matrix = _projection(raw, calibration)
        self.prepared = gathered is not None
        self.cameras = Cameras(
            intrinsics=np.tile(matrix, (len(files), 1, 1)), world_from_cam=np.full((len(files), 4, 4), np.nan)
        )

    def _raw_images(self) -> str:
        """The folder of the drive's images."""
        found = [
            folder for folder in self.raw.find_folders("image_02", max_depth=4) if folder.endswith(f"/{self.name}")
        ]
        if not found:
            raise ValueError(
                f"{self.raw.uri} has no {self.name[:10]}/{self.name}/image_02/data: download this drive's raw data too"
            )
        return f"{found[0]}/image_02/data"

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        if "images" in self.lacks:
            raise self._missing("images", f"image_gathered/{self.name}_02/")
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        steps = self._sized(self.raw.grey16(self._depths[t]), self._depths[t])
        if 0 < steps.max() <= 255:
            raise ValueError(f"{self._depths[t]} in {self.raw.uri} has no value over 255: it was saved with 8 bits")
        return np.where(steps > 0, steps.astype(np.float32) / PER_METRE, np.float32(np.nan))

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Unknown:
        return Unknown()


def _projection(raw: RawFolder, path: str) -> np.ndarray:
    """K of P_rect_02, whose pixels have their origin at the centre of the first one."""
    match = re.search(r"^P_rect_02:((?: +[-+.\deE]+){12})\s*$", raw.text(path), re.MULTILINE)
    if match is None:
        raise ValueError(f"{path} in {raw.uri} has no line P_rect_02 with twelve numbers: download it again")
    matrix = np.array(match[1].split(), np.float64).reshape(3, 4)[:, :3]
    matrix[:2, 2] += 0.5
    return matrix


def _depth_root(raw: RawFolder) -> str:
    """The folder of drives with truth."""
    root = next((folder for folder in raw.find_folders("data_depth_annotated", max_depth=2)), None)
    return f"{root}/data_depth_annotated/val"


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "2011_09_26_drive_0002_sync"."""
    if (gathered := next(raw.find_folders(GATHERED), None)) is not None:
        return [
            name.removesuffix("_02") for name in raw.listdir(f"{gathered}/{GATHERED}")[0] if name.endswith("_sync_02")
        ]
    if next(raw.find_folders("data_depth_annotated", max_depth=2), None) is None:
        return []
    return [name for name in raw.listdir(_depth_root(raw))[0] if name.endswith("_sync")]


DATASET = Dataset(key="kitti", layout=LAYOUT, names=sequence_names, scene_of=str, open=Kitti)
