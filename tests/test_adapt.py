"""Adaptation to one video: it learns what is true, does no harm where labels are wrong, and never pays for the encoder
twice."""

import dataclasses
import json
import os
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracle import Faults, Oracle
from ray import cloudpickle

from model import D4RT, ModelConfig, checkpoints
from model.recipes import plan_windows
from pipelines.infer import infer
from pipelines.models import load_model
from pipelines.raw.place import open_place
from pipelines.results.files import ADAPTED
from pipelines.results.selection import Selection
from pipelines.status import status
from pipelines.synthesize.job import scene_for
from pipelines.truth.clips import resize
from train import adapt_video, teacher
from train.__main__ import adapt as command
from train.adapt import LabelledClip, Report, adapt, remember
from train.adapt_video import AdaptVideo
from train.adapt_videos import Asked, prepare
from train.errors import TrainingDiverged
from train.label_split import deal, held_out_rows
from train.optim import part_of
from train.pseudo_labels import PseudoLabels, read_labels, write_labels

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import tests

FRAMES, SIZE, LR = 6, 32, 2e-3
CONFIG = dataclasses.replace(
    ModelConfig.preset("tiny"), image_size=SIZE, clip_frames=4, encoder_layers=2, decoder_layers=2
)
SCENE = scene_for("kubric", 0, 0, frames=FRAMES, size="small")
SHAPE = (FRAMES, SCENE.height, SCENE.width)
PLAN = plan_windows(FRAMES, CONFIG.clip_frames)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.stack([SCENE.render(t).image for t in range(FRAMES)])


def untrained() -> D4RT:
    torch.manual_seed(0)
    return D4RT(CONFIG).eval()


