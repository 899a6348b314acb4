"""MVS-Synth: 120 drives and walks through the city of a game (GTA V), 100 frames each. Dataset notes D9.

Raw layout:
    GTAV_540/num_images.json          how many frames each sequence has
    GTAV_540/0000/
        images/0000.png               8-bit RGB, 1920 x 1080, 1280 x 720 or 960 x 540; in the old GTAV_540 810 x 540
        depths/0000.exr               one channel Y, half, along +z; inf is sky, 0 is nothing
        poses/0000.json               extrinsic (cam_from_world 4x4, OpenCV axes) and f_x, f_y, c_x, c_y (pixels, the
                                      centre of the top-left one at (0.5, 0.5))

The game's world is left-handed: extrinsics have det -1, until the world is reflected. The old GTAV_540 squeezed its
images from 960 to 810 columns, but not f_x. The unit is not known (0.1 m, 1 m and 1 cm have been claimed), so nothing
is metric. Cars and people may move and are not annotated.
"""

import posixpath
import re

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from pipelines.geometry import inverse
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Dataset, Sequence, Unknown

LAYOUT = "MVS-Synth: GTAV_540/0000/ (or GTAV_720, GTAV_1080) with images/, depths/ and poses/0000.json"
REFLECTION = np.diag([1.0, 1, -1, 1])
WIDE, SQUEEZED = 16 / 9, 3 / 2  # shapes of the images; the game's pixels are square where they are wide
TOLERANCE = 0.005  # share by which a shape, or f_x / f_y, may be off
OFF_CENTRE = 2  # pixels
MAX_FRAMES = 10_000  # that four digits can number
FARTHEST = 1000  # of the dataset's units; what is farther (the horizon goes to 10,000) is masked like the sky


