"""A camera that comes back: found by what the windows look like, decided by a window of both ends, and corrected."""

import itertools

import numpy as np
import pytest
import torch
from oracle import Faults, Oracle
from scipy.spatial.transform import Rotation

from model.recipes.joining import chain, join_cameras
from model.recipes.long_video import track_long_video
from model.recipes.loops import look_for_loop, loop_frames, propose_loops
from model.recipes.windows import WindowPlan
from pipelines.evaluation.pose import path_scores
from pipelines.geometry import inverse
from pipelines.results.pose_graph import Edge, close_loops
from pipelines.synthesize.staged import round_trip

NOBODY = torch.zeros(0, 2)


def test_a_loop_corrects_the_drift_of_many_windows():
    """Each window believes its cameras to turn by a little; ATE with the loop is below ATE without."""
    oracle = Oracle(round_trip(200), Faults(bend=0.003, noise=0.002, scale=0.05), clip_frames=24, step=2)
    result = track_long_video(oracle, oracle.video, NOBODY, 0, aspect=oracle.aspect)
    proposals = propose_loops(result.geometry)
    assert (0, len(result.plan) - 1) in [proposal[:2] for proposal in proposals]
    loops = [
        look_for_loop(oracle, oracle.video, result.plan, result.geometry, *proposal, aspect=oracle.aspect)
        for proposal in proposals
    ]
    closed = [loop for loop in loops if loop.closed]
    assert closed
    path = close_loops(
        [seam.window_from_next.numpy() for seam in result.seams],
        [Edge(loop.first, loop.second, loop.first_from_second.numpy()) for loop in closed],
        distance=float(result.geometry[0].landmarks.norm(dim=-1).median()),
    )
    assert path.after < path.before
    cameras = join_cameras(result.plan, result.geometry, torch.from_numpy(path.world_from_window))
    truth = oracle.scene.cameras.world_from_cam[oracle.numbers]
    without = path_scores(result.cameras.world_from_cam.double().numpy(), truth)["ate"]
    corrected = path_scores(cameras.world_from_cam.double().numpy(), truth)["ate"]
    assert corrected < 0.5 * without


def test_with_exact_answers_a_loop_is_exact_and_changes_nothing():
    oracle = Oracle(round_trip(180), clip_frames=24, step=2)
    result = track_long_video(oracle, oracle.video, NOBODY, 0, aspect=oracle.aspect)
    plan, geometry = result.plan, result.geometry
    last = len(plan) - 1
    loop = look_for_loop(oracle, oracle.video, plan, geometry, 0, last, 1.0, aspect=oracle.aspect)
    pose = oracle.scene.cameras.world_from_cam[oracle.numbers]
    expected = inverse(pose[0]) @ pose[plan.windows[last].start]
    np.testing.assert_allclose(loop.first_from_second, expected, atol=1e-5)
    assert loop.closed and loop.disagreement < 1e-5
    seams = [seam.window_from_next.numpy() for seam in result.seams]
    path = close_loops(seams, [Edge(0, last, loop.first_from_second.numpy())], distance=4.0)
    np.testing.assert_allclose(path.world_from_window, chain(result.seams), atol=1e-4)

    apart = look_for_loop(oracle, oracle.video, plan, geometry, 0, 2, 1.0, aspect=oracle.aspect)
    assert not apart.closed and apart.seen_back < 0.05, "the camera looks the other way there"


def test_a_loop_window_has_the_frames_it_asks_about_and_no_more_than_the_model_takes():
    for clip_frames, common in ((48, 16), (24, 8), (10, 3)):
        plan = WindowPlan(200, clip_frames, common)
        for first, second in ((0, len(plan) - 1), (1, 3)):
            frames = loop_frames(plan, first, second, clip_frames)
            assert len(frames) <= clip_frames and frames == sorted(set(frames))
            assert {plan.windows[first].start, plan.windows[second].start} <= set(frames)


def windows_on_a_circle(count: int, drift: float, growth: float = 1.01) -> tuple[np.ndarray, list[np.ndarray]]:
    """True places, and seams that turn too far by so many radians each, and grow."""
    places = np.tile(np.eye(4), (count, 1, 1))
    for number, place in enumerate(places):
        place[:3, :3] = Rotation.from_rotvec([0, 2 * np.pi * number / (count - 1), 0]).as_matrix()
        place[:3, 3] = place[:3, :3] @ [0, 0, 3] - [0, 0, 3]
    wrong = np.eye(4)
    wrong[:3, :3] = growth * Rotation.from_rotvec([0, drift, 0]).as_matrix()
    return places, [inverse(a) @ b @ wrong for a, b in itertools.pairwise(places)]


def errors(places: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(places[:, :3, 3] - truth[:, :3, 3], axis=1).max())


def test_the_pose_graph_spreads_what_a_loop_tells_over_all_seams():
    truth, seams = windows_on_a_circle(20, 0.02)
    loop = Edge(0, 19, truth[19])
    without, path = close_loops(seams, [], 4.0), close_loops(seams, [loop], 4.0)
    assert errors(path.world_from_window, truth) < 0.35 * errors(without.world_from_window, truth)
    assert path.after < 0.1 * path.before and (without.before, without.after) == (0.0, 0.0)
    scale = np.cbrt(np.linalg.det(path.world_from_window[-1][:3, :3]))
    assert scale == pytest.approx(1, abs=0.02)


def test_a_wrong_loop_among_right_ones_does_not_bend_the_world():
    truth, seams = windows_on_a_circle(20, 0.0, 1.0)
    right = [Edge(0, 19, truth[19]), Edge(1, 18, inverse(truth[1]) @ truth[18])]
    wrong = Edge(3, 14, np.eye(4))
    path = close_loops(seams, [*right, wrong], 4.0)
    assert np.linalg.norm(truth[3, :3, 3] - truth[14, :3, 3]) > 5, "metres, which the wrong one says are none"
    assert errors(path.world_from_window, truth) < 0.5 and path.after < 0.05


def test_windows_that_could_not_be_joined_have_no_places():
    _, seams = windows_on_a_circle(4, 0.0)
    seams[1] = np.full((4, 4), np.nan)
    with pytest.raises(ValueError, match="leave loops open"):
        close_loops(seams, [], 4.0)
