"""Recipes that ask about all pixels, and those that ask beside a pixel or beyond the video, with exact answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Faults, Oracle

from model import D4RT, ModelConfig, Queries, recipes
from model.recipes import plan_windows
from model.recipes.dense_following import follow_all, join_all
from model.recipes.following import ABSENT, FOLLOWED
from model.recipes.joining import chain, join, look
from pipelines.geometry import inverse, transform
from pipelines.synthesize.staged import hidden_balls, round_trip

HEIGHT, WIDTH, FRAMES = 12, 16, 24


@pytest.fixture(scope="module")
def balls() -> Oracle:
    return Oracle(hidden_balls(FRAMES), clip_frames=FRAMES)


@pytest.fixture(scope="module")
def tour() -> Oracle:
    """A camera that turns and travels through a room in which nothing moves."""
    return Oracle(round_trip(FRAMES), clip_frames=FRAMES)


def exact(oracle: Oracle, uv_norm: np.ndarray, t_src: np.ndarray, t_tgt: int, t_cam: int) -> np.ndarray:
    hits = oracle.hits(uv_norm, t_src)
    world = oracle.scene.position(hits, np.full(len(hits.surface), t_tgt))
    return transform(inverse(oracle.scene.cameras.world_from_cam)[t_cam], world)


# ---- tracks of all pixels ----


def test_all_tracks_pass_through_every_pixel_and_are_those_of_their_points(balls):
    balls.asked = 0
    found = recipes.all_tracks(balls, balls.video, height=HEIGHT, width=WIDTH, t_cam=3)
    assert found.visited == 1 and found.queries == balls.asked == len(found.points) * FRAMES
    assert found.queries <= FRAMES * FRAMES * HEIGHT * WIDTH / 5, "a fifth of one track per pixel at the most"

    for t in (0, 11, FRAMES - 1):
        expected = exact(balls, found.points.numpy(), found.t_src.numpy(), t, 3)
        torch.testing.assert_close(found.xyz[:, t], torch.tensor(expected, dtype=torch.float32))
    seen = torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    for n, t in found.visible.nonzero().tolist():
        u, v = found.uv_norm[n, t].tolist()
        if 0 <= u < 1 and 0 <= v < 1:
            seen[t, int(v * HEIGHT), int(u * WIDTH)] = True
    own = (found.points * torch.tensor([WIDTH, HEIGHT])).long()
    seen[found.t_src, own[:, 1], own[:, 0]] = True
    assert seen.all()


@pytest.mark.parametrize("fault", ["hidden", "elsewhere", "nan"])
def test_all_tracks_end_whatever_the_model_answers(balls, fault):
    class Liar(Oracle):
        def decode_times(self, *args, **options):
            answers = super().decode_times(*args, **options)
            if fault == "hidden":
                return replace(answers, visible_logit=torch.full_like(answers.visible_logit, -9))
            wrong = 7.0 if fault == "elsewhere" else torch.nan
            return replace(answers, uv_tgt=torch.full_like(answers.uv_tgt, wrong))

    found = recipes.all_tracks(Liar(balls.scene, clip_frames=3), balls.video[:3], height=4, width=5)
    assert found.visited == 1 and len(found.points) == 3 * 4 * 5
    seeds = torch.cat([found.points, found.t_src[:, None]], dim=1)
    assert len(seeds.unique(dim=0)) == 60, "none twice"


def test_a_budget_of_queries_is_kept_and_what_is_left_is_told(balls):
    found = recipes.all_tracks(balls, balls.video, height=HEIGHT, width=WIDTH, most_queries=100 * FRAMES + 5)
    assert found.queries == 100 * FRAMES and 0 < found.visited < 1
    with pytest.raises(ValueError, match=r"most_queries \(23\) must be at least 24"):
        recipes.all_tracks(balls, balls.video, height=HEIGHT, width=WIDTH, most_queries=23)


def test_pixel_tracks_are_those_of_one_frame_both_ways(balls):
    found = recipes.pixel_tracks(balls, balls.video, t_src=9, height=HEIGHT, width=WIDTH, t_cam=9)
    centres = recipes.pixel_centres(HEIGHT, WIDTH).numpy()
    for t in (0, 9, FRAMES - 1):
        expected = exact(balls, centres, np.full(len(centres), 9), t, 9)
        torch.testing.assert_close(found.xyz[:, t], torch.tensor(expected, dtype=torch.float32))
    assert found.xyz.view(HEIGHT, WIDTH, FRAMES, 3).shape[-1] == 3


# ---- scene flow ----


@pytest.mark.parametrize("t_cam", ["source", "target", 5])
def test_a_scene_at_rest_has_no_flow_under_a_moving_camera(tour, t_cam):
    found = recipes.scene_flow(tour, tour.video, height=HEIGHT, width=WIDTH, t_cam=t_cam)
    assert found.flow.shape == (FRAMES - 1, HEIGHT, WIDTH, 3)
    assert found.flow.abs().max() < 1e-5
    assert not found.visible.all(), "some of it leaves the view"


def test_flow_is_how_far_the_ball_moved(balls):
    found = recipes.scene_flow(balls, balls.video, height=HEIGHT, width=WIDTH)
    centres = recipes.pixel_centres(HEIGHT, WIDTH).numpy()
    moving = 0
    for t in (0, 10, FRAMES - 2):
        source = np.full(len(centres), t)
        expected = exact(balls, centres, source, t + 1, t) - exact(balls, centres, source, t, t)
        torch.testing.assert_close(
            found.flow[t].flatten(0, 1), torch.tensor(expected, dtype=torch.float32), atol=2e-6, rtol=1e-4
        )
        moving += (np.linalg.norm(expected, axis=1) > 0.01).sum()
    assert moving > 5
    with pytest.raises(ValueError, match="the video has one"):
        recipes.scene_flow(balls, balls.video[:1], height=4, width=4)


# ---- cameras of a long way ----


def test_keyframes_carry_a_path_round_where_nothing_of_the_beginning_is_in_view():
    """Half a turn in 80 frames. With noise a chain of all frames gathers more error than one of keyframes."""
    scene = round_trip(80)
    true = np.linalg.inv(scene.cameras.world_from_cam[0]) @ scene.cameras.world_from_cam
    exact_answers = Oracle(scene, clip_frames=80)
    path = recipes.cameras(exact_answers, exact_answers.video)
    np.testing.assert_allclose(path.world_from_cam, true, atol=1e-4)

    noisy = Oracle(scene, Faults(noise=0.02), clip_frames=80)
    errors = {}
    for reference in ("keyframes", "sliding"):
        found = recipes.cameras(noisy, noisy.video, reference=reference).world_from_cam.numpy()
        errors[reference] = np.linalg.norm(found[:, :3, 3] - true[:, :3, 3], axis=1)[-10:].mean()
    assert errors["keyframes"] < 0.7 * errors["sliding"]


def test_one_reference_for_all_frames_is_worse_where_nothing_of_it_is_left_in_view():
    """A model guesses where points are that a camera does not see; OpenD4RT's global reference asks for little else."""
    scene = round_trip(80)
    true = np.linalg.inv(scene.cameras.world_from_cam[0]) @ scene.cameras.world_from_cam
    guessing = Oracle(scene, Faults(noise=0.01, unseen=0.2), clip_frames=80)
    errors = {}
    for reference in ("keyframes", "sliding", 0):
        found = recipes.cameras(guessing, guessing.video, reference=reference).world_from_cam.numpy()
        errors[reference] = np.linalg.norm(found[:, :3, 3] - true[:, :3, 3], axis=1)[-40:].mean()
    assert errors["keyframes"] < 0.5 * errors[0] and errors["sliding"] < errors[0]


