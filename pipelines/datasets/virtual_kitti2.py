"""Virtual KITTI 2.0.3: five driving scenes in ten variations of light and weather, filmed by a stereo pair. Notes D5.

Raw layout, either merged into one folder or with each archive's own folder above (vkitti_2.0.3_rgb/Scene01/...):
    Scene01/<variation>/
        frames/rgb/Camera_0/rgb_00000.jpg                          8-bit RGB, 1242 x 375
        frames/depth/Camera_0/depth_00000.png                      16-bit grey, centimetres along +z; 65535 is sky
        frames/instanceSegmentation/Camera_0/instancegt_00000.png  8-bit palette, index = trackID + 1, 0 is none
        intrinsic.txt   frame cameraID fx fy cx cy                 pixels; the centre of the top-left one is (0, 0)
        extrinsic.txt   frame cameraID 4x4 by rows                 cam_from_world, OpenCV axes, metres, world +y down
        pose.txt        frame cameraID trackID ... x y z ry rx rz  of objects in the world (columns 7-12), metres
        bbox.txt        frame cameraID trackID ... isMoving        of objects, from this frame to the next

Text files have a header line, and rows of both cameras interleaved. An object is listed only where it is seen.
"""

import posixpath
import re

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from pipelines.geometry import inverse
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Dataset, RigidInstances, Sequence

LAYOUT = (
    "Virtual KITTI 2: SceneXX/<variation>/ with intrinsic.txt and frames/, from the archives "
    "vkitti_2.0.3_{rgb,depth,textgt,instanceSegmentation}, merged or each in a folder of its name"
)
METRES = np.arange(65536, dtype=np.float32) / 100  # of each stored value
METRES[[0, 65535]] = np.nan  # nothing, sky
NUM_INSTANCES = 255  # every trackID that an 8-bit palette can show, so that one without any pose is a NaN, not a gap
PARKED = 0.01  # an object that is never flagged as moving stands still if its poses agree to this (metres, radians)


