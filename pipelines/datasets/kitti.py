"""KITTI depth, to evaluate on: a car's video with depth of its laser scanner, gathered over some frames.

    data_depth_annotated/val/<drive>_sync/proj_depth/groundtruth/image_02/0000000005.png    uint16, 256 to the metre
    <date>/<drive>_sync/image_02/data/0000000005.png                                        8-bit RGB
    <date>/calib_cam_to_cam.txt                                                             P_rect_02, S_rect_02

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
    "<date>/<drive>_sync/image_02/data/*.png"
)
TRUTH = "proj_depth/groundtruth/image_02"
PER_METRE = 256
USUAL_FOCAL, USUAL_WIDTH = 721.5377, 1242


class Kitti(Sequence):
    """The left colour camera of one drive, in the frames that have truth."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        depths = f"{_depth_root(raw)}/{name}/{TRUTH}"
        files = sorted(file for file in raw.listdir(depths)[1] if re.fullmatch(r"\d{10}\.png", file))
        found = [folder for folder in raw.find_folders("image_02", max_depth=4) if folder.split("/")[-1] == name]
        if not found:
            raise ValueError(f"{raw.uri} has no {name[:10]}/{name}/image_02/data: download this drive's raw data too")
        self.frame_numbers = np.array([int(file.removesuffix(".png")) for file in files])
        self._depths = [f"{depths}/{file}" for file in files]
        where = f"{found[0]}/image_02/data"
        self._images = [f"{where}/{file}" for file in files]
        if missing := sorted(set(files) - set(raw.listdir(where)[1])):
            raise ValueError(f"{where} in {raw.uri} lacks {missing[0]}, which has depth: download the drive again")
        self.image_size = height, width = raw.image_size(self._images[0])
        focal = USUAL_FOCAL * width / USUAL_WIDTH
        matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        calibration = f"{found[0].rpartition('/')[0]}/calib_cam_to_cam.txt"
        if raw.holds(found[0].rpartition("/")[0] or ".", "calib_cam_to_cam.txt"):
            matrix = _projection(raw, calibration)
        self.cameras = Cameras(
            intrinsics=np.tile(matrix, (len(files), 1, 1)), world_from_cam=np.full((len(files), 4, 4), np.nan)
        )

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
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
    if next(raw.find_folders("data_depth_annotated", max_depth=2), None) is None:
        return []
    return [name for name in raw.listdir(_depth_root(raw))[0] if name.endswith("_sync")]


DATASET = Dataset(key="kitti", layout=LAYOUT, names=sequence_names, scene_of=str, open=Kitti)