# ---- depth, one native frame at a time ----


def test_patches_from_one_native_frame_give_what_all_of_them_give():
    torch.manual_seed(0)
    model = D4RT(ModelConfig.preset("tiny"))
    video = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    native = torch.randint(0, 256, (3, 48, 96, 3), dtype=torch.uint8)
    memory = model.encode(video[None], torch.tensor([2.0]))
    uv_norm = recipes.pixel_centres(10, 20)
    maps = recipes.depth(model, video, height=10, width=20, memory=memory, native=native)
    for t in range(3):
        now = torch.full((1, 200), t)
        with torch.inference_mode():
            answers = model.decode(memory, Queries(uv_norm[None], now, now, now), patch_video=native[None])
        z = answers.xyz[0, :, 2]
        torch.testing.assert_close(maps.depth[t].flatten(), torch.where(z > 0, z, torch.nan), equal_nan=True)
        torch.testing.assert_close(maps.normal[t].flatten(0, 1), answers.normal[0])
    plain = recipes.depth(model, video, height=10, width=20, memory=memory)
    assert not torch.equal(plain.normal, maps.normal), "the patches make a difference, or this test shows nothing"
    at = recipes.depth_at(model, memory, uv_norm[:50], 1, native=native)
    torch.testing.assert_close(at, maps.depth[1].flatten()[:50], equal_nan=True)


