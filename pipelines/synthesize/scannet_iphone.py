"""The phone video of a ScanNet++ scene as its authors ship it (dataset notes D6, the variant): a static room.

    data/0000000000/iphone/
        rgb.mkv                      lossless
        depth.bin                    192 x 256, three ways to encode it
        pose_intrinsic_imu.json      aligned_pose is the truth; pose is in another world; the focal length breathes

A long video has a frame of which the JSON knows nothing. Left out: masks, COLMAP, the laser scan.
"""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import av
import lz4.block
import numpy as np
from jaxtyping import Float64

from pipelines.geometry import scaled_intrinsics
from pipelines.sequence import Cameras
from pipelines.synthesize import Size
from pipelines.synthesize.arrangement import LONG
from pipelines.synthesize.scene import Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (256, 192), "official": (256, 192)}
VIDEO_SIZES = {"small": (320, 240), "official": (1920, 1440)}
RAW_FROM_SCENE = np.array([[0.0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 0], [0, 0, 0, 1]])  # +Z up
NOMINAL_WIDTH = 1920  # of the images that the JSON's intrinsics are for
Encoding = Literal["lz4", "deflate", "stream"]


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A room in which only the camera moves, on the grid of depth."""
    width, height = SIZES[size]
    intrinsics = np.array([[191.0, 0, 0.505 * width], [0, 191.5, 0.485 * height], [0, 0, 1]])
    scene = Scene.random(seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics, moving=False)
    breathing = np.tile(intrinsics, (num_frames, 1, 1))
    breathing[:, (0, 1), (0, 1)] *= 1 + 0.002 * np.arange(num_frames)[:, None]
    return replace(scene, cameras=Cameras(intrinsics=breathing, world_from_cam=scene.cameras.world_from_cam))


def folder(index: int) -> str:
    return f"data/{index:010x}/iphone"


def unknown_poses(num_frames: int) -> list[int]:
    return [num_frames // 2] if num_frames >= LONG else []


def write(scene: Scene, folder: Path, *, depth: Encoding = "lz4", video: Size = "small") -> None:
    """Write a static scene into a new folder."""
    folder.mkdir(parents=True)
    _write_video(_enlarged(scene, *VIDEO_SIZES[video]), folder / "rgb.mkv")
    metres = [scene.render(t, supersample=1).depth for t in range(len(scene))]
    (folder / "depth.bin").write_bytes(encoded(metres, depth))
    aligned = RAW_FROM_SCENE @ scene.cameras.world_from_cam
    intrinsics = _enlarged(scene, NOMINAL_WIDTH, NOMINAL_WIDTH * 3 // 4).cameras.intrinsics
    frames = {
        f"frame_{t:06d}": {
            "timestamp": t / 60,
            "pose": (np.linalg.inv(aligned[0]) @ aligned[t]).tolist(),
            "aligned_pose": aligned[t].tolist(),
            "intrinsic": intrinsics[t].tolist(),
        }
        for t in range(len(scene))
        if t not in unknown_poses(len(scene))
    }
    (folder / "pose_intrinsic_imu.json").write_text(json.dumps(frames))


def encoded(metres: list[Float64[np.ndarray, "192 256"]], encoding: Encoding) -> bytes:
    """A depth.bin of finite depths."""
    if encoding == "stream":
        return _deflated(b"".join(depth.astype("<f4").tobytes() for depth in metres))
    if encoding == "deflate":
        payloads = [_deflated(depth.astype("<f4").tobytes()) for depth in metres]
    else:
        millimetres = [np.round(1000 * depth).astype("<u2").tobytes() for depth in metres]
        payloads = [lz4.block.compress(depth, store_size=False) for depth in millimetres]
    return b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)


def _deflated(content: bytes) -> bytes:
    """Without the header of zlib."""
    deflater = zlib.compressobj(1, wbits=-15)
    return deflater.compress(content) + deflater.flush()


def _enlarged(scene: Scene, width: int, height: int) -> Scene:
    ratio = {"width_ratio": width / scene.width, "height_ratio": height / scene.height}
    intrinsics = scaled_intrinsics(scene.cameras.intrinsics, **ratio)
    cameras = Cameras(intrinsics=intrinsics, world_from_cam=scene.cameras.world_from_cam)
    return replace(scene, width=width, height=height, cameras=cameras)


def _write_video(scene: Scene, path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=60)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "bgr0"
        for t in range(len(scene)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.render(t).image, format="rgb24")))
        container.mux(stream.encode())
