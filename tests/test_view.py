"""The viewer: what it opens, what it shows at a moment, and that a browser shows it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from exact_result import exact_arrays, write_exact
from oracle import Faults, Oracle

from benchmarks.servers import free_ports
from pipelines.export import export
from pipelines.geometry import transform
from pipelines.results.viewer.live import Live, pixel_of
from pipelines.results.viewer.opened import open_folder
from pipelines.results.viewer.server import Viewer
from pipelines.results.viewer.truth import track_errors
from pipelines.synthesize.staged import hidden_balls
from pipelines.view import view

FRAMES, GRID = 6, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """ROOT/out/scene, exact; ROOT/other/scene, of which everything is half as long and one track wrong."""
    root, scene = tmp_path_factory.mktemp("view"), hidden_balls(FRAMES, width=64, height=48)
    arrays = exact_arrays(scene, GRID)
    arrays["tracks"]["status"][5, 4:] = 3
    arrays["tracks"]["xyz"][5, 4:] = np.nan
    arrays["tracks"]["visible"][9, 3] = False
    write_exact(root / "out", scene, GRID, seams=(2,), tracks=arrays["tracks"])
    shutil.copytree(root / "out", root / "other", ignore=shutil.ignore_patterns("scene-frames"))
    half = 0.5 * arrays["tracks"]["xyz"]
    half[7] *= 1.08
    np.savez(root / "other/scene/tracks.npz", **(arrays["tracks"] | {"xyz": half}))
    export(str(root / "out" / "scene"), formats="st4rtrack,opend4rt")
    return root


@pytest.fixture(scope="module")
def viewer(root):
    viewer = Viewer(str(root / "out"), "127.0.0.1", free_ports(1)[0], truth=str(root / "other"))
    yield viewer
    viewer.server.stop()


def points_of(viewer: Viewer, name: str) -> np.ndarray:
    node = viewer.server.scene.get_handle_by_name(name)
    return np.zeros((0, 3)) if node is None else np.asarray(node.points, np.float32)


def test_at_a_moment_it_shows_that_moments_points_and_tracks(viewer, root):
    with np.load(root / "out/scene/tracks.npz") as tracks, np.load(root / "out/scene/points.npz") as points:
        xyz, visible, cloud, frame = tracks["xyz"], tracks["visible"], points["xyz"], points["frame"]
    viewer.go(3)
    np.testing.assert_allclose(points_of(viewer, "/0/points/3"), cloud[frame == 3], atol=0.01)
    known = np.isfinite(xyz[:, 3, 0])
    np.testing.assert_allclose(points_of(viewer, "/0/tracks/seen"), xyz[known & visible[:, 3], 3], atol=0.01)
    assert len(points_of(viewer, "/0/tracks/hidden")) == (known & ~visible[:, 3]).sum() > 0
    viewer.go(5)
    np.testing.assert_allclose(points_of(viewer, "/0/tracks/lost"), xyz[5:6, 3], atol=0.01)
    assert not viewer.server.scene.get_handle_by_name("/0/points/3").visible
    viewer.set(always=True)
    assert len(points_of(viewer, "/0/points/-1")) == len(cloud)
    viewer.set(always=False, doubt=50.0)
    assert len(points_of(viewer, "/0/points/5")) < 0.75 * (frame == 5).sum()
    viewer.set(doubt=0.0, hidden=False)
    assert not len(points_of(viewer, "/0/tracks/lost"))
    viewer.set(hidden=True)


def test_it_plays_to_the_end_and_loops_or_stops(viewer):
    viewer.go(FRAMES - 2)
    viewer.step()
    viewer.step()
    assert viewer.shown.t == 0 == viewer.timeline.value
    viewer.loop.value = False
    viewer.go(FRAMES - 1)
    viewer.toggle()
    viewer.step()
    assert viewer.shown.t == FRAMES - 1 and not viewer.playing
    viewer.loop.value = True


def test_truth_colours_tracks_by_their_error_after_one_scale(root):
    said, truth = open_folder(str(root / "other/scene")), open_folder(str(root / "out/scene"))
    errors, scale = track_errors(said, truth)
    assert scale == pytest.approx(2, rel=1e-4)
    np.testing.assert_allclose(errors[7, :4], 0.08, atol=1e-3)
    assert np.nanmax(np.delete(errors, 7, axis=0)) < 1e-3 and np.isnan(errors[5, 4:]).all()


def test_it_opens_folders_of_st4rtrack_and_packages_of_opend4rt(root):
    with np.load(root / "out/scene/tracks.npz") as file:
        tracks = dict(file)
    for kind in ("st4rtrack", "opend4rt"):
        opened = open_folder(str(root / "out/scene/exports" / kind))
        np.testing.assert_allclose(opened.arrays["tracks"]["xyz"], tracks["xyz"], atol=1e-5)
        np.testing.assert_allclose(opened.arrays["tracks"]["points"], tracks["points"], atol=1e-6)
        assert len(opened) == FRAMES
    assert len(open_folder(str(root / "out/scene/exports/st4rtrack")).images) == FRAMES


def test_a_click_asks_the_model_for_the_track_of_that_pixel(root):
    """The oracle's windows have another unit than the result, and stand elsewhere."""
    scene = hidden_balls(FRAMES, width=64, height=48)
    oracle = Oracle(scene, Faults(scale=0.3, turn=0.1, shift=0.3), clip_frames=4)
    opened = open_folder(str(root / "out/scene"))
    live = Live(oracle, opened, oracle.video.numpy())
    t, pose = 5, opened.arrays["cameras"]["world_from_cam"][5].astype(float)
    ray = pose[:3, :3] @ np.linalg.inv(scene.cameras.intrinsics[t]) @ [20.5, 30.5, 1]
    uv_norm = pixel_of(opened, t, pose[:3, 3], ray / np.linalg.norm(ray))
    np.testing.assert_allclose(uv_norm * [64, 48], [20.5, 30.5], atol=2)

    more = live.with_track(opened, uv_norm, t)
    tracks, hits = more.arrays["tracks"], oracle.hits(uv_norm[None], np.array([t]))
    assert len(tracks["xyz"]) == GRID**2 + 1 == len(opened.arrays["tracks"]["xyz"]) + 1
    first_from_world = np.linalg.inv(scene.cameras.world_from_cam[0])
    for s in range(2, FRAMES):  # its window
        where = transform(first_from_world, scene.position(hits, np.array([s])))[0]
        np.testing.assert_allclose(tracks["xyz"][-1, s], where, atol=2e-3)
    assert tracks["status"][-1].tolist() == [0, 0, 1, 1, 1, 1] and np.isnan(tracks["xyz"][-1, :2]).all()
    with pytest.raises(ValueError, match="no point where you clicked"):
        pixel_of(opened, t, pose[:3, 3], -ray / np.linalg.norm(ray))


