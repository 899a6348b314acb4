"""Two scenes laid out for what is hard in long videos: something stays hidden for long, and a camera comes back.

As exact as any `Scene`. World axes: x right, y down, z forward, metres; the origin is the centre of the floor.
"""

import numpy as np
from jaxtyping import Float64

from pipelines.sequence import Cameras
from pipelines.synthesize.arrangement import pose_of, rotation_of
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.surfaces import Box, Paint, Room, Solid, Sphere

FIELD_OF_VIEW = 1.2
"""Width of the image at distance 1."""

BALL_PERIOD = 208
"""Frames in which a ball goes to the right and back: it is behind the pillar for some 26, every 104."""

BALL_WAY = 1.7
"""Metres to either side of the middle."""

ROUND = 160
"""Frames in which the camera of `round_trip` turns once, and is again where it began."""


def hidden_balls(num_frames: int = 200, *, width: int = 128, height: int = 96) -> Scene:
    """Two balls slide to and fro behind a pillar, which hides them entirely for 25 frames and more at a time.

    They do not turn, so what is seen of a ball before the pillar is also seen after it. The camera sways a little.
    """
    t = np.arange(num_frames)
    sway = 0.1 * np.sin(2 * np.pi * t / 120)
    world_from_cam = pose_of(
        rotation_of(0.05 * np.sin(2 * np.pi * t / 150), -np.radians(6), 0.0),
        np.stack([sway, np.full(num_frames, -1.3), np.full(num_frames, -3.2)], axis=1),
    )
    still = [
        (Box((1.0, 2.6, 0.4)), (0.0, -0.6)),
        (Box((0.6, 0.5, 0.5)), (-1.4, 3.6)),
        (Sphere((0.6,) * 3), (1.6, 3.4)),
    ]
    balls = [(Sphere((0.6,) * 3), 1.5, 40), (Sphere((0.6,) * 3), 2.3, 72)]  # which is in the middle in that frame
    paths = [np.tile([x, 0, z], (num_frames, 1)) for _, (x, z) in still]
    for _, z, middle in balls:
        x = BALL_WAY * np.sin(2 * np.pi * (t - middle) / BALL_PERIOD)
        paths.append(np.stack([x, np.zeros(num_frames), np.full(num_frames, z)], axis=1))
    solids = [solid for solid, *_ in still + balls]
    return _scene(Room((7.0, 3.0, 10.0)), solids, paths, world_from_cam, width, height)


def round_trip(num_frames: int = 200, *, width: int = 128, height: int = 96) -> Scene:
    """The camera goes round the middle of a room, looking outwards, and on: after `ROUND` frames it is where it began.

    Nothing else moves.
    """
    yaw = 2 * np.pi * np.arange(num_frames) / ROUND
    outwards = np.stack([np.sin(yaw), np.zeros(num_frames), np.cos(yaw)], axis=1)
    world_from_cam = pose_of(rotation_of(yaw, -np.radians(6), 0.0), 1.2 * outwards + [0, -1.3, 0])
    places = [(0.3, 3.6), (3.5, 1.2), (2.9, -2.6), (-0.8, -3.4), (-3.5, -0.6), (-2.5, 2.9)]
    solids = [Box((0.7, 1.1, 0.6)), Sphere((0.9,) * 3), Box((0.5, 0.8, 1.0))] * 2
    paths = [np.tile([x, 0, z], (num_frames, 1)) for x, z in places]
    return _scene(Room((9.0, 3.0, 9.0)), solids, paths, world_from_cam, width, height)


def _scene(
    room: Room,
    solids: list[Solid],
    paths: list[Float64[np.ndarray, "T 3"]],
    world_from_cam: Float64[np.ndarray, "T 4 4"],
    width: int,
    height: int,
) -> Scene:
    """Objects that stand or slide along their paths on the floor, filmed with square pixels."""
    focal, num_frames = width / FIELD_OF_VIEW, len(world_from_cam)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    upright = rotation_of(np.zeros(num_frames), 0.0, 0.0)
    return Scene(
        seed=0,
        cameras=Cameras(intrinsics=np.tile(intrinsics, (num_frames, 1, 1)), world_from_cam=world_from_cam),
        width=width,
        height=height,
        solids=(room, *solids),
        world_from_object=np.stack([pose_of(upright, path) for path in paths]),
        paint=Paint(np.random.default_rng(0), (room, *solids)),
    )
