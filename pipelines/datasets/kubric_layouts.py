"""The two layouts in which Kubric's videos come, TFRecords and render folders, as one; `datasets.kubric` shows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from pipelines.geometry import rotation_from_xyzw
from pipelines.raw.files import RawFiles
from pipelines.raw.folder import RawFolder
from pipelines.raw.tfrecord import Example

MAPS = {"video": "rgba_%05d.png", "depth": "depth_%05d.tiff", "normal": "normal_%05d.png"}
MAPS |= {"segmentations": "segmentation_%05d.png"}  # the feature of a record, and the files of a folder
CAMERA = ("focal_length", "sensor_width", "positions", "quaternions")
INSTANCE = ("positions", "quaternions")
NUMBERS = [f"camera/{name}" for name in CAMERA] + [f"instances/{name}" for name in INSTANCE]
NUMBERS += ["metadata/num_frames", "metadata/num_instances", "metadata/depth_range"]


@dataclass(frozen=True, kw_only=True)
class Movi:
    """Where the maps of a video are and what its numbers say, by the names of the features of a TFRecord."""

    files: RawFiles
    maps: dict[str, list[str]]
    """Of each kind one path per frame."""
    facts: Mapping[str, Any]
    """Still unchecked. No metadata/depth_range where depth needs none."""
    where: str
    """What holds the numbers, for error messages."""

    def numbers(self, feature: str, *shape: int) -> Float64[np.ndarray, "..."]:
        """ValueError unless they are as many as the shape asks for, and finite."""
        try:
            numbers = np.array(self.facts.get(feature, ()), np.float64)
        except (TypeError, ValueError, OverflowError):  # text, or rows of different lengths
            numbers = np.array(np.nan)
        if numbers.size != np.prod(shape, dtype=object) or not np.isfinite(numbers).all():
            raise ValueError(
                f"{feature} of {self.where} must be finite numbers of shape {shape}: incomplete, or not of Kubric; "
                "download it again"
            )
        return numbers.reshape(shape)

    def poses(self, kind: str, *shape: int) -> Float64[np.ndarray, "*shape 4 4"]:
        """world_from_camera or world_from_instance, in the axes of Blender."""
        wxyz = self.numbers(f"{kind}/quaternions", *shape, 4)
        if (np.abs(np.linalg.norm(wxyz, axis=-1) - 1) > 1e-2).any():
            raise ValueError(f"{kind}/quaternions of {self.where} must have length 1: corrupt, download it again")
        poses = np.zeros((*shape, 4, 4))
        poses[..., :3, :3] = rotation_from_xyzw(np.roll(wxyz, -1, axis=-1))
        poses[..., :3, 3] = self.numbers(f"{kind}/positions", *shape, 3)
        poses[..., 3, 3] = 1
        return poses


def from_record(raw: RawFolder, shard: str, number: int) -> Movi:
    example = Example(raw, shard, number, {*MAPS, *NUMBERS})
    counts = {kind: len(example.features.get(kind, ())) for kind in MAPS}
    if len(set(counts.values())) > 1 or not counts["video"]:
        raise ValueError(
            f"{example.uri} has maps of {counts} frames: it must have some, as many of each; not of Kubric, or of a "
            "version without them"
        )
    maps = {kind: [f"{kind}/{t}" for t in range(count)] for kind, count in counts.items()}
    return Movi(files=example, maps=maps, facts=example.features, where=example.uri)


def from_folder(raw: RawFolder, name: str) -> Movi:
    folder = raw.folder_of(name, "metadata.json")
    path = f"{folder}/metadata.json"
    document = raw.json(path)
    try:
        camera, instances = document["camera"], document["instances"]
        facts = {f"camera/{key}": camera[key] for key in CAMERA}
        facts |= {f"instances/{key}": [instance[key] for instance in instances] for key in INSTANCE}
        facts |= {"metadata/num_frames": document["metadata"]["num_frames"], "metadata/num_instances": len(instances)}
        frames = np.arange(len(camera["positions"]))
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path} in {raw.uri} lacks what Kubric's renderer writes ({error!r}): not its file") from None
    maps = {kind: raw.frame_files(folder, template, frames, path) for kind, template in MAPS.items()}
    return Movi(files=raw, maps=maps, facts=facts, where=f"{path} in {raw.uri}")
