"""Kubric as its renderer and as its TFDS sets ship it (dataset notes D3), one scene or one shard at a time.

    scene_0000/
        rgba_00000.png                                        8-bit RGBA
        segmentation_00000.png                                palette index = instance + 1
        depth_00000.tiff                                      float32 distance to the camera's centre
        normal_00000.png, object_coordinates_00000.png        16-bit RGB: (n + 1) / 2 in the world, [0, 1] in the box
        forward_flow_00000.png, backward_flow_00000.png       16-bit RGB: rows, columns, 0, between data_ranges.json
        metadata.json, data_ranges.json, events.json

or a TFRecord of several scenes with the same in PNGs and lists. Instances are the objects that are ever seen, the most
seen first. Left out: velocities, and boxes in the image. Flow beyond the last or before the first frame is 0.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt16
from PIL import Image

from pipelines.geometry import image_grid, inverse, project, transform, xyzw_from_rotation
from pipelines.raw.tfrecord import masked_crc
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Hits, Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (128, 96), "official": (512, 512)}
RAW_FROM_SCENE = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # +Z up
CV_FROM_BLENDER = np.diag([1.0, -1, -1])
FOCAL_LENGTH, SENSOR_WIDTH = 35.0, 32.0
PALETTE = np.random.default_rng(0).integers(64, 256, (256, 3)).astype(np.uint8)
PALETTE[0] = 0


@dataclass(frozen=True, kw_only=True)
class Layers:
    """All frames of a scene."""

    image: UInt8[np.ndarray, "T H W 3"]
    distance: Float64[np.ndarray, "T H W"]
    segmentation: UInt8[np.ndarray, "T H W"]
    normal: UInt16[np.ndarray, "T H W 3"]
    object_coordinates: UInt16[np.ndarray, "T H W 3"]
    forward_flow: Float64[np.ndarray, "T H W 2"]
    backward_flow: Float64[np.ndarray, "T H W 2"]
    objects: list[int]
    """Of each instance, which object of the scene it is."""


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A closed room, seen by the camera of MOVi."""
    width, height = SIZES[size]
    intrinsics = np.array([[0, 0, width / 2], [0, 0, height / 2], [0, 0, 1]])
    intrinsics[(0, 1), (0, 1)] = FOCAL_LENGTH / SENSOR_WIDTH * width
    return Scene.random(seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics, moving=True)


def folder(index: int) -> str:
    return f"scene_{index:04d}"


def write(scene: Scene, folder: Path) -> None:
    """Write a scene into a new folder, as the renderer does."""
    folder.mkdir(parents=True)
    layers = render(scene)
    ranges = {name: _range(getattr(layers, name)) for name in ("forward_flow", "backward_flow")}
    for t in range(len(scene)):
        alpha = np.full((scene.height, scene.width, 1), 255, np.uint8)
        Image.fromarray(np.concatenate([layers.image[t], alpha], axis=2)).save(folder / f"rgba_{t:05d}.png")
        segmentation = Image.fromarray(layers.segmentation[t])
        segmentation.putpalette(PALETTE.tobytes())
        segmentation.save(folder / f"segmentation_{t:05d}.png")
        Image.fromarray(layers.distance[t].astype(np.float32)).save(folder / f"depth_{t:05d}.tiff")
        rgb16 = {"normal": layers.normal[t], "object_coordinates": layers.object_coordinates[t]}
        for name, (low, high) in ranges.items():
            rgb16[name] = np.pad(_coded(getattr(layers, name)[t], low, high), ((0, 0), (0, 0), (0, 1)))
        for name, pixels in rgb16.items():
            (folder / f"{name}_{t:05d}.png").write_bytes(png(pixels))
    documents = {
        "metadata": metadata(scene, layers),
        "data_ranges": {name: {"min": low, "max": high} for name, (low, high) in ranges.items()},
        "events": {"collisions": []},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))


def write_shard(scenes: Iterable[Scene], path: Path) -> None:
    """Write scenes into one TFRecord."""
    with path.open("wb") as file:
        for number, scene in enumerate(scenes):
            payload = example(features(scene, f"{number}"))
            length = struct.pack("<Q", len(payload))
            file.write(length + masked_crc(length) + payload + masked_crc(payload))


