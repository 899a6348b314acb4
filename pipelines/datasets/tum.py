"""TUM RGB-D, to evaluate on: a hand-held Kinect under motion capture. Dataset notes E5.

    rgbd_dataset_freiburg3_walking_xyz/
        rgb/1341846313.592026.png       8-bit RGB, 640 x 480
        depth/1341846313.592088.png     uint16, 5000 to the metre, 0 unknown; registered to colour
        rgb.txt, depth.txt              "time path"
        groundtruth.txt                 "time tx ty tz qx qy qz qw": world_from_cam of the colour camera

Colour, depth and poses have times of their own: of each image the nearest of the others within 20 ms is taken, each
once, as the benchmark's own tool does. Images without a pose are left out; without depth, it is unknown. People who
walk there are not annotated.
"""

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pipelines.raw.folder import RawFolder
from pipelines.raw.tum import associate, read_list, read_path
from pipelines.sequence import Cameras, Dataset, Sequence, Unknown

LAYOUT = "TUM RGB-D: rgbd_dataset_*/ with rgb.txt, depth.txt, groundtruth.txt, rgb/ and depth/"
PER_METRE = 5000
WITHIN = 0.02  # seconds
INTRINSICS = {  # as published, the centre of the first pixel at 0; images of freiburg1 and 2 are distorted
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
DEFAULT = (525.0, 525.0, 319.5, 239.5)
SIZE = 640, 480


class Tum(Sequence):
    """One recording, of which every image with a pose is a frame."""

    within = WITHIN
    world_metres = 1.0
    """What a stored metre of depth is in the world of the poses."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder = raw.folder_of(name, "groundtruth.txt")
        times, images = read_list(raw, f"{folder}/rgb.txt")
        depth_times, depths = read_list(raw, f"{folder}/depth.txt")
        pose_times, poses = read_path(raw, f"{folder}/groundtruth.txt")
        with_depth = dict(associate(times, depth_times, self.within).tolist())
        kept = associate(times, pose_times, self.within)
        if not len(kept):
            raise ValueError(f"no image of {name} in {raw.uri} has a pose within {self.within:g} s of it")
        if left := len(images) - len(kept):
            self.notes = (f"{left} of {len(images)} images have no pose within {self.within:g} s: left out",)
        self.frame_numbers = kept[:, 0]
        self._images = [f"{folder}/{images[number]}" for number in self.frame_numbers]
        self._depths = [
            f"{folder}/{depths[with_depth[number]]}" if number in with_depth else None
            for number in self.frame_numbers.tolist()
        ]
        self.image_size = height, width = raw.image_size(self._images[0])
        fx, fy, cx, cy = self.published(name)
        scale = np.array([width / SIZE[0], height / SIZE[1], 1.0])[:, None]
        matrix = scale * np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1.0]])
        self.cameras = Cameras(
            intrinsics=np.tile(matrix, (len(kept), 1, 1)),
            world_from_cam=self.camera_poses(poses[kept[:, 1]]),
        )

    def published(self, name: str) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy of 640 x 480."""
        return next((values for camera, values in INTRINSICS.items() if camera in name), DEFAULT)

    def camera_poses(self, poses: np.ndarray) -> np.ndarray:
        """world_from_cam, from what the file has."""
        return poses

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        if self._depths[t] is None:
            return np.full(self.image_size, np.nan, np.float32)
        steps = self._sized(self.raw.grey16(self._depths[t]), self._depths[t])
        if 0 < steps.max() <= 255:
            raise ValueError(f"{self._depths[t]} in {self.raw.uri} has no value over 255: it was saved with 8 bits")
        metres = steps.astype(np.float32) / np.float32(PER_METRE / self.world_metres)
        return np.where(steps > 0, metres, np.float32(np.nan))

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Unknown:
        return Unknown()


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "rgbd_dataset_freiburg3_walking_xyz"."""
    folders = [folder for folder in raw.find_folders("groundtruth.txt") if raw.holds(folder, "rgb.txt")]
    return [name for name in (raw.name_of(folder, parts=1) for folder in folders) if "rgbd_bonn_" not in name]


DATASET = Dataset(key="tum", layout=LAYOUT, names=sequence_names, scene_of=str, open=Tum)
