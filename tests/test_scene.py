"""The analytic scene is the truth for everything else, so it is measured against geometry itself."""

import numpy as np
import pytest

from pipelines.synthesize.scene import Scene
from pipelines.synthesize.surfaces import Sphere

WIDTH, HEIGHT, FRAMES = 80, 64, 6
INTRINSICS = np.array([[60.0, 0, 43], [0, 57, 29], [0, 0, 1]])


def make(seed: int, **kwargs) -> Scene:
    options = {"num_frames": FRAMES, "width": WIDTH, "height": HEIGHT, "intrinsics": INTRINSICS}
    return Scene.random(seed, **(options | kwargs))


@pytest.fixture(scope="module", params=[0, 1, 2])
def scene(request) -> Scene:
    return make(request.param, open_top=request.param == 1)


@pytest.fixture(scope="module")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0, [WIDTH, HEIGHT], (3000, 2)), rng.integers(0, FRAMES, 3000)


def pinhole(scene: Scene, xyz_world: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(uv, z) by the textbook."""
    pose = scene.cameras.world_from_cam[t]
    xyz_cam = np.einsum("nji,nj->ni", pose[:, :3, :3], xyz_world - pose[:, :3, 3])
    homogeneous = np.einsum("nij,nj->ni", scene.cameras.intrinsics[t], xyz_cam)
    return homogeneous[:, :2] / homogeneous[:, 2:], xyz_cam[:, 2]


def met(scene: Scene, uv: np.ndarray, t: np.ndarray):
    hits = scene.trace(uv, t)
    found = hits.surface >= 0
    return hits[found], uv[found], t[found]


def test_a_traced_point_projects_back_to_its_pixel_and_depth(scene, pixels):
    hits, uv, t = met(scene, *pixels)
    assert len(uv) > 1000
    projected, z = pinhole(scene, scene.position(hits, t), t)
    np.testing.assert_allclose(projected, uv, atol=1e-9)
    np.testing.assert_allclose(z, hits.depth, rtol=1e-12)


def test_rendered_truth_is_that_of_the_pixel_centres(scene):
    frame = scene.render(3)
    row, column = np.indices((HEIGHT, WIDTH)).reshape(2, -1)
    t = np.full(len(row), 3)
    hits = scene.trace(np.stack([column + 0.5, row + 0.5], axis=1), t)
    np.testing.assert_array_equal(frame.depth.ravel(), hits.depth)
    np.testing.assert_array_equal(frame.instance.ravel(), np.where(hits.surface > 0, hits.surface - 1, -1))
    normal_cam = np.einsum("ji,nj->ni", scene.cameras.world_from_cam[3, :3, :3], scene.normal(hits, t))
    np.testing.assert_allclose(frame.normal.reshape(-1, 3), normal_cam, atol=1e-12)


def test_normals_agree_with_the_depth_around_them(scene):
    """Three rays close together span the tangent plane."""
    rng = np.random.default_rng(1)
    uv, t = rng.uniform(1, [WIDTH - 1, HEIGHT - 1], (2000, 2)), rng.integers(0, FRAMES, 2000)
    hits = [scene.trace(uv + step, t) for step in ([0, 0], [1e-5, 0], [0, 1e-5])]
    one_face = np.all([(h.surface == hits[0].surface) & (h.face == hits[0].face) for h in hits], axis=0)
    same = one_face & (hits[0].surface >= 0)
    origin, right, below = (scene.position(h[same], t[same]) for h in hits)
    normal = np.cross(below - origin, right - origin)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    np.testing.assert_allclose(scene.normal(hits[0], t)[same], normal, atol=1e-3)
    to_camera = scene.cameras.world_from_cam[t[same], :3, 3] - origin
    assert ((to_camera * normal).sum(axis=1) > 0).all()


def test_points_stay_on_their_solids_at_all_times(scene, pixels):
    hits, _, _ = met(scene, *pixels)
    later = np.random.default_rng(2).integers(0, FRAMES, len(hits.surface))
    xyz = scene.position(hits, later)
    for k, solid in enumerate(scene.solids):
        on_it = hits.surface == k
        if k == 0:
            width, height, depth = solid.size
            gaps = np.abs(xyz[on_it] - [0, -height / 2, 0]) - np.array([width, height, depth]) / 2
        elif isinstance(solid, Sphere):
            radius = solid.size[0] / 2
            pose = scene.world_from_object[k - 1, later[on_it]]
            centre = pose[:, :3, 3] + pose[:, :3, :3] @ [0, -radius, 0]
            gaps = np.linalg.norm(xyz[on_it] - centre, axis=1, keepdims=True) - radius
            np.testing.assert_allclose(centre[:, 1], -radius, atol=1e-9)  # it touches the floor
        else:
            pose = scene.world_from_object[k - 1, later[on_it]]
            local = np.einsum("nji,nj->ni", pose[:, :3, :3], xyz[on_it] - pose[:, :3, 3])
            gaps = np.abs(local - [0, -solid.size[1] / 2, 0]) - np.array(solid.size) / 2
        np.testing.assert_allclose(gaps.max(axis=1, initial=-1), 0, atol=1e-9)


def test_visible_points_are_the_first_on_their_ray_and_hidden_ones_are_not(scene, pixels):
    hits, _, _ = met(scene, *pixels)
    later = np.random.default_rng(3).integers(0, FRAMES, len(hits.surface))
    visible = scene.visible(hits, later)
    uv, z = pinhole(scene, scene.position(hits, later), later)
    inside = (z > 0) & (uv >= 0).all(axis=1) & (uv[:, 0] < WIDTH) & (uv[:, 1] < HEIGHT)
    assert not (visible & ~inside).any()
    seen = scene.trace(np.where(inside[:, None], uv, 0), later)
    np.testing.assert_allclose(seen.depth[visible], z[visible], rtol=1e-6)
    np.testing.assert_array_equal(seen.surface[visible], hits.surface[visible])
    hidden = inside & ~visible
    assert hidden.sum() > 20, "the scene must have real occlusion"
    assert (seen.depth[hidden] < z[hidden] * (1 - 1e-6)).all()


def test_every_traced_point_is_visible_in_its_own_frame(scene, pixels):
    hits, _, t = met(scene, *pixels)
    assert scene.visible(hits, t).all()


def test_movers_move_and_turn_and_nothing_else_does():
    for seed in range(10):
        scene = make(seed)
        steps = scene.world_from_object[:, 1:] - scene.world_from_object[:, :-1]
        assert scene.moving[:2].all() and not scene.moving.all()
        assert (np.linalg.norm(steps[scene.moving, :, :3, 3], axis=-1) > 0.1).all()
        assert (np.abs(steps[scene.moving, :, :3, :3]).max(axis=(2, 3)) > 0.05).all()
        assert (steps[~scene.moving] == 0).all()
        still = make(seed, moving=False)
        assert not still.moving.any()
        assert (np.linalg.norm(np.diff(still.cameras.world_from_cam[:, :3, 3], axis=0), axis=1) > 0.1).all()


def test_only_a_sphere_tumbles_and_only_in_long_sequences():
    for num_frames in (6, 8):
        upright = make(4, num_frames=num_frames).world_from_object[
            :, :, 1, 1
        ]  # cosine between its down and the world's
        tilted = (upright < 1 - 1e-9).any(axis=1)
        assert tilted.tolist() == [False, num_frames == 8] + [False] * (len(tilted) - 2)


@pytest.mark.parametrize("num_frames", [1, 4, 40])
def test_camera_and_objects_keep_clear_of_each_other_and_the_room(num_frames):
    for seed in range(50):
        scene = make(seed, num_frames=num_frames)
        half = np.array(scene.solids[0].size)[[0, 2]] / 2
        height = scene.solids[0].size[1]
        camera = scene.cameras.world_from_cam[:, :3, 3]
        assert (np.abs(camera[:, [0, 2]]) < half - 0.5).all()
        assert ((-camera[:, 1] > 1) & (-camera[:, 1] < min(2, height))).all()
        corners = np.indices((2, 2, 2)).reshape(3, 8).T - [0.5, 1, 0.5]
        centres = []
        for pose, solid in zip(scene.world_from_object, scene.solids[1:], strict=True):
            local = np.array([[0, -solid.size[1] / 2, 0]]) if isinstance(solid, Sphere) else corners * solid.size
            xyz = np.einsum("tij,pj->tpi", pose[:, :3, :3], local) + pose[:, None, :3, 3]
            radius = solid.size[0] / 2 if isinstance(solid, Sphere) else 0
            assert (np.abs(xyz[..., [0, 2]]) + radius < half).all()
            distance = np.linalg.norm((xyz - camera[:, None])[..., [0, 2]], axis=-1) - radius
            assert (distance > 0.6).all()
            centres.append(
                (xyz.mean(axis=1)[:, [0, 2]], max(np.hypot(*(xyz - xyz.mean(1, keepdims=True))[0, 0, [0, 2]]), radius))
            )
        for i, (a, reach_a) in enumerate(centres):
            assert all((np.linalg.norm(a - b, axis=1) > reach_a + reach_b).all() for b, reach_b in centres[:i])


def test_objects_are_in_view():
    shares = [[(make(seed).render(t).instance >= 0).mean() for t in (0, 3, 5)] for seed in range(10)]
    assert np.mean(shares) > 0.05 and np.min(np.max(shares, axis=1)) > 0.02


def test_sky_is_infinitely_far_and_only_above_an_open_room():
    under_sky, under_roof = make(5, open_top=True).render(0), make(5).render(0)
    sky = ~np.isfinite(under_sky.depth)
    assert sky.any() and np.isfinite(under_roof.depth).all()
    assert (under_sky.instance[sky] == -1).all() and np.isnan(under_sky.normal[sky]).all()
    np.testing.assert_array_equal(under_sky.depth[~sky], under_roof.depth[~sky])


def test_every_surface_is_textured_and_looks_different(scene):
    frame = scene.render(0)
    colours = []
    for label in np.unique(frame.instance):
        inner = frame.image[frame.instance == label].astype(float)
        if len(inner) >= 30:
            assert inner.std(axis=0).max() > 5
            colours.append(inner.mean(axis=0))
    distances = np.linalg.norm(np.array(colours)[:, None] - colours, axis=-1)
    assert distances[~np.eye(len(colours), dtype=bool)].min() > 5


def test_texture_moves_with_its_surface():
    """Frame 1, sampled where the points of frame 0 went, resembles frame 0 far more than unmoved pixels do."""
    scene = make(6, width=160, height=128, intrinsics=INTRINSICS * [[2], [2], [1]])
    first, second = scene.render(0), scene.render(1)
    row, column = np.indices(first.depth.shape).reshape(2, -1)
    hits = scene.trace(np.stack([column + 0.5, row + 0.5], axis=1), np.zeros(len(row), int))
    ones = np.ones(len(row), int)
    for moved in (hits.surface == 0, hits.surface > 0):
        rows = np.flatnonzero(moved & scene.visible(hits, ones))
        uv, _ = pinhole(scene, scene.position(hits[rows], ones[rows]), ones[rows])
        before = first.image[row[rows], column[rows]].astype(float)
        after = second.image[np.floor(uv[:, 1]).astype(int), np.floor(uv[:, 0]).astype(int)]
        unmoved = second.image[row[rows], column[rows]]
        assert np.median(np.abs(after - before)) < 0.5 * np.median(np.abs(unmoved - before))


def test_scenes_are_deterministic_and_differ_by_seed():
    a, b, other = make(7).render(2), make(7).render(2), make(8).render(2)
    assert (a.image == b.image).all() and (a.depth == b.depth).all()
    assert not (a.image == other.image).all(axis=2).mean() > 0.1


def test_a_view_too_narrow_for_any_object_is_refused():
    with pytest.raises(ValueError, match="shorter focal length"):
        make(0, intrinsics=np.array([[1e5, 0, 40], [0, 1e5, 32], [0, 0, 1]]))
