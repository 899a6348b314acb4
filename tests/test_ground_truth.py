"""Every answer of `ground_truth` against an analytic scene, where the true answer is known in closed form."""

import numpy as np
import pytest

from pipelines.catalog import DepthTolerance
from pipelines.geometry import inverse, project, rotate, transform
from pipelines.sequence import RigidInstances, Static, Tracks
from pipelines.sequence import Unknown as UnknownMotion
from pipelines.synthesize.scene import Scene
from pipelines.truth.depth_maps import OCCLUDED, OUT, VISIBLE
from pipelines.truth.ground_truth import GroundTruth
from pipelines.truth.queries import draw_queries, edge_map

FRAMES, WIDTH, HEIGHT = 6, 160, 112
INTRINSICS = np.array([[90.0, 0, 77.0], [0, 95.0, 60.0], [0, 0, 1]])  # nothing symmetric
EXACT = DepthTolerance(relative=0.01, absolute=0)


def scene(moving: bool, seed: int = 3) -> Scene:
    return Scene.random(seed, num_frames=FRAMES, width=WIDTH, height=HEIGHT, intrinsics=INTRINSICS, moving=moving)


def ground_truth(scene: Scene, motion, *, tolerance=EXACT, instances: bool = False) -> GroundTruth:
    frames = [scene.render(t, supersample=1) for t in range(FRAMES)]
    return GroundTruth(
        cameras=scene.cameras,
        depth=np.stack([frame.depth for frame in frames]).astype(np.float32),
        instance=np.stack([frame.instance for frame in frames]) if instances else None,
        motion=motion,
        tolerance=tolerance,
    )


@pytest.fixture(scope="module", params=["static", "rigid"])
def case(request) -> tuple[Scene, GroundTruth]:
    world = scene(moving=request.param == "rigid")
    motion = RigidInstances(world_from_instance=world.world_from_object) if request.param == "rigid" else Static()
    return world, ground_truth(world, motion, instances=request.param == "rigid")