def told(video: str | None = None, **faults: float) -> PseudoLabels:
    """What the oracle answers, wrong in a way that is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "POINTS", 48)
        patch.setattr(teacher, "TIMES_EACH", 8)
        oracle = Oracle(SCENE, Faults(**faults), clip_frames=FRAMES)
        return teacher.ask(oracle, oracle.video.numpy(), SHAPE[1:], PLAN, video)


@pytest.fixture(scope="module")
def exact() -> PseudoLabels:
    return told()


def clips_of(model: D4RT, frames: np.ndarray, labels: PseudoLabels, truth: PseudoLabels) -> list[LabelledClip]:
    video = np.stack([resize(frame, SIZE) for frame in frames])
    return [
        LabelledClip(
            remember(model, video[part.window.start : part.window.stop], SCENE.width / SCENE.height),
            part.learnt,
            part.held_out,
            part.truth,
        )
        for part in deal(labels, PLAN, "labels", truth)
    ]


@pytest.fixture(scope="module")
def learnt(frames, exact) -> tuple[D4RT, Report, list]:
    """(a model adapted to exact labels, the report, what went into its encoder)."""
    model, encoded = untrained(), []
    model.encoder.register_forward_hook(lambda *call: encoded.append(call))
    report = adapt(model, clips_of(model, frames, exact, exact), steps=60, lr=LR)
    return model, report, encoded


# --- what is learnt --------------------------------------------------------------------------------------------------


def test_exact_labels_halve_the_error_on_points_that_were_held_out(learnt):
    _, report, _ = learnt
    for kind in ("held_out", "truth"):
        before, after = report.before[kind], report.after[kind]
        assert after.loss < 0.5 * before.loss
        assert after.median_relative_error < 0.5 * before.median_relative_error
        assert after.uv_error < 0.5 * before.uv_error
        assert after.visibility_accuracy > before.visibility_accuracy


def test_what_makes_the_memory_rests_and_the_rest_learns(learnt):
    model, _, encoded = learnt
    rests = {name for name, x in untrained().state_dict().items() if torch.equal(x, model.state_dict()[name])}
    assert {name for name in model.state_dict() if part_of(name) == "encoder"} <= rests
    assert {"heads.weight", "query_embedder.uv_proj.weight", "decoder.blocks.1.ff.0.weight"}.isdisjoint(rests)
    assert len(encoded) == len(PLAN) == 2  # once for each window, in 60 steps


def test_confidence_does_not_learn_how_far_pseudo_labels_are_off(learnt):
    assert torch.equal(learnt[0].heads.weight[12], untrained().heads.weight[12])


def test_wrong_labels_do_no_harm(learnt, frames, exact):
    """They would, if it went on: the held-out loss, and the error against the truth, rise from the first steps on."""
    model = deepcopy(learnt[0])
    wrong = told(noise=0.5, uv_noise=0.5)
    report = adapt(model, clips_of(model, frames, wrong, exact), steps=500, lr=LR)
    assert report.steps <= report.best_step + 50
    assert report.curve[-1]["held_out_loss"] > 1.02 * report.curve[0]["held_out_loss"]
    assert report.after["truth"].loss <= 1.01 * report.before["truth"].loss
    assert report.after["held_out"].loss <= report.before["held_out"].loss


def test_a_start_that_is_not_bettered_is_kept_bit_for_bit(learnt, frames, exact):
    model = deepcopy(learnt[0])
    wrong = told(wrong=1.0)
    report = adapt(model, clips_of(model, frames, wrong, exact), steps=10, lr=0.5)
    assert report.best_step == 0 and report.before == report.after
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in learnt[0].state_dict().items())
    assert "the weights stay as they were" in adapt_video.in_words(report)


def test_a_step_that_diverges_ends_it_with_the_best_so_far(frames, exact, monkeypatch):
    from train import adapt as module

    model, done = untrained(), []

    def diverging(*arguments):
        if len(done) == 12:
            raise TrainingDiverged("loss is not finite at step 12")
        done.append(train_step(*arguments))
        return done[-1]

    train_step = module.train_step
    monkeypatch.setattr(module, "train_step", diverging)
    report = adapt(model, clips_of(model, frames, exact, exact), steps=30, lr=LR)
    assert (report.best_step, report.steps) == (10, 12) and "not finite" in report.ended
    assert report.after["held_out"].loss < report.before["held_out"].loss


@pytest.mark.parametrize("name", ["xyz", "uv_tgt", "visible"])
def test_labels_of_one_kind_will_do(name, frames, exact):
    columns = {key: exact.columns[key] for key in ("uv_norm", "t_src", "t_tgt", "t_cam", name)}
    model, some = untrained(), PseudoLabels.of(SHAPE, columns, "labels")
    report = adapt(model, clips_of(model, frames, some, exact), steps=10, lr=LR)
    scores = {"xyz": "median_relative_error", "uv_tgt": "uv_error", "visible": "visibility_accuracy"}
    there = {kind for kind in scores if getattr(report.before["held_out"], scores[kind]) is not None}
    assert there == {name}
    assert report.after["held_out"].loss < report.before["held_out"].loss


def test_labels_that_weigh_nothing_are_not_learnt_from(frames, exact):
    """Half of the labels are nonsense, and say so."""
    given = {key: x.copy() for key, x in exact.columns.items() if key not in ("valid", "flags")}
    given["weight"] = np.ones(len(exact), np.float32)
    bad = np.arange(len(exact)) % 2 == 0
    given["xyz"][bad], given["uv_tgt"][bad], given["weight"][bad] = 1000.0, 7.0, 0.0
    good = {key: x[~bad] for key, x in given.items()}
    reports = []
    for columns in (given, good):
        model, labels = untrained(), PseudoLabels.of(SHAPE, columns, "labels")
        reports.append(adapt(model, clips_of(model, frames, labels, exact), steps=10, lr=LR))
    for report in reports:
        assert report.after["truth"].loss < 0.7 * report.before["truth"].loss
    assert reports[0].before["held_out"].uv_error < 2


def test_points_are_held_out_with_all_their_rows(exact):
    held = held_out_rows(exact.columns)
    points = [tuple(row) for row in np.column_stack([exact.columns["t_src"], exact.columns["uv_norm"]])]
    assert {p for p, h in zip(points, held, strict=True) if h}.isdisjoint(
        {p for p, h in zip(points, held, strict=True) if not h}
    )
    assert 0.15 < held.mean() < 0.25


def test_of_many_labels_not_more_are_held_out_than_can_be_asked_again_and_again():
    rng = np.random.default_rng(0)
    times = np.zeros(60_000, np.int64)
    points = rng.random((20_000, 2), np.float32).repeat(3, axis=0)
    held = held_out_rows({"uv_norm": points, "t_src": times, "t_tgt": times, "t_cam": times})
    assert 8000 < held.sum() <= 8192
    assert (held.reshape(-1, 3).all(axis=1) == held.reshape(-1, 3).any(axis=1)).all()


# --- files -----------------------------------------------------------------------------------------------------------


def arrays_of(labels: PseudoLabels) -> dict[str, np.ndarray]:
    """As in a file that somebody else wrote."""
    asked = {name: labels.columns[name] for name in ("uv_norm", "t_src", "t_tgt", "t_cam", "xyz", "visible")}
    return {"clip": np.array(labels.clip), **asked}


def test_labels_come_back_from_their_file_as_they_were(exact, tmp_path):
    known = PseudoLabels(exact.clip, exact.columns | {"valid": exact.columns["valid"] & 3}, "abc")
    write_labels(str(tmp_path / "labels.npz"), known)
    read = read_labels(str(tmp_path / "labels.npz"), "--labels")
    assert (read.clip, read.video, len(read)) == (SHAPE, "abc", len(exact))
    for name in ("uv_norm", "t_src", "t_tgt", "t_cam", "xyz", "uv_tgt", "weight", "valid"):
        np.testing.assert_array_equal(read.columns[name], known.columns[name])


def spoilt(**changes):
    return lambda arrays: arrays | {name: change(arrays.get(name)) for name, change in changes.items()}


def nan_in_row_3(x: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(x))[:, None] == 3, np.nan, x)


BAD_FILES = {
    "unknown": (spoilt(points=lambda _: np.zeros(3)), "has points, which no label is called"),
    "no clip": (lambda arrays: {k: x for k, x in arrays.items() if k != "clip"}, "`clip` must be there"),
    "no t_cam": (lambda arrays: {k: x for k, x in arrays.items() if k != "t_cam"}, "lacks t_cam"),
    "no label": (lambda arrays: {k: x for k, x in arrays.items() if k not in ("xyz", "visible")}, "has no label"),
    "nan": (spoilt(xyz=nan_in_row_3), "xyz of row 3 is .*nan.* in 1 of 768 rows no label: give xyz_known"),
    "frame": (spoilt(t_tgt=lambda t: t + 1), "t_tgt of row .* is 6, the clip has 6 frames"),
    "pixels": (spoilt(uv_norm=lambda uv: 64 * uv), "uv_norm of row 0 .* pixels by"),
    "short": (spoilt(xyz=lambda xyz: xyz[:5]), r"xyz is \(5, 3\) float32, it must be \(768, 3\) float"),
    "kind": (spoilt(visible=lambda seen: seen.astype(float)), r"visible is \(768,\) float64, it must be .* bool"),
    "weight": (spoilt(weight=lambda _: np.full(768, -1.0)), "weight is negative"),
    "no xyz": (spoilt(normal_known=lambda _: np.ones(768, bool)), "has normal_known, but no normal"),
    "long normal": (spoilt(normal=lambda _: np.full((768, 3), 2.0)), "normal of row 0"),
    "scalar": (spoilt(t_src=lambda _: np.array(3)), "t_src is"),
    "pickle": (spoilt(xyz=lambda _: np.array([{}, {}], object)), "pickled Python objects: refused"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_of_labels_is_refused_in_words(kind, exact, tmp_path):
    change, words = BAD_FILES[kind]
    np.savez(tmp_path / "labels.npz", **change(arrays_of(exact)))
    with pytest.raises(ValueError, match=words) as refused:
        read_labels(str(tmp_path / "labels.npz"), "--labels")
    assert "labels.npz" in str(refused.value)


def test_what_is_not_known_may_be_anything(exact, tmp_path):
    arrays = arrays_of(exact)
    known = np.arange(len(exact)) != 3
    np.savez(tmp_path / "labels.npz", **arrays | {"xyz": nan_in_row_3(arrays["xyz"]), "xyz_known": known})
    columns = read_labels(str(tmp_path / "labels.npz"), "--labels").columns
    assert ((columns["valid"] & 1 > 0) == known).all() and np.isfinite(columns["xyz"]).all()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(frames, tmp_path_factory) -> Path:
    """A model, another one, two videos, their labels, and the truth of one of them."""
    folder = tmp_path_factory.mktemp("adapt")
    checkpoints.save(untrained(), folder / "model")
    torch.manual_seed(1)
    checkpoints.save(D4RT(dataclasses.replace(CONFIG, image_size=16)), folder / "teacher")
    (folder / "labels").mkdir()
    for name, video in {"one": frames, "two": frames[::-1]}.items():
        np.savez(folder / f"{name}.npz", video=video)
        np.savez(folder / f"labels/{name}.npz", **arrays_of(told()))
    return folder


def asked(place: Path, out: Path, **changes) -> dict:
    given = {"model": str(place / "model"), "video": [str(place / "one.npz")], "out": str(out)}
    given |= {"labels": str(place / "labels/one.npz"), "steps": 10, "lr": LR}
    return given | changes


BAD_REQUESTS = {
    "neither": ({"labels": None}, "give either --labels.*or --teacher"),
    "both": ({"teacher": "model"}, "give either --labels.*or --teacher"),
    "no steps": ({"steps": 0}, "--steps 0 must be from 1"),
    "no rate": ({"lr": float("nan")}, "--lr nan must be above 0"),
    "no file": ({"labels": "nowhere.npz"}, "nowhere.npz does not exist"),
    "no video": ({"video": ["nowhere.mp4"]}, "nowhere.mp4 does not exist"),
    "one file for two": ({"video": ["one.npz", "two.npz"]}, "is a file, and there are 2 videos"),
    "other frames": ({"num_frames": 4}, r"is of \(T, H, W\) = \(6, .*, the chosen frames are \(4, "),
    "no truth": ({"truth": "nowhere.npz"}, "--truth .*nowhere.npz does not exist"),
    "out is a file": ({"out": "one.npz"}, "one.npz cannot be a folder, because"),
    "no model": ({"model": "labels"}, "config.json does not exist"),
    "teacher": ({"labels": None, "teacher": "short"}, "--teacher short takes 2 frames at once, the model 4"),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_bad_request_is_refused_before_the_work(kind, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    if kind == "teacher":
        checkpoints.save(D4RT(dataclasses.replace(CONFIG, clip_frames=2)), place / "short")
    changes, words = BAD_REQUESTS[kind]
    with pytest.raises(ValueError, match=words):
        command(**asked(place, tmp_path / "out") | changes)
    assert not (tmp_path / "out").exists()


def test_labels_of_another_video_are_refused(place, exact, tmp_path):
    np.savez(tmp_path / "labels.npz", **arrays_of(exact), video=np.array(["0123456789abcdef"]))
    with pytest.raises(ValueError, match=r"is of video 0123456789abcdef, this one is .*: labels of another video"):
        command(**asked(place, tmp_path / "out", labels=str(tmp_path / "labels.npz")))


def test_labels_of_one_point_leave_nothing_to_judge_by(place, exact, tmp_path):
    arrays = arrays_of(exact)
    np.savez(tmp_path / "labels.npz", clip=arrays.pop("clip"), **{name: x[:8] for name, x in arrays.items()})
    with pytest.raises(ValueError, match=r"there are not enough labels.* every 5th of 1 points"):
        command(**asked(place, tmp_path / "out", labels=str(tmp_path / "labels.npz")))


def test_a_disk_that_is_too_small_is_known_before_the_work(place, tmp_path, monkeypatch):
    from train import adapt_videos

    monkeypatch.setattr(adapt_videos.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ValueError, match=r"the adapted models take .* GB, .* has 0.00 GB free: make room there"):
        command(**asked(place, tmp_path / "out", dry_run=True))


def adapter(place: Path, out: Path | str, **changes) -> tuple[AdaptVideo, list]:
    """(what an actor of the job is, its rows)."""
    given = {"labels": str(place / "labels/one.npz"), "teacher": None, "truth": None, "steps": 10, "lr": LR} | changes
    request = Asked(selection=Selection(), **given)
    arguments, tasks = prepare(str(place / "model"), [str(place / "one.npz")], str(out), request)
    return AdaptVideo(**arguments), [{"task": task} for task in tasks]


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_model(str(folder)).state_dict()


def test_killed_and_run_again_it_is_as_if_it_had_not_been(place, tmp_path, monkeypatch):
    from train import adapt as module

    work, (row,) = adapter(place, tmp_path / "straight")
    work(row)
    steps, train_step = [], module.train_step

    def killed(*arguments):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(train_step(*arguments))
        return steps[-1]

    work, (row,) = adapter(place, tmp_path / "again")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "train_step", killed)
        work(row)
    assert len(steps) == 5 and not (tmp_path / "again").exists()
    work(row)
    one, other = weights(tmp_path / "straight/one"), weights(tmp_path / "again/one")
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_a_killed_write_leaves_nothing(place, tmp_path, monkeypatch):
    work, (row,) = adapter(place, tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adapt_video, "json_value", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        work(row)
    assert not os.listdir(tmp_path / "out")


def test_a_teacher_is_asked_once_about_a_video(place, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "POINTS", 48)
    monkeypatch.setattr(teacher, "TIMES_EACH", 8)
    changes = {"labels": None, "teacher": str(place / "teacher")}
    work, (row,) = adapter(place, tmp_path / "out", **changes)
    work(row)
    assert work.teacher is not None
    (kept,) = (tmp_path / "out/.labels").iterdir()
    labels = read_labels(str(kept), "--labels")
    assert labels.clip == SHAPE and len(labels) == 2 * 48 * 8

    os.rename(tmp_path / "out/one", tmp_path / "out/before")
    work, (row,) = adapter(place, tmp_path / "out", **changes, lr=LR / 2)
    work(row)
    assert work.teacher is None  # it was not even loaded
    assert json.loads((tmp_path / f"out/one/{ADAPTED}").read_text())["labels"]["from"] == changes["teacher"]


TRACKER = """
import numpy as np