def render(scene: Scene) -> Layers:
    grid = image_grid(scene.height, scene.width)
    shape, uv = grid.shape[:2], grid.reshape(-1, 2)
    frames = [scene.render(t) for t in range(len(scene))]
    instance = np.stack([frame.instance for frame in frames])
    seen = np.bincount(instance.ravel() + 1, minlength=len(scene.solids))[1:]
    objects = [int(i) for i in np.argsort(-seen, kind="stable") if seen[i]]
    segmentation_of = np.zeros(len(scene.solids), np.uint8)
    segmentation_of[1 + np.array(objects, int)] = 1 + np.arange(len(objects))
    normal, coordinates, forward, backward = [], [], [], []
    for t, frame in enumerate(frames):
        world_from_cam = (RAW_FROM_SCENE @ scene.cameras.world_from_cam[t])[:3, :3]
        normal.append(_coded(frame.normal @ world_from_cam.T, -1.0, 1.0))
        hits = scene.trace(uv, np.full(len(uv), t))
        coordinates.append(_coded(_object_coordinates(scene, hits).clip(0, 1), 0.0, 1.0).reshape(*shape, 3))
        here, after, before = (_pixels(scene, hits, k) for k in (t, min(t + 1, len(scene) - 1), max(t - 1, 0)))
        forward.append((after - here)[:, ::-1].reshape(*shape, 2))
        backward.append((here - before)[:, ::-1].reshape(*shape, 2))
    rays = (uv - scene.cameras.intrinsics[0, :2, 2]) / scene.cameras.intrinsics[0, 0, 0]
    stretch = np.hypot(1, np.hypot(*rays.T)).reshape(shape)  # distance to the camera's centre, of depth
    return Layers(
        image=np.stack([frame.image for frame in frames]),
        distance=np.stack([frame.depth for frame in frames]) * stretch,
        segmentation=segmentation_of[instance + 1],
        normal=np.stack(normal),
        object_coordinates=np.stack(coordinates),
        forward_flow=np.stack(forward),
        backward_flow=np.stack(backward),
        objects=objects,
    )


def metadata(scene: Scene, layers: Layers) -> dict[str, Any]:
    """The content of metadata.json. No instance is declared dynamic, whether it moves or not."""
    focal_length = scene.cameras.intrinsics[0, 0, 0] / scene.width * SENSOR_WIDTH
    world_from_cam = RAW_FROM_SCENE @ scene.cameras.world_from_cam
    fx, fy = scene.cameras.intrinsics[0, (0, 1), (0, 1)] / [scene.width, scene.height]
    camera = {
        "focal_length": focal_length,
        "sensor_width": SENSOR_WIDTH,
        "field_of_view": 2 * np.arctan2(SENSOR_WIDTH / 2, focal_length),
        "positions": world_from_cam[:, :3, 3].tolist(),
        "quaternions": [_wxyz(pose[:3, :3] @ CV_FROM_BLENDER) for pose in world_from_cam],
        "K": [[fx, 0, -0.5], [0, -fy, -0.5], [0, 0, -1]],
        "R": world_from_cam[0].tolist(),
    }
    facts = {"resolution": [scene.width, scene.height], "frame_rate": 12, "step_rate": 240, "num_frames": len(scene)}
    facts |= {"gravity": [0, 0, -10.0], "seed": scene.seed, "background": "room", "num_instances": len(layers.objects)}
    facts |= {"width": scene.width, "height": scene.height, "motion_blur": 0.0}
    instances = [_instance(scene, layers, number, i) for number, i in enumerate(layers.objects)]
    return {"flags": {}, "metadata": facts, "camera": camera, "instances": instances}


def features(scene: Scene, video_name: str) -> dict[str, list]:
    """The features of a record: lists of bytes, float or int."""
    layers = render(scene)
    document = metadata(scene, layers)
    low, high = np.float32(_range(layers.distance)).tolist()
    depth = np.round((layers.distance - low).clip(0) * (65535 / (high - low))).clip(0, 65535).astype(np.uint16)
    images = {"video": layers.image, "segmentations": layers.segmentation, "depth": depth, "normal": layers.normal}
    images |= {"object_coordinates": layers.object_coordinates}
    result = {name: [png(frame) for frame in frames] for name, frames in images.items()}
    for name in ("forward_flow", "backward_flow"):
        flow = getattr(layers, name)
        result[name] = _coded(flow, *_range(flow)).ravel().tolist()
        result[f"metadata/{name}_range"] = list(_range(flow))
    result["metadata/depth_range"] = [low, high]
    for name in ("height", "width", "num_frames", "num_instances", "motion_blur"):
        result[f"metadata/{name}"] = [document["metadata"][name]]
    result |= {"metadata/video_name": [video_name.encode()], "background": [b"room"]}
    for name in ("focal_length", "sensor_width", "field_of_view", "positions", "quaternions"):
        result[f"camera/{name}"] = np.ravel(document["camera"][name]).tolist()
    for name in document["instances"][0]:
        values = np.ravel([instance[name] for instance in document["instances"]]).tolist()
        result[f"instances/{name}"] = [value.encode() if isinstance(value, str) else value for value in values]
    return result