class MvsSynth(Sequence):
    """One drive. What is mended in the intrinsics stands in `notes`."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder = raw.folder_of(name, "poses")
        files = [file for file in raw.listdir(f"{folder}/poses")[1] if file.endswith(".json")]
        self.frame_numbers = np.arange(self._listed(folder, len(files)))
        poses = f"{folder}/poses"
        self._poses = raw.frame_files(poses, "%04d.json", self.frame_numbers, poses)
        self._images = raw.frame_files(f"{folder}/images", "%04d.png", self.frame_numbers, poses)
        self._depths = raw.frame_files(f"{folder}/depths", "%04d.exr", self.frame_numbers, poses)
        self.image_size = raw.image_size(self._images[0])
        numbers = np.stack([self._numbers(path) for path in self._poses])
        self.cameras = Cameras(
            intrinsics=self._intrinsics(numbers[:, 16:]),
            world_from_cam=inverse(self._unreflected(numbers[:, :16].reshape(-1, 4, 4))),
        )

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        depth = self._sized(self.raw.exr(self._depths[t], "Y"), self._depths[t]).astype(np.float32)
        return np.where((depth > 0) & (depth < FARTHEST), depth, np.float32(np.nan))  # NaN is neither

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Unknown:
        return Unknown()

    def _listed(self, folder: str, count: int) -> int:
        """How many frames num_images.json lists, if it is there; else as many as there are poses."""
        above, number = posixpath.split(folder)
        path = posixpath.join(above, "num_images.json")
        if not number.isdecimal() or not self.raw.exists(path):
            return count
        listed = self.raw.json(path)
        frames = listed[int(number)] if isinstance(listed, list) and int(number) < len(listed) else 0
        if type(frames) is int and 0 < frames <= MAX_FRAMES:
            return frames
        raise ValueError(
            f"{path} in {self.raw.uri} must list from 1 to {MAX_FRAMES} frames for sequence {number}: download it again"
        )

    def _numbers(self, path: str) -> Float64[np.ndarray, "20"]:
        """cam_from_world by rows, f_x, f_y, c_x, c_y."""
        document = self.raw.json(path)
        try:
            extrinsic = np.array(document["extrinsic"], np.float64).reshape(16)
            numbers = np.array([*extrinsic, *(document[key] for key in ("f_x", "f_y", "c_x", "c_y"))], np.float64)
        except (LookupError, TypeError, ValueError, OverflowError):
            numbers = np.full(20, np.nan)
        if not np.isfinite(numbers).all() or (numbers[12:16] != [0, 0, 0, 1]).any():
            raise ValueError(
                f"{path} in {self.raw.uri} must have a finite 4x4 extrinsic, its last row 0 0 0 1, and numbers f_x, "
                "f_y, c_x and c_y: not MVS-Synth's, or corrupt; download it again"
            )
        return numbers

    def _unreflected(self, cam_from_world: Float64[np.ndarray, "T 4 4"]) -> Float64[np.ndarray, "T 4 4"]:
        """Of the world reflected into a right-handed one, if it is none. What cameras see stays as it is."""
        left_handed = np.linalg.det(cam_from_world[:, :3, :3]) < 0
        if left_handed.any() and not left_handed.all():
            raise ValueError(
                f"extrinsics of {self.name} in {self.raw.uri}: {left_handed.sum()} of {len(self)} have det < 0; it "
                "must be all or none, as they are of one world: were only some of them repaired?"
            )
        return cam_from_world @ REFLECTION if left_handed.any() else cam_from_world

    def _intrinsics(self, numbers: Float64[np.ndarray, "T 4"]) -> Float64[np.ndarray, "T 3 3"]:
        """With f_x and c_x mended where they do not fit the images' shape: the game's pixels are square."""
        height, width = self.image_size
        if min(abs(width / height / shape - 1) for shape in (WIDE, SQUEEZED)) > TOLERANCE:
            raise ValueError(
                f"{self._images[0]} in {self.raw.uri} is {width}x{height}: MVS-Synth is 16:9, or 3:2 in the old "
                "GTAV_540; of another shape, such as a crop, it cannot be told whether the intrinsics fit"
            )
        f_x, f_y, c_x, c_y = numbers.T.copy()
        unsqueezed = (np.abs(c_x - height * WIDE / 2) < OFF_CENTRE) & (np.abs(c_x - width / 2) >= OFF_CENTRE)
        c_x[unsqueezed] = width / 2
        off = np.maximum(np.abs(c_x - width / 2), np.abs(c_y - height / 2))
        if (off >= OFF_CENTRE).any():
            raise ValueError(
                f"principal point of {self._poses[off.argmax()]} in {self.raw.uri} is {off.max():.1f} px from the "
                f"centre of {width}x{height} images; it must be within {OFF_CENTRE}: of images of another size?"
            )
        wanted = f_y * (width / height / WIDE)
        misfit = ~(np.abs(f_x - wanted) <= TOLERANCE * np.abs(wanted))
        if mended := int((misfit | unsqueezed).sum()):
            self.notes = (f"intrinsics_repaired: f_x or c_x of {mended} frames did not fit {width}x{height} images",)
        intrinsics = np.tile(np.eye(3), (len(numbers), 1, 1))
        intrinsics[:, (0, 1), (0, 1)] = np.stack([np.where(misfit, wanted, f_x), f_y], axis=1)
        intrinsics[:, :2, 2] = np.stack([c_x, c_y], axis=1)
        return intrinsics


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "GTAV_540/0000", by poses/0000.json."""
    folders = [posixpath.split(folder) for folder in raw.find_folders("0000.json")]
    names = [raw.name_of(folder or ".", parts=2) for folder, poses in folders if poses == "poses"]
    return [name for name in names if re.fullmatch(r"(.+/)?\d{4}", name)]


def scene_of(name: str) -> str:
    """Like "0000": the releases of all sizes show the same."""
    return name.split("/")[-1]


DATASET = Dataset(key="mvs_synth", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=MvsSynth)