def labels(frames):
    (T, H, W, _), calls = frames.shape, open("calls", "a")
    print(frames.dtype, T, H, W, file=calls)
    uv = np.random.default_rng(0).random((40, 2), np.float32)
    t_tgt = np.tile(np.arange(T), 40)
    asked = {"uv_norm": uv.repeat(T, axis=0), "t_src": 0 * t_tgt, "t_tgt": t_tgt, "t_cam": t_tgt}
    return asked | {"uv_tgt": asked["uv_norm"], "visible": np.ones(40 * T, bool)}


def broken(frames):
    raise MemoryError("of the tracker")
"""


def test_a_function_of_the_user_is_a_teacher_asked_once(place, tmp_path, monkeypatch):
    """It gets frames as they are shown; when its file changes, it is asked again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_tracker.py").write_text(TRACKER)
    changes = {"labels": None, "teacher": "python:my_tracker:labels"}
    for lr in (LR, LR / 2):
        work, (row,) = adapter(place, tmp_path / "out", **changes, lr=lr)
        work(row)
        os.rename(tmp_path / "out/one", tmp_path / f"adapted-{lr:g}")
    assert (tmp_path / "calls").read_text() == f"uint8 {FRAMES} {SCENE.height} {SCENE.width}\n"
    about = json.loads((tmp_path / f"adapted-{LR:g}/{ADAPTED}").read_text())
    assert about["labels"]["from"] == changes["teacher"]
    assert about["labels"]["learnt"] > 0

    work, (row,) = adapter(place, tmp_path / "out", **changes | {"teacher": "python:my_tracker:broken"})
    with pytest.raises(ValueError, match=r"--teacher python:my_tracker:broken failed \(MemoryError: of the tracker\)"):
        work(row)
    for name in ("python:my_tracker:nothing", "python:no_tracker:labels", "python:labels", "python:my_tracker:np"):
        with pytest.raises(ValueError, match=f"--teacher {name}"):
            adapter(place, tmp_path / "out", **changes | {"teacher": name})


