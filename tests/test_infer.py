"""Videos in, results out: files say what the model said, whole or not at all, and bad input is named."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from ray import cloudpickle
from scipy.spatial.transform import Rotation
from test_video import CAMEL, read, write_images

from model import D4RT, ModelConfig, checkpoints, recipes
from pipelines import jobs
from pipelines.geometry import rotation_from_xyzw, xyzw_from_rotation
from pipelines.infer import infer
from pipelines.models import load_model, model_digest, model_version
from pipelines.pictures.drawing import fitted
from pipelines.pictures.video_file import write_video
from pipelines.raw.place import open_place
from pipelines.raw.video import VideoFrames
from pipelines.results.asked import Asked
from pipelines.results.files import FIELDS, TASKS
from pipelines.results.finding import find_sources
from pipelines.results.reconstruct import Reconstruct, reconstruct
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, Video
from pipelines.results.writing import write_arrays, write_results
from pipelines.synthesize.job import LAYOUTS, scene_for
from pipelines.truth.clips import resize
from pipelines.whole import read_file, write_file

REPOSITORY = Path(__file__).parent.parent
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import tests


@pytest.fixture(scope="module")
def model() -> D4RT:
    torch.manual_seed(1)
    return D4RT(ModelConfig.preset("tiny")).eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> str:
    return str(checkpoints.save(model, tmp_path_factory.mktemp("checkpoint")))


def textured(count: int, height: int = 36, width: int = 64, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((width + count, height), Image.Resampling.BICUBIC))
    return np.stack([wide[:, k : k + width] for k in range(count)])


# --- registered models ------------------------------------------------------------------------------------------------


def same_weights(a: D4RT, b: D4RT) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_registered_model_is_found_by_alias_and_version(model, checkpoint, tmp_path, monkeypatch):
    from train import tracking, versions

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"no model registry at sqlite.*set MLFLOW_TRACKING_URI"):
        load_model("models:/d4rt@champion")
    assert not os.listdir(tmp_path)  # asking did not create one
    tracking.connect()
    versions.register(checkpoint, "d4rt", "champion")
    assert model_version("models:/d4rt@champion") == "models:/d4rt/1"
    assert model_version(checkpoint) == checkpoint
    assert same_weights(load_model("models:/d4rt@champion"), model)
    assert same_weights(load_model("models:/d4rt/1"), model)
    for absent in ("models:/d4rt@best", "models:/d4rt/7", "models:/other@champion"):
        with pytest.raises(ValueError, match=f"no model '{absent}'.*check name, version and alias"):
            load_model(model_version(absent))


def test_a_checkpoint_on_s3_is_loaded(model, checkpoint, s3_uri):
    import fsspec

    fs, path = fsspec.core.url_to_fs(s3_uri)
    fs.put(checkpoint + "/", f"{path}/checkpoint/", recursive=True)
    assert same_weights(load_model(f"{s3_uri}/checkpoint"), model)
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_model(f"{s3_uri}/nothing")


# --- the job ----------------------------------------------------------------------------------------------------------


def damaged(content: bytes) -> bytes:
    """A video whose header and first frame are well, and a later one is not."""
    with av.open(io.BytesIO(content)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = content.index(packets[2]) + len(packets[2]) // 2
    return content[:at] + b"\xa5" * 40 + content[at + 40 :]


@pytest.fixture(scope="module")
def results(ray_cluster, checkpoint, tmp_path_factory) -> Path:
    """Two good videos, one that is damaged behind its first frames, and one that is none: usual tasks."""
    root = tmp_path_factory.mktemp("infer")
    write_video(root / "moving.mp4", textured(8), 10.0)
    snow = np.random.default_rng(0).integers(0, 256, (5, 96, 128, 3), dtype=np.uint8)
    write_video(root / "damaged.mp4", snow, 10.0)
    (root / "damaged.mp4").write_bytes(damaged((root / "damaged.mp4").read_bytes()))
    folder = write_images(root / "images", [])
    for k, frame in enumerate(textured(4, 48, 40, seed=1)):
        Image.fromarray(frame).save(folder / f"{k}.png")
    (root / "text.mp4").write_text("no video at all " * 100)
    reason = (
        r"2 of 4 videos failed, the others are in (?s:.)*damaged: .*damaged\.mp4 cannot be read .*frame \d is damaged"
        r"(?s:.)*text: .*text\.mp4 cannot be read"
    )
    with pytest.raises(ValueError, match=reason):
        infer(
            model=checkpoint,
            video=[str(root / "text.mp4"), str(root / "moving.mp4"), str(root / "damaged.mp4"), str(folder)],
            out=str(root / "out"),
            num_frames=4,
            grid=5,
        )
    return root / "out"


FILES = (
    *("result.json", "tracks.npz", "tracks.mp4", "depth.npz", "depth.mp4", "confidence.mp4", "points.npz"),
    *("points.ply", "points.png", "cameras.npz", "cameras.txt", "cameras.png", "page.html", "thumbnail.jpg"),
)


def test_only_whole_folders_appear(results):
    assert sorted(os.listdir(results)) == ["images", "index.html", "moving"]
    assert sorted(os.listdir(results / "moving")) == sorted(FILES)


def test_result_json_describes_every_array(results, checkpoint):
    document = json.loads((results / "images" / "result.json").read_text())
    assert document["model"]["uri"] == document["model"]["version"] == checkpoint
    assert document["video"]["frame_numbers"] == [0, 1, 2, 3]
    assert (document["video"]["width"], document["video"]["height"]) == (40, 48)
    assert "scale-free" in document["unit"]
    for task in ("tracks", "depth", "points", "cameras"):
        with np.load(results / "images" / f"{task}.npz", allow_pickle=False) as arrays:
            told = document["files"][f"{task}.npz"]
            assert set(arrays) == set(told)
            for key, array in arrays.items():
                assert [list(array.shape), str(array.dtype)] == [told[key]["shape"], told[key]["dtype"]]
    assert 0 <= document["files"]["points.npz"]["left_out"]["value"] <= 0.1


def test_arrays_are_what_the_model_says_about_these_frames(results, model):
    frames = textured(4, 48, 40, seed=1)  # PNG keeps them exactly
    clip = torch.from_numpy(np.stack([resize(frame, 64) for frame in frames]))
    points = torch.tensor([[(x + 0.5) / 5, (y + 0.5) / 5] for y in range(5) for x in range(5)])
    aspect = 40 / 48
    answers = recipes.tracks(model, clip, points, torch.zeros(25, dtype=torch.int64), aspect=aspect, t_cam=0)
    with np.load(results / "images" / "tracks.npz") as tracks:
        np.testing.assert_allclose(tracks["points"], points, atol=1e-6)
        np.testing.assert_allclose(tracks["xyz"], answers.xyz, atol=1e-4)
        assert tracks["xyz_cam"].shape == (25, 4, 3)
        np.testing.assert_allclose(tracks["xyz_cam"][:, 0], tracks["xyz"][:, 0], atol=1e-4)  # frame 0's own camera
    with np.load(results / "images" / "depth.npz") as depth:
        assert depth["depth"].shape == (4, 64, 53)  # long side the model's, native shape
        expected = recipes.depth(model, clip, height=64, width=53, aspect=aspect).depth
        np.testing.assert_allclose(depth["depth"], expected, atol=1e-4)


def test_the_trajectory_file_is_tum(results):
    with np.load(results / "moving" / "cameras.npz") as cameras:
        poses = cameras["world_from_cam"]
    rows = np.loadtxt(results / "moving" / "cameras.txt")
    np.testing.assert_array_equal(rows[:, 0], range(4))
    np.testing.assert_allclose(rows[:, 1:4], poses[:, :3, 3], atol=1e-6)
    np.testing.assert_allclose(Rotation.from_quat(rows[:, 4:]).as_matrix(), poses[:, :3, :3], atol=1e-5)


def test_quaternions_of_all_rotations():
    turns = Rotation.random(200, rng=0).as_matrix().tolist()
    turns += (
        Rotation.from_euler("xyz", [[180, 0, 0], [0, 180, 0], [0, 0, 180], [0, 0, 0]], degrees=True)
        .as_matrix()
        .tolist()
    )
    for turn in np.array(turns):
        np.testing.assert_allclose(Rotation.from_quat(xyzw_from_rotation(turn)).as_matrix(), turn, atol=1e-12)
        np.testing.assert_allclose(rotation_from_xyzw(xyzw_from_rotation(turn)), turn, atol=1e-12)


def test_the_point_cloud_file_holds_the_points(results):
    content = (results / "moving" / "points.ply").read_bytes()
    header, _, body = content.partition(b"end_header\n")
    kinds = {"float": "<f4", "uchar": "u1", "int": "<i4"}
    fields = [(name, kinds[kind]) for kind, name in re.findall(r"property (\w+) (\w+)\n", header.decode())]
    vertices = np.frombuffer(body, fields)
    assert int(re.search(rb"element vertex (\d+)", header)[1]) == len(vertices) > 0
    with np.load(results / "moving" / "points.npz") as points:
        np.testing.assert_array_equal(np.stack([vertices[axis] for axis in "xyz"], -1), points["xyz"])
        np.testing.assert_array_equal(np.stack([vertices[c] for c in ("red", "green", "blue")], -1), points["rgb"])
        np.testing.assert_array_equal(vertices["frame"], points["frame"])


def test_pictures_have_a_frame_per_frame_and_last_two_seconds(results):
    tracks, depth = read(results / "moving" / "tracks.mp4"), read(results / "moving" / "depth.mp4")
    assert len(tracks.frames) == len(depth.frames) == 4
    assert tracks.fps == depth.fps == 2
    assert depth.frames.shape[2] > 2 * 480  # frame and depth, enlarged for viewing
    assert min(Image.open(results / "moving" / "cameras.png").size) > 400
    assert Image.open(results / "moving" / "points.png").width > 3 * 400


def test_tracks_are_drawn_from_the_pixels_that_were_asked(results):
    """A model that knows nothing says that they are elsewhere."""
    first = read(results / "images" / "tracks.mp4").frames[0][-960:]  # below the text
    plain = fitted(textured(4, 48, 40, seed=1)[0], max(first.shape))
    marked = np.abs(first.astype(int) - plain).max(axis=-1)
    with np.load(results / "images" / "tracks.npz") as tracks:
        assert np.abs(tracks["uv_norm"][:, 0] - tracks["points"]).max() > 0.1
        for x, y in (tracks["points"] * first.shape[1::-1]).astype(int):
            assert marked[y - 5 : y + 6, x - 5 : x + 6].max() > 30  # of H.264, 10


def test_pixels_are_square_and_separate_answers_are_said_to_be(results):
    with np.load(results / "images" / "cameras.npz") as cameras:
        intrinsics = cameras["intrinsics"]
    np.testing.assert_allclose(intrinsics[:, 0, 0], intrinsics[:, 1, 1], rtol=1e-6)
    document = json.loads((results / "images" / "result.json").read_text())
    assert "separate answers" in document["agreement"] and document["video"]["notes"] == []


@pytest.mark.parametrize("factor", [0.0, 1e30])
def test_a_model_that_says_nothing_gives_files_that_say_so(factor, tmp_path):
    """Weights that are all zero see every point in one place; huge ones answer NaN."""
    broken = D4RT(ModelConfig.preset("tiny")).eval()
    with torch.no_grad():
        for weights in broken.parameters():
            weights.mul_(factor)
    frames = textured(4, 64, 64)
    footage = {"frame_numbers": np.arange(4), "fps": 10.0, "digest": "", "notes": ()}
    video = Video(name="x", clip=frames, frames=frames, size=(64, 64), **footage)
    found, _ = reconstruct(broken, video, Asked(tasks=TASKS, grid=4))
    write_results(tmp_path, video, write_arrays(tmp_path, found), {"request": {}})
    assert np.isnan(found["depth"]["depth"]).all()
    assert np.isnan(found["cameras"]["world_from_cam"][1:]).all()
    assert {"result.json", "depth.npz", "cameras.png", "points.ply"} <= {path.name for path in tmp_path.iterdir()}


def test_the_same_request_is_done_and_another_refused(results, checkpoint, tmp_path):
    video, before = results.parent / "moving.mp4", (results / "moving" / "result.json").stat().st_mtime_ns
    request = {"model": checkpoint, "video": [str(video)], "out": str(results), "tasks": "tracks,depth,points,cameras"}
    infer(**request, num_frames=4, grid=5)
    assert (results / "moving" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"another request .*grid was 5, now 6.*another --out"):
        infer(**request, num_frames=4, grid=6)
    for count, folder in ((0, "elsewhere"), (1, "another")):  # a video is what it contains, wherever it lies
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "moving.mp4", textured(8, seed=count), 10.0)
    infer(**request | {"video": [str(tmp_path / "elsewhere" / "moving.mp4")]}, num_frames=4, grid=5)
    digests = r"/moving.mp4 with digest \w{8}, now digest \w{8}\)"
    with pytest.raises(
        ValueError, match=rf"moving holds results of another request \(video was .*{digests}.*remove it"
    ):
        infer(**request | {"video": [str(tmp_path / "another" / "moving.mp4")]}, num_frames=4, grid=5)
    other = checkpoints.save(D4RT(checkpoints.load(checkpoint).config), tmp_path / "other")
    was, now = (rf"{re.escape(str(folder))} \(digest \w{{8}}\)" for folder in (checkpoint, other))
    with pytest.raises(ValueError, match=rf"another request \(model was {was}, now {now}\)"):
        infer(**request | {"model": str(other)}, num_frames=4, grid=5)
    (tmp_path / "moving").mkdir()
    (tmp_path / "moving" / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already and is not overwritten"):
        infer(**request | {"out": str(tmp_path)}, num_frames=4, grid=5)


def test_a_file_that_nobody_touched_is_not_read_again(results, checkpoint, tmp_path, monkeypatch):
    """Unlike one that has another content now, though it has its old size and its old time."""
    video = results.parent / "moving.mp4"
    request = {"model": checkpoint, "video": [str(video)], "out": str(results), "num_frames": 4, "grid": 5}
    with monkeypatch.context() as patch:
        patch.setattr(VideoFrames, "index", property(lambda self: pytest.fail(f"{self} was read")))
        infer(**request)

    before, content = video.stat(), video.read_bytes()
    write_video(tmp_path / "moving.mp4", np.zeros_like(textured(8)), 10.0)
    other = (tmp_path / "moving.mp4").read_bytes()
    rest = len(content) - len(other)
    other += rest.to_bytes(4, "big") + b"free" + bytes(rest - 8)
    try:
        video.write_bytes(other)
        os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(ValueError, match=r"moving holds results of another request \(video was"):
            infer(**request)
    finally:
        video.write_bytes(content)
    infer(**request)  # touched, and the same


def test_raw_sequences_go_to_s3(ray_cluster, checkpoint, tmp_path, s3_uri):
    layout = LAYOUTS["tartanair"]
    for index in range(2):
        layout.write(scene_for("tartanair", 0, index, frames=4, size="small"), tmp_path / layout.folder(index))
    names = [source.name for source in find_sources([str(tmp_path)], "tartanair")]
    assert len(names) == 2
    request = {"model": checkpoint, "video": [str(tmp_path)], "out": s3_uri, "dataset": "tartanair"}
    infer(**request, tasks="cameras")
    fs, path = open_place(s3_uri)
    fs.rm_file(f"{path}/{names[0]}/result.json")
    write_file(f"{s3_uri}/{names[0]}/cameras.npz", b"half an upload of one that was killed")
    with pytest.raises(ValueError, match="exists already and is not overwritten"):
        infer(**request, tasks="depth")
    infer(**request, tasks="cameras")
    for name in names:
        assert "/" not in name
        document = json.loads(fs.cat_file(f"{path}/{name}/result.json"))
        assert document["source"]["dataset"] == "tartanair"
        with np.load(io.BytesIO(fs.cat_file(f"{path}/{name}/cameras.npz"))) as cameras:
            assert cameras["world_from_cam"].shape == (4, 4, 4)


@pytest.mark.skipif(not CAMEL.exists(), reason="the real video shared/data/video/camel.mp4 is not here")
def test_a_real_video(ray_cluster, checkpoint, tmp_path):
    more = {"tasks": ",".join(TASKS), "query_frame": 2, "dense_grid": 8, "depth_size": 48, "native": True}
    more |= {"intrinsics": "900,900,480,270", "loops": True, "forecast": 5}
    infer(model=checkpoint, video=[str(CAMEL)], out=str(tmp_path), num_frames=4, start=10, step=20, **more)
    overlay = read(tmp_path / "camel" / "tracks.mp4").frames
    overlay = overlay[:, -540:]  # below the text
    assert overlay.shape == (4, 540, 960, 3)
    raw = read(CAMEL, start=10, step=20, num_frames=4).frames
    assert np.median(np.abs(overlay.astype(int) - raw)) < 6  # the frames themselves, with dots on them
    document = json.loads((tmp_path / "camel" / "result.json").read_text())
    assert document["request"]["intrinsics"] == [900, 900, 480, 270] and document["request"]["query_frame"] == 2
    for file in FIELDS:
        with np.load(tmp_path / "camel" / file) as arrays:
            assert set(arrays) == set(document["files"][file])
    assert document["files"]["flow.npz"]["flow"]["shape"] == [3, 27, 48, 3]
    assert document["files"]["forecast.npz"]["xyz"]["shape"] == [256, 5, 3]
    with np.load(tmp_path / "camel" / "cameras.npz") as cameras:
        assert (cameras["intrinsics"][:, (0, 1), 2] == [480, 270]).all()
    with pytest.raises(ValueError, match=r"--query-frame has frame 4; .*camel.mp4 has 4.*\n.*--intrinsics, of .*camel"):
        wrong = {"query_frame": 4, "intrinsics": "1800,1800,960,540", "dry_run": True}
        infer(model=checkpoint, video=[str(CAMEL)], out=str(tmp_path / "new"), num_frames=4, **wrong)


def answer(*arguments):
    """In a worker, as a job has it done."""
    *made_of, source = arguments
    return jobs.aside(lambda: Reconstruct(*made_of)(asdict(source)), cpus=0)()


def test_the_same_answer_of_another_is_as_good(ray_cluster, model, checkpoint, tmp_path, s3_uri):
    """Ray may repeat a row, and a scheduler a job that it takes for dead."""
    write_video(tmp_path / "moving.mp4", textured(4), 10.0)
    source = Source(str(tmp_path / "moving.mp4"))
    request = {"tasks": ["cameras"], "grid": 5, "window": None, "common": None}
    told = {"digest": model_digest(model)}
    for out in (str(tmp_path / "out"), s3_uri):
        for grid, outcome in (
            (5, nullcontext()),
            (5, nullcontext()),
            (6, pytest.raises(ValueError, match="another re")),
        ):
            about = {"request": request | {"grid": grid}, "model": told}
            with outcome:
                answer(checkpoint, "", Selection(), Asked(tasks=("cameras",), grid=grid), out, about, source)
        assert json.loads(read_file(f"{out}/moving/result.json"))["request"]["grid"] == 5


def test_all_that_is_wrong_is_said_at_once_before_the_work(checkpoint, tmp_path):
    """What lies where the results of two videos would be belongs to somebody."""
    names = ("one", "other")
    for name in names:
        write_video(tmp_path / f"{name}.mp4", textured(9), 10.0)
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "diary.txt").write_text("mine")
    request = {"model": checkpoint, "video": [str(tmp_path / f"{name}.mp4") for name in names]}
    for options in ({}, {"dry_run": True}):
        with pytest.raises(ValueError, match="2 things are wrong, and nothing was done") as error:
            infer(**request, out=str(tmp_path / "results"), **options)
        for name in names:
            assert f"results/{name} exists already" in str(error.value)
    with pytest.raises(ValueError, match="windows of 5 frames are longer than the model takes: at most 4"):
        infer(**request, out=str(tmp_path / "elsewhere"), window=5)
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_wrong_without_any_model_needs_none(tmp_path):
    """Nor does it wait for the libraries of one."""
    write_video(tmp_path / "long.mp4", textured(9), 10.0)
    (tmp_path / "text.mp4").write_text("no video at all " * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "out").touch()
    request = {"model": "nowhere", "video": [str(tmp_path / f"{name}.mp4") for name in ("long", "text", "empty")]}
    with pytest.raises(ValueError, match="3 things are wrong, and nothing was done") as error:
        infer(**request, out=str(tmp_path / "results"), num_frames=10)
    for part in ("long.mp4 has 9 frames: fewer than 10", "text.mp4 cannot be read", "empty.mp4 is empty"):
        assert part in str(error.value)
    wrong = {"tasks": "depth,normals", "grid": 0, "out": str(tmp_path / "out"), "step": 0, "memory_gb": 0.0}
    wrong |= {"window": 1}
    with pytest.raises(ValueError, match="8 things are wrong, and nothing was done") as error:
        infer(**request | {"video": ["nowhere.mp4", "neither.mp4"]} | wrong)
    for part in (
        "'normals'",
        "--grid 0",
        "out cannot be a folder, because",
        "--window 1",
        "--step 0",
        "--memory-gb 0",
        "nowhere.mp4 does",
        "neither.mp4 does",
    ):
        assert part in str(error.value)


def test_a_dry_run_says_what_is_to_be_done_and_does_nothing(checkpoint, tmp_path, capsys):
    write_video(tmp_path / "moving.mp4", textured(4), 10.0)
    infer(model=checkpoint, video=[str(tmp_path / "moving.mp4")], out=str(tmp_path / "out"), dry_run=True)
    assert "ready: 1 of 1 videos to do with " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--memory-gb 0\.0001 is too little for this model: at least 0\.0"):
        infer(model=checkpoint, video=[str(tmp_path / "moving.mp4")], out=str(tmp_path / "out"), memory_gb=1e-4)
    assert not (tmp_path / "out").exists()


def test_a_wrong_request_is_one_message(checkpoint, tmp_path):
    write_video(clip_file := tmp_path / "moving.mp4", textured(4), 10.0)
    with pytest.raises(ValueError, match="--tasks has 'normals': choose from tracks, depth, points, cameras, dense"):
        infer(model=checkpoint, video=[str(clip_file)], out=str(tmp_path), tasks="depth,normals")
    with pytest.raises(ValueError, match="--grid 0"):
        infer(model=checkpoint, video=[str(clip_file)], out=str(tmp_path), grid=0)
    command = [sys.executable, "-m", "pipelines", "infer", "--model", str(tmp_path / "nothing")]
    command += ["--video", str(clip_file), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "config.json does not exist" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
