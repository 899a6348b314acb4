"""ScanNet v2 as its authors ship it (dataset notes D6), one scan at a time: a static room.

    scans/scene0000_00/
        scene0000_00.sens    all frames: JPEG colour of its own size and K, zlib u16 depth in millimetres, pose
        scene0000_00.txt     "key = value"

Left out: meshes and labels. Rooms have two scans. In the middle of a long scan one frame has no depth at all, and the
pose of the next one is -inf. The .txt counts one colour frame more than there is, as some real ones do.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt16
from PIL import Image

from pipelines.geometry import inverse
from pipelines.sequence import Cameras
from pipelines.synthesize import Size
from pipelines.synthesize.arrangement import LONG
from pipelines.synthesize.scene import Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (128, 96), "official": (640, 480)}
COLOUR_SIZES = {128: (260, 194), 640: (1296, 968)}  # of the width of depth
RAW_FROM_SCENE = np.array([[1.0, 0, 0, 2], [0, 0, 1, 3], [0, -1, 0, 0.5], [0, 0, 0, 1]])  # +Z up
DEPTH_FOCAL_LENGTH, COLOUR_FOCAL_LENGTH = 577.870605 / 640, 1170.187988 / 1296  # of the width
MIDDLE = np.array([0.51, 0.48])  # principal point, of width and height
SHIFT = 1000  # units of depth per metre


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What both the stream and its exports hold of a frame."""

    jpeg: bytes
    depth: UInt16[np.ndarray, "h w"]
    """Millimetres, 0 where there is nothing."""
    world_from_depth: Float64[np.ndarray, "4 4"]


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A room in which only the camera moves, seen by the depth camera."""
    width, height = SIZES[size]
    intrinsics = _intrinsics(width, height, DEPTH_FOCAL_LENGTH)
    return Scene.random(seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics, moving=False)


def _intrinsics(width: int, height: int, focal_length: float) -> Float64[np.ndarray, "3 3"]:
    (cx, cy), f = MIDDLE * [width, height], focal_length * width
    return np.array([[f, 0, cx], [0, f, cy], [0, 0, 1]])


def colour_view(scene: Scene, colour_from_depth: Float64[np.ndarray, "4 4"]) -> Scene:
    """The same scene seen by the colour camera, whose image is a little less high."""
    width, height = COLOUR_SIZES[scene.width]
    intrinsics = np.tile(_intrinsics(width, height, COLOUR_FOCAL_LENGTH), (len(scene), 1, 1))
    world_from_cam = scene.cameras.world_from_cam @ inverse(colour_from_depth)
    return replace(
        scene, width=width, height=height, cameras=Cameras(intrinsics=intrinsics, world_from_cam=world_from_cam)
    )


def folder(index: int) -> str:
    return f"scans/{scan(index)}"


def scan(index: int) -> str:
    return f"scene{index // 2:04d}_{index % 2:02d}"


def unknown_poses(num_frames: int) -> list[int]:
    return [num_frames // 2] if num_frames >= LONG else []


def write(scene: Scene, folder: Path, *, colour_from_depth: Float64[np.ndarray, "4 4"] | None = None) -> None:
    """Write a static scene into a new folder. `colour_from_depth`: where the cameras are not at one place."""
    extrinsics = np.eye(4) if colour_from_depth is None else colour_from_depth
    folder.mkdir(parents=True)
    colour = colour_view(scene, extrinsics)
    matrices = [integer_centres(colour), np.eye(4), integer_centres(scene), extrinsics]
    name, sizes = b"StructureSensor", (colour.width, colour.height, scene.width, scene.height)
    with (folder / f"{folder.name}.sens").open("wb") as file:
        file.write(struct.pack("<IQ", 4, len(name)) + name + np.array(matrices, "<f4").tobytes())
        file.write(struct.pack("<2i4IfQ", 2, 1, *sizes, SHIFT, len(scene)))
        for frame in frames(scene, extrinsics):
            depth = zlib.compress(frame.depth.astype("<u2").tobytes(), 1)
            file.write(frame.world_from_depth.astype("<f4").tobytes())
            file.write(struct.pack("<4Q", 0, 0, len(frame.jpeg), len(depth)) + frame.jpeg + depth)
        file.write(struct.pack("<Q", 2) + bytes(2 * 128))  # of the inertial sensor
    info = {"colorHeight": colour.height, "colorWidth": colour.width}
    info |= {"depthHeight": scene.height, "depthWidth": scene.width}
    for camera, matrix in (("color", matrices[0]), ("depth", matrices[2])):
        info |= {f"fx_{camera}": matrix[0, 0], f"fy_{camera}": matrix[1, 1]}
        info |= {f"mx_{camera}": matrix[0, 2], f"my_{camera}": matrix[1, 2]}
    info |= {"numColorFrames": len(scene) + 1, "numDepthFrames": len(scene), "numIMUmeasurements": 2}
    info |= {"axisAlignment": " ".join(f"{value:f}" for value in np.eye(4).ravel()), "sceneType": "train"}
    if colour_from_depth is not None:
        info["colorToDepthExtrinsics"] = " ".join(f"{value:f}" for value in inverse(colour_from_depth).ravel())
    (folder / f"{folder.name}.txt").write_text("".join(f"{key} = {value}\n" for key, value in info.items()))


def frames(scene: Scene, colour_from_depth: Float64[np.ndarray, "4 4"]) -> Iterator[Frame]:
    colour, world_from_depth = colour_view(scene, colour_from_depth), RAW_FROM_SCENE @ scene.cameras.world_from_cam
    for t in range(len(scene)):
        jpeg = io.BytesIO()
        Image.fromarray(colour.render(t).image).save(jpeg, "jpeg", quality=95)
        millimetres = np.round(SHIFT * scene.render(t, supersample=1).depth)
        millimetres[(millimetres > 65535) | (t + 1 in unknown_poses(len(scene)))] = 0
        pose = np.full((4, 4), -np.inf) if t in unknown_poses(len(scene)) else world_from_depth[t]
        yield Frame(jpeg=jpeg.getvalue(), depth=millimetres.astype(np.uint16), world_from_depth=pose)


def integer_centres(view: Scene) -> Float64[np.ndarray, "4 4"]:
    """Intrinsics where the centre of the top-left pixel is (0, 0)."""
    matrix = np.eye(4)
    matrix[:3, :3] = view.cameras.intrinsics[0]
    matrix[:2, 2] -= 0.5
    return matrix
