"""The numbers of `inspect` against plain counting, and its pictures."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from plane_store import cut_chunks, write_plane_store

from pipelines.inspect import DEPTH_EDGES, inspect, percentiles
from pipelines.pictures.drawing import UNKNOWN, caption, depth_colours, distinct_colours, dot
from pipelines.pictures.results import TRAIL, track_frames
from pipelines.query_table import FLAG_BITS, VALID_BITS
from pipelines.store.reader import ClipStore


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ClipStore:
    return ClipStore(write_plane_store(tmp_path_factory.mktemp("inspect") / "planes", clips=5, queries=200))


@pytest.fixture(scope="module")
def summary(ray_cluster, store) -> dict:
    inspect(store.uri, clips=2)
    with open(f"{store.uri}-inspect/summary.json") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def queries(store) -> dict[str, np.ndarray]:
    samples = [store[i].queries(k) for i in range(len(store)) for k in range(store.settings.samples)]
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def test_counts_and_shares(summary, queries):
    assert (summary["clips"], summary["queries"], summary["dataset"]) == (5, 5 * 2 * 200, "planes")
    for field, bit in VALID_BITS.items():
        assert summary["valid"][field] == pytest.approx(np.mean(queries["valid"] & bit > 0))
    for flag, bit in FLAG_BITS.items():
        assert summary["flags"][flag] == pytest.approx(np.mean(queries["flags"] & bit > 0))
    assert summary["visible_of_known"] == pytest.approx(queries["visible"].mean())
    assert summary["target_is_camera"] == pytest.approx(np.mean(queries["t_tgt"] == queries["t_cam"]))
    for name in ("t_src", "t_tgt", "t_cam"):
        np.testing.assert_allclose(summary["times"][name], np.bincount(queries[name], minlength=4) / 2000)
    assert summary["clips_per_sequence"] == {f"plane{number:04}": 1 for number in range(5)}
    assert summary["strides"] == {"1": 5}


def test_depth_percentiles_are_right_within_a_bin(summary, queries):
    depth, width = queries["xyz"][:, 2], DEPTH_EDGES[1] / DEPTH_EDGES[0]
    for name, value in summary["depth"]["percentiles"].items():
        true = np.quantile(depth[depth > 0], int(name[1:]) / 100)
        assert 1 / width <= value / true <= width
    assert summary["depth"]["behind_camera"] == pytest.approx(np.mean(depth <= 0))
    assert percentiles(np.zeros(160, np.int64), DEPTH_EDGES) is None


def test_bytes_add_up(summary, store):
    import pathlib

    stored = sum(path.stat().st_size for path in pathlib.Path(store.uri, "data").rglob("*") if path.is_file())
    by_array = summary["bytes_per_clip"]
    assert by_array["total"] == pytest.approx(stored / 5)
    assert sum(size for name, size in by_array.items() if name != "total") == pytest.approx(stored / 5)
    assert {"video", "queries", "intrinsics", "world_from_cam", "frame_index"} < set(by_array)


def test_sheets_are_large_enough_to_read(summary, store):
    for number in range(2):
        width, height = Image.open(f"{store.uri}-inspect/sheet_{number:03}.png").size
        assert width > 1500 and height > 700  # four frames of 64 x 64, enlarged


def test_exact_pixels_have_no_psnr(ray_cluster, tmp_path):
    uri = write_plane_store(tmp_path / "exact", clips=1, queries=64, video="zstd")
    for document in pathlib.Path(uri).rglob("*.json"):  # strict JSON, which knows no infinity
        json.loads(document.read_text(), parse_constant=pytest.fail)
    inspect(uri, out=str(tmp_path / "found"), clips=1)
    assert json.loads((tmp_path / "found" / "summary.json").read_text())["psnr"] == {"min": None, "median": None}


def test_what_cannot_be_inspected_is_refused(ray_cluster, store, summary, tmp_path):
    with pytest.raises(ValueError, match=r"planes-inspect exists already and is not overwritten.*another --out"):
        inspect(store.uri)
    with pytest.raises(ValueError, match=r"no store\.json in .*nothing"):
        inspect(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="--clips -1 must not be negative"):
        inspect(store.uri, clips=-1)
    shutil.copytree(store.uri, tmp_path / "damaged")
    cut_chunks(str(tmp_path / "damaged"), "queries")
    with pytest.raises(ValueError, match=r"queries of clip plane000\d@0x1 .* cannot be read"):
        inspect(str(tmp_path / "damaged"), out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_a_dot_lies_on_its_position():
    image = np.zeros((60, 80, 3), np.uint8)
    dot(image, np.array([20.5 / 80, 10.5 / 60]), (255, 0, 0), 3.0)  # the centre of the pixel in column 20, row 10
    rows, columns = np.nonzero(image[..., 0] > 128)
    assert (rows.mean(), columns.mean()) == pytest.approx((10, 20), abs=0.05)
    dot(untouched := np.zeros_like(image), np.array([np.nan, 0.5]), (255, 0, 0), 3.0)
    dot(untouched, np.array([1e9, 0.5]), (255, 0, 0), 3.0)
    assert not untouched.any()


def test_hidden_points_are_rings_and_trails_follow_visible_ones():
    frames = np.zeros((3, 960, 960, 3), np.uint8)
    uv = np.array([[[0.2, 0.5], [0.4, 0.5], [0.6, 0.5]], [[0.2, 0.8], [0.4, 0.8], [0.6, 0.8]]])
    visible = np.array([[True, True, True], [True, True, False]])
    lost, colours = np.zeros_like(visible), np.full((2, 3), 255, np.uint8)
    last = list(track_frames(frames, uv, visible, ~visible, lost, colours))[-1][-960:]  # below the text
    assert last[480, 576].min() > 200 and last[768, 576].max() < 60  # a disc; the hole of a ring
    assert last[768, 568:585].max() > 150
    assert last[480, 480].max() > 60 and last[768, 480].max() == 0  # no trail towards where it is hidden
    assert last[768, 288].max() > 60


def test_a_trail_fades_and_ends():
    """Each part of it is drawn once, so a picture costs what is new in it, however long trails are."""
    length = 14
    uv = np.full((1, length, 2), 0.5)
    uv[0, :, 0] = np.linspace(0.1, 0.9, length)
    visible = np.ones((1, length), bool)
    arrays = uv, visible, ~visible, ~visible, np.full((1, 3), 255, np.uint8)
    last = list(track_frames(np.zeros((length, 960, 960, 3), np.uint8), *arrays, among=99))[-1][-960:]
    middles = (960 * (uv[0, 1:, 0] + uv[0, :-1, 0]) / 2).round().astype(int)  # of each part, oldest first
    strength = last[480, middles].max(axis=-1).astype(int)
    assert (strength[: -TRAIL - 1] == 0).all() and (np.diff(strength[-TRAIL - 1 :]) > 15).all()
    assert 190 < strength[-1] < 215


def test_where_a_point_was_lost_is_a_cross_for_some_frames():
    frames, length = np.zeros((20, 960, 960, 3), np.uint8), 20
    uv, visible = np.full((1, length, 2), np.nan), np.zeros((1, length), bool)
    uv[0, :3], visible[0, :3] = 0.5, True
    colours, lost = np.full((1, 3), 255, np.uint8), np.arange(length)[None] >= 3
    images = [image[-960:] for image in track_frames(frames, uv, visible, visible & False, lost, colours)]
    assert images[3][480, 480, 0] > 200 and images[3][480, 480, 1] < 100, "red, in the middle"
    assert images[3][482, 482].max() > 150 and images[3][480, 484].max() < 60, "oblique"
    assert images[2][480, 480].min() > 200 and not images[-1].any()


def test_depth_colours_run_from_red_to_blue_and_unknown_is_grey():
    near, far, unknown = depth_colours(np.array([1.0, 5.0, np.nan]), 1.0, 5.0).astype(int)
    assert near[0] > 2 * near[2] and tuple(unknown) == UNKNOWN
    middle_far = depth_colours(np.array([4.5]), 1.0, 5.0)[0].astype(int)
    assert middle_far[2] > middle_far[0] and far.sum() < 250
    assert (depth_colours(np.array([0.0, 9.0]), 1.0, 5.0) == [near, far]).all()


def test_frames_are_large_enough_for_a_grid_of_points():
    """Also upright ones; larger ones stay as they are."""
    for size, shown in (((36, 64), (540, 960)), ((540, 302), (960, 537)), ((720, 1280), (720, 1280))):
        none = np.zeros((0, 1), bool)
        arrays = np.zeros((0, 1, 2)), none, none, none, np.zeros((0, 3), np.uint8)
        (image,) = track_frames(np.zeros((1, *size, 3), np.uint8), *arrays)
        text = image.shape[0] - shown[0]
        assert image.shape[1] == shown[1] and 0.025 * max(shown) <= text <= 0.05 * max(shown)


@pytest.mark.parametrize("size", [(1280, 720), (64, 36), (720, 1280), (2160, 3840)])
def test_all_that_is_said_of_tracks_is_there_also_upright(size):
    """In some size of letters; what is cut ends otherwise."""
    seen = np.ones((300, 1), bool)
    arrays = np.full((300, 1, 2), np.nan), seen, ~seen, ~seen, np.zeros((300, 3), np.uint8)
    (image,) = track_frames(np.zeros((1, *size, 3), np.uint8), *arrays, among=20_000)
    text = "300 of 20000 tracks:   300 seen: discs   0 hidden: rings   0 lost: crosses"
    letters = (image > 128).any(axis=(0, 2))
    whole = ((caption(4000, text, height) > 128).any(axis=(0, 2)) for height in range(80, 11, -1))
    assert any(np.array_equal(np.flatnonzero(letters), np.flatnonzero(columns)) for columns in whole)


def test_colours_of_a_list_differ():
    assert len({tuple(colour) for colour in distinct_colours(40)}) == 40
