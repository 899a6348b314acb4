"""Clips of TAPVid-3D as its authors ship them (dataset notes E2): DriveTrack, ADT, PStudio in turn.

    drivetrack/tapvid3d_000000.npz    adt/Lite_000001.npz    pstudio/room_000002.npz

Names are none of the published lists. Tracks are asked from any frame. Images are Python objects in ADT's files, which
have no extrinsics as those of PStudio, whose camera stands still.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.sequence import Cameras
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.track_clips import clip_arrays, seen_points, write_npz

SIZES: dict[Size, tuple[int, int]] = {"small": (96, 64), "official": (640, 360)}
SUBSETS = ("drivetrack/tapvid3d", "adt/Lite", "pstudio/room")
TRACKS = 128


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    width, height = SIZES[size]
    intrinsics = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])
    return Scene.random(seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics)


def folder(index: int) -> str:
    return f"{SUBSETS[index % len(SUBSETS)]}_{index:06d}.npz"


def as_filmed(scene: Scene, path: Path) -> Scene:
    """The scene as this subset shows it: PStudio's camera stands still."""
    if path.parent.name != "pstudio":
        return scene
    cameras = scene.cameras
    still = np.broadcast_to(cameras.world_from_cam[:1], cameras.world_from_cam.shape)
    return replace(scene, cameras=Cameras(intrinsics=cameras.intrinsics, world_from_cam=still))


def write(scene: Scene, path: Path) -> None:
    """Write a clip into a new file."""
    scene = as_filmed(scene, path)
    rng = np.random.default_rng([scene.seed, 4])
    hits, queries = seen_points(scene, rng.integers(0, len(scene), TRACKS), rng)
    arrays = clip_arrays(scene, hits, pixel_origin=0.5) | {"queries_xyt": queries}
    if not path.name.startswith("tapvid3d"):
        del arrays["extrinsics_w2c"]
        arrays["images_jpeg_bytes"] = arrays["images_jpeg_bytes"].astype(object)
    write_npz(path, arrays)
