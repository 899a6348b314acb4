"""All that can be asked of a video of any length, from exact answers: one world, one unit, whatever its windows."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Faults, Oracle

from model import D4RT, ModelConfig, recipes
from pipelines.evaluation.pose import path_scores
from pipelines.geometry import inverse, transform
from pipelines.results.asked import Asked
from pipelines.results.exports.trajectories import tum
from pipelines.results.files import FIELDS
from pipelines.results.given import Intrinsics, Points, Poses, read_intrinsics, read_points, read_poses
from pipelines.results.questions import Questions
from pipelines.results.reconstruct import reconstruct
from pipelines.results.room import require_room
from pipelines.results.sources import Video
from pipelines.results.writing import write_arrays, write_results
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.staged import hidden_balls, round_trip

FRAMES, WINDOW = 40, 16


def video_of(oracle: Oracle) -> Video:
    frames = oracle.video.numpy()
    told = {"frame_numbers": oracle.numbers, "fps": 10.0, "digest": "", "notes": ()}
    return Video(name="scene", clip=frames, frames=frames, size=(oracle.scene.height, oracle.scene.width), **told)


def world_of(oracle: Oracle) -> np.ndarray:
    """(4, 4) from the scene's world to that of the results: the first window's, with its faults."""
    first = oracle.numbers[: oracle.clip_frames]
    return oracle.similarity(first) @ inverse(oracle.scene.cameras.world_from_cam)[0]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return hidden_balls(FRAMES)


@pytest.fixture(scope="module")
def oracle(scene) -> Oracle:
    """Each window believes in a unit of its own and stands a little elsewhere."""
    return Oracle(scene, Faults(scale=0.2, turn=0.03, shift=0.05), clip_frames=WINDOW)


POINTS = Points(
    np.tile(recipes.pixel_centres(3, 4).numpy(), (3, 1)), np.repeat(np.array([33, 0, 17], dtype=np.int64), 12)
)


@pytest.fixture(scope="module")
def found(oracle):
    tasks = ("tracks", "dense_tracks", "flow", "uncertainty")
    asked = Asked(tasks=tasks, points=POINTS, dense_grid=12, depth_size=16, forecast=4)
    return reconstruct(oracle, video_of(oracle), asked)[0]


def require_on_their_points(oracle: Oracle, tracks: dict[str, np.ndarray]) -> None:
    hits = oracle.hits(tracks["points"], tracks["t_src"])
    known = np.isfinite(tracks["xyz"]).all(axis=-1)
    assert known[np.arange(len(known)), tracks["t_src"]].all()
    for t in range(FRAMES):
        expected = transform(world_of(oracle), oracle.scene.position(hits, np.full(len(known), t)))
        np.testing.assert_allclose(tracks["xyz"][known[:, t], t], expected[known[:, t]], atol=2e-4)


def test_points_of_any_frame_are_tracked_to_both_ends(found, oracle):
    tracks = found["tracks"]
    np.testing.assert_array_equal(tracks["points"], POINTS.points)
    np.testing.assert_array_equal(tracks["t_src"], POINTS.t_src)
    require_on_their_points(oracle, tracks)
    assert (tracks["status"] < 3).mean() > 0.9 and (tracks["status"][:, 0] > 0).all()


def test_dense_tracks_are_on_their_points_from_where_they_begin(found, oracle):
    tracks = found["dense_tracks"]
    assert set(tracks) == set(FIELDS["dense_tracks.npz"])
    require_on_their_points(oracle, tracks)
    assert (tracks["status"] == 0).any() and len(tracks["points"]) < FRAMES * 12 * 9 / 5


def test_flow_is_how_far_each_pixel_moved_in_the_unit_of_the_first_window(found, oracle):
    flow, height, width = found["flow"], 12, 16
    assert flow["flow"].shape == (FRAMES - 1, height, width, 3)
    unit = np.cbrt(np.linalg.det(world_of(oracle)[:3, :3]))
    centres = recipes.pixel_centres(height, width).numpy()
    moving = 0
    for t in (0, 13, 26, FRAMES - 2):
        source = np.full(len(centres), t)
        hits = oracle.hits(centres, source)
        step = oracle.scene.position(hits, source + 1) - oracle.scene.position(hits, source)
        expected = unit * np.linalg.norm(
            step, axis=1
        )  # of the turn that is wrong with a window, the length knows nothing
        np.testing.assert_allclose(np.linalg.norm(flow["flow"][t], axis=-1).ravel(), expected, atol=1e-4)
        moving += (expected > 0.01).sum()
    assert moving > 5


def test_uncertainty_is_told_within_a_window_and_between_windows(found):
    jitter, apart = found["uncertainty"]["jitter"], found["uncertainty"]["windows"]
    assert jitter.shape == apart.shape == (36, FRAMES)
    begin = np.arange(36), POINTS.t_src
    assert (jitter[begin] > 0).all() and np.median(jitter[begin]) < 0.05
    assert np.nanmax(apart) < 1e-3, "exact answers: windows agree"
    shared = np.isfinite(apart).any(axis=0)
    assert shared[11:16].all() and shared[22:38].all() and not shared[:11].any() and not shared[38:].any()


def test_what_comes_after_the_video_is_a_straight_line(found):
    ahead, tracks = found["forecast"], found["tracks"]
    rests = (np.linalg.norm(np.nanstd(tracks["xyz"], axis=1), axis=-1) < 1e-3) & (ahead["last_seen"] == FRAMES - 1)
    assert rests.sum() > 5 and ahead["xyz"].shape == (36, 4, 3)
    np.testing.assert_allclose(ahead["xyz"][rests], np.repeat(tracks["xyz"][rests, -1:], 4, axis=1), atol=1e-3)


def test_windows_before_and_after_all_points_have_nothing_to_say_of_them(oracle):
    """On a real model: a window that no point is in asks no question."""
    torch.manual_seed(0)
    model = D4RT(ModelConfig.preset("tiny"))
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    told = {"frame_numbers": np.arange(12), "fps": 10.0, "digest": "", "notes": (), "size": (64, 64)}
    asked = Asked(tasks=("tracks", "uncertainty", "dense_tracks"), grid=2, dense_grid=2, query_frame=11, forecast=2)
    found, _ = reconstruct(model, Video(name="x", clip=clip, frames=clip, **told), asked)
    assert found["uncertainty"]["jitter"].shape == (4, 12)
    assert np.isfinite(found["tracks"]["xyz"][:, 11]).all() and np.isfinite(found["uncertainty"]["jitter"][:, 11]).all()


# ---- what is known of the camera ----


def test_known_poses_make_metres_and_their_world_of_it(scene, tmp_path):
    scaled = Oracle(scene, Faults(scale=0.2), clip_frames=WINDOW)
    (tmp_path / "path.txt").write_text(tum(np.arange(FRAMES), scene.cameras.world_from_cam))
    asked = Asked(tasks=("tracks", "depth", "cameras"), grid=4, poses=read_poses(str(tmp_path / "path.txt")))
    results, report = reconstruct(scaled, video_of(scaled), asked)
    assert report["pose_fit"]["position"] < 1e-4 and report["pose_fit"]["rotation_degrees"] < 0.05
    assert report["pose_fit"]["scale"] == pytest.approx(1 / np.cbrt(np.linalg.det(world_of(scaled)[:3, :3])), rel=1e-3)
    tracks = results["tracks"]
    hits = scaled.hits(tracks["points"], tracks["t_src"])
    known = np.isfinite(tracks["xyz"]).all(axis=-1)
    for t in (0, 20, 39):
        expected = scene.position(hits, np.full(len(known), t))
        np.testing.assert_allclose(tracks["xyz"][known[:, t], t], expected[known[:, t]], atol=2e-3)
    np.testing.assert_allclose(results["cameras"]["world_from_cam"], scene.cameras.world_from_cam, atol=1e-3)
    depth = results["depth"]["depth"]
    centres = recipes.pixel_centres(*depth.shape[1:]).numpy()
    then = np.full(len(centres), 30)
    own = transform(inverse(scene.cameras.world_from_cam)[30], scene.position(scaled.hits(centres, then), then))
    np.testing.assert_allclose(depth[30].ravel(), own[:, 2], rtol=1e-3)

    write_results(tmp_path, video_of(scaled), write_arrays(tmp_path, results), {"request": {}, **report})
    document = json.loads((tmp_path / "result.json").read_text())
    assert "--poses" in document["unit"] and "--poses" in document["world"]
    assert document["files"]["tracks.npz"]["xyz"]["unit"] == "unit of --poses"


def test_poses_that_tell_no_scale_are_refused(scene):
    exact = Oracle(scene, clip_frames=FRAMES)
    still = Poses(np.tile(np.eye(4), (FRAMES, 1, 1)), None)
    with pytest.raises(ValueError, match="do not move in scene: no scale can be told"):
        reconstruct(exact, video_of(exact), Asked(tasks=("cameras",), poses=still))
    with pytest.raises(ValueError, match=r"--poses has 39 poses, scene has 40 frames"):
        reconstruct(exact, video_of(exact), Asked(tasks=("cameras",), poses=Poses(still.world_from_cam[1:], None)))


def test_known_intrinsics_are_the_results_and_of_another_size_refused(scene):
    exact = Oracle(scene, clip_frames=FRAMES)
    true = scene.cameras.intrinsics[0]
    known = Intrinsics(true[0, 0], true[1, 1], true[0, 2], true[1, 2])
    asked = Asked(tasks=("tracks", "cameras"), grid=4, intrinsics=known)
    results, _ = reconstruct(exact, video_of(exact), asked)
    np.testing.assert_allclose(results["cameras"]["intrinsics"], np.tile(true, (FRAMES, 1, 1)), rtol=1e-6)
    plain, _ = reconstruct(exact, video_of(exact), replace(asked, intrinsics=None))
    np.testing.assert_allclose(results["tracks"]["xyz"], plain["tracks"]["xyz"], atol=1e-4)
    np.testing.assert_allclose(plain["cameras"]["intrinsics"], results["cameras"]["intrinsics"], rtol=1e-3)
    double = Intrinsics(*(2 * value for value in vars(known).values()))
    with pytest.raises(ValueError, match=r"--intrinsics, of scene, are .* but images are \(96, 128\) .*resized"):
        reconstruct(exact, video_of(exact), replace(asked, intrinsics=double))


def test_a_shared_focal_length_is_steadier_than_one_per_frame(scene):
    noisy = Oracle(scene, Faults(noise=0.02), clip_frames=WINDOW)
    true = scene.cameras.intrinsics[0, 0, 0]
    off = {}
    for shared in (False, True):
        asked = Asked(tasks=("cameras",), shared_focal=shared)
        focal = reconstruct(noisy, video_of(noisy), asked)[0]["cameras"]["intrinsics"][:, 0, 0]
        off[shared] = np.abs(focal / true - 1)
        assert (np.ptp(focal) == 0) == shared
    assert off[True].max() < 0.5 * off[False].max()


def test_loops_correct_what_drifted_and_are_told():
    """Each window believes its cameras to turn by a little; the camera goes round a room."""
    drifting = Oracle(round_trip(200), Faults(bend=0.003, noise=0.002, scale=0.05), clip_frames=24, step=2)
    truth = drifting.scene.cameras.world_from_cam[drifting.numbers]
    errors = []
    for loops in (False, True):
        results, report = reconstruct(drifting, video_of(drifting), Asked(tasks=("cameras",), loops=loops))
        errors.append(path_scores(results["cameras"]["world_from_cam"].astype(np.float64), truth)["ate"])
        assert ("loops" in report) == loops
    assert errors[1] < 0.5 * errors[0]
    assert any(loop["closed"] for loop in report["loops"])
    assert report["loop_disagreement"]["after"] < report["loop_disagreement"]["before"]


# ---- native frames ----


def test_depth_and_flow_take_their_patches_from_one_native_frame_at_a_time():
    torch.manual_seed(0)
    model = D4RT(ModelConfig.preset("tiny"))
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    raw = rng.integers(0, 256, (6, 24, 48, 3), dtype=np.uint8)
    shown = []

    def native(places):
        for place in places:
            shown.append(place)
            yield raw[place]

    told = {"frame_numbers": np.arange(6), "fps": 10.0, "digest": "", "notes": (), "size": (24, 48)}
    video = Video(name="x", clip=clip, frames=raw, native=native, **told)
    found, _ = reconstruct(model, video, Asked(tasks=("depth", "flow"), native=True))
    assert shown == list(range(6))
    assert found["depth"]["depth"].shape == (6, 24, 48) and found["flow"]["flow"].shape == (5, 24, 48, 3)
    memory = model.encode(torch.from_numpy(clip[None, :4]), torch.tensor([2.0]))
    expected = recipes.frame_depth(model, memory, 2, height=24, width=48, native_frame=raw[2])
    np.testing.assert_allclose(found["depth"]["normal"][2], expected.normal[0], atol=1e-5)
    coarse, _ = reconstruct(model, video, Asked(tasks=("depth",), native=True, depth_size=10))
    assert coarse["depth"]["depth"].shape == (6, 5, 10)


def test_maps_that_fit_into_no_memory_are_refused_with_what_helps(oracle):
    video = replace(video_of(oracle), size=(3840, 2160))
    plan = recipes.plan_windows(FRAMES, WINDOW)
    for options, fits in (({"depth_size": 256}, True), ({}, False), ({"tasks": ("points", "tracks")}, True)):
        asked = Asked(**{"tasks": ("depth",), "native": True} | options)
        refused = pytest.raises(
            ValueError, match=r"depth of 2160 x 3840 pixels of the 13 frames .* 6\.5 GB .* 4\.0: give"
        )
        with nullcontext() if fits else refused:
            require_room(plan, Questions.of(video, 8, asked), 4_000_000_000)


# ---- files that a user gives ----


def test_points_are_read_from_csv_json_and_our_own_files(tmp_path):
    (tmp_path / "a.csv").write_text("t,u,v,name\n3,0.25,0.5,ear\n0,1,0,tail\n")
    (tmp_path / "b.json").write_text('{"points": [[0.25, 0.5], [1, 0]], "t_src": [3, 0]}')
    np.savez(tmp_path / "c.npz", points=np.float32([[0.25, 0.5], [1, 0]]), t_src=np.array([3, 0]))
    for name in ("a.csv", "b.json", "c.npz"):
        given = read_points(str(tmp_path / name))
        assert given.points.tolist() == [[0.25, 0.5], [1, 0]] and given.t_src.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y,t\n1,2,3\n", "must have the columns u,v,t"),
        ("a.csv", "u,v,t\n0.5,0.5,0.5\n", "numbers all"),
        ("a.csv", "u,v,t\n", "N > 0"),
        ("a.csv", "u,v,t\n0.5,0.5,0\n320,240,0\n", r"1 of 2 are outside the image, first point 1 at \[320.0, 240.0\]"),
        ("a.csv", "u,v,t\n0.5,nan,0\n", "outside the image"),
        ("a.csv", "u,v,t\n0.5,0.5,-1\n", "frames are counted from 0"),
        ("a.csv", f"u,v,t\n0.5,0.5,{10**22}\n", "numbers all"),
        ("a.csv", "u,v,t\n0.5,0.5,0,7\n", "a line has more values"),
        ("a.json", f'{{"points": [[0.5, 0.5]], "t_src": [{10**22}]}}', "no video has so many"),
        ("a.json", '{"points": [[0, 0, 0]], "t_src": [0]}', 'it must be {"points"'),
        ("a.txt", "", r"must end with .csv, .json, .npz"),
    ],
)
def test_points_that_are_none_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_points(str(tmp_path / name))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.array([["a", "b"]]), "t_src": np.array([0])}, r"--points .*: points is <U1, .* real numbers"),
        ({"points": np.array([[0.5j, 0.5]]), "t_src": np.array([0])}, "points is complex128, it must be real"),
        ({"points": np.array([[0.5, 0.5]]), "t_src": np.array([2**64 - 1], np.uint64)}, "no video has so many"),
        ({"points": np.array([[0.5, 0.5]]), "t_src": np.array([0.0])}, "t_src is float64, it must be whole"),
        ({"points": np.array([[0.5, None]]), "t_src": np.array([0])}, "--points .* has no readable array 'points'"),
        ({"t_src": np.array([0])}, "--points .* has no readable array 'points'"),
    ],
)
def test_arrays_that_are_no_points_are_refused_by_option_and_file(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_points(str(tmp_path / "a.npz"))


def test_intrinsics_and_poses_are_read_strictly(tmp_path):
    assert read_intrinsics("100,110,64,48") == Intrinsics(100.0, 110.0, 64.0, 48.0)
    (tmp_path / "k.json").write_text('{"fx": 100, "fy": 110.0, "cx": 64, "cy": 48}')
    assert read_intrinsics(str(tmp_path / "k.json")) == Intrinsics(100.0, 110.0, 64.0, 48.0)
    np.savez(tmp_path / "k.npz", intrinsics=Intrinsics(100.0, 110.0, 64.0, 48.0).matrix)
    assert read_intrinsics(str(tmp_path / "k.npz")) == Intrinsics(100.0, 110.0, 64.0, 48.0)
    for wrong, message in (("1,2,x,4", "must be fx,fy,cx,cy"), ("-1,2,3,4", "above 0"), ("nowhere.json", "not exist")):
        with pytest.raises(ValueError, match=message):
            read_intrinsics(wrong)

    poses = hidden_balls(5).cameras.world_from_cam
    (tmp_path / "p.txt").write_text(tum(np.arange(0, 10, 2), poses))
    found = read_poses(str(tmp_path / "p.txt")).of(np.arange(10), "a video")
    np.testing.assert_allclose(found[::2], poses, atol=1e-6)
    assert np.isnan(found[1::2]).all()
    np.savez(tmp_path / "p.npz", world_from_cam=poses)
    np.testing.assert_array_equal(read_poses(str(tmp_path / "p.npz")).of(np.arange(5), "a video"), poses)
    np.savez(tmp_path / "scaled.npz", world_from_cam=poses * 2)
    np.savez(tmp_path / "row.npz", world_from_cam=poses + np.diag([0, 0, 0, 1.0]))
    np.savez(tmp_path / "text.npz", world_from_cam=np.full((3, 4, 4), "a"))
    (tmp_path / "seconds.txt").write_text("0.1 0 0 0 0 0 0 1\n0.2 0 0 0 0 0 0 1\n")
    (tmp_path / "zero.txt").write_text("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 0\n")
    for name, message in (
        ("scaled.npz", "each a rotation"),
        ("seconds.txt", "first column must be the frame"),
        ("row.npz", "the last row of each pose must be 0 0 0 1"),
        ("text.npz", "--poses .*text.npz: world_from_cam is <U1"),
        ("zero.txt", "a quaternion 0 0 0 0"),
    ):
        with pytest.raises(ValueError, match=message):
            read_poses(str(tmp_path / name))
    with pytest.raises(ValueError, match="hardly a pose of the frames of a video"):
        read_poses(str(tmp_path / "p.txt")).of(np.arange(100, 110), "a video")


def test_what_no_video_can_be_asked_is_refused_at_once():
    with pytest.raises(ValueError, match="4 things are wrong") as error:
        Asked(tasks=("depth", "uncertainty", "normals"), grid=0, forecast=-1)
    for part in ("'normals'", "--grid 0", "--forecast -1", "uncertainty is of tracks"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="--depth-size 0 must be from 1"):
        Asked(depth_size=0)
    with pytest.raises(ValueError, match=r"--forecast 1000000 of 256 tracks gives 256000000 positions: at most"):
        Asked(forecast=1_000_000)
    with pytest.raises(ValueError, match="--query-frame is of the grid"):
        Asked(points=POINTS, query_frame=2)
    asked = Asked(query_frame=40)
    with pytest.raises(ValueError, match="--query-frame has frame 40; it has 40"):
        asked.check(np.arange(40), (96, 128), "it")
    assert json.dumps(asked.told()) != json.dumps(Asked().told())