def test_another_request_is_not_answered_by_an_old_one(place, tmp_path, capsys):
    work, (row,) = adapter(place, tmp_path / "out")
    assert not row["task"].done
    work(row)
    _, (again,) = adapter(place, tmp_path / "out")
    assert again["task"].done
    status(str(tmp_path / "out"))
    assert "done       one" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds results of another request \(steps was 10, now 20\)"):
        command(**asked(place, tmp_path / "out", steps=20))


def test_an_upload_that_was_cut_off_goes_on(place, s3_uri):
    work, (row,) = adapter(place, s3_uri)
    work(row)
    before, (fs, path) = weights(f"{s3_uri}/one"), open_place(f"{s3_uri}/one")
    fs.rm_file(f"{path}/config.json")  # which comes last
    work, (row,) = adapter(place, s3_uri)
    assert not row["task"].done
    work(row)
    assert all(torch.equal(x, before[name]) for name, x in weights(f"{s3_uri}/one").items())


# --- on Ray -----------------------------------------------------------------------------------------------------------


def test_each_video_gets_a_model_of_its_own_and_what_is_missing_is_done(place, tmp_path, ray_cluster, capfd):
    truth = {"labels": str(place / "labels"), "truth": str(place / "labels")}
    work, (row,) = adapter(place, tmp_path, **truth)
    work(row)
    stamp = (tmp_path / "one/weights.safetensors").stat().st_mtime_ns

    videos = [str(place / "one.npz"), str(place / "two.npz")]
    command(**asked(place, tmp_path, video=videos, **truth))
    said = capfd.readouterr().out
    assert "1 of 2 videos were done before" in said
    assert "two: held-out: loss" in said and "truth: loss" in said
    assert (tmp_path / "one/weights.safetensors").stat().st_mtime_ns == stamp

    start, one, two = (weights(folder) for folder in (place / "model", tmp_path / "one", tmp_path / "two"))
    assert not torch.equal(one["heads.weight"], two["heads.weight"])
    for name in start:
        if part_of(name) == "encoder":
            assert torch.equal(start[name], one[name]) and torch.equal(start[name], two[name])
    report = json.loads((tmp_path / f"two/{ADAPTED}").read_text())["report"]
    for kind in ("held_out", "truth"):
        assert report["after"][kind]["loss"] < report["before"][kind]["loss"]

    infer(model=str(tmp_path / "two"), video=videos[1:], out=str(tmp_path / "results"), dry_run=True)
    assert "ready: 1 of 1 videos" in capfd.readouterr().out
