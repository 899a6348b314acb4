"""Videos longer than the model takes, asked of an oracle: exactly right with exact answers, and sound with faulty ones.

Two balls slide behind a pillar and stay hidden through all frames that two windows share, so no shared frame tells who
they are.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracle import Faults, Oracle
from torch import Tensor

from model import D4RT, ModelConfig
from model.recipes import pixel_centres
from model.recipes.alignment import scale_of
from model.recipes.following import FOLLOWED, LOST, RECALLED, Followed, follow
from model.recipes.joining import WindowGeometry, chain, join, look
from model.recipes.long_video import LongVideo, join_tracks, track_long_video
from model.recipes.windows import WindowPlan
from pipelines.geometry import inverse, transform
from pipelines.synthesize.staged import hidden_balls, round_trip

NONE = Faults()
FAULTS = Faults(scale=0.1, turn=0.02, shift=0.05, noise=0.003, uv_noise=0.0005, wrong=0.2)
BALLS = (4, 5)  # surfaces


def points_of(oracle: Oracle, frame: int = 0) -> tuple[Tensor, np.ndarray]:
    """Some points all over a frame and more on the balls, uv_norm; and which are on the balls."""
    coarse, fine = pixel_centres(6, 8), pixel_centres(60, 80)
    number = oracle.numbers[frame]
    surface = oracle.hits(fine.numpy(), np.full(len(fine), number)).surface
    uv_norm = torch.cat([coarse, fine[np.isin(surface, BALLS)][::6]])
    surface = oracle.hits(uv_norm.numpy(), np.full(len(uv_norm), number)).surface
    return uv_norm, np.isin(surface, BALLS)


def ask(oracle: Oracle, uv_norm: Tensor, t_src: int | Tensor = 0, **options) -> LongVideo:
    return track_long_video(oracle, oracle.video, uv_norm, t_src, aspect=oracle.aspect, **options)


def true_tracks(oracle: Oracle, uv_norm: Tensor, t_src: np.ndarray, first_window: range) -> np.ndarray:
    """(N, T, 3) in the camera of frame 0, and with what is wrong with the first window, whose world it is."""
    hits = oracle.hits(uv_norm.numpy(), oracle.numbers[t_src])
    cam_from_world = inverse(oracle.scene.cameras.world_from_cam)[0]
    world = [oracle.scene.position(hits, np.full(len(uv_norm), t)) for t in oracle.numbers]
    wrong = oracle.similarity(oracle.numbers[list(first_window)])
    return transform(wrong @ cam_from_world, np.stack(world, axis=1))


def distance_from_itself(oracle: Oracle, followed: Followed, uv_norm: Tensor) -> np.ndarray:
    """(N,) Metres between a point of frame 0 and the one that a window was asked about, at the time they are farthest
    apart: a point of another thing that moves otherwise is far. NaN where none was asked about."""
    asked = (followed.t_src >= 0).numpy()
    here = oracle.hits(followed.uv_src.numpy()[asked], oracle.numbers[followed.t_src.numpy()[asked]])
    itself = oracle.hits(uv_norm.numpy(), np.zeros(len(uv_norm), int))[asked]
    distance = np.full(len(uv_norm), np.nan)
    distance[asked] = 0
    for t in oracle.numbers[::5]:
        t = np.full(asked.sum(), t)
        apart = np.linalg.norm(oracle.scene.position(here, t) - oracle.scene.position(itself, t), axis=1)
        distance[asked] = np.maximum(distance[asked], apart)
    return distance


# ---- exact answers ----


def every_second(num_frames: int, faults: Faults = NONE) -> Oracle:
    """Windows of 24 frames with 8 in common, over every second frame of the scene."""
    return Oracle(hidden_balls(2 * num_frames), faults, clip_frames=24, step=2)


@pytest.fixture(scope="module")
def exact() -> tuple[Oracle, Tensor, np.ndarray, LongVideo]:
    oracle = every_second(56)
    uv_norm, on_ball = points_of(oracle)
    return oracle, uv_norm, on_ball, ask(oracle, uv_norm)


def test_with_exact_answers_every_seam_is_exact(exact):
    oracle, _, _, result = exact
    assert [window.start for window in result.plan.windows] == [0, 16, 32]
    pose = oracle.scene.cameras.world_from_cam[::2]
    for seam, (before, after) in zip(result.seams, pairwise(result.plan.windows), strict=True):
        expected = inverse(pose[before.start]) @ pose[after.start]
        np.testing.assert_allclose(seam.window_from_next.numpy(), expected, atol=1e-5)
        assert seam.residual < 1e-5 and seam.inliers == 1 and seam.scale == pytest.approx(1, abs=1e-5)
        assert seam.describe() == {
            "joined": True,
            "scale": seam.scale,
            "residual": seam.residual,
            "inliers": 1.0,
            "points": 576,
        }


def test_with_exact_answers_cameras_and_tracks_are_exact_to_the_last_frame(exact):
    oracle, uv_norm, _, result = exact
    pose = oracle.scene.cameras.world_from_cam[::2]
    np.testing.assert_allclose(result.cameras.world_from_cam, inverse(pose[0]) @ pose, atol=1e-4)
    assert result.cameras.intrinsics.shape == (56, 3, 3) and result.cameras.residual.max() < 1e-5
    truth = true_tracks(oracle, uv_norm, np.zeros(len(uv_norm), int), result.plan.windows[0])
    np.testing.assert_allclose(result.tracks.xyz, truth, atol=2e-5)
    cam_from_first = inverse(inverse(pose[0]) @ pose)
    own = np.stack([transform(cam_from_first[t], truth[:, t]) for t in range(56)], axis=1)
    np.testing.assert_allclose(result.tracks.xyz_cam, own, atol=2e-5)


def test_a_ball_hidden_through_all_shared_frames_is_known_again_by_frames_that_saw_it(exact):
    _, _, on_ball, result = exact
    second, tracks = result.forwards[1], result.tracks
    recalled = (second.status == RECALLED).numpy()
    assert (on_ball & recalled).any() and (on_ball & ~recalled).any(), "one of two balls is hidden in frames 16 to 23"
    assert not tracks.visible[recalled, 16:24].any()
    assert tracks.visible[on_ball & recalled, 24:].any(dim=1).float().mean() > 0.8, "the rest is at the ball's edge"
    assert second.memory_frames.max() < 16
    assert (second.status[~recalled] == FOLLOWED).all() and not (tracks.status == LOST).any()


def test_points_of_any_frame_are_followed_both_ways():
    oracle = every_second(56)
    middle, last = (points_of(oracle, frame)[0][::3] for frame in (30, 55))
    uv_norm = torch.cat([middle, last])
    t_src = torch.tensor([30] * len(middle) + [55] * len(last))
    result = ask(oracle, uv_norm, t_src)
    truth = true_tracks(oracle, uv_norm, t_src.numpy(), result.plan.windows[0])
    np.testing.assert_allclose(result.tracks.xyz, truth, atol=2e-5)
    assert (result.tracks.status[:, 0] == RECALLED).any(), "a ball on its way back behind the pillar"


# ---- faulty answers ----


@pytest.fixture(scope="module")
def faulty() -> tuple[Oracle, Tensor, np.ndarray, LongVideo]:
    oracle = Oracle(hidden_balls(200), FAULTS)
    uv_norm, on_ball = points_of(oracle)
    return oracle, uv_norm, on_ball, ask(oracle, uv_norm)


def test_the_scale_of_every_window_is_found_although_a_fifth_of_the_answers_is_wrong(faulty):
    oracle, _, _, result = faulty
    for seam, (before, after) in zip(result.seams, pairwise(result.plan.windows), strict=True):
        planted = oracle.similarity(before) @ inverse_of(oracle.similarity(after))
        assert seam.scale == pytest.approx(np.cbrt(np.linalg.det(planted[:3, :3])), rel=2e-3)
        assert 0.5 < seam.inliers < 0.8 and seam.residual < 3 * FAULTS.noise


def inverse_of(similarity: np.ndarray) -> np.ndarray:
    return np.linalg.inv(similarity)


def test_nearly_all_tracks_survive_two_hundred_frames_and_none_becomes_another(faulty):
    oracle, uv_norm, _, result = faulty
    lost = result.tracks.status[:, -1] == LOST
    assert lost.float().mean() < 0.05
    for followed in result.forwards:
        distance = distance_from_itself(oracle, followed, uv_norm)
        assert np.nanmax(distance) < 0.1, "metres, of a point five metres away"
        assert followed.xyz[followed.t_src >= 0, -1].isfinite().all()


def test_static_points_do_not_jump_at_seams(faulty):
    """Neither all together nor a typical one by as much as the noise of one answer."""
    _, _, on_ball, result = faulty
    xyz, depth = result.tracks.xyz[~on_ball], result.tracks.xyz_cam[~on_ball][..., 2].nanmedian()
    noise = FAULTS.noise * float(depth)
    assert noise < 0.02, "metres"
    for number in range(len(result.plan) - 1):
        before, after = (xyz[:, result.plan.owner == side].nanquantile(0.5, dim=1) for side in (number, number + 1))
        assert (after - before).nanmedian(dim=0).values.norm() < noise
        assert (after - before).norm(dim=-1).nanmedian() < noise


def test_hidden_balls_come_out_right(faulty):
    oracle, uv_norm, on_ball, result = faulty
    assert (result.tracks.status[on_ball] == RECALLED).any(dim=1).all()
    truth = true_tracks(oracle, uv_norm, np.zeros(len(uv_norm), int), result.plan.windows[0])
    error = np.linalg.norm(result.tracks.xyz.numpy() - truth, axis=-1)[on_ball]
    for number in range(len(result.plan)):
        error_there = error[:, (result.plan.owner == number).numpy()]
        typical = np.nanmedian(error_there[np.isfinite(error_there).any(axis=1)], axis=1)
        assert typical.max() < 0.1 and np.median(typical) < 0.05


def test_where_half_of_the_pairs_are_wrong_tracks_are_lost_rather_than_others():
    oracle = every_second(40, replace(FAULTS, noise=0.008, uv_noise=0.002, wrong=0.3))
    uv_norm, _ = points_of(oracle)
    result = ask(oracle, uv_norm)
    assert result.seams[0].residual < 0.03
    assert np.nanmax(distance_from_itself(oracle, result.forwards[1], uv_norm)) < 0.15


def test_a_model_that_is_off_by_five_percent_keeps_its_tracks_and_none_becomes_another():
    """Positions by 5 % in each coordinate, and a fifth of all answers is nonsense: as many tracks survive as of a good
    model, and a track is on its point to 5 % of the distance."""
    oracle = Oracle(hidden_balls(200), replace(FAULTS, noise=0.05, uv_noise=0.001))
    uv_norm, _ = points_of(oracle)
    result = ask(oracle, uv_norm)
    assert min(seam.residual for seam in result.seams) > 0.05
    assert (result.tracks.status[:, -1] == LOST).float().mean() < 0.05
    for followed in result.forwards:
        assert np.nanmax(distance_from_itself(oracle, followed, uv_norm)) < 0.25, "metres, of a point five away"


@pytest.mark.parametrize(("noise", "elsewhen"), [(0.03, 0), (0.01, 0.03)])
def test_a_small_model_with_windows_of_four_frames_keeps_most_of_its_tracks(noise, elsewhen):
    """Thirteen seams and more, with two frames in common at each; what is hidden for longer is lost, not another. Also
    where points at other times than their own are known less well than the landmarks of the seams."""
    faults = replace(FAULTS, noise=noise, elsewhen=elsewhen, uv_noise=0, wrong=0)
    oracle = Oracle(hidden_balls(40), faults, clip_frames=4)
    uv_norm, on_ball = points_of(oracle)
    result = ask(oracle, uv_norm)
    lost = (result.tracks.status[:, -1] == LOST).numpy()
    assert lost[~on_ball].mean() < 0.3
    for followed in result.forwards:
        assert np.nanmax(distance_from_itself(oracle, followed, uv_norm), initial=0) < 1e-3


def test_a_model_that_is_surely_wrong_about_what_moves_loses_it_and_takes_no_other_for_it():
    """But for points that are, by chance, where they were."""
    oracle = every_second(40, Faults(frozen=True))
    uv_norm, on_ball = points_of(oracle)
    result = ask(oracle, uv_norm)
    lost = (result.tracks.status[:, -1] == LOST).numpy()
    assert lost[on_ball].any() and lost[~on_ball].mean() < 0.05
    assert np.nanmax(distance_from_itself(oracle, result.forwards[1], uv_norm)) < 0.1
    rest = result.plan.owner == 1
    assert result.tracks.xyz[lost][:, rest].isnan().all() and not result.tracks.visible[lost][:, rest].any()
    assert (result.tracks.confidence[lost][:, rest] == 0).all()


def test_what_is_hidden_where_no_memory_frame_fits_is_lost_with_its_gap():
    oracle = every_second(46)
    uv_norm, on_ball = points_of(oracle)
    result = ask(oracle, uv_norm, plan=WindowPlan(46, 24, 2))
    hidden = on_ball & ~result.tracks.visible[:, 22:24].any(dim=1).numpy()
    assert hidden.any()
    assert (result.tracks.status[hidden, 23:] == LOST).all() and (result.tracks.status[hidden, :23] == FOLLOWED).all()
    assert result.tracks.known[hidden].unique(dim=0).tolist() == [[0, 22]]
    kept = result.tracks.status[:, -1] != LOST
    assert kept.any() and result.tracks.known[kept].unique(dim=0).tolist() == [[0, 45]]
    assert result.tracks.xyz[hidden, 23:].isnan().all() and result.tracks.xyz[hidden, :23].isfinite().all()


def test_answers_that_are_no_numbers_are_no_answers_and_do_no_harm():
    oracle = every_second(40, Faults(unknown=0.3))
    uv_norm, _ = points_of(oracle)
    result = ask(oracle, uv_norm)
    assert result.seams[0].residual < 1e-5 and (result.tracks.status[:, -1] == LOST).float().mean() < 0.1
    truth = true_tracks(oracle, uv_norm, np.zeros(len(uv_norm), int), result.plan.windows[0])
    error = np.linalg.norm(result.tracks.xyz.numpy() - truth, axis=-1)
    assert np.nanmax(error) < 1e-4 and 0.6 < np.isfinite(error).mean() < 0.8
    np.testing.assert_allclose(
        result.cameras.world_from_cam,
        inverse(oracle.scene.cameras.world_from_cam[0]) @ oracle.scene.cameras.world_from_cam[::2],
        atol=1e-4,
    )


def test_what_leaves_the_view_for_many_windows_is_known_when_the_camera_comes_back():
    """Two memory frames and more are carried along from window to window."""
    oracle = Oracle(round_trip(200), clip_frames=24, step=2)
    uv_norm = pixel_centres(4, 5)
    result = ask(oracle, uv_norm)
    truth = true_tracks(oracle, uv_norm, np.zeros(20, int), result.plan.windows[0])
    assert (result.tracks.status != LOST).all()
    np.testing.assert_allclose(result.tracks.xyz, truth, atol=5e-5)
    assert not result.tracks.visible[:, 30:60].any() and result.tracks.visible[:, 80].float().mean() > 0.9


# ---- windows as tasks of their own ----


class Chosen:
    """A video of which only some frames are there."""

    def __init__(self, video: Tensor, frames) -> None:
        self.video, self.frames = video, set(frames)

    def __getitem__(self, frames: list[int]) -> Tensor:
        assert set(frames) <= self.frames
        return self.video[frames]


def test_windows_are_tasks_that_need_their_frames_and_what_is_on_disk(exact, tmp_path):
    oracle, uv_norm, _, result = exact
    plan, t_src = result.plan, torch.zeros(len(uv_norm), dtype=torch.int64)

    def stored(name: str, arrays: WindowGeometry | Followed):
        np.savez(tmp_path / name, **{key: value.numpy() for key, value in vars(arrays).items()})
        with np.load(tmp_path / f"{name}.npz") as file:
            return type(arrays)(**{key: torch.from_numpy(file[key]) for key in file})

    geometry = []
    for number in (2, 0, 1):
        video = Chosen(oracle.video, plan.windows[number])
        geometry.append(stored(f"geometry{number}", look(oracle, video, plan, number, aspect=oracle.aspect)))
    geometry = [geometry[1], geometry[2], geometry[0]]
    seams = [join(*pair) for pair in pairwise(geometry)]
    followed: list[Followed] = []
    for number, window in enumerate(plan.windows):
        earlier = plan.windows[max(0, number - 1)]
        memory = followed[-1].memory_frames.tolist() if number else []
        video = Chosen(oracle.video, {*window, *earlier, *memory})
        before = {"before": followed[-1], "seam": seams[number - 1]} if number else {}
        arrays = follow(oracle, video, plan, number, uv_norm, t_src, aspect=oracle.aspect, **before)
        followed.append(stored(f"followed{number}", arrays))
    tracks = join_tracks(plan, chain(seams), t_src, followed, {})
    for name, value in vars(tracks).items():
        torch.testing.assert_close(value, getattr(result.tracks, name), equal_nan=True, msg=name)


def test_where_windows_cannot_be_joined_the_world_ends_and_the_report_says_so(exact):
    oracle, *_, result = exact
    plan = result.plan
    geometry = [look(oracle, oracle.video, plan, number, aspect=oracle.aspect) for number in range(3)]
    geometry[1] = replace(
        geometry[1], landmarks=geometry[1].landmarks.clone().index_fill_(0, torch.arange(15, 576), torch.nan)
    )
    seams = [join(*pair) for pair in pairwise(geometry)]
    assert not seams[0].joined and seams[1].joined
    assert "fewer than 16 finite answers" in seams[0].describe()["reason"]
    world_from_window = chain(seams)
    assert world_from_window[0].isfinite().all() and world_from_window[1:].isnan().any(dim=(1, 2)).all()


def test_where_the_scale_is_known_seams_are_rigid():
    oracle = every_second(40, Faults(turn=0.02, shift=0.05, noise=0.003))
    result = ask(oracle, torch.zeros(0, 2), scale=False)
    assert scale_of(result.world_from_window).tolist() == pytest.approx([1, 1])
    assert result.tracks.xyz.shape == (0, 40, 3)


def test_a_video_that_fits_into_one_window_is_one(exact):
    oracle = Oracle(hidden_balls(20))
    result = ask(oracle, pixel_centres(3, 3), 4)
    assert len(result.plan) == 1 and result.seams == [] and oracle.encoded == 1
    truth = true_tracks(oracle, pixel_centres(3, 3), np.full(9, 4), result.plan.windows[0])
    np.testing.assert_allclose(result.tracks.xyz, truth, atol=1e-5)


def test_frames_that_the_video_does_not_have_are_refused():
    oracle = Oracle(hidden_balls(20))
    with pytest.raises(ValueError, match="t_src runs from 20 to 20; the video has frames 0 to 19"):
        ask(oracle, pixel_centres(2, 2), 20)


def test_long_videos_run_on_a_real_model():
    torch.manual_seed(0)
    model = D4RT(ModelConfig.preset("tiny"))
    video = torch.randint(0, 256, (9, 64, 64, 3), dtype=torch.uint8)
    result = track_long_video(model, video.numpy(), pixel_centres(3, 3), 4, aspect=1.5)
    assert [(w.start, w.stop) for w in result.plan.windows] == [(0, 4), (2, 6), (4, 8), (5, 9)]
    assert result.cameras.world_from_cam.shape == (9, 4, 4) and result.tracks.xyz.shape == (9, 9, 3)
    own = result.plan.owner == result.plan.owner[4]
    assert result.tracks.xyz[:, own].isfinite().all()
