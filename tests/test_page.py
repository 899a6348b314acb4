"""The page of a video, in a real browser."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import Tab, chromium
from exact_result import exact_arrays, write_exact
from PIL import Image

from pipelines.geometry import project, transform
from pipelines.results.page.job_page import write_index
from pipelines.results.page.video_page import LARGEST, rewrite_page, video_page
from pipelines.results.reading import Document, VideoFacts, WindowFacts
from pipelines.synthesize.staged import hidden_balls

FRAMES, GRID, LOST_FROM = 12, 8, 9
READY = "document.readyState === 'complete' && (!!window.player || !document.getElementById('failure').hidden)"


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    """A few tracks are hidden behind a pillar from the start, and one is lost towards the end."""
    scene = hidden_balls(FRAMES, width=64, height=48)
    tracks = exact_arrays(scene, GRID)["tracks"]
    tracks["status"][3, LOST_FROM:] = 3
    tracks["visible"][3, LOST_FROM:] = False
    for key in ("xyz", "xyz_cam", "uv_norm"):
        tracks[key][3, LOST_FROM:] = np.nan
    return write_exact(tmp_path_factory.mktemp("page"), scene, GRID, seams=(5,), tracks=tracks)


@pytest.fixture(scope="module")
def tab(result):
    with chromium() as tab:
        tab.open((result / "page.html").as_uri())
        tab.wait_for(READY)
        yield tab


def pixels(tab: Tab) -> np.ndarray:
    """(H, W, 3) of the 3D view, drawn anew."""
    code = """new Promise((done) => requestAnimationFrame(() => {
        player.scene.draw(player.state, player.view.at(player.state.t));
        const gl = player.scene.gl, all = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
        gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, all);
        const text = btoa(all.reduce((s, x) => s + String.fromCharCode(x), ""));
        done([gl.drawingBufferHeight, gl.drawingBufferWidth, text]);
    }))"""
    height, width, text = tab.evaluate(code)
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[::-1, :, :3]


def test_it_loads_without_an_error_and_without_the_network(tab):
    assert tab.errors == [] and tab.evaluate("document.getElementById('failure').hidden")
    assert all(address.startswith(("file:", "data:", "blob:")) for address in tab.asked)


def test_no_address_is_in_it(result):
    text = re.sub(r'(?s)<script type="application/octet-stream".*?</script>', "", (result / "page.html").read_text())
    assert not re.findall(r"https?://|src=|@import|url\(", text)


def test_numbers_on_it_are_those_of_the_result(tab, result):
    with np.load(result / "tracks.npz") as tracks, np.load(result / "points.npz") as points:
        wanted, uv, cloud = tracks["xyz"], tracks["uv_norm"], points["xyz"]
    about = json.loads(tab.evaluate("JSON.stringify(player.result.about)"))
    step = max(b - a for a, b in zip(about["low"], about["high"], strict=True)) / (about["levels"] - 1)
    for n, t in ((0, 0), (21, 7), (GRID**2 - 1, FRAMES - 1)):
        np.testing.assert_allclose(tab.evaluate(f"player.result.xyz({n}, {t})"), wanted[n, t], atol=step)
        if np.abs(uv[n, t] - 0.5).max() < 1.4:
            np.testing.assert_allclose(tab.evaluate(f"player.result.uv({n}, {t})"), uv[n, t], atol=1e-4)
    code = "Array.from(undifferenced(player.result.arrays.points).slice(-4, -1))"
    last = np.array(about["low"]) + np.array(tab.evaluate(code)) * (np.subtract(about["high"], about["low"])) / (
        about["levels"] - 1
    )
    np.testing.assert_allclose(last, cloud[-1], atol=step)


def test_it_plays_and_stops(tab):
    tab.evaluate("player.go(0); player.play()")
    tab.wait_for("player.state.t >= 3")
    tab.evaluate("player.pause()")
    there = tab.evaluate("player.state.t")
    assert tab.evaluate("new Promise((done) => setTimeout(() => done(player.state.t), 400))") == there
    tab.evaluate("document.getElementById('loop').checked = false; player.go(0);")
    tab.evaluate("document.getElementById('speed').value = '4'; player.play()")
    tab.wait_for(f"player.state.t === {FRAMES - 1} && !player.playing")
    tab.evaluate("document.getElementById('loop').checked = true; document.getElementById('speed').value = '1'")


def test_keys_play_and_step_also_after_a_button_was_clicked(tab):
    tab.evaluate("player.go(0)")
    x, y = tab.evaluate(
        "(({left, top}) => [left + 10, top + 10])(document.getElementById('always').getBoundingClientRect())"
    )
    tab.click(x, y)
    tab.press(" ")
    tab.wait_for("player.playing && player.state.t >= 2 && player.state.always")
    tab.press(" ")
    assert not tab.evaluate("player.playing")
    tab.evaluate("player.mode(false); player.go(5)")
    tab.press("ArrowRight")
    tab.press("m")
    assert tab.evaluate("[player.state.t, player.state.always]") == [6, True]
    tab.press("m")


def test_the_view_through_the_camera_is_the_frame(tab, result):
    """What is drawn at the pixel of a frame has its colour."""
    tab.evaluate("player.go(4); player.mode(false); player.through(true); player.state.tracks = false")
    drawn = pixels(tab).astype(float)
    frame = np.asarray(Image.open(result.parent / "scene-frames" / "4.png")).astype(float)
    tab.evaluate("player.state.tracks = true; player.through(false)")
    height, width = drawn.shape[:2]
    scale = min(width / 64, height / 48)
    v, u = np.mgrid[4:44, 4:60]
    x, y = (width / 2 + (u + 0.5 - 32) * scale).astype(int), (height / 2 + (v + 0.5 - 24) * scale).astype(int)
    difference = np.abs(drawn[y, x] - frame[v, u]).max(axis=-1)
    assert np.median(difference) <= 8, "colours keep five bits on the page"


def test_a_click_on_a_track_gives_its_numbers(tab, result):
    with np.load(result / "tracks.npz") as tracks, np.load(result / "cameras.npz") as cameras:
        xyz, visible = tracks["xyz"], tracks["visible"]
        pose, lens = cameras["world_from_cam"][2], cameras["intrinsics"][2]
    n = int(np.flatnonzero(visible[:, 2] & (np.arange(GRID**2) > 30))[0])
    tab.evaluate("player.go(2); player.through(true)")
    width, height = tab.evaluate("[scene.clientWidth, scene.clientHeight].map(Number)")
    u, v = project(transform(np.linalg.inv(pose), xyz[n, 2]), lens)
    scale = min(width / 64, height / 48)
    tab.click(float(width / 2 + (u - 32) * scale), float(height / 2 + (v - 24) * scale))
    tab.wait_for("document.getElementById('track').innerText.includes('confidence')")
    told = tab.evaluate("document.getElementById('track').innerText")
    assert f"Track {n}\n" in told and "seen" in told and "0.90" in told
    said = re.search(r"in the world\s+(\S+), (\S+), (\S+)", told)
    np.testing.assert_allclose([float(x) for x in said.groups()], xyz[n, 2], atol=2e-3)
    tab.evaluate("player.choose(-1); player.through(false)")


def test_hidden_and_lost_are_told_apart(tab, result):
    with np.load(result / "tracks.npz") as tracks:
        visible = tracks["visible"]
    kinds = tab.evaluate(f"[...Array({GRID**2}).keys()].map((n) => player.result.mark(n, {LOST_FROM - 1}).kind)")
    assert kinds == ["seen" if seen else "hidden" for seen in visible[:, LOST_FROM - 1]] and "hidden" in kinds
    tab.evaluate(f"player.go({FRAMES - 1}); player.choose(3)")
    tab.wait_for("document.getElementById('track').innerText.includes('lost since frame 8')")
    tab.evaluate("player.choose(-1)")


def test_seams_are_marked_on_the_timeline(tab):
    assert tab.evaluate("[...document.querySelectorAll('#seams i')].map((mark) => mark.title)") == [
        "a window begins at frame 5"
    ]


def test_confidence_size_and_mode_change_what_is_drawn(tab):
    tab.evaluate("player.go(3); player.state.tracks = player.state.cameras = false")
    dark = np.array([20, 22, 26])

    def covered() -> int:
        return int((np.abs(pixels(tab).astype(int) - dark).max(axis=-1) > 6).sum())

    moment = covered()
    tab.evaluate("player.doubt(60)")
    sure = covered()
    tab.evaluate("player.doubt(0); player.state.size = 2")
    small = covered()
    tab.evaluate("player.state.size = 20; player.mode(true)")
    always = covered()
    tab.evaluate("player.mode(false); player.state.tracks = player.state.cameras = true")
    assert 0 < sure < 0.7 * moment and small < 0.5 * moment and always > moment


def test_up_turns_the_view(tab):
    tab.evaluate("up.value = '0,1,0'; up.onchange(); player.go(0)")
    turned = pixels(tab).astype(int)
    tab.evaluate("up.value = '0,-1,0'; up.onchange()")
    assert np.abs(turned - pixels(tab)).mean() > 3
    assert tab.errors == []


def test_a_page_without_its_video_or_of_nothing_says_so(result, tmp_path):
    alone = shutil.copytree(result, tmp_path / "alone")
    document = json.loads((alone / "result.json").read_text())
    document["source"]["uri"] = str(tmp_path / "gone")
    (alone / "result.json").write_text(json.dumps(document))
    notes = rewrite_page(str(alone))
    assert "gone" in notes[0] and "cannot be shown" in notes[0]
    for task in ("tracks", "points", "cameras"):
        with np.load(alone / f"{task}.npz") as file:
            nothing = {key: np.full_like(x, np.nan) if x.dtype == np.float32 else x for key, x in file.items()}
        np.savez(alone / f"{task}.npz", **nothing)
    rewrite_page(str(alone))
    with chromium() as tab:
        tab.open((alone / "page.html").as_uri())
        tab.wait_for(READY)
        told = tab.evaluate("document.getElementById('warnings').textContent")
        assert tab.errors == [] and "gone" in told and "points are not shown" in told and "camera of 12 of 12" in told


def test_a_million_points_fit_and_more_are_thinned():
    """48 frames x 20,000 points of a wavy surface, with noise of a hundredth of the distance; then noise alone."""
    frames, count = 48, 20_000
    rng = np.random.default_rng(0)
    v, u = np.divmod(np.arange(count), 160)
    xy = np.stack([u / 80 - 1, v / 80 - 0.8], axis=1)
    z = 3 + 0.4 * np.sin(5 * xy[:, 0] + np.arange(frames)[:, None] / 8) * np.cos(4 * xy[:, 1])
    xyz = np.concatenate([xy * z[..., None], z[..., None]], axis=-1) * (1 + 0.01 * rng.standard_normal((*z.shape, 1)))
    rgb = (128 + 100 * np.sin(9 * xyz) + 8 * rng.standard_normal(xyz.shape)).clip(0, 255).astype(np.uint8)
    points = {
        "xyz": xyz.reshape(-1, 3).astype(np.float32),
        "rgb": rgb.reshape(-1, 3),
        "confidence": rng.random(frames * count).astype(np.float32),
        "frame": np.repeat(np.arange(frames), count),
    }
    video = VideoFacts("wave", list(range(frames)), 10.0, 160, 125, [])
    document = Document({}, video, "model units", "first camera", [], windows=[WindowFacts(0, 47, None)])
    page = video_page(document, {"points": points}, ())
    assert len(page) <= LARGEST and "one of" not in page, f"{len(page)} bytes"

    wild = points | {
        "xyz": rng.random((frames * count, 3), np.float32),
        "rgb": rng.integers(0, 256, (frames * count, 3), np.uint8),
    }
    page = video_page(document, {"points": wild}, ())
    assert len(page) <= LARGEST and "one of 2 points is shown" in page


def test_of_very_many_tracks_some_are_shown():
    frames, count = 48, 20_000
    rng = np.random.default_rng(0)
    tracks = {
        "points": rng.random((count, 2)),
        "t_src": np.zeros(count, int),
        "xyz": rng.random((count, frames, 3)),
        "uv_norm": rng.random((count, frames, 2)),
        "visible": rng.random((count, frames)) < 0.5,
        "confidence": rng.random((count, frames)),
        "status": np.ones((count, frames), np.int8),
    }
    video = VideoFacts("many", list(range(frames)), 10.0, 64, 48, [])
    page = video_page(Document({}, video, "u", "w", []), {"tracks": tracks}, ())
    assert len(page) <= LARGEST and "5208 of 20000 tracks are shown" in page


def test_a_long_video_shows_some_of_its_frames():
    frames = 1500
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    cameras = {"world_from_cam": poses, "intrinsics": np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1))}
    video = VideoFacts("long", list(range(frames)), 30.0, 64, 48, [])
    windows = [WindowFacts(0, 800, None), WindowFacts(700, 1499, {})]
    page = video_page(Document({}, video, "u", "w", [], windows=windows), {"cameras": cameras}, ())
    about = json.loads(re.search(r'id="about">(.*?)</script>', page)[1])
    assert about["frames"] == list(range(0, frames, 3)) and about["fps"] == 10.0
    assert about["frames"][about["seams"][0]] in (699, 702) and "one of 3 frames is shown" in about["notes"][0]


def test_names_cannot_break_the_page():
    name, note = "</script><script>alert(1)</script>{{data}}", "<img src=x onerror=alert(1)>"
    document = Document({}, VideoFacts(name, [0, 1], 10.0, 8, 8, [note]), "u", "w", [])
    page = video_page(document, {}, ())
    assert page.count("<script") == 3 and "<img" not in page


def test_the_index_leads_to_every_page_and_names_what_failed(result, tmp_path):
    for name in ("one", "two #2 & <b>"):
        shutil.copytree(result, tmp_path / name)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "result.json").write_text("{")
    write_index(str(tmp_path), {"third": "it is no video"})
    with chromium() as tab:
        tab.open((tmp_path / "index.html").as_uri())
        tab.wait_for("document.readyState === 'complete'")
        assert tab.evaluate("document.querySelector('h1').textContent") == "2 videos"
        told = tab.evaluate("document.body.innerText")
        assert "third: it is no video" in told and "damaged" in told and f"{FRAMES} frames" in told
        loaded = "[...document.images].filter((image) => image.complete && image.naturalWidth > 0).length"
        tab.wait_for(f"{loaded} === 6")  # of each a frame, points and cameras
        tab.evaluate("document.querySelectorAll('article > a')[1].click()")
        tab.wait_for(f"location.pathname.endsWith('page.html') && {READY}")
        assert tab.errors == []


def test_a_camera_of_hardly_any_focal_length_does_not_cover_the_scene(result, tmp_path):
    folder = tmp_path / "wide"
    shutil.copytree(result, folder)
    with np.load(folder / "cameras.npz") as cameras:
        arrays = dict(cameras)
    arrays["intrinsics"][:, [0, 1], [0, 1]] *= 0.01
    np.savez(folder / "cameras.npz", **arrays)
    rewrite_page(str(folder))
    with chromium() as tab:
        covered = []
        for page in (result, folder):
            tab.open((page / "page.html").as_uri())
            tab.wait_for(READY)
            picture = pixels(tab)
            covered.append((picture != picture[0, -1]).any(axis=-1).mean())
    assert covered[1] < covered[0] + 0.1