def test_normals_and_depth_are_those_of_the_surface(balls):
    maps = recipes.depth(balls, balls.video[:4], height=HEIGHT, width=WIDTH)
    centres = recipes.pixel_centres(HEIGHT, WIDTH).numpy()
    for t in range(4):
        expected = exact(balls, centres, np.full(len(centres), t), t, t)
        torch.testing.assert_close(maps.depth[t].flatten(), torch.tensor(expected[:, 2], dtype=torch.float32))
    torch.testing.assert_close(maps.normal.norm(dim=-1), torch.ones(4, HEIGHT, WIDTH))


# ---- uncertainty, and what comes after the video ----


def test_the_spread_beside_a_pixel_is_what_the_pixel_spans_and_more_at_edges(balls):
    """On a plane that faces the camera, answers asked evenly from a pixel have the spread of an even distribution: of
    width w in one direction its variance is w^2 / 12."""
    memory = balls.encode(balls.video[None, :2], torch.tensor([balls.aspect]))
    scene = balls.scene
    centres = recipes.pixel_centres(HEIGHT, WIDTH)
    now = torch.zeros(1, len(centres), dtype=torch.int64)
    queries = Queries(centres[None], now, now, now)
    found = recipes.jitter(balls, memory, queries, height=HEIGHT, width=WIDTH, times=64)[0]
    xyz = balls.decode(memory, queries).xyz[0]
    normal = balls.decode(memory, queries).normal[0]
    facing = normal[:, 2] < -0.98
    focal = scene.cameras.intrinsics[0, 0, 0] / scene.width
    span = xyz[:, 2] / focal / WIDTH  # of a pixel, in metres, square
    expected = span * (2 / 12) ** 0.5
    ratio = (found / expected)[facing]
    assert facing.sum() > 10 and 0.9 < ratio.median() < 1.1
    assert found.max() > 5 * expected.median(), "an edge"
    with pytest.raises(ValueError, match="times"):
        recipes.jitter(balls, memory, queries, height=HEIGHT, width=WIDTH, times=1)


