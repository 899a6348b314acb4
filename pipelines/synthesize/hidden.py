"""Clips of what is hidden and comes back, as an .npz of TAPVid-3D's layout: the scenes of `synthesize/staged.py`.

    scenes/room_0000.npz      balls that a pillar hides for 25 frames and more; the next, a camera that comes round

Then the same two backwards in time. All tracks begin in frame 0; 200 frames show all of it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.sequence import Cameras
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.staged import hidden_balls, round_trip
from pipelines.synthesize.track_clips import clip_arrays, seen_points, write_npz

SIZES: dict[Size, tuple[int, int]] = {"small": (96, 72), "official": (640, 480)}
TRACKS = 512


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    width, height = SIZES[size]
    made = (hidden_balls, round_trip)[seed % 2](num_frames, width=width, height=height)
    if seed // 2 % 2 == 0:
        return made
    cameras = made.cameras
    backwards = Cameras(intrinsics=cameras.intrinsics, world_from_cam=cameras.world_from_cam[::-1])
    return replace(made, cameras=backwards, world_from_object=made.world_from_object[:, ::-1])


def folder(index: int) -> str:
    return f"scenes/room_{index:04d}.npz"


def write(scene: Scene, path: Path) -> None:
    """Write a clip into a new file; half of its tracks are on what moves, where enough is seen of it."""
    rng = np.random.default_rng([scene.seed, 7])
    hits, queries = seen_points(scene, np.zeros(8 * TRACKS, np.int64), rng)
    moves = np.concatenate([[False], scene.moving])[hits.surface]
    moving = np.flatnonzero(moves)[: TRACKS // 2]
    chosen = np.sort(np.concatenate([moving, np.flatnonzero(~moves)[: TRACKS - len(moving)]]))
    write_npz(path, clip_arrays(scene, hits[chosen], pixel_origin=0.5) | {"queries_xyt": queries[chosen]})
