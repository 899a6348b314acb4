"""The recipes, asked of a model that cannot be wrong: it answers every query from a scene known in closed form.

A plane is at rest, a ball flies past it, and the camera turns, travels and zooms. So every result has one right value,
and the recipes must find it: a recipe that confuses two of the three times of a query, two frames of reference or two
pixel conventions fails here.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from model import D4RT, ModelConfig, Prediction, Queries, recipes
from model.recipes.intrinsics import focal_lengths

FRAMES, SIZE, RAW_WIDTH, RAW_HEIGHT = 6, 64, 96, 48
PLANE_NORMAL = torch.tensor([0.1, -0.2, 1.0], dtype=torch.float64)
PLANE_OFFSET = 5.0
BALL_START = torch.tensor([-0.2, 0.1, 3.0], dtype=torch.float64)
BALL_STEP = torch.tensor([0.15, -0.1, 0.1], dtype=torch.float64)
BALL_RADIUS = 0.8


def turn(degrees: float, axis: int) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    a, b = (axis + 1) % 3, (axis + 2) % 3
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[a, a], rotation[b, b], rotation[a, b], rotation[b, a] = angle.cos(), angle.cos(), -angle.sin(), angle.sin()
    return rotation


def camera_path() -> Tensor:
    path = torch.eye(4, dtype=torch.float64).repeat(FRAMES, 1, 1)
    for t in range(FRAMES):
        path[t, :3, :3] = turn(10 + 4 * t, axis=1) @ turn(3 * t - 5, axis=0) @ turn(7 * t, axis=2)
        path[t, :3, 3] = torch.tensor([0.2 * t - 0.5, 0.1 * t * t, -0.1 * t])
    return path


@dataclass
class Scene:
    """Stands in for `D4RT`: the same encode, decode and decode_times; every answer exact."""

    world_from_cam: Tensor
    focal: Tensor  # (T, 2), in units of the raw width and height
    wrong_share: float = 0.0
    """Share of the answers in another frame's camera that are nonsense."""
    blind_frame: int | None = None
    """A frame about whose camera nothing is known: NaN."""
    encoded: int = 0

    config = SimpleNamespace(image_size=SIZE)
    device = torch.device("cpu")

    def encode(self, video: Tensor, aspect: Tensor):
        self.encoded += 1
        return SimpleNamespace(num_frames=video.shape[1], video=video, aspect=aspect)

    def decode(self, memory, queries: Queries, *, chunk_size=None, patch_video=None) -> Prediction:
        queries.check_range(memory.num_frames)
        uv_norm, t_src, t_tgt, t_cam = (x[0] for x in vars(queries).values())
        point, on_ball = self.lift(uv_norm.double(), t_src)
        moved = point + on_ball[:, None] * (t_tgt - t_src)[:, None] * BALL_STEP
        u_v_z = self.project(moved, t_tgt)
        uv_tgt, inside = u_v_z[:, :2], ((u_v_z[:, :2] >= 0) & (u_v_z[:, :2] <= 1)).all(-1)
        seen, _ = self.lift(uv_tgt, t_tgt)
        visible = inside & (u_v_z[:, 2] > 0) & ((seen - moved).norm(dim=-1) < 1e-6)
        xyz = self.to_camera(moved, t_cam)
        generator = torch.Generator().manual_seed(len(t_src))
        wrong = (torch.rand(len(t_src), generator=generator) < self.wrong_share) & (t_cam != t_src)
        xyz[wrong] += 3 * torch.randn(int(wrong.sum()), 3, generator=generator, dtype=torch.float64)
        if self.blind_frame is not None:
            xyz[t_cam == self.blind_frame] = torch.nan
        displacement = xyz - self.to_camera(point, t_cam)
        normal = PLANE_NORMAL.expand(len(point), 3) @ torch.eye(3, dtype=torch.float64)
        visible_logit = torch.where(visible, 3.0, -3.0)
        answers = (xyz, uv_tgt, visible_logit, displacement, normal, 2 * uv_norm[:, 0])
        return Prediction(*(x.float()[None] for x in answers))

    def decode_times(self, memory, uv_norm, t_src, t_tgt, t_cam, *, chunk_size=None, patch_video=None) -> Prediction:
        points, times = t_src.shape[1], t_tgt.shape[1]
        uv_norm, t_src = (x.repeat_interleave(times, dim=1) for x in (uv_norm, t_src))
        return self.decode(memory, Queries(uv_norm, t_src, t_tgt.repeat(1, points), t_cam.repeat(1, points)))

    def lift(self, uv_norm: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the ray through uv_norm (Q, 2) at times t (Q,) meets first: world points (Q, 3), and is it the ball?"""
        ray = torch.cat([(uv_norm - 0.5) / self.focal[t], torch.ones(len(t), 1, dtype=torch.float64)], dim=-1)
        ray = (self.world_from_cam[t, :3, :3] @ ray[..., None])[..., 0]
        origin = self.world_from_cam[t, :3, 3]
        to_plane = (PLANE_OFFSET - origin @ PLANE_NORMAL) / (ray @ PLANE_NORMAL)
        to_centre = BALL_START + t[:, None] * BALL_STEP - origin
        a, b, c = (ray**2).sum(-1), (ray * to_centre).sum(-1), (to_centre**2).sum(-1) - BALL_RADIUS**2
        hit = b**2 > a * c
        to_ball = (b - (b**2 - a * c).clamp(min=0).sqrt()) / a
        on_ball = hit & (to_ball < to_plane)
        return origin + torch.where(on_ball, to_ball, to_plane)[:, None] * ray, on_ball

    def to_camera(self, point: Tensor, t: Tensor) -> Tensor:
        pose = self.world_from_cam[t]
        return ((point - pose[:, :3, 3])[:, None] @ pose[:, :3, :3])[:, 0]

    def project(self, point: Tensor, t: Tensor) -> Tensor:
        """(u, v, z) of world points in the frames t."""
        xyz = self.to_camera(point, t)
        return torch.cat([self.focal[t] * xyz[:, :2] / xyz[:, 2:] + 0.5, xyz[:, 2:]], dim=-1)


@pytest.fixture
def scene() -> Scene:
    zoom = 1 + 0.1 * torch.arange(FRAMES, dtype=torch.float64)[:, None]
    return Scene(camera_path(), zoom * torch.tensor([0.8, 1.6], dtype=torch.float64))  # square pixels at 96x48


VIDEO = torch.randint(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=torch.uint8)
NATIVE = torch.randint(0, 256, (FRAMES, RAW_HEIGHT, RAW_WIDTH, 3), dtype=torch.uint8)
T = torch.arange(FRAMES)


def depth_by_ray(scene: Scene, x: int, y: int, t: int, width: int, height: int) -> float:
    uv = torch.tensor([[(x + 0.5) / width, (y + 0.5) / height]], dtype=torch.float64)
    time = torch.tensor([t])
    return scene.project(scene.lift(uv, time)[0], time)[0, 2].item()


# ---- tracks ----

POINTS = torch.tensor([[0.2, 0.3], [0.5, 0.5], [0.9, 0.8], [0.1, 0.3]])
T_SRC = torch.tensor([0, 0, 5, 3])


def true_path(scene: Scene) -> tuple[Tensor, Tensor]:
    """World position of the points at every time, (N, T, 3), and which are on the ball."""
    start, on_ball = scene.lift(POINTS.double(), T_SRC)
    steps = (T[None] - T_SRC[:, None])[..., None] * BALL_STEP
    return start[:, None] + on_ball[:, None, None] * steps, on_ball


def test_tracks_follow_the_physical_point_in_the_camera_of_each_frame(scene):
    tracks = recipes.tracks(scene, VIDEO, POINTS, T_SRC, aspect=2.0)
    world, on_ball = true_path(scene)
    assert on_ball.tolist() == [False, True, False, True]
    for n in range(4):
        torch.testing.assert_close(tracks.xyz[n], scene.to_camera(world[n], T).float())
        torch.testing.assert_close(tracks.uv_norm[n], scene.project(world[n], T)[:, :2].float())
        assert tracks.visible[n, T_SRC[n]]
    assert tracks.t_cam == "target"
    assert tracks.xyz.shape == (4, FRAMES, 3) and tracks.visible.dtype == torch.bool
    assert not tracks.visible.all(), "the ball hides or the view loses some points, or this test shows little"
    torch.testing.assert_close(tracks.confidence, (2 * POINTS[:, :1]).sigmoid().expand(4, FRAMES))


def test_tracks_in_a_fixed_camera_stand_still_unless_the_point_moves(scene):
    tracks = recipes.tracks(scene, VIDEO, POINTS, T_SRC, t_cam=2)
    world, on_ball = true_path(scene)
    for n in range(4):
        torch.testing.assert_close(tracks.xyz[n], scene.to_camera(world[n], torch.full_like(T, 2)).float())
    spread = tracks.xyz.std(dim=1).amax(dim=-1)
    assert spread[~on_ball].max() < 1e-5 and spread[on_ball].min() > 0.1
    assert tracks.t_cam == 2


# ---- depth ----


@pytest.mark.parametrize(
    ("options", "height", "width"),
    [({}, SIZE, SIZE), ({"height": 20, "width": 30}, 20, 30), ({"native": NATIVE}, RAW_HEIGHT, RAW_WIDTH)],
)
def test_depth_is_that_of_the_ray_through_the_pixel_centre(scene, options, height, width):
    result = recipes.depth(scene, VIDEO, **options)
    assert result.depth.shape == result.confidence.shape == (FRAMES, height, width)
    for t, x, y in [(0, 0, 0), (1, width - 1, 0), (3, width // 2, height // 2), (5, 3, height - 2)]:
        assert result.depth[t, y, x].item() == pytest.approx(depth_by_ray(scene, x, y, t, width, height), rel=1e-5)


def test_depth_behind_the_camera_is_unknown(scene):
    scene.world_from_cam[2] = torch.eye(4)
    scene.world_from_cam[2, :3, :3] = turn(100, axis=1)  # looks along the plane: part of its rays meet it behind
    depth = recipes.depth(scene, VIDEO).depth
    assert 0 < depth[2].isnan().sum() < depth[2].numel()
    assert (depth[~depth.isnan()] > 0).all()


# ---- point cloud ----


def test_the_point_cloud_is_in_one_camera_with_colours_of_its_pixels(scene):
    cloud = recipes.point_cloud(scene, VIDEO, t_cam=3, stride=5, min_confidence_percentile=0, native=NATIVE)
    rows, columns = range(2, RAW_HEIGHT, 5), range(2, RAW_WIDTH, 5)
    per_frame = len(rows) * len(columns)
    assert len(cloud.xyz) == len(cloud.rgb) == len(cloud.confidence) == len(cloud.normal) == FRAMES * per_frame
    assert cloud.frame.bincount().tolist() == [per_frame] * FRAMES
    for t, row, column in [(0, 0, 0), (4, 2, 7), (5, len(rows) - 1, len(columns) - 1)]:
        x, y = columns[column], rows[row]
        uv = torch.tensor([[(x + 0.5) / RAW_WIDTH, (y + 0.5) / RAW_HEIGHT]], dtype=torch.float64)
        expected = scene.to_camera(scene.lift(uv, torch.tensor([t]))[0], torch.tensor([3]))[0].float()
        i = t * per_frame + row * len(columns) + column
        torch.testing.assert_close(cloud.xyz[i], expected)
        assert torch.equal(cloud.rgb[i], NATIVE[t, y, x])


def test_the_point_cloud_drops_the_least_confident(scene):
    """Confidence grows to the right here, so the left quarter of every frame goes."""
    cloud = recipes.point_cloud(scene, VIDEO, stride=8, min_confidence_percentile=25)
    whole = recipes.point_cloud(scene, VIDEO, stride=8, min_confidence_percentile=0)
    assert len(cloud.xyz) == 0.75 * len(whole.xyz)
    right = whole.confidence > whole.confidence.unique()[1]
    for name in ("xyz", "rgb", "normal", "confidence", "frame"):
        assert torch.equal(getattr(cloud, name), getattr(whole, name)[right]), name
    assert (cloud.left_out, whole.left_out) == (0.25, 0)
    tenth = recipes.point_cloud(scene, VIDEO, stride=8, min_confidence_percentile=10)
    assert len(tenth.xyz) == len(whole.xyz)  # a column is less than all others, an eighth: more than was allowed to go
    with pytest.raises(ValueError, match=r"min_confidence_percentile \(100\)"):
        recipes.point_cloud(scene, VIDEO, min_confidence_percentile=100)
    with pytest.raises(ValueError, match=r"stride \(0\)"):
        recipes.point_cloud(scene, VIDEO, stride=0)


# ---- cameras ----


def relative(path: Tensor, reference: int) -> Tensor:
    return torch.linalg.inv(path[reference]) @ path


@pytest.mark.parametrize(("reference", "world"), [(0, 0), (3, 3), ("sliding", 0), ("keyframes", 0)])
def test_the_camera_path_is_found_although_the_ball_moves(scene, reference, world):
    grid = recipes.pixel_centres(8, 8).double()
    _, on_ball = scene.lift(grid, torch.full((64,), world))
    assert 10 < on_ball.sum() < 54
    path = recipes.cameras(scene, VIDEO, reference=reference)
    torch.testing.assert_close(path.world_from_cam, relative(scene.world_from_cam, world).float(), atol=1e-5, rtol=0)
    assert path.residual.max() < 1e-5 and path.inliers.min() == 1


def test_the_camera_path_survives_wrong_answers(scene):
    path = recipes.cameras(replace(scene, wrong_share=0.3), VIDEO, grid=12, reference=0)
    torch.testing.assert_close(path.world_from_cam, relative(scene.world_from_cam, 0).float(), atol=1e-4, rtol=0)
    assert ((path.inliers[1:] > 0.6) & (path.inliers[1:] < 0.8)).all() and path.inliers[0] == 1


@pytest.mark.parametrize("reference", [0, "keyframes"])
def test_a_camera_about_which_nothing_is_known_is_nan(scene, reference):
    path = recipes.cameras(replace(scene, blind_frame=4), VIDEO, reference=reference)
    assert path.world_from_cam[4].isnan().all() and path.intrinsics[4, 0, 0].isnan()
    assert path.inliers[4] == 0 and path.residual[4].isnan()
    known = [0, 1, 2, 3, 5]
    expected = relative(scene.world_from_cam, 0)[known].float()
    torch.testing.assert_close(path.world_from_cam[known], expected, atol=1e-5, rtol=0)


def test_intrinsics_are_found_while_the_camera_moves_and_zooms(scene):
    pixels = recipes.cameras(scene, VIDEO, aspect=2.0, width=RAW_WIDTH, height=RAW_HEIGHT, grid=9).intrinsics
    expected = torch.zeros(FRAMES, 3, 3)
    expected[:, 0, 0], expected[:, 1, 1] = (scene.focal * torch.tensor([96.0, 48.0])).float().unbind(-1)
    expected[:, 0, 2], expected[:, 1, 2], expected[:, 2, 2] = 48, 24, 1
    torch.testing.assert_close(pixels, expected)
    torch.testing.assert_close(recipes.cameras(scene, VIDEO, native=NATIVE).intrinsics, expected)
    square = recipes.cameras(scene, VIDEO, aspect=2.0).intrinsics[:, [0, 1], [0, 1]]
    torch.testing.assert_close(square, (scene.focal * SIZE).float())


def test_a_frame_whose_points_are_mirrored_has_no_focal_length():
    """Such as a model says that has learnt nothing yet: a camera with a negative one is none."""
    uv_norm = recipes.pixel_centres(4, 4)
    xyz = torch.cat([uv_norm - 0.5, torch.ones(16, 1)], dim=-1).repeat(2, 1, 1)  # seen with fx = fy = 1
    xyz[1, :, :2] *= -1
    for square in (True, False):
        focal = focal_lengths(xyz, uv_norm, 1.0, shared=False, square=square)
        torch.testing.assert_close(focal, torch.tensor([[1.0, 1.0], [torch.nan, torch.nan]]), equal_nan=True)
        shared = focal_lengths(xyz, uv_norm, 1.0, shared=True, square=square)
        torch.testing.assert_close(shared, torch.ones(2, 2))


def test_one_focal_for_the_clip_and_square_pixels(scene):
    options = {"width": RAW_WIDTH, "height": RAW_HEIGHT, "aspect": 2.0}
    focal = recipes.cameras(scene, VIDEO, shared_focal=True, **options).intrinsics[:, [0, 1], [0, 1]]
    middle = scene.focal.median(dim=0).values * torch.tensor([96.0, 48.0])
    torch.testing.assert_close(focal, middle.float().expand(FRAMES, 2))
    uneven = replace(scene, focal=scene.focal * torch.tensor([1.0, 1.05], dtype=torch.float64))
    fx, fy = recipes.cameras(uneven, VIDEO, **options).intrinsics[0, [0, 1], [0, 1]]
    assert fx == fy and 0.8 * 96 * 0.999 < fx < 0.8 * 96 * 1.051
    free = recipes.cameras(uneven, VIDEO, square_pixels=False, **options).intrinsics[0, [0, 1], [0, 1]]
    torch.testing.assert_close(free, (uneven.focal[0] * torch.tensor([96.0, 48.0])).float())


def test_known_intrinsics_are_taken_and_mend_the_path_of_a_model_that_is_wrong_about_the_focal_length(scene):
    """A model that believes in twice the focal length has x and y half as large. The world's turns and the shape of the
    path then come out wrong, unless the true intrinsics, here with a principal point off the centre, are given."""

    class Wide(Scene):
        def decode(self, *args, **options):
            answers = super().decode(*args, **options)
            return replace(answers, xyz=answers.xyz * torch.tensor([0.5, 0.5, 1.0]))

    wide = Wide(scene.world_from_cam, scene.focal)
    true = recipes.cameras(scene, VIDEO, aspect=2.0, width=RAW_WIDTH, height=RAW_HEIGHT).intrinsics
    options = {"aspect": 2.0, "width": RAW_WIDTH, "height": RAW_HEIGHT}
    path = recipes.cameras(wide, VIDEO, intrinsics=true, **options)
    torch.testing.assert_close(path.intrinsics, true)
    torch.testing.assert_close(path.world_from_cam, relative(scene.world_from_cam, 0).float(), atol=1e-4, rtol=0)
    without = recipes.cameras(wide, VIDEO, **options)
    assert (without.world_from_cam - relative(scene.world_from_cam, 0)).abs().max() > 0.05
    for wrong, words in [(torch.eye(4), r"shape \(4, 4\)"), (torch.zeros(3, 3), "above 0")]:
        with pytest.raises(ValueError, match=words):
            recipes.cameras(scene, VIDEO, intrinsics=wrong, **options)


def test_all_recipes_go_by_known_intrinsics(scene):
    """A camera whose principal point is off the centre, asked of a model that believes in another focal length and the
    centre: what it says of x and y is wrong by a linear map, which the known intrinsics undo everywhere."""
    true = torch.tensor([[0.8, 0, 0.45], [0, 1.6, 0.52], [0, 0, 1]], dtype=torch.float64)
    believed = torch.tensor([[1.3, 0, 0.5], [0, 2.6, 0.5], [0, 0, 1]], dtype=torch.float64)
    wrong = torch.linalg.inv(believed) @ true

    class OffCentre(Scene):
        """A pinhole as `true` says: what a centred camera of the same focal length sees, shifted."""

        def decode(self, memory, queries, **options):
            shift = torch.tensor([0.05, -0.02])
            centred = replace(queries, uv_norm=(queries.uv_norm + shift).clamp(0, 1))
            answers = super().decode(memory, centred, **options)
            xyz = (wrong @ answers.xyz.double()[..., None]).squeeze(-1).float()
            normal = torch.linalg.inv(wrong).mT @ answers.normal.double()[..., None]
            return replace(answers, xyz=xyz, normal=normal.squeeze(-1).float(), uv_tgt=answers.uv_tgt - shift)

    steady = torch.tensor([[0.8, 1.6]], dtype=torch.float64).expand(FRAMES, 2)
    exact = Scene(scene.world_from_cam, steady)
    model = recipes.WithIntrinsics(OffCentre(scene.world_from_cam, steady), true)
    shifted = POINTS + torch.tensor([0.05, -0.02])
    found, expected = (
        recipes.tracks(*asked, T_SRC, aspect=2.0, t_cam=2)
        for asked in ((model, VIDEO, POINTS), (exact, VIDEO, shifted))
    )
    torch.testing.assert_close(found.xyz, expected.xyz, atol=1e-4, rtol=1e-4)
    path = recipes.cameras(model, VIDEO, aspect=2.0, width=RAW_WIDTH, height=RAW_HEIGHT)
    torch.testing.assert_close(path.world_from_cam, relative(scene.world_from_cam, 0).float(), atol=1e-4, rtol=0)
    pixels = true * torch.tensor([RAW_WIDTH, RAW_HEIGHT, 1.0])[:, None]
    torch.testing.assert_close(path.intrinsics, pixels.float().expand(FRAMES, 3, 3))
    cloud = recipes.point_cloud(model, VIDEO, aspect=2.0, stride=16, min_confidence_percentile=0)
    along = PLANE_NORMAL / PLANE_NORMAL.norm()
    torch.testing.assert_close(cloud.normal.double(), along.expand(len(cloud.normal), 3), atol=1e-4, rtol=0)


def test_camera_options_out_of_range_are_refused(scene):
    with pytest.raises(ValueError, match=r"grid \(3\) must be at least 4"):
        recipes.cameras(scene, VIDEO, grid=3)
    with pytest.raises(ValueError, match=r"reference \(6\) must be 'keyframes', 'sliding' or a frame from 0 to 5"):
        recipes.cameras(scene, VIDEO, reference=6)


# ---- one encoder pass, and wrong input ----


def test_one_memory_serves_every_recipe(scene):
    memory = scene.encode(VIDEO[None], torch.ones(1))
    for recipe in (recipes.depth, recipes.point_cloud, recipes.cameras):
        recipe(scene, VIDEO, memory=memory)
    recipes.tracks(scene, VIDEO, POINTS, T_SRC, memory=memory)
    assert scene.encoded == 1


def test_the_aspect_is_that_of_the_raw_frames(scene, monkeypatch):
    seen = []
    encode = scene.encode
    monkeypatch.setattr(scene, "encode", lambda video, aspect: seen.append(aspect.item()) or encode(video, aspect))
    for options in ({"aspect": 1.5}, {"native": NATIVE}, {}):
        recipes.cameras(scene, VIDEO, **options)
    assert seen == [1.5, 2.0, 1.0]


def test_wrong_input_is_refused(scene):
    memory = scene.encode(VIDEO[None], torch.ones(1))
    with pytest.raises(ValueError, match=r"\(6, 48, 96, 3\); recipes take one clip \(T, 64, 64, 3\), already resized"):
        recipes.depth(scene, NATIVE)
    with pytest.raises(ValueError, match="recipes take one clip"):
        recipes.depth(scene, VIDEO[None])
    with pytest.raises(ValueError, match="same 6 raw frames"):
        recipes.depth(scene, VIDEO, native=NATIVE[:4])
    with pytest.raises(ValueError, match=r"memory is of videos \(1, 6, 64, 64, 3\), this one is \(5, 64, 64, 3\)"):
        recipes.depth(scene, VIDEO[:5], memory=memory)
    with pytest.raises(ValueError, match=r"aspect \(1.5\) is not that of the memory \(1\)"):
        recipes.depth(scene, VIDEO, memory=memory, aspect=1.5)
    with pytest.raises(ValueError, match="t_cam has 6, but the clip has 6 frames"):
        recipes.tracks(scene, VIDEO, POINTS, T_SRC, t_cam=6)


def test_recipes_run_on_a_real_model():
    torch.manual_seed(0)
    model = D4RT(ModelConfig.preset("tiny"))
    video, native = VIDEO[:3], NATIVE[:3]
    memory = model.encode(video[None], torch.tensor([2.0]))
    tracks = recipes.tracks(model, video, POINTS, T_SRC.clamp(max=2), memory=memory, chunk_size=4)
    assert tracks.xyz.shape == (4, 3, 3) and tracks.xyz.isfinite().all()
    assert recipes.depth(model, video, native=native, chunk_size=1000).depth.shape == (3, RAW_HEIGHT, RAW_WIDTH)
    assert recipes.cameras(model, video, memory=memory).world_from_cam.isfinite().all()
    wide = native[:, ::2, ::2][:, :24, :48]
    answers = recipes.depth(model, wide, memory=model.encode(wide[None], torch.tensor([2.0])))
    assert answers.depth.shape == (3, 24, 48) and answers.confidence.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        cloud = recipes.point_cloud(model, video, memory=memory, stride=4)
    assert cloud.xyz.dtype == torch.float32 and cloud.xyz.isfinite().all()


# ---- what may be given ----


def test_numbers_arrays_and_tensors_are_the_same_question():
    torch.manual_seed(0)
    model = D4RT(ModelConfig.preset("tiny"))
    video = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    expected = recipes.tracks(model, video, POINTS, torch.full((len(POINTS),), 1), aspect=1.5).xyz
    for given in (
        (video.numpy(), POINTS.double().numpy(), 1),
        (video.numpy()[::-1][::-1], POINTS.tolist(), np.int64(1)),
        (video, POINTS, [1] * len(POINTS)),
        (video, POINTS.numpy(), np.full(len(POINTS), 1, np.int32)),
    ):
        torch.testing.assert_close(recipes.tracks(model, *given, aspect=1.5).xyz, expected)
    for recipe in (recipes.depth, recipes.point_cloud, recipes.cameras):
        for name, value in vars(recipe(model, video.numpy(), native=video.numpy())).items():
            torch.testing.assert_close(value, getattr(recipe(model, video, native=video), name), equal_nan=True)


@pytest.mark.parametrize(
    ("points", "t_src", "message"),
    [
        (POINTS[0], 0, r"uv_norm has shape \(2,\); it must be \(N, 2\)"),
        (POINTS, 0.5, "t_src is float32; frames are whole numbers"),
        (POINTS, [0, 1], r"t_src has shape \(2,\); it must be one frame, or one for each of"),
    ],
)
def test_points_that_cannot_be_asked_are_refused(points, t_src, message):
    with pytest.raises(ValueError, match=message):
        recipes.tracks(D4RT(ModelConfig.preset("tiny")), torch.zeros(3, 64, 64, 3, dtype=torch.uint8), points, t_src)


def test_cameras_that_do_not_move_tell_no_scale():
    path = camera_path()
    moved = recipes.fit_poses(relative(path, 0), path, distance=5.0)
    torch.testing.assert_close(moved.known_from_world, path[0])
    assert moved.position < 1e-9 and moved.rotation < 1e-4 and moved.cameras == FRAMES
    still = torch.eye(4, dtype=torch.float64).repeat(FRAMES, 1, 1)
    with pytest.raises(ValueError, match="do not move: no scale can be told"):
        recipes.fit_poses(still, path, distance=5.0)
    with pytest.raises(ValueError, match="1 of the known poses are of frames whose camera was found"):
        recipes.fit_poses(torch.where(torch.arange(FRAMES)[:, None, None] == 2, path, torch.nan), path, distance=5.0)
