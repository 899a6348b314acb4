"""Every reader of files that somebody else made, as a function of a raw folder and a path: it reads all there is."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.datasets.blended_mvs import BlendedMvs
from pipelines.datasets.co3d_set_lists import usable_frames
from pipelines.datasets.pytorch3d import Frame
from pipelines.datasets.scannet_iphone import DepthFrames
from pipelines.raw import json_list
from pipelines.raw.folder import RawFolder
from pipelines.raw.npz import Npz
from pipelines.raw.pfm import read_pfm
from pipelines.raw.sens import SensFile
from pipelines.raw.tfrecord import Example, record_starts
from pipelines.raw.torch_file import read_tensors
from pipelines.raw.video import VideoFrames


def every(*calls: Callable[[], Any]) -> None:
    """Make all calls though some are refused; then raise the last refusal."""
    refused = None
    for call in calls:
        try:
            call()
        except ValueError as error:
            refused = error
    if refused:
        raise refused


def npz(raw: RawFolder, path: str) -> None:
    file = Npz(raw, path)

    def ends(key: str) -> None:
        shape = file.shape(key)
        file.rows(key, np.array([0, shape[0] - 1]) if shape and shape[0] else None)

    every(lambda: ends("tracks"), lambda: ends("flags"), lambda: file.shape("none"))


def tensors(raw: RawFolder, path: str) -> None:
    every(*(lambda key=key: read_tensors(raw, path, key) for key in ("xyz", "flags")))


def records(raw: RawFolder, path: str) -> None:
    groups = json_list.groups(raw, path, "sequence_name")
    for key in groups:
        groups.records(key)


def frames(raw: RawFolder, path: str) -> None:
    """A record of CO3D or Dynamic Replica, after the list that it stood in."""
    for record, _ in json_list.parse(raw, path):
        Frame.parse(record, f"{path} in {raw.uri}", str)


def tfrecord(raw: RawFolder, path: str) -> None:
    wanted = ("video", "numbers", "counts")
    count = len(record_starts(raw, path))
    every(*(lambda i=i: Example(raw, path, i, wanted).read("video/0") for i in range(count)))


def sens(raw: RawFolder, path: str) -> None:
    file = SensFile(raw, path)
    shown = range(len(file.poses))[:4]
    every(*(lambda t=t, read=read: read(t) for t in shown for read in (file.colour, file.depth)))


def depth_bin(raw: RawFolder, path: str) -> None:
    file = DepthFrames(raw, path)
    every(*(lambda t=t: file.metres(t) for t in (1, 0, 2)))


def video(raw: RawFolder, path: str) -> None:
    file = VideoFrames(raw.open(path), f"{path} in {raw.uri}")
    every(*(lambda t=t: file.frame(t) for t in (1, 0, 3)))


def whole_video(raw: RawFolder, path: str) -> None:
    """As it is shown, one frame after the other."""
    file = VideoFrames(raw.open(path), f"{path} in {raw.uri}")
    for t in range(len(file)):
        file.shown(t)


def blended_mvs(raw: RawFolder, path: str) -> None:
    scene = BlendedMvs(raw, path.split("/")[0])
    every(*(lambda t=t: scene.neighbours(t) for t in range(len(scene))))


READERS: dict[str, Callable[[RawFolder, str], Any]] = {
    "npz": npz,
    "torch_file": tensors,
    "json_list": records,
    "frames": frames,
    "set_list": lambda raw, path: usable_frames(raw, path.split("/")[0]),
    "tfrecord": tfrecord,
    "sens": sens,
    "pfm": read_pfm,
    "depth_bin": depth_bin,
    "video": video,
    "whole_video": whole_video,
    "exr": lambda raw, path: raw.exr(path, "Y"),
    "rgb": RawFolder.rgb,
    "grey16": RawFolder.grey16,
    "rgb16": RawFolder.rgb16,
    "float32": RawFolder.float32,
    "float_tiff": RawFolder.float_tiff,
    "indices": RawFolder.indices,
    "mask": RawFolder.mask,
    "image_size": RawFolder.image_size,
    "npy": RawFolder.npy,
    "table": lambda raw, path: raw.table(path, columns=3, skip_rows=1),
    "json": RawFolder.json,
    "text": RawFolder.text,
    "cam_txt": blended_mvs,
    "pair_txt": blended_mvs,
}
