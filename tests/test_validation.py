"""Validation and the champion, for real: two workers on two CPUs, one of them killed, and a registry."""

import json
import os
import re
import time
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import mlflow
import pytest
import ray
import torch
from PIL import Image
from plane_store import write_plane_store
from test_train import at_checkpoint, at_file, kill_worker

from model import D4RT, ModelConfig, checkpoints
from pipelines.evaluation.scores import ask, measure
from pipelines.evaluation.tally import Tally
from pipelines.models import load_model
from pipelines.store.reader import ClipStore
from train import tracking, versions
from train.champion import contest, register
from train.config import DataConfig, LossConfig, OptimConfig, TrainConfig, ValidationConfig
from train.errors import RunFailed
from train.progress import Progress
from train.validation import HeldOut, Validation, read_scored, score_registered

STEPS = 20
MODEL = replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with stores, and an MLflow database of its own."""
    folder = tmp_path_factory.mktemp("validation")
    write_plane_store(folder / "planes", clips=16, queries=64, seed=3)
    write_plane_store(folder / "left", clips=5, queries=64, seed=4, dataset="left")
    write_plane_store(folder / "right", clips=2, queries=64, seed=5, dataset="right")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        yield folder


def config(folder: Path, name: str, **changes) -> TrainConfig:
    """Checkpoints at 5, 10, 15 and 20, of which one is kept; scores at 10 and, last, at 20."""
    defaults = TrainConfig(
        model=MODEL,
        data=DataConfig(mixture={f"{folder}/planes": 1.0}, queries=48, clips_per_worker=2),
        loss=LossConfig(confidence_warmup_steps=5),
        optim=OptimConfig(lr=2e-3, final_lr=1e-3, warmup_steps=5),
        validation=ValidationConfig(stores=(f"{folder}/left", f"{folder}/right"), every=10, clips=3, pictures=2),
        steps=STEPS,
        workers=2,
        precision="float32",
        checkpoint_every=5,
        log_every=5,
        keep_checkpoints=1,
        max_failures=1,
        out=f"{folder}/runs",
        name=name,
    )
    return replace(defaults, **changes)


@pytest.fixture(scope="module")
def champion(workplace, ray_cluster) -> TrainConfig:
    """A finished run; its version bears the alias. Workers were killed twice, where one failure is allowed without a
    new checkpoint, which there was in between."""
    from train.loop import run

    done = config(workplace, "good")
    folder = Path(done.out, done.name)
    shown = StringIO()
    with at_checkpoint(folder, 5, kill_worker), at_checkpoint(folder, 15, kill_worker), redirect_stdout(shown):
        assert run(done) == "models:/d4rt/1"
    told = r"workers failed: worker [01] died: killed, out of memory, or with its node; trying again"
    assert len(re.findall(told, shown.getvalue())) == 2
    return done


def run_id(name: str) -> str:
    (run,) = mlflow.search_runs(experiment_names=["d4rt"], filter_string=f"run_name = '{name}'", output_format="list")
    return run.info.run_id


def curve(run: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run, metric)]


def scores_of(done: TrainConfig) -> dict:
    return json.loads(Path(done.out, done.name, f"validation/step_{STEPS:07d}/scores.json").read_text())["scores"]


@pytest.mark.slow
def test_each_validation_is_in_the_curves_once(champion):
    run = run_id("good")
    for metric in ("val/median_relative_error/all", "val/left/epe/all", "val/right/pose/rotation_degrees"):
        assert [step for step, _ in curve(run, metric)] == [10, 20], metric
    assert curve(run, "val/queries/all") == [(10, 5 * 128), (20, 5 * 128)]  # three clips of one store, two of the other
    assert curve(run, "val/left/queries/all") == [(10, 3 * 128), (20, 3 * 128)]
    assert curve(run, "val/apd/moving") == []  # nothing moves
    errors = dict(curve(run, "val/median_relative_error/all"))
    assert errors[20] < errors[10]


@pytest.mark.slow
def test_the_last_checkpoint_is_scored_on_the_same_clips_as_ever(champion, workplace):
    """The first, the middle and the last clip of five."""
    model = checkpoints.load(f"{champion.out}/good/step_{STEPS:07d}/model")
    measured = {}
    for name, numbers in (("left", (0, 2, 4)), ("right", (0, 1))):
        for clip in (ClipStore(f"{workplace}/{name}")[number] for number in numbers):
            truth = clip.all_queries()
            answers = ask(model, clip.video, clip.aspect, truth)
            errors = measure(truth, answers, clip.world_from_cam, is_metric=True)
            measured.setdefault(name, []).append(errors)
    expected = {"all": Tally.of(measured["left"] + measured["right"]).scores()}
    expected |= {name: Tally.of(clips).scores() for name, clips in measured.items()}
    found = scores_of(champion)
    assert found.keys() == expected.keys()
    for name, scores in expected.items():
        scores["confidence"].pop("calibration")  # a text
        for score, value in tracking.flatten(scores).items():
            close = value if value is None else pytest.approx(value, rel=1e-4)
            assert tracking.flatten(found[name])[score] == close, (name, score)
    assert dict(curve(run_id("good"), "val/left/epe/all"))[20] == pytest.approx(
        expected["left"]["epe"]["all"], rel=1e-4
    )


@pytest.mark.slow
def test_the_version_is_calibrated_on_the_clips_of_validation(champion):
    calibration = load_model("models:/d4rt/1").calibration
    assert calibration is not None
    assert calibration.to_json() == scores_of(champion)["all"]["confidence"]["calibration"]
    assert checkpoints.load(f"{champion.out}/good/step_{STEPS:07d}").calibration is None  # it may go on from there


@pytest.mark.slow
def test_pictures_are_artifacts_and_small(champion, tmp_path):
    folder = mlflow.artifacts.download_artifacts(f"runs:/{run_id('good')}/validation", dst_path=str(tmp_path))
    for step in (10, 20):
        files = sorted(Path(folder, f"step_{step:07d}").iterdir())
        assert [file.name for file in files] == ["clip_0.jpg", "clip_1.jpg", "scores.json"]
        for file in files[:2]:
            width, height = Image.open(file).size
            assert width > 1500 and height > 1000 and file.stat().st_size < 500_000
    pictures = [Path(folder, f"step_{step:07d}/clip_0.jpg").read_bytes() for step in (10, 20)]
    assert pictures[0] != pictures[1]


@pytest.mark.slow
def test_the_version_says_what_it_was_judged_by(champion):
    version = mlflow.MlflowClient().get_model_version_by_alias("d4rt", "champion")
    assert version.version in (1, "1")
    assert float(version.tags["validation_error"]) == scores_of(champion)["all"]["median_relative_error"]["all"]
    record = mlflow.artifacts.load_dict(f"runs:/{run_id('good')}/champion.json")
    assert record["champion"] is None and record["won"] and record["clips"] == 5
    assert record["data"] == version.tags["validation_data"]


@pytest.fixture
def held_out(champion, workplace) -> HeldOut:
    return HeldOut.open(champion.validation, MODEL, [])


@pytest.fixture
def untrained(workplace, held_out, tmp_path) -> tuple[TrainConfig, str, Validation]:
    """A run that has come to its end, with the weights it began with; a registry and curves as for any run."""
    done = config(workplace, "untrained", out=str(tmp_path))
    client = mlflow.MlflowClient()
    run = client.create_run(mlflow.get_experiment_by_name("d4rt").experiment_id).info.run_id
    for name, content in (("stores.json", {}), ("config.json", done.to_dict())):  # as every run has them
        client.log_dict(run, content, name)
    checkpoint = f"{tmp_path}/untrained/step_{STEPS:07d}"
    torch.manual_seed(0)
    checkpoints.save(D4RT(MODEL), f"{checkpoint}/model")
    validation = Validation(
        held_out=held_out,
        pictures=0,
        run=f"{tmp_path}/untrained",
        tracking_uri=tracking.tracking_uri(),
        run_id=run,
        progress=ray.remote(Progress).options(num_cpus=0).remote(),
    )
    return done, checkpoint, validation


@pytest.mark.slow
def test_a_worse_model_is_registered_without_the_alias(champion, untrained):
    done, checkpoint, validation = untrained
    with pytest.raises(RunFailed, match=r"untrained: step_0000020 has no scores: the same command .* scores it"):
        register(done, validation.run_id, checkpoint, validation)
    tallies = validation.held_out.tally(checkpoints.load(f"{checkpoint}/model"))
    validation.publish(f"step_{STEPS:07d}", {name: tally.scores() for name, tally in tallies.items()}, 0.0)
    assert register(done, validation.run_id, checkpoint, validation) == "models:/d4rt/2"
    registry = mlflow.MlflowClient()
    assert registry.get_model_version_by_alias("d4rt", "champion").version in (1, "1")
    before = scores_of(champion)["all"]["median_relative_error"]["all"]
    tags = registry.get_model_version("d4rt", "2").tags
    assert (tags["champion_before"], tags["champion_won"]) == ("1", "False")
    assert float(tags["champion_before_error"]) == before < float(tags["validation_error"])
    assert dict(curve(validation.run_id, "val/median_relative_error/all")) == {STEPS: float(tags["validation_error"])}
    lines = []
    while len(lines) < 2:  # the task's call may arrive after ours
        lines += [line for line, _ in ray.get(validation.progress.take.remote())]
        time.sleep(0.1)
    scored, compared = sorted(lines, reverse=True)  # validation of ..., champion: ...
    assert scored.startswith(
        f"validation of step_{STEPS:07d}: median relative error {100 * float(tags['validation_error']):.1f} %"
    )
    assert f"does not beat {100 * before:.1f} % of version 1, which stays" in compared

    # Without validation as ever: the alias moves, to the one version that a run has.
    assert register(done, validation.run_id, checkpoint, None) == "models:/d4rt/2"
    assert registry.get_model_version_by_alias("d4rt", "champion").version in (2, "2")
    registry.set_registered_model_alias("d4rt", "champion", "1")


@pytest.mark.slow
def test_nothing_is_registered_unscored_and_the_last_checkpoint_is_scored_when_it_can_be(champion, workplace, tmp_path):
    """The held-out clips are away while a run trains; when they are back, nothing is trained again."""
    from train.loop import run

    store = Path(write_plane_store(tmp_path / "held_out", clips=2, queries=64))
    begun = config(
        workplace,
        "blind",
        validation=ValidationConfig(stores=(str(store),), pictures=1),
        steps=10,
        workers=1,
        register_as="blind",
        out=str(tmp_path / "runs"),
    )

    def hide() -> None:
        (store / "data").rename(store / "hidden")

    folder = Path(begun.out, "blind")
    refused = r"run blind failed: step_0000010 cannot be validated \(.*held_out.*\): the same command with --name blind"
    with at_file(folder / "run.json", hide), pytest.raises(RunFailed, match=refused):
        run(begun)
    assert mlflow.get_run(run_id("blind")).info.status == "FAILED"
    assert not mlflow.MlflowClient().search_registered_models(filter_string="name = 'blind'")
    assert not list(folder.glob("validation/*/scores.json"))
    written = (folder / "step_0000010/position.json").stat().st_mtime_ns

    (store / "hidden").rename(store / "data")
    assert run(begun) == "models:/blind/1"
    assert [path.parent.name for path in folder.glob("validation/*/scores.json")] == ["step_0000010"]
    assert (folder / "step_0000010/position.json").stat().st_mtime_ns == written
    assert [step for step, _ in curve(run_id("blind"), "val/queries/all")] == [10]
    assert [step for step, _ in curve(run_id("blind"), "loss")] == [5, 10]


@pytest.mark.slow
def test_a_better_model_gets_the_alias_and_a_tie_does_not(champion, held_out):
    def never(model: str) -> dict:
        raise AssertionError(f"{model} was scored on these clips when it was registered")

    scores = scores_of(champion)
    assert not contest("d4rt", "champion", held_out, scores, never).won
    scores["all"]["median_relative_error"]["all"] *= 0.999
    outcome = contest("d4rt", "champion", held_out, scores, never)
    assert outcome.won and "beats" in outcome.line and outcome.tags["champion_before"] == "1"
    scores["all"]["median_relative_error"]["all"] = None  # answers that are not finite
    assert not contest("d4rt", "champion", held_out, scores, never).won


@pytest.mark.slow
def test_a_champion_scored_on_other_clips_is_scored_again(champion, workplace):
    fewer = HeldOut.open(replace(champion.validation, clips=1), MODEL, [])
    asked = []

    def score(model: str) -> dict:
        asked.append(model)
        return ray.get(ray.remote(score_registered).remote(fewer, model, tracking.tracking_uri()))

    outcome = contest("d4rt", "champion", fewer, scores_of(champion), score)
    model = checkpoints.load(f"{champion.out}/good/step_{STEPS:07d}/model")
    expected = fewer.tally(model)["all"].scores()["median_relative_error"]["all"]
    assert asked == ["models:/d4rt/1"]
    assert float(outcome.tags["champion_before_error"]) == pytest.approx(expected, rel=1e-4)
    assert outcome.record["champion_scores"]["left"]["queries"]["all"] == 128


@pytest.mark.slow
def test_a_champion_that_cannot_be_scored_keeps_the_alias(champion, held_out, tmp_path):
    folder = checkpoints.save(D4RT(replace(MODEL, image_size=32)), tmp_path / "small")
    versions.register(folder, "d4rt-other-size", "champion")

    def score(model: str) -> dict:
        return ray.get(ray.remote(score_registered).remote(held_out, model, tracking.tracking_uri()))

    outcome = contest("d4rt-other-size", "champion", held_out, scores_of(champion), score)
    assert not outcome.won
    assert "version 1, which cannot be scored on the same clips (store" in outcome.line
    assert "this model takes up to 4, 32 x 32" in outcome.line and "python -m train register" in outcome.line


@pytest.mark.slow
def test_scores_that_mlflow_did_not_take_are_sent_later(champion, held_out, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    fresh = mlflow.MlflowClient().create_run("0").info.run_id
    progress = ray.remote(Progress).options(num_cpus=0).remote()
    run = f"{champion.out}/good"
    about = {"held_out": held_out, "pictures": 2, "run": run, "run_id": fresh, "progress": progress}
    away = Validation(tracking_uri="http://127.0.0.1:9", **about)
    assert away.scores(f"step_{STEPS:07d}") == scores_of(champion)
    written = Path(run, f"validation/step_{STEPS:07d}/scores.json").read_bytes()
    away.publish(f"step_{STEPS:07d}", scores_of(champion), 0.0)
    _, (line, _) = ray.get(progress.take.remote())
    assert line.startswith("MLflow did not take the scores of step_0000020")
    assert Path(run, f"validation/step_{STEPS:07d}/scores.json").read_bytes() == written
    back = Validation(tracking_uri=os.environ["MLFLOW_TRACKING_URI"], **about)
    for _ in range(2):
        back.send_all()
    assert curve(fresh, "val/median_relative_error/all") == curve(run_id("good"), "val/median_relative_error/all")


# --- which clips ------------------------------------------------------------------------------------------------------


DAMAGED = {"empty": b"", "list": b"[1]", "part": b'{"scores": {}}', "deep": b"[" * 100_000}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_scores_are_named_with_what_to_do(tmp_path, content):
    assert read_scored(str(tmp_path)) is None
    (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"scores\.json is damaged .*: remove it, .* scored again"):
        read_scored(str(tmp_path))


def test_the_digest_is_of_content_and_clips(workplace, tmp_path):
    def digest(*stores: str, clips: int = 3) -> str:
        return HeldOut.open(ValidationConfig(stores=stores, clips=clips), MODEL, []).digest

    left, right = f"{workplace}/left", f"{workplace}/right"
    copy = write_plane_store(tmp_path / "copy", clips=5, queries=64, seed=4, dataset="left")
    other = write_plane_store(tmp_path / "other", clips=5, queries=64, seed=9, dataset="left")
    assert digest(left, right) == digest(right, left) == digest(copy, right)
    assert len({digest(left), digest(right), digest(left, right), digest(other), digest(left, clips=2)}) == 5


@pytest.mark.parametrize(
    ("stores", "message"),
    [
        (("planes",), r"planes holds the same clips as .*planes of data\.mixture"),
        (("nowhere",), r"no store\.json in .*nowhere"),
        (("long",), r"6 frames, 64 x 64; this model takes up to 4, 64 x 64"),
    ],
)
def test_stores_that_cannot_judge_are_refused(workplace, stores, message):
    if not (workplace / "long").exists():
        write_plane_store(workplace / "long", clips=1, frames=6, queries=32)
    asked = ValidationConfig(stores=tuple(f"{workplace}/{name}" for name in stores))
    with pytest.raises(ValueError, match=message):
        HeldOut.open(asked, MODEL, [ClipStore(f"{workplace}/planes")])


def test_settings_that_make_no_sense_are_refused(workplace):
    good = config(workplace, "x")
    assert [step for step in range(1, STEPS + 1) if good.validates(step)] == [10, STEPS]
    assert not replace(good, validation=ValidationConfig()).validates(10)
    with pytest.raises(ValueError, match=r"--validation\.every \(7\) must be a multiple of --checkpoint-every \(5\)"):
        replace(good, validation=ValidationConfig(stores=("a",), every=7))
    with pytest.raises(ValueError, match=r"validation\.clips \(0\) must be from 1 to"):
        ValidationConfig(clips=0)
    with pytest.raises(ValueError, match=r"validation\.pictures \(-1\) must be from 0 to"):
        ValidationConfig(pictures=-1)
