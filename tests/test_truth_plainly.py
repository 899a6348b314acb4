"""`ground_truth` against the same rules written once more, slowly: one query, one frame and one pixel after the other.

The rules are those of the dataset notes (3.1 and 3.2), spelled with loops and 3 x 3 matrices; nothing of `truth` or
`geometry` is used. The scene is random depth with steps, holes and moving objects, so that every rule has its cases.
"""

import numpy as np
import pytest

from pipelines.catalog import DepthTolerance
from pipelines.sequence import Cameras, RigidInstances, Static, Unknown
from pipelines.synthesize.scene import Scene
from pipelines.truth.depth_maps import OCCLUDED, OUT, UNKNOWN, VISIBLE
from pipelines.truth.ground_truth import GroundTruth

FRAMES, WIDTH, HEIGHT = 5, 96, 64
INTRINSICS = np.array([[60.0, 0, 45], [0, 63.0, 34], [0, 0, 1]])
TOLERANCE = DepthTolerance(relative=0.02, absolute=0.01)
QUERIES = 400


class Plainly:
    """The truth about one query at a time."""

    def __init__(self, cameras: Cameras, depth: np.ndarray, instance: np.ndarray | None, pose: np.ndarray) -> None:
        self.cameras, self.depth, self.instance, self.pose = cameras, depth.astype(float), instance, pose

    def camera(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """K, and rotation and centre of world_from_cam."""
        world_from_cam = self.cameras.world_from_cam[t]
        return self.cameras.intrinsics[t], world_from_cam[:3, :3], world_from_cam[:3, 3]

    def shown(self, t: int, column: int, row: int) -> int:
        return -1 if self.instance is None else int(self.instance[t, row, column])

    def lift(self, uv: np.ndarray, t: int) -> tuple[np.ndarray | None, int]:
        """X_world = world_from_cam[s] (D_s(p) K_s^-1 p~), if the 3 x 3 pixels are one smooth surface; its instance."""
        column, row = int(np.floor(uv[0])), int(np.floor(uv[1]))
        if not (0 <= column < WIDTH and 0 <= row < HEIGHT):
            return None, -1
        middle, centre = min(max(column, 1), WIDTH - 2), min(max(row, 1), HEIGHT - 2)

        def inverse(i: int, j: int) -> float:
            return 1 / self.depth[t, centre + j, middle + i]

        du, dv = (inverse(1, 0) - inverse(-1, 0)) / 2, (inverse(0, 1) - inverse(0, -1)) / 2
        for j in (-1, 0, 1):
            for i in (-1, 0, 1):
                z = 1 / inverse(i, j)
                off = abs(inverse(i, j) - inverse(0, 0) - du * i - dv * j) * z * z  # how much of depth that is
                if not off <= max(TOLERANCE.absolute, TOLERANCE.relative * z):
                    return None, self.shown(t, column, row)
                if self.shown(t, middle + i, centre + j) != self.shown(t, middle, centre):
                    return None, self.shown(t, column, row)

        w = 1 / self.depth[t, row, column] + (uv[0] - column - 0.5) * du + (uv[1] - row - 0.5) * dv
        if w <= 0:
            return None, self.shown(t, column, row)
        intrinsics, rotation, position = self.camera(t)
        ray = np.linalg.solve(intrinsics, [uv[0], uv[1], 1])
        return rotation @ (ray / w) + position, self.shown(t, column, row)

    def cell(self, world: np.ndarray, t: int) -> tuple[np.ndarray, float, list] | None:
        """p_t, z_t, and the 2 x 2 pixels around p_t: each its depth, instance and bilinear weight. None if `out`."""
        intrinsics, rotation, position = self.camera(t)
        seen_from = rotation.T @ (world - position)
        if seen_from[2] <= 0:
            return None
        uv = (intrinsics @ seen_from / seen_from[2])[:2]
        if not (0 <= uv[0] < WIDTH and 0 <= uv[1] < HEIGHT):
            return None
        x, y = min(max(uv[0] - 0.5, 0), WIDTH - 1.001), min(max(uv[1] - 0.5, 0), HEIGHT - 1.001)
        pixels = []
        for row in (int(y), int(y) + 1):
            for column in (int(x), int(x) + 1):
                weight = (1 - abs(x - column)) * (1 - abs(y - row))
                pixels.append((self.depth[t, row, column], self.shown(t, column, row), weight))
        return uv, seen_from[2], pixels

    def outcome(self, world: np.ndarray, t: int, instance: int) -> tuple[int, bool]:
        """The label, and whether it is a see-through."""
        if (found := self.cell(world, t)) is None:
            return OUT, False
        _, z, pixels = found
        tolerance = max(TOLERANCE.absolute, TOLERANCE.relative * z)
        valid = [depth for depth, _, _ in pixels if np.isfinite(depth)]
        agrees = any(abs(depth - z) <= tolerance and shown == instance for depth, shown, _ in pixels)
        if len(valid) == 4 and max(valid) <= 1.3 * min(valid) and all(shown == instance for _, shown, _ in pixels):
            interpolated = 1 / sum(weight / depth for depth, _, weight in pixels)
            agrees |= abs(interpolated - z) <= tolerance
        if agrees:
            return VISIBLE, False
        if valid and all(depth < z - 2.5 * tolerance for depth in valid):
            return OCCLUDED, False
        return UNKNOWN, bool(valid) and all(depth > z + tolerance for depth in valid)

    def rests(self, uv: np.ndarray, t_src: int) -> bool:
        """No frame sees through the surface at uv, nor a sixty-fourth of the width to its sides."""
        reach = WIDTH / 64
        for dx, dy in ((0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)):
            world, instance = self.lift(uv + np.array([dx, dy]) * reach, t_src)
            for t in range(FRAMES):
                if world is not None and t != t_src and self.outcome(world, t, instance)[1]:
                    return False
        return True

    def position(self, world: np.ndarray, instance: int, t_src: int, t: int) -> np.ndarray:
        if instance < 0:
            return world
        return (self.pose[instance, t] @ np.linalg.inv(self.pose[instance, t_src]) @ [*world, 1])[:3]


@pytest.fixture(scope="module")
def scene() -> tuple[Scene, np.ndarray, np.ndarray]:
    """Its cameras, and depth and instances with holes and with pixels that are wrong, nearer and farther."""
    world = Scene.random(3, num_frames=FRAMES, width=WIDTH, height=HEIGHT, intrinsics=INTRINSICS)
    frames = [world.render(t, supersample=1) for t in range(FRAMES)]
    depth = np.stack([frame.depth for frame in frames]).astype(np.float32)
    rng = np.random.default_rng(0)
    chance = rng.random(depth.shape)
    depth[chance < 0.01] = np.nan
    depth[(chance > 0.98) & (chance < 0.99)] *= 0.8
    depth[chance > 0.99] *= 1.3
    depth[1, 10:40, 20:50] *= 1.2  # what another frame shows there is looked through
    return world, depth, np.stack([frame.instance for frame in frames])


@pytest.mark.parametrize("kind", ["static", "unknown", "rigid"])
def test_every_answer_is_that_of_the_rules(scene, kind):
    world, depth, instance = scene
    motions = {
        "static": Static(),
        "unknown": Unknown(),
        "rigid": RigidInstances(world_from_instance=world.world_from_object),
    }
    shown = instance if kind == "rigid" else None
    truth = GroundTruth(cameras=world.cameras, depth=depth, instance=shown, motion=motions[kind], tolerance=TOLERANCE)
    plain = Plainly(world.cameras, depth, shown, world.world_from_object)
    rng = np.random.default_rng(1)
    uv, (t_src, t_tgt, t_cam) = rng.random((QUERIES, 2)) * [WIDTH, HEIGHT], rng.integers(FRAMES, size=(3, QUERIES))
    points = truth.lift(uv, t_src)
    answer = truth.ask(points, t_tgt, t_cam)

    seen = []
    for n in range(QUERIES):
        there, instance_there = plain.lift(uv[n], t_src[n])
        assert points.known[n] == (there is not None) and points.instance[n] == instance_there
        if there is None:
            assert not answer.xyz_valid[n]
            continue
        then = plain.position(there, instance_there, t_src[n], t_tgt[n])
        outcome, see_through = plain.outcome(then, t_tgt[n], instance_there)
        if t_src[n] == t_tgt[n]:
            outcome, see_through = VISIBLE, False
        known = not see_through
        if kind == "unknown":
            known = outcome == VISIBLE and (t_src[n] == t_tgt[n] or plain.rests(uv[n], t_src[n]))
        seen.append((outcome, see_through, known))
        assert (answer.outcome[n], answer.xyz_valid[n]) == (outcome, known)
        assert answer.visible_valid[n] == (known and outcome != UNKNOWN)
        assert answer.uv_valid[n] == (known and plain.cell(then, t_tgt[n]) is not None)

        _, rotation, position = plain.camera(t_cam[n])
        np.testing.assert_allclose(answer.xyz[n], rotation.T @ (then - position), atol=1e-9)
        np.testing.assert_allclose(answer.displacement[n], rotation.T @ (then - there), atol=1e-9)
        if answer.uv_valid[n]:
            np.testing.assert_allclose(answer.uv_tgt[n], plain.cell(then, t_tgt[n])[0], atol=1e-9)

    assert {outcome for outcome, _, _ in seen} == {OUT, VISIBLE, OCCLUDED, UNKNOWN}, "every rule has its cases"
    assert sum(through for _, through, _ in seen) > 5 and sum(known for _, _, known in seen) > 100
    if kind == "unknown":
        assert sum(outcome == VISIBLE and not known for outcome, _, known in seen) > 5, "something seemed to move"


def test_normals_are_those_of_a_plane_fitted_pixel_by_pixel(scene):
    """Least squares over 25 pixels, in float64; ours are float32, so that a thousandth of a radian may lie between."""
    world, depth, instance = scene
    motion = RigidInstances(world_from_instance=world.world_from_object)
    truth = GroundTruth(cameras=world.cameras, depth=depth, instance=instance, motion=motion, tolerance=TOLERANCE)
    rng = np.random.default_rng(2)
    uv, t = rng.random((QUERIES, 2)) * [WIDTH, HEIGHT], rng.integers(FRAMES, size=QUERIES)
    normal = truth.maps.normal(uv, t)
    checked = 0
    for n in np.flatnonzero(np.isfinite(normal).all(axis=1)):
        column = min(max(int(uv[n, 0]), 2), WIDTH - 3)
        row = min(max(int(uv[n, 1]), 2), HEIGHT - 3)
        rays, inverse = [], []
        for j in range(row - 2, row + 3):
            for i in range(column - 2, column + 3):
                assert instance[t[n], j, i] == instance[t[n], row, column], "no normal across two objects"
                rays.append(np.linalg.solve(world.cameras.intrinsics[t[n]], [i + 0.5, j + 0.5, 1]))
                inverse.append(1 / float(depth[t[n], j, i]))
        plane = -np.linalg.lstsq(np.array(rays), np.array(inverse), rcond=None)[0]
        np.testing.assert_allclose(normal[n], plane / np.linalg.norm(plane), atol=1e-3)
        checked += 1
    assert checked > 100