def test_extrapolation_goes_on_in_a_straight_line_from_what_was_seen():
    start, step = (
        torch.tensor([[0.0, 1, 4], [1, 0, 5], [2, 2, 2]]),
        torch.tensor([[0.1, 0, -0.2], [0, 0, 0], [1, 1, 1]]),
    )
    t = torch.arange(10.0)[None, :, None]
    xyz = start[:, None] + t * step[:, None]
    xyz[0, 8:] = 99.0  # nonsense where it is hidden
    visible = torch.ones(3, 10, dtype=torch.bool)
    visible[0, 8:] = False
    visible[2] = torch.arange(10) == 4
    tracks = recipes.Tracks(xyz, torch.zeros(3, 10, 2), visible, torch.ones(3, 10), t_cam=0)
    found = recipes.extrapolate(tracks, 3)
    ahead = torch.tensor([10.0, 11, 12])[None, :, None]
    torch.testing.assert_close(found.xyz[:2], (start[:2, None] + ahead * step[:2, None]))
    torch.testing.assert_close(found.velocity[:2], step[:2])
    assert found.xyz[2].isnan().all(), "seen once: no velocity"
    assert found.last_seen.tolist() == [7, 9, 4]
    with pytest.raises(ValueError, match="one camera"):
        recipes.extrapolate(replace(tracks, t_cam="target"), 3)


def test_noise_of_the_answers_shows_in_the_spread(balls):
    noisy = Oracle(balls.scene, Faults(noise=0.05), clip_frames=FRAMES)
    memory = noisy.encode(balls.video[None, :2], torch.tensor([balls.aspect]))
    centres = recipes.pixel_centres(HEIGHT, WIDTH)
    now = torch.zeros(1, len(centres), dtype=torch.int64)
    queries = Queries(centres[None], now, now, now)
    found = recipes.jitter(noisy, memory, queries, height=4096, width=4096, times=64)[0]
    depth = noisy.decode(memory, queries).xyz[0, :, 2]
    assert 0.9 < (found / (0.05 * depth * 3**0.5)).median() < 1.1


# ---- all pixels of a long video ----


def test_all_pixels_of_a_long_video_are_one_track_each_through_all_windows():
    """Windows of another unit and pose each. Every pixel of every frame is passed by a track that is where it is."""
    oracle = Oracle(hidden_balls(56, width=32, height=24), Faults(scale=0.1, turn=0.02, shift=0.05), clip_frames=16)
    plan = plan_windows(28, 16)
    oracle.step = 2
    before, begun, followed, geometry, seams = None, [], [], [], []
    for number in range(len(plan)):
        geometry.append(look(oracle, oracle.video, plan, number, aspect=oracle.aspect))
        seams += [join(*geometry[-2:])] if number else []
        size = {"height": 12, "width": 16, "aspect": oracle.aspect}
        before = follow_all(oracle, oracle.video, plan, number, before=before, seam=(seams or [None])[-1], **size)
        begun.append(before[0])
        followed.append(before[1])
    tracks = join_all(plan, chain(seams), begun[-1], followed)
    points, t_src = begun[-1].points, begun[-1].t_src
    assert len(points) < 28 * 12 * 16 / 5, "a fifth of one track per pixel at the most"

    seen = torch.zeros(28, 12, 16, dtype=torch.bool)
    for n, t in tracks.visible.nonzero().tolist():
        u, v = tracks.uv_norm[n, t].tolist()
        if 0 <= u < 1 and 0 <= v < 1:
            seen[t, int(v * 12), int(u * 16)] = True
    own = (points * torch.tensor([16, 12])).long()
    seen[t_src, own[:, 1], own[:, 0]] = True
    assert seen.all()

    hits = oracle.hits(points.numpy(), oracle.numbers[t_src])
    world = oracle.similarity(oracle.numbers[list(plan.windows[0])]) @ inverse(oracle.scene.cameras.world_from_cam)[0]
    for t in (0, 13, 27):
        known = tracks.xyz[:, t].isfinite().all(-1).numpy()
        expected = transform(world, oracle.scene.position(hits, np.full(len(points), oracle.numbers[t])))
        np.testing.assert_allclose(tracks.xyz[:, t].numpy()[known], expected[known], atol=1e-4)
    begins_later = plan.owner[t_src] > 0
    assert (tracks.status[begins_later, 0] == ABSENT).all() and begins_later.any()
    assert (tracks.status[~begins_later, -1] == FOLLOWED).float().mean() > 0.5
