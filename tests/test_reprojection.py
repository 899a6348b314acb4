"""The audit's measure on an analytic room: the declared reading fits, and each planted mistake is named."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.geometry import inverse, rotation_from_xyzw, unproject, xyzw_from_rotation
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Sequence, Static
from pipelines.synthesize.scene import Scene
from pipelines.truth.reprojection import (
    DECLARED,
    NED,
    OTHER_READINGS,
    PIXEL_READINGS,
    Reading,
    Reprojection,
    frame_pairs,
)

FRAMES, WIDTH, HEIGHT = 32, 160, 120
INTRINSICS = np.array([[120.0, 0, 70.0], [0, 125.0, 66.0], [0, 0, 1]])  # nothing symmetric


class Room(Sequence):
    """The analytic scene as an adapter would give it, with whatever mistake a test plants."""

    def __init__(self, folder, scene: Scene, *, moving: bool = False) -> None:
        super().__init__(RawFolder(str(folder)), "room")
        frames = [scene.render(t, supersample=1) for t in range(FRAMES)]
        self.depths = [frame.depth.astype(np.float32) for frame in frames]
        self.instances = [frame.instance for frame in frames] if moving else None
        self.cameras = scene.cameras
        self.frame_numbers = np.arange(FRAMES)
        self.image_size = (HEIGHT, WIDTH)

    image = None

    def depth(self, t):
        return self.depths[t]

    def instance(self, t):
        return None if self.instances is None else self.instances[t]

    def motion(self, frames):
        return Static()


def scene(moving: bool = False) -> Scene:
    return Scene.random(5, num_frames=FRAMES, width=WIDTH, height=HEIGHT, intrinsics=INTRINSICS, moving=moving)


@pytest.fixture
def room(tmp_path) -> Room:
    return Room(tmp_path, scene())


def ray_length() -> np.ndarray:
    row, column = np.indices((HEIGHT, WIDTH))
    uv = np.stack([column + 0.5, row + 0.5], axis=-1)
    return np.linalg.norm(unproject(uv, np.ones((HEIGHT, WIDTH)), INTRINSICS), axis=-1)


def with_poses(room: Room, poses: np.ndarray) -> None:
    room.cameras = Cameras(intrinsics=room.cameras.intrinsics[: len(poses)], world_from_cam=poses)


def with_intrinsics(room: Room, change) -> None:
    intrinsics = room.cameras.intrinsics.copy()
    change(intrinsics)
    room.cameras = Cameras(intrinsics=intrinsics, world_from_cam=room.cameras.world_from_cam)


def reorder_quaternions(room: Room, order: list[int]) -> None:
    poses = room.cameras.world_from_cam.copy()
    poses[:, :3, :3] = rotation_from_xyzw(xyzw_from_rotation(poses[:, :3, :3])[:, order])
    with_poses(room, poses)


def turn_axes(room: Room, turn: np.ndarray) -> None:
    pose = np.eye(4)
    pose[:3, :3] = turn
    with_poses(room, room.cameras.world_from_cam @ pose)


def scale_depth(room: Room, factor: float | np.ndarray) -> None:
    room.depths = [(depth * factor).astype(np.float32) for depth in room.depths]


def half_pixel(intrinsics: np.ndarray) -> None:
    intrinsics[:, :2, 2] -= 0.5


def half_pixel_back(intrinsics: np.ndarray) -> None:
    intrinsics[:, :2, 2] += 0.5


def longer(intrinsics: np.ndarray) -> None:
    intrinsics[:, (0, 1), (0, 1)] *= 1.03


def shorter(intrinsics: np.ndarray) -> None:
    intrinsics[:, (0, 1), (0, 1)] *= 0.97


MISTAKES = {
    "half a pixel further right and down": lambda room: with_intrinsics(room, half_pixel),
    "half a pixel further left and up": lambda room: with_intrinsics(room, half_pixel_back),
    "along the ray, not along z": lambda room: scale_depth(room, ray_length()),
    "taken for a distance along the ray": lambda room: scale_depth(room, 1 / ray_length()),
    "cam_from_world, not": lambda room: with_poses(room, inverse(room.cameras.world_from_cam)),
    "OpenGL's": lambda room: turn_axes(room, np.diag([1.0, -1, -1])),
    "PyTorch3D's": lambda room: turn_axes(room, np.diag([-1.0, -1, 1])),
    "are NED": lambda room: turn_axes(room, NED),
    "taken for NED": lambda room: turn_axes(room, NED.T),
    "are wxyz and were taken for xyzw (in OpenCV": lambda room: reorder_quaternions(room, [3, 0, 1, 2]),
    "are xyzw and were taken for wxyz (in OpenCV": lambda room: reorder_quaternions(room, [1, 2, 3, 0]),
    "length is 0.97 times": lambda room: with_intrinsics(room, longer),
    "length is 1.03 times": lambda room: with_intrinsics(room, shorter),
    "unit of depth is 1000 times": lambda room: scale_depth(room, 1e-3),
    "unit of depth is 0.001 times": lambda room: scale_depth(room, 1e3),
    "pose of the frame before": lambda room: with_poses(room, np.roll(room.cameras.world_from_cam, -1, axis=0)),
    "pose of the frame after": lambda room: with_poses(room, np.roll(room.cameras.world_from_cam, 1, axis=0)),
}


def fits(room: Room) -> dict[Reading, float]:
    measured = Reprojection(room)
    return {reading: measured.fit(reading).error for reading in (DECLARED, *PIXEL_READINGS, *OTHER_READINGS)}


@pytest.mark.parametrize("moving", [False, True])
def test_the_declared_reading_fits_and_no_other(tmp_path, moving):
    errors = fits(Room(tmp_path, scene(moving), moving=moving))
    right = errors.pop(DECLARED)
    assert right < 1e-4
    assert min(errors.values()) > 3 * right


def test_frames_of_unknown_pose_do_not_matter(room):
    poses = room.cameras.world_from_cam.copy()
    poses[[0, 7]] = np.nan
    with_poses(room, poses)
    errors = fits(room)
    assert errors.pop(DECLARED) < 1e-4 < min(errors.values())


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named(room, name):
    MISTAKES[name](room)
    errors = fits(room)
    best = min(errors, key=errors.get)
    assert name in best.name
    assert errors[DECLARED] > 3 * errors[best]


def test_figures_of_a_plane_in_closed_form(tmp_path):
    """A camera slides sideways along a wall: parallax is f b / z, errors are zero; with a wrong unit it is as wrong."""
    room = Room(tmp_path, scene())
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, 0, 3] = 0.1 * np.arange(FRAMES)
    room.depths = [np.full((HEIGHT, WIDTH), 8.0, np.float32)] * FRAMES
    with_poses(room, poses)
    fit = Reprojection(room).fit(DECLARED)
    assert fit.error < 1e-6 and fit.close == 1 and fit.seen_through == 0
    assert fit.parallax == pytest.approx(120 * 0.1 * 20 / 8, rel=1e-3)
    source, target, uv, error = Reprojection(room).example()
    assert (uv[:, 0] > 0).all() and (uv[:, 0] < WIDTH - 120 * 0.1 * (target - source) / 8).all()
    np.testing.assert_allclose(error, 0, atol=1e-6)


def test_what_lies_behind_a_point_is_seen_through(tmp_path):
    """The wall moves away by 30 % after the first half of the frames."""
    room = Room(tmp_path, scene())
    with_poses(room, np.tile(np.eye(4), (FRAMES, 1, 1)))
    room.depths = [np.full((HEIGHT, WIDTH), 5.0 if t < FRAMES / 2 else 6.5, np.float32) for t in range(FRAMES)]
    fit = Reprojection(room).fit(DECLARED)
    crossing = [s < FRAMES / 2 <= t for s, t in frame_pairs(room)]
    assert fit.seen_through == pytest.approx(np.mean(crossing), abs=0.02)
    assert fit.parallax < 1e-6


def test_pairs_avoid_unknown_poses_and_lie_at_three_gaps(room):
    poses = room.cameras.world_from_cam.copy()
    poses[[4, 17, 18]] = np.nan
    with_poses(room, poses)
    pairs = frame_pairs(room)
    assert {t - s for s, t in pairs} == {1, 5, 20} and len(set(pairs)) == 9
    assert not {4, 17, 18} & {t for pair in pairs for t in pair}


def test_a_short_sequence_has_pairs_at_small_gaps_only(room):
    room.frame_numbers = np.arange(4)
    with_poses(room, room.cameras.world_from_cam[:4])
    assert {t - s for s, t in frame_pairs(room)} == {1}
    with_poses(room, room.cameras.world_from_cam[:1])
    assert frame_pairs(room) == []


def test_nothing_to_compare_is_no_fit(room):
    room.depths = [np.full((HEIGHT, WIDTH), np.nan, np.float32)] * FRAMES
    fit = Reprojection(room).fit(DECLARED)
    assert fit.error == float("inf") and fit.close == 0
    assert replace(fit, error=0.0).parallax == 0