def questions(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return rng.random((count, 2)) * [WIDTH, HEIGHT], *rng.integers(0, FRAMES, (3, count))


def near_silhouette(world: Scene, uv: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Whether depth jumps or the surface changes within a pixel and a half of uv."""
    there = world.trace(uv, t)
    jump = np.zeros(len(uv), bool)
    for offset in 1.5 * np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]):
        around = world.trace(uv + offset, t)
        jump |= (around.surface != there.surface) | ~(np.abs(around.depth - there.depth) < 0.1 * there.depth)
    return jump


def test_everything_valid_is_right(case):
    """xyz, uv, displacement and normal of random questions at sub-pixel positions, static and rigidly moving."""
    world, truth = case
    uv, t_src, t_tgt, t_cam = questions(20_000)
    points = truth.with_normals(truth.lift(uv, t_src))
    answer = truth.ask(points, t_tgt, t_cam)
    hits = world.trace(uv, t_src)
    there, then = world.position(hits, t_tgt), world.position(hits, t_src)
    cam_from_world = inverse(world.cameras.world_from_cam)
    true_xyz = transform(cam_from_world[t_cam], there)
    assert answer.xyz_valid.mean() > 0.75
    error = np.linalg.norm(answer.xyz - true_xyz, axis=1) / np.linalg.norm(true_xyz, axis=1)
    valid = answer.xyz_valid
    assert np.median(error[valid]) < 1e-4
    assert np.quantile(error[valid], 0.999) < 1e-2  # the tolerance: beyond it the surface was not smooth
    true_displacement = rotate(cam_from_world[t_cam], there - then)
    assert np.median(np.linalg.norm(answer.displacement - true_displacement, axis=1)[valid]) < 1e-3
    moves = np.append(False, world.moving)[hits.surface.clip(0)]
    np.testing.assert_array_equal(points.dynamic[valid], moves[valid])
    true_uv = project(transform(cam_from_world[t_tgt], there), world.cameras.intrinsics[t_tgt])
    assert np.quantile(np.linalg.norm(answer.uv_tgt - true_uv, axis=1)[answer.uv_valid], 0.99) < 0.5
    true_normal = rotate(cam_from_world[t_cam], world.normal(hits, t_tgt))
    cosine = (answer.normal * true_normal).sum(axis=1)[answer.normal_valid]
    assert answer.normal_valid.mean() > 0.5
    assert np.quantile(cosine, 0.01) > np.cos(np.radians(10)), "the worst hundredth of normals is within 10 degrees"


def test_visibility_is_right_away_from_silhouettes(case):
    world, truth = case
    uv, t_src, t_tgt, t_cam = questions(60_000, seed=1)
    points = truth.lift(uv, t_src)
    answer = truth.ask(points, t_tgt, t_cam)
    hits = world.trace(uv, t_src)
    true = world.visible(hits, t_tgt)
    known = answer.visible_valid & (t_src != t_tgt)
    clear = known & ~near_silhouette(world, uv, t_src)
    inside = answer.outcome != OUT
    clear[inside & known] &= ~near_silhouette(world, answer.uv_tgt[inside & known], t_tgt[inside & known])
    assert (answer.visible == true)[clear].mean() > 0.99
    assert known.mean() > 0.9 * answer.xyz_valid[t_src != t_tgt].mean() * (t_src != t_tgt).mean()
    # All outcomes occur, so that none is right for want of trying.
    for outcome, truly in ((OUT, False), (OCCLUDED, False), (VISIBLE, True)):
        chosen = clear & (answer.outcome == outcome)
        assert chosen.sum() > 50, f"outcome {outcome} hardly occurs"
        assert (true[chosen] == truly).mean() > 0.98


def test_point_moving_behind_the_camera_keeps_xyz_and_loses_uv(case):
    _, truth = case
    uv, t_src, t_tgt, t_cam = questions(20_000, seed=2)
    answer = truth.ask(truth.lift(uv, t_src), t_tgt, t_cam)
    out = answer.xyz_valid & (answer.outcome == OUT)
    assert out.any()
    assert not answer.uv_valid[out].any()
    assert answer.visible_valid[out].all() and not answer.visible[out].any()


def test_own_time_is_always_visible_at_its_own_place(case):
    _, truth = case
    uv, t_src, _, _ = questions(5000, seed=4)
    points = truth.lift(uv, t_src)
    answer = truth.ask(points, t_src, t_src)
    assert answer.visible[points.known].all()
    np.testing.assert_allclose(answer.uv_tgt[points.known], uv[points.known], atol=1e-6)
    np.testing.assert_allclose(answer.displacement[points.known], 0, atol=1e-12)


def test_missing_and_broken_depth_is_never_lifted():
    truth = ground_truth(scene(moving=False), Static())
    truth.maps.depth[:, :, :40] = np.nan
    truth.maps.depth[2, 50:60, 90:100] *= 0.5  # a hard edge all around
    uv, t_src, _, _ = questions(5000, seed=5)
    points = truth.lift(uv, t_src)
    assert not points.known[uv[:, 0] < 41].any()
    along_the_edge = np.stack([np.linspace(89.1, 90.9, 50), np.linspace(51, 59, 50)], axis=1)
    assert not truth.lift(along_the_edge, np.full(50, 2)).known.any()
    assert truth.lift(along_the_edge, np.full(50, 3)).known.any(), "without the edge they are surfaces"
    outside = truth.lift(np.array([[-1.0, 5], [WIDTH + 1, 5], [5, HEIGHT + 0.5]]), np.zeros(3, int))
    assert not outside.known.any()


def test_unannotated_motion_in_a_static_set_is_masked():
    """Where the target's depth looks through the point, something moved: no label at another time."""
    world = scene(moving=True)
    truth = ground_truth(world, Static())  # declared static, but it is not
    uv, t_src, t_tgt, t_cam = questions(20_000, seed=6)
    hits = world.trace(uv, t_src)
    mover = (hits.surface > 0) & np.append(False, world.moving)[hits.surface.clip(0)]
    answer = truth.ask(truth.lift(uv, t_src), t_tgt, t_cam)
    far = np.linalg.norm(world.position(hits, t_tgt) - world.position(hits, t_src), axis=1) > 0.5
    seen = mover & far & answer.xyz_valid & (answer.outcome == VISIBLE)
    assert (mover & far).sum() > 50
    assert seen.sum() < 0.1 * (mover & far).sum()


def test_unknown_motion_trusts_only_what_is_seen_again():
    truth = ground_truth(scene(moving=True), UnknownMotion())
    uv, t_src, t_tgt, t_cam = questions(5000, seed=7)
    answer = truth.ask(truth.lift(uv, t_src), t_tgt, t_cam)
    other = t_tgt != t_src
    assert (answer.outcome[other & answer.xyz_valid] == VISIBLE).all()
    assert answer.xyz_valid[other].any() and not answer.xyz_valid[other].all()


@pytest.mark.parametrize("seed", [5, 9])
def test_unknown_motion_gives_no_wrong_place_to_what_moves(seed):
    """Not even where another part of a mover takes the place of the one that was seen, at the same depth."""
    intrinsics = np.array([[77.0, 0, 64], [0, 77, 36], [0, 0, 1]])
    world = Scene.random(seed, num_frames=9, width=128, height=72, intrinsics=intrinsics, open_top=True)
    depth = np.stack([world.render(t, supersample=1).depth for t in range(9)]).astype(np.float32)
    depth[np.isinf(depth)] = np.nan
    truth = GroundTruth(cameras=world.cameras, depth=depth, instance=None, motion=UnknownMotion(), tolerance=EXACT)
    rng = np.random.default_rng(0)
    uv, (t_src, t_tgt) = rng.random((40_000, 2)) * [128, 72], rng.integers(0, 9, (2, 40_000))
    points, hits = truth.lift(uv, t_src), world.trace(uv, t_src)
    answer = truth.ask(points, t_tgt, t_tgt)
    there = transform(inverse(world.cameras.world_from_cam[t_tgt]), world.position(hits, t_tgt))
    right = np.linalg.norm(answer.xyz - there, axis=1) < 0.02 * np.linalg.norm(there, axis=1)
    moves = np.append(False, world.moving)[hits.surface.clip(0)] & points.known
    assert (moves & (t_tgt != t_src) & world.visible(hits, t_tgt)).sum() > 500
    assert right[moves & answer.xyz_valid].all()
    assert answer.xyz_valid[points.known & ~moves & world.visible(hits, t_tgt)].mean() > 0.98


def test_an_object_without_pose_is_known_at_its_own_time_only():
    world = scene(moving=True)
    pose = world.world_from_object.copy()
    pose[:, 3] = np.nan
    truth = ground_truth(world, RigidInstances(world_from_instance=pose), instances=True)
    uv, t_src, _, t_cam = questions(20_000, seed=8)
    points = truth.lift(uv, t_src)
    on_object = points.known & (points.instance >= 0)
    then = truth.ask(points, np.full(len(uv), 3), t_cam)
    now = truth.ask(points, t_src, t_cam)
    assert not then.xyz_valid[on_object & (t_src != 3)].any()
    assert now.xyz_valid[on_object].all()
    assert then.xyz_valid[points.known & (points.instance < 0)].mean() > 0.9


def tracked(world: Scene, count: int = 3000) -> tuple[Tracks, np.ndarray]:
    """Points traced from random pixels and followed exactly."""
    uv, t, _, _ = questions(count, seed=9)
    hits = world.trace(uv, t)
    path = np.stack([world.position(hits, np.full(count, k)) for k in range(FRAMES)], axis=1)
    visible = np.stack([world.visible(hits, np.full(count, k)) for k in range(FRAMES)], axis=1)
    return Tracks(xyz_world=path.astype(np.float32), visible=visible), np.append(False, world.moving)[hits.surface]


def test_tracks_are_followed_and_other_pixels_stay_at_their_time():
    world = scene(moving=True)
    tracks, moving = tracked(world)
    truth = ground_truth(world, tracks)
    rng = np.random.default_rng(0)
    track, t_src = np.nonzero(tracks.visible)
    points = truth.with_normals(truth.lift_tracks(track, t_src))
    assert points.known.mean() > 0.9
    t_tgt, t_cam = rng.integers(0, FRAMES, (2, len(track)))
    answer = truth.ask(points, t_tgt, t_cam)
    true_xyz = transform(inverse(world.cameras.world_from_cam)[t_cam], tracks.xyz_world[track, t_tgt].astype(float))
    np.testing.assert_allclose(answer.xyz[answer.xyz_valid], true_xyz[answer.xyz_valid], atol=1e-4)
    clear = answer.visible_valid & (answer.outcome != OUT)
    clear[clear] &= ~near_silhouette(world, answer.uv_tgt[clear], t_tgt[clear])
    assert (answer.visible == tracks.visible[track, t_tgt])[clear].mean() > 0.99
    np.testing.assert_array_equal(points.dynamic[points.known], moving[track][points.known])
    assert not answer.normal_valid[points.dynamic & (t_tgt != t_src)].any(), "how a tracked surface turns is unknown"
    pixels = truth.lift(*questions(1000)[:2])
    elsewhere = truth.ask(pixels, (pixels.t_src + 1) % FRAMES, pixels.t_src)
    assert not elsewhere.xyz_valid.any() and not truth.followed(pixels).any()


def test_beside_tracks_a_background_that_is_known_to_stand_still_is_known_at_all_times():
    world = scene(moving=True)
    tracks, _ = tracked(world)
    truth = ground_truth(world, tracks, instances=True)
    uv, t_src, t_tgt, t_cam = questions(20_000)
    pixels = truth.lift(uv, t_src)
    hits = world.trace(uv, t_src)
    known = pixels.known & ~near_silhouette(world, uv, t_src)
    np.testing.assert_array_equal(truth.followed(pixels)[known], (hits.surface == 0)[known])
    answer = truth.ask(pixels, t_tgt, t_cam)
    assert answer.xyz_valid[known & (hits.surface == 0)].mean() > 0.95
    assert not answer.xyz_valid[known & (hits.surface > 0) & (t_src != t_tgt)].any()
    true_xyz = transform(inverse(world.cameras.world_from_cam)[t_cam], world.position(hits, t_tgt))
    right = answer.xyz_valid & known
    np.testing.assert_allclose(answer.xyz[right], true_xyz[right], rtol=0.01, atol=0.01)
    clear = right & answer.visible_valid & (answer.outcome != OUT)
    clear[clear] &= ~near_silhouette(world, answer.uv_tgt[clear], t_tgt[clear])
    assert (answer.visible == world.visible(hits, t_tgt))[clear].mean() > 0.99


def test_a_hidden_or_unannotated_track_is_no_source():
    world = scene(moving=True)
    tracks, _ = tracked(world)
    tracks.xyz_world[0] = np.nan
    tracks.visible[1] = False
    truth = ground_truth(world, tracks)
    every = np.arange(FRAMES)
    assert not truth.lift_tracks(np.zeros(FRAMES, int), every).known.any()
    assert not truth.lift_tracks(np.ones(FRAMES, int), every).known.any()


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_samples_follow_the_papers_distribution(case):
    _, truth = case
    rows = draw_queries(truth, lambda *pixels: None, np.random.default_rng(0), samples=4, queries=2048, image_size=64)
    assert rows.shape == (4, 2048)
    assert (rows["valid"] & 1 > 0).mean() > 0.9
    same = (rows["t_tgt"] == rows["t_cam"]).mean()
    assert abs(same - (0.4 + 0.6 / FRAMES)) < 0.02
    for field in ("t_src", "t_tgt", "t_cam"):
        share = np.bincount(rows[field].ravel(), minlength=FRAMES) / rows.size
        np.testing.assert_allclose(share, 1 / FRAMES, atol=0.02)
    edge = (rows["flags"] & 1 > 0).mean()
    uniform = np.mean([edge_map(frame, None, 64).mean() for frame in truth.maps.depth])
    assert edge > 0.3 + 0.5 * uniform * 0.7
    assert ((rows["uv_norm"] >= 0) & (rows["uv_norm"] <= 1)).all()
    offset = (rows["uv_norm"] * [WIDTH, HEIGHT]) % 1
    assert abs(offset.mean() - 0.5) < 0.02 and offset.std() > 0.25, "positions are sub-pixel"
    known_uv = rows["valid"] & 2 > 0
    assert ((rows["uv_tgt"][known_uv] >= 0) & (rows["uv_tgt"][known_uv] <= 1)).all()


def test_samples_are_a_function_of_the_seed():
    truth = ground_truth(scene(moving=False), Static())
    draw = [
        draw_queries(truth, lambda *pixels: None, np.random.default_rng(seed), samples=1, queries=256, image_size=64)
        for seed in (5, 5, 6)
    ]
    assert (draw[0] == draw[1]).all() and not (draw[0] == draw[2]).all()


def test_depth_of_one_pixel_in_twenty_is_enough():
    """As where only the object of a photographer's walk has any."""
    truth = ground_truth(scene(moving=False), Static())
    truth.maps.depth[:, :, : WIDTH - WIDTH // 20] = np.nan
    rows = draw_queries(truth, lambda *pixels: None, np.random.default_rng(0), samples=2, queries=1024, image_size=64)
    assert (rows["uv_norm"][..., 0] > 0.94).all() and (rows["valid"] & 1 > 0).mean() > 0.9


def test_too_little_depth_is_an_error():
    truth = ground_truth(scene(moving=False), Static())
    truth.maps.depth[:] = np.nan
    with pytest.raises(ValueError, match="known surface"):
        draw_queries(truth, lambda *pixels: None, np.random.default_rng(0), samples=1, queries=64, image_size=32)


def test_edges_lie_at_the_step_and_nowhere_else():
    depth = np.full((64, 64), 2.0, np.float32)
    depth[:, 32:] = 5.0
    depth[:8] = np.nan
    edge = edge_map(depth, None, 64)
    assert edge[20:60, 31:33].all()
    assert not edge[:, :27].any() and not edge[:, 37:].any() and not edge[:8].any()
    ids = np.full((64, 64), -1, np.int32)
    ids[30:40, 5:15] = 4
    assert edge_map(depth, ids, 64)[30:40, 4:6].all()