def test_what_cannot_be_opened_is_said_and_the_viewer_goes_on(root, tmp_path):
    shutil.copytree(root / "out/scene", tmp_path / "good")
    shutil.copytree(root / "out/scene", tmp_path / "bad")
    shutil.copytree(root / "out/scene", tmp_path / "without_video")
    document = json.loads((tmp_path / "without_video/result.json").read_text())
    document["source"]["uri"] = "/nowhere"
    (tmp_path / "without_video/result.json").write_text(json.dumps(document))
    (tmp_path / "bad/points.npz").write_bytes(b"PK")
    viewer = Viewer(str(tmp_path), "127.0.0.1", free_ports(1)[0])
    try:
        assert "points.npz" in viewer.facts.content and "damaged" in viewer.facts.content
        viewer.open("good")
        assert len(points_of(viewer, "/0/tracks/seen")) and "damaged" not in viewer.facts.content
        viewer.open("without_video")
        assert len(points_of(viewer, "/0/tracks/seen")) and "cannot be shown" in viewer.facts.content
    finally:
        viewer.server.stop()


def test_a_port_that_is_taken_and_an_empty_place_are_refused_in_words(viewer, tmp_path):
    with pytest.raises(ValueError, match=r"cannot serve at 127\.0\.0\.1:\d+ .*give another --port"):
        view(str(tmp_path), port=viewer.server.get_port())
    with pytest.raises(ValueError, match="holds nothing to look at"):
        view(str(tmp_path), port=free_ports(1)[0])


def test_a_browser_shows_it(viewer):
    with chromium() as tab:
        tab.open(f"http://127.0.0.1:{viewer.server.get_port()}")
        tab.wait_for("document.body && document.body.innerText.includes('scene')")
        tab.wait_for("!!document.querySelector('canvas')")
        assert "least confident" in tab.evaluate("document.body.innerText")
        assert [error for error in tab.errors if "favicon" not in error] == []
    viewer.go(1)  # the browser has left
    assert viewer.shown.t == 1
