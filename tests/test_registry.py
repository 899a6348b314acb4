"""MLflow as people set it up: names, places and databases that cannot do are refused before any work."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import fsspec
import mlflow
import pytest
import torch
from safetensors.torch import load_file, save_file

from model import D4RT, ModelConfig, checkpoints
from pipelines.models import load_model, model_version, tracking_uri
from pipelines.partial import PARTIAL
from train import tracking, versions
from train.__main__ import main
from train.champion import unscored
from train.config import PRESETS

TINY = replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with a store, a checkpoint, and MLflow's database when somebody makes one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = D4RT(TINY)
    model.trained_on = frozenset({"one", "two"})
    checkpoints.save(model, tmp_path / "checkpoint")
    return tmp_path


def refused(words: str, capsys) -> str:
    """What is said of a command that is refused, whatever it printed before."""
    try:
        code = main(words.split())
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    shown = capsys.readouterr()
    return shown.err + shown.out


@pytest.mark.parametrize(
    "command", ["register --checkpoint checkpoint", "tiny --data.mixture.nowhere 1", "tiny --dry-run"]
)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--alias latest", "'latest' is no alias"),
        ("--alias v3", "'v3' is no alias"),
        ("--alias the/best", "'the/best' is no alias"),
        ("--alias ä", "'ä' is no alias"),
        (f"NAME {'a' * 300}", "is no name of a registered model: it has more than 200 letters"),
        ("NAME a/b", "'a/b' is no name of a registered model"),
        ("NAME a:b", "'a:b' is no name of a registered model"),
    ],
)
def test_names_that_the_registry_does_not_take(command, flags, message, workplace, capsys):
    flags = flags.replace("NAME", "--name" if command.startswith("register") else "--register-as")
    assert message in refused(f"{command} {flags}", capsys)
    assert not (workplace / "mlflow.db").exists()


@pytest.mark.parametrize("name", ["a/b", "..", "/tmp/run"])
def test_a_run_is_one_folder_in_out(name, workplace, capsys):
    assert "must be that of a folder in --out" in refused(f"tiny --name {name}", capsys)


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "{tmp}", "file://{tmp}/mlruns"])
def test_a_tracking_uri_that_is_a_folder(uri, workplace, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp=workplace))
    before = sorted(os.listdir())
    assert "a folder, which keeps no models: name a database" in refused("register --checkpoint checkpoint", capsys)
    with pytest.raises(ValueError, match="a folder, which keeps no models"):
        load_model("models:/d4rt@champion")
    assert sorted(os.listdir()) == before


def test_a_relative_database_is_the_same_one_elsewhere(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert tracking_uri() == f"sqlite:///{workplace}/mlflow.db"


def test_weights_that_do_not_load_are_not_registered(workplace, capsys):
    state = load_file("checkpoint/weights.safetensors")
    save_file(state | {"heads.bias": state["heads.bias"] * float("nan")}, "checkpoint/weights.safetensors")
    assert "heads.bias has values that are not finite" in refused("register --checkpoint checkpoint", capsys)
    assert not (workplace / "mlflow.db").exists()


def test_a_checkpoint_on_s3_is_registered_and_says_what_it_was_trained_on(workplace, s3_server, s3_uri, capsys):
    """A training checkpoint, in a folder whose name has patterns in it."""
    fs, path = fsspec.core.url_to_fs(f"{s3_uri}/run[1]*")
    for file in Path("checkpoint").iterdir():
        fs.put_file(str(file), f"{path}/step_0000020/model/{file.name}")
    place = f"{s3_uri}/run[1]*/step_0000020"
    assert main(["register", "--checkpoint", place, "--name", "far"]) == 0
    assert "registered models:/far/1, alias champion" in capsys.readouterr().out
    for uri in (place, "models:/far@champion", "checkpoint"):
        assert load_model(uri).trained_on == {"one", "two"}
    assert torch.equal(load_model(place).heads.weight, checkpoints.load("checkpoint").heads.weight)
    said = refused(f"register --checkpoint {s3_uri}/nowhere", capsys)
    assert f"no checkpoint at {s3_uri}/nowhere" in said
    fs.pipe_file(f"{path}/step_0000020/model/config.json", b"{}")
    assert f"{place}/config.json: missing model config keys" in refused(f"register --checkpoint {place}", capsys)


def test_no_version_without_its_alias_is_left_behind(workplace, monkeypatch):
    def away(*_):
        raise mlflow.exceptions.MlflowException("the server went away")

    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "set_registered_model_alias", away)
        with pytest.raises(mlflow.exceptions.MlflowException):
            versions.register("checkpoint", "d4rt", "champion")
    assert not mlflow.MlflowClient().search_model_versions("name = 'd4rt'")
    versions.register("checkpoint", "d4rt", "champion")
    assert model_version("models:/d4rt@champion") == "models:/d4rt/2"


def test_registering_that_is_killed_leaves_no_version_without_its_tags_and_is_not_done_twice(workplace, monkeypatch):
    class Killed(BaseException): ...

    def kill(*_):
        raise Killed

    tracking.connect()
    with mlflow.start_run() as run:
        for name in ("config.json", "stores.json"):
            mlflow.log_dict({}, name)
    client, tags = mlflow.MlflowClient(), {versions.STEPS: "60"}
    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "set_registered_model_alias", kill)
        with pytest.raises(Killed):
            versions.register("checkpoint", "d4rt", "champion", run.info.run_id, tags)
    (version,) = client.search_model_versions("name = 'd4rt'")
    assert version.tags[versions.STEPS] == "60"

    client.update_run(run.info.run_id, "RUNNING")
    assert versions.register("checkpoint", "d4rt", "champion", run.info.run_id, tags) == 1
    assert model_version("models:/d4rt@champion") == "models:/d4rt/1"
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_registering_that_is_killed_leaves_only_what_the_next_command_deletes(workplace, monkeypatch):
    """MLflow makes temporary folders of its own."""
    made, make = [], tempfile.mkdtemp
    monkeypatch.setattr("tempfile.mkdtemp", lambda *args, **options: made.append(make(*args, **options)) or made[-1])
    versions.register("checkpoint", "d4rt", None)
    assert made
    for folder in map(Path, made):
        assert PARTIAL.fullmatch(folder.relative_to(tempfile.gettempdir()).parts[0])


def test_an_alias_that_moves_unscored_says_from_where(workplace):
    config = replace(PRESETS["tiny"][1], steps=60)
    versions.register("checkpoint", "d4rt", "champion", tags={versions.STEPS: "500000"})
    version, tags = versions.bearer("d4rt", "champion")
    assert unscored(config, version, tags) == (
        "warning: champion moves unscored from version 1, trained for 500,000 steps, to a new one of 60 steps; with "
        "--validation.stores it moves only if the new one is better"
    )


def test_several_first_starts_beside_one_fresh_database(workplace):
    start = [sys.executable, "-c", "from train import tracking; tracking.connect(); tracking.check_writable('d4rt', 0)"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    begun = [subprocess.Popen(start, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in begun:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("not a database, but long enough to have a header" * 10), "cannot be read"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE experiments (id INT)"), "left half made"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE addresses (id INT)"), "is not MLflow's"),
        (lambda path: path.mkdir(), "is a folder"),
    ],
)
def test_a_database_that_is_none_is_named_at_once(damage, message, workplace, capsys):
    damage(workplace / "mlflow.db")
    said = refused("register --checkpoint checkpoint", capsys)
    assert "mlflow.db" in said and message in said
    with pytest.raises(ValueError, match=message):
        load_model("models:/d4rt@champion")


def test_an_experiment_that_was_deleted_is_named_with_its_remedy(workplace, capsys):
    tracking.connect()
    experiment = mlflow.get_experiment_by_name("d4rt").experiment_id
    mlflow.delete_experiment(experiment)
    said = refused("register --checkpoint checkpoint", capsys)
    assert f"the experiment d4rt was deleted; `mlflow experiments restore --experiment-id {experiment}`" in said
    mlflow.MlflowClient().restore_experiment(experiment)
    run_id = tracking.start_run("mine", {}, [])
    mlflow.delete_run(run_id)
    with pytest.raises(ValueError, match=f"run mine was recorded as {run_id}, which was deleted in MLflow"):
        tracking.check_run(run_id, "mine")


def test_a_run_that_ends_early_does_not_stay_running(workplace):
    tracking.connect()
    for error, status in ((RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        run_id = tracking.start_run("mine", {}, [])
        with pytest.raises(error), tracking.ended(run_id):
            raise error
        assert mlflow.get_run(run_id).info.status == status


def test_artifacts_that_have_no_place_to_go_are_found_before_any_work(workplace, s3_uri, capsys, monkeypatch):
    """On S3, and on an S3 that does not answer."""
    tracking.connect()
    mlflow.create_experiment("far", artifact_location=s3_uri)
    monkeypatch.setattr(tracking, "EXPERIMENT", "far")
    assert main(["register", "--checkpoint", "checkpoint", "--name", "far"]) == 0
    assert load_model("models:/far@champion").config == TINY
    capsys.readouterr()
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    said = refused("register --checkpoint checkpoint --name far", capsys)
    assert f"keeps models in {s3_uri}, which cannot be written" in said
    assert len(mlflow.MlflowClient().search_model_versions("name = 'far'")) == 1