class VirtualKitti2(Sequence):
    """One camera of one variation of a scene. Instance i is the object with trackID i."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        if not re.fullmatch(r"(.+/)?Scene\d+/[^/]+/Camera_\d", name):
            raise ValueError(f"{name!r} is no sequence of Virtual KITTI 2: expected one like Scene01/clone/Camera_0")
        self._scene, camera = posixpath.split(name)
        self._camera = int(camera.removeprefix("Camera_"))
        intrinsic, extrinsic = self._rows("intrinsic.txt", columns=6), self._rows("extrinsic.txt", columns=18)
        self.frame_numbers = intrinsic[:, 0].astype(np.int64)
        if not np.array_equal(intrinsic[:, 0], extrinsic[:, 0]):
            raise ValueError(
                f"intrinsic.txt lists {len(intrinsic)} frames of {name} and extrinsic.txt other {len(extrinsic)} "
                f"in {raw.uri}: extract vkitti_2.0.3_textgt again"
            )
        self._images = self._frames("rgb", "rgb_%05d.jpg")
        self._depths = self._frames("depth", "depth_%05d.png")
        self._instances = self._frames("instanceSegmentation", "instancegt_%05d.png")
        self.image_size = raw.image_size(self._images[0])
        intrinsics = np.tile(np.eye(3), (len(intrinsic), 1, 1))
        intrinsics[:, (0, 1), (0, 1)] = intrinsic[:, 2:4]
        intrinsics[:, :2, 2] = intrinsic[:, 4:6] + 0.5  # their top-left centre (0, 0) is our (0.5, 0.5)
        self.cameras = Cameras(intrinsics=intrinsics, world_from_cam=inverse(extrinsic[:, 2:].reshape(-1, 4, 4)))
        self._world_from_instance = self._instance_poses()

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        return METRES[self._sized(self.raw.grey16(self._depths[t]), self._depths[t])]

    def instance(self, t: int) -> Int32[np.ndarray, "H W"]:
        return self._sized(self.raw.indices(self._instances[t]), self._instances[t]).astype(np.int32) - 1

    def motion(self, frames: Int64[np.ndarray, "t"]) -> RigidInstances:
        """Poses from pose.txt, NaN where an object is listed for neither camera; parked objects are everywhere."""
        return RigidInstances(world_from_instance=self._world_from_instance[:, frames])

    def _instance_poses(self) -> Float64[np.ndarray, "I T 4 4"]:
        rows = self.raw.table(self._text("pose.txt"), columns=19, skip_rows=1)
        frame, track = rows[:, 0].astype(int) - self.frame_numbers[0], rows[:, 2].astype(int)
        inside = (frame >= 0) & (frame < len(self)) & (track >= 0) & (track < NUM_INSTANCES)
        if (bad := ~(inside & np.isfinite(rows).all(axis=1))).any():
            raise ValueError(
                f"row {np.flatnonzero(bad)[0] + 1} of {self._text('pose.txt')} in {self.raw.uri} must be finite "
                f"and name a frame of intrinsic.txt and a trackID below {NUM_INSTANCES}; extract the archive again"
            )
        poses = np.full((NUM_INSTANCES, len(self), 4, 4), np.nan)
        # The world columns do not depend on the camera: a row of either serves both.
        poses[track, frame] = np.eye(4)
        poses[track, frame, :3, :3] = object_rotation(rows[:, 10:13])
        poses[track, frame, :3, 3] = rows[:, 7:10]
        boxes = self.raw.table(self._text("bbox.txt"), columns=11, skip_rows=1)
        never_moving = np.setdiff1d(boxes[:, 2], boxes[boxes[:, 10] == 1, 2])
        for parked in np.intersect1d(track, never_moving.astype(int)):
            listed = np.isfinite(poses[parked, :, 0, 0])
            if np.ptp(poses[parked, listed], axis=0).max() < PARKED:
                poses[parked, ~listed] = poses[parked, listed][0]
        return poses

    def _rows(self, filename: str, *, columns: int) -> Float64[np.ndarray, "T columns"]:
        """The rows of this camera, ordered by frame; ValueError unless there is one for each of contiguous frames."""
        path = self._text(filename)
        rows = self.raw.table(path, columns=columns, skip_rows=1)
        rows = rows[rows[:, 1] == self._camera]
        rows = rows[np.argsort(rows[:, 0])]
        if not len(rows) or not np.isfinite(rows).all() or (np.diff(rows[:, 0]) != 1).any():
            raise ValueError(
                f"{path} in {self.raw.uri} must have finite numbers and one row per frame of camera {self._camera}, "
                f"without gaps or repetitions; it has {len(rows)} rows: extract vkitti_2.0.3_textgt again"
            )
        return rows

    def _text(self, filename: str) -> str:
        return _locate(self.raw, self._scene, "textgt", filename)

    def _frames(self, kind: str, template: str) -> list[str]:
        folder = _locate(self.raw, self._scene, kind, f"frames/{kind}/Camera_{self._camera}")
        return self.raw.frame_files(folder, template, self.frame_numbers, self._text("intrinsic.txt"))


def object_rotation(angles: Float64[np.ndarray, "N 3"]) -> Float64[np.ndarray, "N 3 3"]:
    """Ry(y) Rz(-x) Rx(z) of the columns (y, x, z) of pose.txt, in radians (dataset notes D5).

    Objects have KITTI's axes: length along x, height against y, width along z. So the column called x is the pitch,
    about -z, and the one called z is the roll, about x: heading, then pitch, then roll.
    """
    y, x, z = angles.T
    return _rotation(1, y) @ _rotation(2, -x) @ _rotation(0, z)


def _rotation(axis: int, angle: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3 3"]:
    """Right-handed rotation about a coordinate axis."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((len(angle), 3, 3))
    matrix[:, axis, axis] = 1
    matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
    matrix[:, j, i] = np.sin(angle)
    matrix[:, i, j] = -np.sin(angle)
    return matrix


def _locate(raw: RawFolder, scene: str, archive: str, path: str) -> str:
    """Where `path` of a scene and variation lies: merged with the other archives, else below its archive's name."""
    *above, scene, variation = scene.split("/")
    apart = posixpath.join(*above, f"vkitti_2.0.3_{archive}", scene, variation, path)
    return apart if raw.exists(apart) else posixpath.join(*above, scene, variation, path)


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "Scene01/clone/Camera_0", by intrinsic.txt and the folders of rgb."""
    names = []
    for folder in raw.find_folders("intrinsic.txt"):
        scene = re.sub(r"(^|/)vkitti_2\.0\.3_textgt/", r"\1", folder)
        if re.fullmatch(r"(.+/)?Scene\d+/[^/]+", scene):
            # Without rgb there is still a sequence: opening it says what is missing.
            cameras = raw.listdir(_locate(raw, scene, "rgb", "frames/rgb"))[0] or ["Camera_0"]
            names += [f"{scene}/{camera}" for camera in cameras if re.fullmatch(r"Camera_\d", camera)]
    return names


def scene_of(name: str) -> str:
    """Like "Scene01": variations and cameras of a scene show the same place and the same traffic."""
    return name.split("/")[-3]


DATASET = Dataset(key="virtual_kitti2", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=VirtualKitti2)
