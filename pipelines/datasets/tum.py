"""TUM RGB-D, to evaluate on: a hand-held Kinect under motion capture. Dataset notes E5.

    rgbd_dataset_freiburg3_walking_xyz/
        rgb/1341846313.592026.png       8-bit RGB, 640 x 480
        depth/1341846313.592088.png     uint16, 5000 to the metre, 0 unknown; registered to colour
        rgb.txt, depth.txt              "time path"
        groundtruth.txt                 "time tx ty tz qx qy qz qw": world_from_cam of the colour camera

or, as evaluation codes prepare it, the frames they take alone:

    rgb_90/<time>.png  groundtruth_90.txt  depth_90/<time>.png

Colour, depth and poses have times of their own: of each image the nearest of the others within 20 ms is taken, each
once, as the benchmark's own tool does. Images without a pose are left out; without depth, it is unknown. People who
walk there are not annotated.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from pipelines.raw.folder import RawFolder
from pipelines.raw.tum import associate, read_list, read_path
from pipelines.sequence import Cameras, Dataset, Sequence, Unknown

LAYOUT = "TUM RGB-D: rgbd_dataset_*/ with rgb.txt, depth.txt, groundtruth.txt, rgb/ and depth/, or rgb_90/"
PER_METRE = 5000
SHIPPED = "groundtruth.txt"  # by which the folder of a recording is known
WITHIN = 0.02  # seconds
INTRINSICS = {  # as published, the centre of the first pixel at 0; images of freiburg1 and 2 are distorted
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
DEFAULT = (525.0, 525.0, 319.5, 239.5)
SIZE = 640, 480


class Tum(Sequence):
    """One recording, of which every image with a pose is a frame; of a prepared one every image."""

    within = WITHIN
    chosen = "90"
    """How the folders of a prepared recording end."""
    markers = ("rgb_90", "groundtruth_90.txt")
    """By one of which it is known; depth_90 is ScanNet's too."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder = raw.folder_of(name, SHIPPED, *self.markers)
        if raw.holds(folder, "rgb.txt"):
            matrices = self._recorded(folder)
        else:
            matrices = self._prepared(folder)
        first = self._depths[0] if "images" in self.lacks else self._images[0]
        self.image_size = height, width = raw.image_size(first)
        fx, fy, cx, cy = self.published(name)
        scale = np.array([width / SIZE[0], height / SIZE[1], 1.0])[:, None]
        matrix = scale * np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1.0]])
        self.cameras = Cameras(
            intrinsics=np.tile(matrix, (len(self), 1, 1)), world_from_cam=self.camera_poses(matrices)
        )

    def _recorded(self, folder: str) -> Float64[np.ndarray, "T 4 4"]:
        """As shipped: three lists with times. Gives the poses as they stand there."""
        times, images = read_list(self.raw, f"{folder}/rgb.txt")
        depth_times, depths = read_list(self.raw, f"{folder}/depth.txt")
        pose_times, poses = read_path(self.raw, f"{folder}/groundtruth.txt")
        kept = associate(times, pose_times, self.within)
        if not len(kept):
            raise ValueError(f"no image of {self.name} in {self.raw.uri} has a pose within {self.within:g} s of it")
        if left := len(images) - len(kept):
            self.notes = (f"{left} of {len(images)} images have no pose within {self.within:g} s: left out",)
        self.frame_numbers = kept[:, 0]
        self._images = [f"{folder}/{images[number]}" for number in self.frame_numbers]
        self._depths = self._beside(times[kept[:, 0]], depth_times, [f"{folder}/{file}" for file in depths])
        return poses[kept[:, 1]]

    def _prepared(self, folder: str) -> Float64[np.ndarray, "T 4 4"]:
        """Files called by their times, of the chosen frames alone. Poses are NaN where there is none."""
        self.prepared = True
        (times, images), (depth_times, depths) = (
            _by_time(self.raw, f"{folder}/{kind}_{self.chosen}") for kind in ("rgb", "depth")
        )
        if not images:
            self.lacks, times = frozenset({"images"}), depth_times
        self.frame_numbers = np.arange(len(times))
        self._images = images
        self._depths = self._beside(times, depth_times, depths)
        found = np.full((len(times), 4, 4), np.nan)
        files = [file for file in ("groundtruth.txt", f"groundtruth_{self.chosen}.txt") if self.raw.holds(folder, file)]
        if files:
            pose_times, poses = read_path(self.raw, f"{folder}/{files[0]}")
            pairs = associate(times, pose_times, self.within)
            found[pairs[:, 0]] = poses[pairs[:, 1]]
        return found

    def _beside(
        self, times: Float64[np.ndarray, "T"], depth_times: Float64[np.ndarray, "D"], depths: list[str]
    ) -> list[str | None]:
        """Of each frame the depth that belongs to it by time."""
        found = dict(associate(times, depth_times, self.within).tolist())
        return [depths[found[t]] if t in found else None for t in range(len(times))]

    def published(self, name: str) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy of 640 x 480."""
        return next((values for camera, values in INTRINSICS.items() if camera in name), DEFAULT)

    def camera_poses(self, poses: np.ndarray) -> np.ndarray:
        """world_from_cam, from what the file has."""
        return poses

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        if "images" in self.lacks:
            raise self._missing("images", f"rgb_{self.chosen}/")
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        if self._depths[t] is None:
            return np.full(self.image_size, np.nan, np.float32)
        steps = self._sized(self.raw.grey16(self._depths[t]), self._depths[t])
        if 0 < steps.max() <= 255:
            raise ValueError(f"{self._depths[t]} in {self.raw.uri} has no value over 255: it was saved with 8 bits")
        return np.where(steps > 0, steps.astype(np.float32) / np.float32(PER_METRE), np.float32(np.nan))

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Unknown:
        return Unknown()


def recordings(raw: RawFolder, markers: tuple[str, ...]) -> list[str]:
    """Names of all recordings, as shipped or prepared."""
    folders = raw.find_folders(SHIPPED, *markers)
    return [raw.name_of(folder, parts=1) for folder in folders if raw.holds(folder, "rgb.txt", *markers)]


def _by_time(raw: RawFolder, folder: str) -> tuple[Float64[np.ndarray, "n"], list[str]]:
    """(times, files) of images that are called by their times. ValueError naming a file that is not."""
    times, files = [], []
    for file in raw.listdir(folder)[1]:
        try:
            times.append(float(file.removesuffix(".png")))
        except ValueError:
            raise ValueError(f"{folder}/{file} in {raw.uri} is not called by its time in seconds: TIME.png") from None
        files.append(f"{folder}/{file}")
    order = np.argsort(times)
    return np.array(times)[order], [files[place] for place in order]


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "rgbd_dataset_freiburg3_walking_xyz"."""
    return [name for name in recordings(raw, Tum.markers) if "rgbd_bonn_" not in name.rpartition("/")[2]]


DATASET = Dataset(key="tum", layout=LAYOUT, names=sequence_names, scene_of=str, open=Tum)
