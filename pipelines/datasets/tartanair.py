"""TartanAir: a drone's flights through simulated environments, 18 of V1 and 65 of V2. Dataset notes D4.

Raw layout of V1, and of V2 (some unzip tools double the <env> level):
    <env>/{Easy,Hard}/P000/
        image_left/000000_left.png         8-bit RGB, 640 x 480
        depth_left/000000_left_depth.npy   float32 (H, W), metres along +z; sky is 10000 and more
        pose_left.txt                      one line per frame: tx ty tz qx qy qz qw, world_from_body, metres;
                                           body axes NED (x forward, y right, z down), world +z down
    <Env>/Data_{easy,hard}/P000/
        image_lcam_front/000000_lcam_front.png         8-bit RGB, 640 x 640
        depth_lcam_front/000000_lcam_front_depth.png   four 8-bit channels: the bytes of such a float32, as BGRA
        pose_lcam_front.txt                            as in V1

The intrinsics are constants that stand in no file. A few things move (fish, rides) and are not annotated.
"""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pipelines.geometry import rotation_from_xyzw, scaled_intrinsics
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Dataset, Sequence, Static

LAYOUT = (
    "TartanAir V1: <env>/Easy|Hard/P000/ with pose_left.txt, image_left/ and depth_left/, or V2: <Env>/Data_easy|"
    "Data_hard/P000/ with pose_lcam_front.txt, image_lcam_front/ and depth_lcam_front/"
)
FOCAL_LENGTH = 320  # of both versions; the principal point is the middle. Pixel centres at +0.5, verified on V1
CAM_FROM_BODY = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # NED to OpenCV axes
LEVEL = re.compile(r"easy|hard|data_.+", re.IGNORECASE)
FARTHEST = 1000  # metres; beyond it lie the sky and rendering errors


@dataclass(frozen=True)
class Version:
    title: str
    camera: str
    """What the names of its files end with."""
    width: int
    height: int
    depth: str
    """The kind of file it comes in."""


V1 = Version("TartanAir V1", "left", 640, 480, "npy")
V2 = Version("TartanAir V2", "lcam_front", 640, 640, "png")
VERSIONS = {f"pose_{version.camera}.txt": version for version in (V1, V2)}


class TartanAir(Sequence):
    """The left camera of one trajectory, in V2 the one that looks ahead. The world stays NED."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder = raw.folder_of(name, *VERSIONS)
        pose_file, version = next(item for item in VERSIONS.items() if raw.holds(folder, item[0]))
        pose_path, camera, self._depth_kind = f"{folder}/{pose_file}", version.camera, version.depth
        poses = raw.table(pose_path, columns=7)
        self.frame_numbers = np.arange(len(poses))
        images, depths = f"%06d_{camera}.png", f"%06d_{camera}_depth.{version.depth}"
        self._images = raw.frame_files(f"{folder}/image_{camera}", images, self.frame_numbers, pose_path)
        self._depths = raw.frame_files(f"{folder}/depth_{camera}", depths, self.frame_numbers, pose_path)
        self.image_size = height, width = raw.image_size(self._images[0])
        if width * version.height != height * version.width:
            raise ValueError(
                f"{self._images[0]} in {raw.uri} is {width}x{height}: {version.title} is {version.width}x"
                f"{version.height} (or of that shape, if resized); for a crop the intrinsics are not known"
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
        intrinsics = np.diag([FOCAL_LENGTH, FOCAL_LENGTH, 1.0])
        intrinsics[:2, 2] = version.width / 2, version.height / 2
        ratio = {"width_ratio": width / version.width, "height_ratio": height / version.height}
        intrinsics = np.tile(scaled_intrinsics(intrinsics, **ratio), (len(poses), 1, 1))
        self.cameras = Cameras(intrinsics=intrinsics, world_from_cam=world_from_cam)

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        read = self.raw.npy if self._depth_kind == "npy" else self.raw.float32
        depth = self._sized(read(self._depths[t]), self._depths[t]).astype(np.float32)
        return np.where(np.isfinite(depth) & (depth > 0) & (depth < FARTHEST), depth, np.float32(np.nan))

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Static:
        return Static()


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "hospital/Easy/P037" and "Hospital/Data_easy/P000", by the file of poses."""
    return [raw.name_of(folder, parts=3) for folder in raw.find_folders(*VERSIONS)]


def scene_of(name: str) -> str:
    """The environment, in small letters, so that "Hospital" of V2 is "hospital" of V1: they show the same place.

    It is the folder above that of the level, such as "Hard", "Data_easy" or TartanGround's "Data_omni". ValueError for
    a trajectory that is in no such folder: which environment it shows, nobody knows.
    """
    *_, environment, level, _ = ["", "", *name.split("/")]
    if not environment or not LEVEL.fullmatch(level):
        raise ValueError(
            f"{name!r} does not tell its environment, by which trajectories are split: give it the folders "
            "<environment>/<level>/, the level being Easy, Hard or Data_..."
        )
    return environment.lower()


DATASET = Dataset(key="tartanair", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=TartanAir)
