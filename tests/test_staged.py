"""The two scenes laid out for long videos do what they are for, by their own exact truth."""

import numpy as np

from pipelines.geometry import inverse, project, transform
from pipelines.synthesize.staged import ROUND, hidden_balls, round_trip

COMMON = 16  # frames that windows share


def seen_share(scene, number: int, t: int) -> float:
    """Of the side of object `number` that faces the camera."""
    rng = np.random.default_rng(0)
    local = rng.standard_normal((400, 3))
    local = local / np.linalg.norm(local, axis=1, keepdims=True) * 0.3 - [0, 0.3, 0]
    world = transform(scene.world_from_object[number, t], local)
    xyz = transform(inverse(scene.cameras.world_from_cam)[t], world)
    uv = project(xyz, scene.cameras.intrinsics[t])
    surface = scene.trace(uv, np.full(len(uv), t)).surface
    return float((surface == number + 1).mean())


def test_each_ball_is_hidden_for_longer_than_windows_overlap_and_seen_before_and_after():
    scene = hidden_balls(120)
    assert scene.moving.tolist() == [False, False, False, True, True]
    for number in (3, 4):
        hidden = np.array([seen_share(scene, number, t) == 0 for t in range(120)])
        runs = "".join("h" if h else "s" for h in hidden).strip("s").split("s")
        assert [len(run) > 1.5 * COMMON for run in runs] == [True], "hidden once, for long"
        assert not hidden[0] and not hidden[-1]
    overlap = range(32, 48)
    assert all(seen_share(scene, 3, t) == 0 for t in overlap), "through a whole overlap of windows of 48 frames"


def test_the_camera_of_the_round_trip_comes_back_to_where_it_began_having_looked_everywhere():
    scene = round_trip(200)
    pose = scene.cameras.world_from_cam
    np.testing.assert_allclose(pose[ROUND:], pose[: 200 - ROUND], atol=1e-12)
    assert np.linalg.norm(pose[ROUND // 2, :3, 3] - pose[0, :3, 3]) > 2
    assert (pose[ROUND // 2, :3, 2] @ pose[0, :3, 2]) < -0.9
    assert not scene.moving.any()
    before, after = scene.render(0), scene.render(ROUND)
    assert (before.image == after.image).all()
    assert (before.instance >= 0).mean() > 0.03
