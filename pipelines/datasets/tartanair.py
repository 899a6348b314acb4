"""TartanAir V1: a drone's flights through 18 simulated environments. Dataset notes D4.

Raw layout (some unzip tools double the <env> level):
    <env>/{Easy,Hard}/P000/
        image_left/000000_left.png         8-bit RGB, 640 x 480
        depth_left/000000_left_depth.npy   float32 (H, W), metres along +z; sky is 10000 and more
        pose_left.txt                      one line per frame: tx ty tz qx qy qz qw, world_from_body, metres;
                                           body axes NED (x forward, y right, z down), world +z down

The intrinsics are constants that stand in no file. A few things move (fish, rides) and are not annotated.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pipelines.geometry import rotation_from_xyzw, scaled_intrinsics
from pipelines.raw_folder import RawFolder
from pipelines.sequence import Cameras, Sequence, Static

LAYOUT = "TartanAir V1: <env>/Easy|Hard/P000/ with pose_left.txt, image_left/ and depth_left/ (V2 is another layout)"
WIDTH, HEIGHT = 640, 480
INTRINSICS = np.array([[320.0, 0, 320], [0, 320, 240], [0, 0, 1]])  # pixel centres at +0.5, verified on real frames
CAM_FROM_BODY = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # NED to OpenCV axes
FARTHEST = 1000  # metres; beyond it lie the sky and rendering errors


class TartanAir(Sequence):
    """The left camera of one trajectory. The world stays NED."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder = raw.folder_of(name, "pose_left.txt")
        pose_path = f"{folder}/pose_left.txt"
        poses = raw.table(pose_path, columns=7)
        self.frame_numbers = np.arange(len(poses))
        self._images = raw.frame_files(f"{folder}/image_left", "%06d_left.png", self.frame_numbers, pose_path)
        self._depths = raw.frame_files(f"{folder}/depth_left", "%06d_left_depth.npy", self.frame_numbers, pose_path)
        self.image_size = height, width = raw.image_size(self._images[0])
        if width * HEIGHT != height * WIDTH:
            raise ValueError(
                f"{self._images[0]} in {raw.uri} is {width}x{height}: TartanAir V1 is 640x480 (or 4:3, if resized); "
                "for a crop, or for V2 (640x640), the intrinsics are not known"
            )
        norm = np.linalg.norm(poses[:, 3:], axis=1)
        if (bad := ~np.isfinite(poses).all(axis=1) | ~(np.abs(norm - 1) < 1e-2)).any():
            raise ValueError(
                f"line {np.flatnonzero(bad)[0] + 1} of {pose_path} in {raw.uri} is no pose: it must be finite numbers "
                "tx ty tz qx qy qz qw with a quaternion of length 1; download it again"
            )
        world_from_cam = np.tile(np.eye(4), (len(poses), 1, 1))
        world_from_cam[:, :3, :3] = rotation_from_xyzw(poses[:, 3:]) @ CAM_FROM_BODY.T
        world_from_cam[:, :3, 3] = poses[:, :3]
        intrinsics = scaled_intrinsics(INTRINSICS, width_ratio=width / WIDTH, height_ratio=height / HEIGHT)
        self.cameras = Cameras(intrinsics=np.tile(intrinsics, (len(poses), 1, 1)), world_from_cam=world_from_cam)

    @classmethod
    def find(cls, raw: RawFolder) -> list[str]:
        """Like "hospital/Easy/P037", by pose_left.txt."""
        return raw.found((raw.name_of(folder, parts=3) for folder in raw.find_folders("pose_left.txt")), LAYOUT)

    @staticmethod
    def scene_of(name: str) -> str:
        """The environment: all its trajectories show the same place."""
        parts = name.split("/")
        return next((env for env, level in pairwise(parts) if level in ("Easy", "Hard")), parts[0])

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        depth = self._sized(self.raw.npy(self._depths[t]), self._depths[t]).astype(np.float32)
        return np.where(np.isfinite(depth) & (depth > 0) & (depth < FARTHEST), depth, np.float32(np.nan))

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Static:
        return Static()
