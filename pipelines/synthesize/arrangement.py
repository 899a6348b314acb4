"""Where things stand and how they move in the analytic scene: a room, objects on its floor, a camera's way through it.

The camera keeps clear of walls and objects, objects keep clear of each other, at all frames.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from pipelines.geometry import inverse, transform
from pipelines.synthesize.surfaces import Box, Room, Solid, Sphere

CAMERA_CLEARANCE = 0.9  # metres between the camera and anything; leaves room for the right eye of a stereo pair
GAP = 0.1  # metres between any other two things
LONG = 8  # from this number of frames on, one sphere also tumbles
ATTEMPTS = 50


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """T frames, I objects; poses in world axes (x right, y down, z forward, floor at y = 0)."""

    world_from_cam: Float64[np.ndarray, "T 4 4"]
    solids: tuple[Solid, ...]
    """The room, then the objects."""
    world_from_object: Float64[np.ndarray, "I T 4 4"]


def arrange(
    rng: np.random.Generator,
    *,
    num_frames: int,
    field_of_view: Float64[np.ndarray, "2"],
    moving: bool,
    open_top: bool,
) -> Arrangement:
    """A random arrangement. `field_of_view`: width and height of the image at distance 1.

    ValueError if the view is so narrow that no object can be placed in it.
    """
    for _ in range(ATTEMPTS):
        room = Room((rng.uniform(6, 8), rng.uniform(2.8, 3.2), rng.uniform(9, 12)), open_top)
        world_from_cam = _camera(rng, room, num_frames)
        objects = _objects(rng, room, world_from_cam, field_of_view, moving)
        if objects is not None:
            solids, poses = objects
            return Arrangement(world_from_cam=world_from_cam, solids=(room, *solids), world_from_object=poses)
    raise ValueError(f"no object fits into a view of {field_of_view} (at distance 1): use a shorter focal length")


def _progress(num_frames: int) -> Float64[np.ndarray, "T"]:
    """From -1/2 to 1/2 over the sequence."""
    return np.linspace(-0.5, 0.5, num_frames) if num_frames > 1 else np.zeros(1)


def rotation_of(
    yaw: Float64[np.ndarray, "T"], pitch: Float64[np.ndarray, "T"] | float, roll: Float64[np.ndarray, "T"] | float
) -> Float64[np.ndarray, "T 3 3"]:
    """Ry(yaw) Rx(pitch) Rz(roll), radians. With y down: yaw turns +z to +x, a negative pitch looks down."""
    yaw, pitch, roll = np.broadcast_arrays(yaw, pitch, roll)
    result = np.zeros((3, len(yaw), 3, 3))
    for axis, angle in enumerate((pitch, yaw, roll)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        result[axis, :, axis, axis] = 1
        result[axis, :, a, a] = result[axis, :, b, b] = np.cos(angle)
        result[axis, :, b, a] = np.sin(angle)
        result[axis, :, a, b] = -np.sin(angle)
    return result[1] @ result[0] @ result[2]


def pose_of(rotation: Float64[np.ndarray, "T 3 3"], xyz: Float64[np.ndarray, "T 3"]) -> Float64[np.ndarray, "T 4 4"]:
    pose = np.tile(np.eye(4), (len(rotation), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotation, xyz
    return pose


def _camera(rng: np.random.Generator, room: Room, num_frames: int) -> Float64[np.ndarray, "T 4 4"]:
    """A slightly bent way through the rear half of the room, looking ahead, a little down and slowly turning."""
    width, _, depth = room.size
    progress, steps = _progress(num_frames), num_frames - 1
    travel = min(rng.uniform(0.3, 0.6) * steps, 0.35 * depth, 0.4 * width)
    heading = np.radians(rng.uniform(-30, 30))
    bend = rng.uniform(-0.1, 0.1) * travel * np.cos(np.pi * progress)
    x = travel * progress * np.sin(heading) + bend * np.cos(heading)
    z = travel * progress * np.cos(heading) - bend * np.sin(heading)
    low, high = CAMERA_CLEARANCE - width / 2 - x.min(), width / 2 - CAMERA_CLEARANCE - x.max()
    x += (low + high) / 2 + max(0, high - low) * rng.uniform(-0.25, 0.25)
    z += CAMERA_CLEARANCE - depth / 2 - z.min() + rng.uniform(0, 0.1) * depth
    height = rng.uniform(1.4, 1.6) + rng.uniform(-0.05, 0.05) * progress * min(steps, 4)
    target = rng.uniform(-0.2, 0.2) * width, rng.uniform(0.15, 0.35) * depth
    turn = rng.choice([-1, 1]) * min(np.radians(rng.uniform(2, 5)) * steps, np.radians(20))
    yaw = np.arctan2(target[0] - x.mean(), target[1] - z.mean()) + turn * progress
    pitch = -np.radians(rng.uniform(7, 9) + rng.uniform(-2, 2) * progress)
    roll = np.radians(rng.uniform(-2, 2) * progress)
    return pose_of(rotation_of(yaw, pitch, roll), np.stack([x, -height, z], axis=1))


def _objects(
    rng: np.random.Generator,
    room: Room,
    world_from_cam: Float64[np.ndarray, "T 4 4"],
    field_of_view: Float64[np.ndarray, "2"],
    moving: bool,
) -> tuple[list[Solid], Float64[np.ndarray, "I T 4 4"]] | None:
    """Four to six objects: a box and a sphere that move (if anything does), a box and a sphere that do not, and more.

    None if they do not fit.
    """
    kinds = [(Box, True), (Sphere, True), (Box, False), (Sphere, False)]
    kinds += [kinds[i] for i in rng.integers(0, 4, rng.integers(0, 3))]
    occupied = [(world_from_cam[:, :3, 3], CAMERA_CLEARANCE - GAP)]
    solids, poses = [], []
    for index, (kind, moves) in enumerate(kinds):
        solid = Box(tuple(rng.uniform(0.4, 1.5, 3))) if kind is Box else Sphere((rng.uniform(0.5, 1.2),) * 3)
        reach = np.hypot(solid.size[0], solid.size[2]) / 2 if kind is Box else solid.size[0] / 2
        path = _free_path(rng, room, reach, occupied, world_from_cam, field_of_view, moving and moves)
        if path is None:
            return None
        occupied.append((path, reach))
        tumbles = index == 1 and moving and len(path) >= LONG
        solids.append(solid)
        poses.append(_on_floor(rng, path, solid, turns=moving and moves, tumbles=tumbles))
    return solids, np.stack(poses)


def _free_path(
    rng: np.random.Generator,
    room: Room,
    reach: float,
    occupied: list[tuple[Float64[np.ndarray, "T 3"], float]],
    world_from_cam: Float64[np.ndarray, "T 4 4"],
    field_of_view: Float64[np.ndarray, "2"],
    moves: bool,
) -> Float64[np.ndarray, "T 3"] | None:
    """Where on the floor an object this wide may stand or go; halfway it is before the camera. None if nowhere is."""
    progress, steps = _progress(len(world_from_cam)), len(world_from_cam) - 1
    camera = world_from_cam[len(world_from_cam) // 2]
    for _ in range(ATTEMPTS):
        z = rng.uniform(2, 7)
        x = z * rng.uniform(-0.4, 0.4) * field_of_view[0]
        middle = transform(camera, np.array([x, 0, z])) * [1, 0, 1]
        heading = rng.uniform(0, 2 * np.pi)
        travel = moves * min(rng.uniform(0.2, 0.5) * steps, 2.0)
        path = middle + travel * progress[:, None] * [np.sin(heading), 0, np.cos(heading)]
        seen = transform(inverse(camera), middle)
        in_view = seen[2] > 0 and (np.abs(seen[:2] / seen[2]) < 0.5 * field_of_view).all()
        in_room = (np.abs(path[:, (0, 2)]) < np.array(room.size)[[0, 2]] / 2 - reach - GAP).all()
        apart = all(
            (np.hypot(*(path - other)[:, (0, 2)].T) > reach + other_reach + GAP).all()
            for other, other_reach in occupied
        )
        if in_view and in_room and apart:
            return path
    return None


def _on_floor(
    rng: np.random.Generator, path: Float64[np.ndarray, "T 3"], solid: Solid, *, turns: bool, tumbles: bool
) -> Float64[np.ndarray, "T 4 4"]:
    """Poses along a path. A sphere that tumbles turns about its centre, also sideways, and still touches the floor."""
    progress, steps = _progress(len(path)), len(path) - 1
    turn = turns * rng.choice([-1, 1]) * min(np.radians(rng.uniform(5, 15)) * steps, np.radians(150))
    pitch, roll = tumbles * (rng.uniform(0.3, 0.6, (2, 1)) + rng.uniform(0.5, 1, (2, 1)) * progress)
    rotation = rotation_of(rng.uniform(-np.pi, np.pi) + turn * progress, pitch, roll)
    foot = solid.centre[:, 0]
    return pose_of(rotation, path + foot - rotation @ foot)
