"""Results of a video longer than the model takes, from exact answers: one world, one unit, whatever its windows."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from oracle import Faults, Oracle

from pipelines.geometry import inverse, transform
from pipelines.results.asked import Asked
from pipelines.results.files import FIELDS, TASKS
from pipelines.results.reconstruct import reconstruct
from pipelines.results.sources import Video
from pipelines.results.windowed import notes_on
from pipelines.results.writing import write_arrays, write_results
from pipelines.synthesize.staged import hidden_balls

FRAMES, WINDOW = 40, 16
GRID = 6


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    """Each window believes in a unit of its own and stands a little elsewhere, as those of a real model do."""
    return Oracle(hidden_balls(FRAMES), Faults(scale=0.2, turn=0.03, shift=0.05), clip_frames=WINDOW)


@pytest.fixture(scope="module")
def video(oracle) -> Video:
    frames = oracle.video.numpy()
    size = (oracle.scene.height, oracle.scene.width)
    told = {"frame_numbers": np.arange(FRAMES), "fps": 10.0, "digest": "", "notes": ()}
    return Video(name="balls", clip=frames, frames=frames, size=size, **told)


@pytest.fixture(scope="module")
def found(oracle, video):
    return reconstruct(oracle, video, Asked(tasks=TASKS, grid=GRID, dense_grid=8, forecast=3))


@pytest.fixture(scope="module")
def world(oracle) -> np.ndarray:
    """(4, 4) from the scene's world to that of the results: the first window's, with its faults."""
    return oracle.similarity(np.arange(WINDOW)) @ inverse(oracle.scene.cameras.world_from_cam)[0]


def unit(world: np.ndarray) -> float:
    return float(np.cbrt(np.linalg.det(world[:3, :3])))


def test_windows_and_their_seams_are_reported(found):
    windows = found[1]["windows"]
    assert [(window["first"], window["last"]) for window in windows] == [(0, 15), (11, 26), (22, 37), (24, 39)]
    assert windows[0]["seam"] is None
    for window in windows[1:]:
        seam = window["seam"]
        assert seam["joined"] and seam["residual"] < 1e-5 and seam["inliers"] == 1
    assert max(abs(np.log(window["seam"]["scale"])) for window in windows[1:]) > 0.05, "units differ, or this is easy"


def test_tracks_are_those_of_their_points_through_all_windows(found, oracle, world):
    tracks = found[0]["tracks"]
    assert set(tracks) == set(FIELDS["tracks.npz"])
    hits = oracle.hits(tracks["points"], np.zeros(GRID**2, int))
    known = tracks["status"] < 3
    assert known.mean() > 0.9
    for t in range(FRAMES):
        true = oracle.scene.position(hits, np.full(GRID**2, t))
        expected = transform(world, true)
        np.testing.assert_allclose(tracks["xyz"][known[:, t], t], expected[known[:, t]], atol=1e-4)
    assert np.isnan(tracks["xyz"][~known]).all() and not tracks["visible"][~known].any()


def test_depth_has_the_unit_of_the_first_window_throughout(found, oracle, video, world):
    """What the faults turn and shift apart: depth is that of each frame's own camera, times the unit."""
    depth = found[0]["depth"]["depth"]
    height, width = depth.shape[1:]
    pixels = np.stack(np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height), axis=-1)
    exact = Oracle(oracle.scene, Faults(), clip_frames=WINDOW)
    plain = reconstruct(exact, video, Asked(tasks=("depth",), grid=1))[0]["depth"]["depth"]
    for t in (0, 14, 25, 39):
        hits = oracle.hits(pixels.reshape(-1, 2), np.full(height * width, t))
        true = transform(
            inverse(oracle.scene.cameras.world_from_cam)[t], oracle.scene.position(hits, np.full(height * width, t))
        )
        np.testing.assert_allclose(plain[t].ravel(), true[:, 2], rtol=1e-5)
        # A window that turns and shifts positions in every camera changes depth by little beside its unit.
        assert np.median(depth[t].ravel() / true[:, 2]) == pytest.approx(unit(world), rel=0.05)


def test_points_of_all_windows_lie_on_the_surfaces_of_one_world(found, oracle, world):
    points = found[0]["points"]
    assert sorted(set(points["frame"].tolist())) == list(range(FRAMES))
    size = oracle.config.image_size
    for t in (0, 20, 39):
        mine = points["frame"] == t
        grid = (np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(-1, 2) + 0.5) / size
        hits = oracle.hits(grid, np.full(len(grid), t))
        expected = transform(world, oracle.scene.position(hits, np.full(len(grid), t)))
        assert mine.sum() == len(grid)
        np.testing.assert_allclose(points["xyz"][mine], expected, atol=1e-4)
    assert np.linalg.norm(points["normal"], axis=1) == pytest.approx(1, abs=1e-5)


