"""Kubric (MOVi-E, MOVi-F, panning MOVi-E): rigid objects thrown onto others, before a moving camera. Notes D3.

Raw layouts:
    movi_f-train.tfrecord-00000-of-00512     several videos; features of one, for T frames and k instances:
        video, normal, segmentations, depth    PNG each: 8-bit RGB, 16-bit RGB, 8-bit grey, 16-bit grey
        camera/{positions,quaternions}         T x 3, T x 4
        instances/{positions,quaternions}      k x T x 3, k x T x 4: all frames of an instance, then the next
        camera/{focal_length,sensor_width}, metadata/{num_frames,num_instances,depth_range}
    <scene>/                                 what the renderer writes
        rgba_00000.png, normal_00000.png       8-bit RGBA, 16-bit RGB
        segmentation_00000.png                 8-bit palette
        depth_00000.tiff                       float32
        metadata.json                          camera, instances, metadata: the numbers above

Depth is the distance to the camera's centre, in TFRecords in 65535 steps over depth_range. Segmentation k shows
instance k - 1, and 0 the background. Normals are (n + 1) / 2 * 65535 in the world. Quaternions are w x y z,
world_from_object; the camera's own axes are Blender's (y up, -z forward), the world is +z up. Objects called static
move when they are hit.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from pipelines.datasets.kubric_layouts import from_folder, from_record
from pipelines.geometry import image_grid, towards_camera, unproject
from pipelines.raw.folder import RawFolder
from pipelines.raw.tfrecord import record_starts
from pipelines.sequence import Cameras, Dataset, RigidInstances, Sequence

LAYOUT = (
    "Kubric: shards like movi_f-train.tfrecord-00000-of-00512, or render folders with metadata.json and rgba_00000.png"
)
SPLITS = ("train", "validation", "test")
SHARD = re.compile(r"(?P<dataset>\w+)-(?P<split>\w+)\.tfrecord-\d{5}-of-\d{5}")
# Smaller copies hold the mean of pixels in RGB, but single pixels in all other maps.
NATIVE_WIDTH = {"movi_a": 256, "movi_b": 256, "movi_c": 256, "movi_d": 256}
NATIVE_WIDTH |= {"movi_e": 256, "panning_movi_e": 256, "movi_f": 512}
BLENDER_FROM_CV = np.diag([1.0, -1, -1])
FARTHEST = 1000  # units; scenes end at a dome about 50 away, and without one Blender writes 1e10
MIN_NORMAL = 0.5  # shorter is nothing


class Kubric(Sequence):
    """One video. Every instance has a pose in every frame."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        shard = _shard_of(name)
        path, _, number = name.rpartition("/")
        self._video = video = from_record(raw, path, int(number)) if shard else from_folder(raw, name)
        self.frame_numbers = np.arange(len(video.maps["video"]))
        if (listed := video.numbers("metadata/num_frames")) != len(self):
            raise ValueError(
                f"{video.where} lists {listed:g} frames, but has cameras and maps of {len(self)}: download it again"
            )
        self.image_size = height, width = video.files.image_size(video.maps["video"][0])
        if shard and (native := NATIVE_WIDTH.get(shard["dataset"], width)) != width:
            raise ValueError(
                f"{name} in {raw.uri} is {width} wide, but {shard['dataset']} is rendered {native} wide: in smaller "
                f"copies depth, normals and segmentation lie beside the pixel centres; download {native}x{native}"
            )
        self._distance_range = self._checked_range() if shard else None
        focal_length, sensor_width = video.numbers("camera/focal_length"), video.numbers("camera/sensor_width")
        intrinsics = np.array([[1.0, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
        intrinsics[(0, 1), (0, 1)] = focal_length / sensor_width * width  # square pixels
        world_from_cam = video.poses("camera", len(self))
        world_from_cam[:, :3, :3] = world_from_cam[:, :3, :3] @ BLENDER_FROM_CV
        self.cameras = Cameras(intrinsics=np.tile(intrinsics, (len(self), 1, 1)), world_from_cam=world_from_cam)
        self._world_from_instance = video.poses("instances", int(video.numbers("metadata/num_instances")), len(self))
        rays = unproject(image_grid(height, width), np.ones((height, width)), intrinsics)
        self._z_of_distance = 1 / np.linalg.norm(rays, axis=-1)

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._map("video", t, self._video.files.rgb)

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        """From the distance to the camera's centre, which in the corners of the image is a fifth more."""
        if self._distance_range:
            low, high = self._distance_range
            distance = low + self._map("depth", t, self._video.files.grey16) * ((high - low) / 65535)
        else:
            distance = self._map("depth", t, self._video.files.float_tiff)
        known = (distance > 0) & (distance < FARTHEST)  # NaN is neither
        return np.where(known, distance * self._z_of_distance, np.nan).astype(np.float32)

    def normal(self, t: int, column: Int64[np.ndarray, "N"], row: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3"]:
        """From the stored map, world to camera."""
        normal_world = self._map("normal", t, self._video.files.rgb16)[row, column] / 32767.5 - 1
        normal_cam = normal_world @ self.cameras.world_from_cam[t, :3, :3]
        return towards_camera(normal_cam, column, row, self.cameras.intrinsics[t], MIN_NORMAL)

    def instance(self, t: int) -> Int32[np.ndarray, "H W"]:
        shown = self._map("segmentations", t, self._video.files.indices).astype(np.int32)
        if shown.max() > (known := len(self._world_from_instance)):
            raise ValueError(
                f"{self._video.maps['segmentations'][t]} in {self._video.files.uri} shows object {shown.max()} of "
                f"{known}: its images and numbers are not of one video; download it again"
            )
        return shown - 1

    def motion(self, frames: Int64[np.ndarray, "t"]) -> RigidInstances:
        return RigidInstances(world_from_instance=self._world_from_instance[:, frames])

    def _map(self, kind: str, t: int, decode: Callable[[str], np.ndarray]) -> np.ndarray:
        path = self._video.maps[kind][t]
        return self._sized(decode(path), path)

    def _checked_range(self) -> tuple[float, float]:
        low, high = self._video.numbers("metadata/depth_range", 2).tolist()
        if not 0 <= low <= high < FARTHEST:
            raise ValueError(
                f"metadata/depth_range of {self._video.where} is {low:g} to {high:g}; it must rise from 0 or more to "
                f"less than {FARTHEST}, or 16 bits of depth are too coarse: was it rendered without a dome?"
            )
        return low, high


def _shard_of(name: str) -> re.Match | None:
    """How the shard is called, if it is a record that has this name."""
    parts = name.split("/")
    return SHARD.fullmatch(parts[-2]) if len(parts) > 1 and parts[-1].isdecimal() else None


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "movi_f-train.tfrecord-00000-of-00512/3", a record of a shard, or a render folder's name."""
    names, shards = [], []
    for folder in raw.find_folders("metadata.json", "*.tfrecord-?????-of-?????"):
        files = raw.listdir(folder)[1]
        here = [f"{folder}/{file}".removeprefix("./") for file in files if SHARD.fullmatch(file)]
        shards += here
        if not here and "metadata.json" in files:
            names.append(raw.name_of(folder, parts=1))
    with ThreadPoolExecutor(16) as pool:  # a few bytes of each record, which may be far away
        counts = pool.map(lambda shard: len(record_starts(raw, shard)), shards)
    names += [f"{shard}/{i}" for shard, count in zip(shards, counts, strict=True) for i in range(count)]
    return names


def scene_of(name: str) -> str:
    """The official split that a shard's name tells, or the name of the render folder.

    ValueError for a shard of another split: which of ours it belongs to, nobody knows.
    """
    shard = _shard_of(name)
    if shard and shard["split"] not in SPLITS:
        raise ValueError(f"{name!r} is of split {shard['split']!r}; the official ones are {', '.join(SPLITS)}")
    return shard["split"] if shard else name.split("/")[-1]


DATASET = Dataset(key="kubric", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=Kubric)