def example(features: dict[str, list]) -> bytes:
    """A tf.train.Example: lists of bytes, float or int by name, in the wire format of Protocol Buffers."""
    entries = [_field(1, _field(1, name.encode()) + _field(2, _feature(values))) for name, values in features.items()]
    return _field(1, b"".join(entries))


def png(pixels: UInt8[np.ndarray, "H W *C"] | UInt16[np.ndarray, "H W *C"]) -> bytes:
    """8 or 16 bits per channel, grey or RGB; Pillow would write 16-bit RGB as 8-bit."""
    encoded = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return encoded[1].tobytes()


def _instance(scene: Scene, layers: Layers, number: int, i: int) -> dict[str, Any]:
    """What metadata.json says about instance `number`, object i of the scene."""
    solid, poses = scene.solids[1 + i], RAW_FROM_SCENE @ scene.world_from_object[i]
    corners = solid.centre[:, 0] + (np.indices((2, 2, 2)).reshape(3, 8).T - 0.5) * solid.size  # index 4 x + 2 y + z
    centre = transform(inverse(scene.cameras.world_from_cam) @ scene.world_from_object[i], solid.centre[:, 0])
    uv = project(centre, scene.cameras.intrinsics)
    return {
        "positions": poses[:, :3, 3].tolist(),
        "quaternions": [_wxyz(pose[:3, :3]) for pose in poses],
        "bboxes_3d": transform(poses[:, None], corners[None]).tolist(),
        "image_positions": (uv / [scene.width, scene.height]).tolist(),
        "visibility": (layers.segmentation == number + 1).sum(axis=(1, 2)).tolist(),
        "mass": 1.0,
        "friction": 0.5,
        "restitution": 0.5,
        "scale": 1.0,
        "asset_id": f"{type(solid).__name__.lower()}_{i}",
        "is_dynamic": 0,
    }


def _wxyz(rotation: Float64[np.ndarray, "3 3"]) -> list[float]:
    return np.roll(xyzw_from_rotation(rotation), 1).tolist()


def _object_coordinates(scene: Scene, hits: Hits) -> Float64[np.ndarray, "N 3"]:
    """From 0 to 1 in the box around what is seen, in its own axes."""
    centre = np.stack([solid.centre[:, 0] for solid in scene.solids])[hits.surface]
    return (hits.xyz_local - centre) / np.array([solid.size for solid in scene.solids])[hits.surface] + 0.5


def _pixels(scene: Scene, hits: Hits, t: int) -> Float64[np.ndarray, "N 2"]:
    """Where the points are in the image at frame t."""
    world = scene.position(hits, np.full(len(hits.surface), t))
    return project(transform(inverse(scene.cameras.world_from_cam[t]), world), scene.cameras.intrinsics[t])


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _coded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """As steps of 65535 between low and high."""
    return np.floor((values - low) * (65535 / max(high - low, 1e-9))).clip(0, 65535).astype(np.uint16)


def _feature(values: list) -> bytes:
    """A BytesList (1), FloatList (2) or Int64List (3)."""
    if isinstance(values[0], bytes):
        return _field(1, b"".join(_field(1, value) for value in values))
    if isinstance(values[0], float):
        return _field(2, _field(1, np.array(values, "<f4").tobytes()))
    return _field(3, _field(1, _varints(np.array(values))))


def _field(number: int, content: bytes) -> bytes:
    """A field of a message that has a length."""
    return _varints(np.array([number << 3 | 2, len(content)])) + content


def _varints(numbers: Int64[np.ndarray, "N"]) -> bytes:
    """Seven bits per byte, the lowest first; the eighth says that more follow."""
    groups = max(1, -(-int(numbers.max()).bit_length() // 7))
    rest = numbers[:, None] >> 7 * np.arange(groups)
    used = rest > 0
    used[:, 0] = True
    more = np.pad(used[:, 1:], ((0, 0), (0, 1)))
    return (rest & 127 | more << 7)[used].astype(np.uint8).tobytes()