def test_normals_of_all_windows_are_in_the_axes_of_one_world(oracle, video):
    scaled = Oracle(oracle.scene, Faults(scale=0.2), clip_frames=WINDOW)
    points = reconstruct(scaled, video, Asked(tasks=("points",), grid=GRID))[0]["points"]
    size = oracle.config.image_size
    grid = (np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(-1, 2) + 0.5) / size
    turn = inverse(oracle.scene.cameras.world_from_cam)[0, :3, :3]
    for t in (0, 20, 39):
        expected = oracle.scene.normal(oracle.hits(grid, np.full(len(grid), t)), np.full(len(grid), t)) @ turn.T
        np.testing.assert_allclose(points["normal"][points["frame"] == t], expected, atol=1e-3)


def test_cameras_are_one_path_in_one_unit(oracle, video):
    scaled = Oracle(oracle.scene, Faults(scale=0.2), clip_frames=WINDOW)
    poses = reconstruct(scaled, video, Asked(tasks=("cameras",), grid=GRID))[0]["cameras"]["world_from_cam"]
    path = oracle.scene.cameras.world_from_cam
    expected = inverse(path)[:1] @ path
    expected[:, :3, 3] *= unit(scaled.similarity(np.arange(WINDOW)))
    np.testing.assert_allclose(poses, expected, atol=1e-4)


def test_what_did_not_go_together_is_noted(found, oracle, video):
    assert not any("could not be joined" in note for note in notes_on(found[0], found[1]["windows"]))
    wild = Oracle(oracle.scene, Faults(noise=0.3), clip_frames=WINDOW)
    results, report = reconstruct(wild, video, Asked(tasks=("tracks",), grid=GRID))
    notes = notes_on(results, report["windows"])
    assert len(notes) == 1 and " of its tracks are lost on the way" in notes[0]


def test_a_unit_that_drifts_away_is_noted():
    for scale, noted in ((0.93, True), (1.07, True), (1.01, False), (np.nan, False)):
        seam = {"joined": True, "scale": scale, "inliers": 1.0}
        windows = [{"first": 0, "last": 3, "seam": None}, *100 * [{"first": 2, "last": 5, "seam": seam}]]
        notes = notes_on({}, windows)
        assert len(notes) == noted and all("do not agree on a unit" in note for note in notes)


def test_answers_that_are_no_numbers_are_noted_and_never_all_written(oracle, video):
    asked = Asked(tasks=("depth", "tracks"), grid=GRID)
    some, report = reconstruct(Oracle(oracle.scene, Faults(unknown=0.1), clip_frames=WINDOW), video, asked)
    (note,) = (note for note in notes_on(some, report["windows"]) if "its depth are no numbers" in note)
    assert 8 < float(note.split("%")[0]) < 12
    none, report = reconstruct(Oracle(oracle.scene, Faults(unknown=1.0), clip_frames=WINDOW), video, asked)
    with pytest.raises(ValueError, match=r"no answer of the model for its .* is a number, all are NaN"):
        notes_on(none, report["windows"])


def test_files_tell_of_the_windows(found, video, tmp_path):
    results, report = found
    write_results(tmp_path, video, write_arrays(tmp_path, results), {"request": {}, **report})
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["windows"] == report["windows"]
    assert document["files"]["tracks.npz"]["status"]["shape"] == [GRID**2, FRAMES]


class Decoded:
    """Frames that cost something each time one goes through them."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.times = frames, 0

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self):
        self.times += 1
        yield from self.frames


def test_all_pictures_are_made_of_one_pass_over_the_frames(found, video, tmp_path):
    decoded = Decoded(video.frames)
    write_results(tmp_path, replace(video, frames=decoded), write_arrays(tmp_path, found[0]), {"request": {}})
    assert decoded.times == 1
    for name in ("tracks.mp4", "depth.mp4", "confidence.mp4"):
        with av.open(str(tmp_path / name)) as film:
            assert sum(1 for _ in film.decode(video=0)) == FRAMES
    assert (tmp_path / "thumbnail.jpg").exists()


def test_other_windows_give_the_same_world(oracle, video, found):
    exact = Oracle(oracle.scene, Faults(), clip_frames=WINDOW)
    whole = Oracle(oracle.scene, Faults(), clip_frames=FRAMES)
    asked = Asked(tasks=("tracks", "cameras"), grid=GRID)
    few = reconstruct(exact, video, asked, length=12, common=6)[0]
    one = reconstruct(whole, video, asked)[0]
    known = few["tracks"]["status"] < 3
    np.testing.assert_allclose(few["tracks"]["xyz"][known], one["tracks"]["xyz"][known], atol=1e-4)
    np.testing.assert_allclose(few["cameras"]["world_from_cam"], one["cameras"]["world_from_cam"], atol=1e-4)
    assert torch.tensor(one["tracks"]["status"]).unique().tolist() == [1]
