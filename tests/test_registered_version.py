"""What a version in the registry carries: enough to know what it is, what it was made from, and what is allowed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.pyfunc import scoring_server
from plane_store import write_plane_store
from starlette.testclient import TestClient
from test_comparison import evaluation

from model import D4RT, ModelConfig, checkpoints
from model.queries import Queries
from pipelines.catalog import Catalog
from pipelines.compare import compare
from pipelines.store.reader import ClipStore
from train import provenance, signature, tracking, versions
from train.__main__ import main

TINY = replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A database with d4rt/1 of a run on two datasets, and d4rt/2 of one that started from it."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        torch.manual_seed(0)
        checkpoints.save(D4RT(TINY), folder / "runs/one/step_0000020/model")
        stores = {}
        for key in ("kubric", "co3d", "scannet"):
            uri = write_plane_store(folder / key, clips=1, dataset=key, facts={"catalog": Catalog.load(key).facts()})
            stores[key] = ClipStore(uri)
        tracking.connect()
        run_id = tracking.start_run("one", {"init": None}, [stores["kubric"], stores["co3d"]])
        (folder / "runs/one/run.json").write_text(json.dumps({"config": {}, "run_id": run_id}))
        client = mlflow.MlflowClient()
        client.log_metric(run_id, "val/median_relative_error/all", 0.25, step=20)
        client.log_metric(run_id, "clips_per_second", 9.0, step=20)
        versions.register(folder / "runs/one/step_0000020/model", "d4rt", "champion", run_id)
        run_id = tracking.start_run("two", {"init": "models:/d4rt/1"}, [stores["scannet"]])
        versions.register(folder / "runs/one/step_0000020/model", "d4rt", None, run_id)
        yield folder, stores
        mlflow.set_tracking_uri(before)


def tags_of(version: int) -> dict[str, str]:
    return mlflow.MlflowClient().get_model_version("d4rt", str(version)).tags


def test_a_version_says_what_it_was_trained_on_and_what_that_allows(registry):
    _, stores = registry
    tags = tags_of(1)
    assert tags["data_digests"].split(" | ") == [f"{key} {stores[key].info['digest']}" for key in ("kubric", "co3d")]
    assert tags["licences"] == "kubric: CC BY 4.0 (any use) | co3d: CC BY-NC 4.0 (non-commercial)"
    assert tags["allows"] == "non-commercial"
    assert tags["git_commit"] and "started_from" not in tags


def test_who_starts_from_a_version_takes_over_what_it_was_trained_on(registry):
    tags = tags_of(2)
    assert tags["started_from"] == "models:/d4rt/1" and tags["allows"] == "research"
    assert [entry.split(":")[0] for entry in tags["licences"].split(" | ")] == ["scannet", "kubric", "co3d"]


def test_a_checkpoint_registered_by_hand_has_the_tags_of_its_run_or_says_that_nobody_knows(registry, capsys):
    folder, _ = registry
    for place, allows in (("runs/one/step_0000020", "non-commercial"), ("models:/d4rt/2", "research")):
        assert main(["register", "--checkpoint", place, "--name", "by-hand"]) == 0
        assert "alias champion" in capsys.readouterr().out
        version = mlflow.MlflowClient().get_model_version_by_alias("by-hand", "champion")
        assert version.tags["allows"] == allows
    lonely = checkpoints.save(D4RT(TINY), folder / "elsewhere")
    number = versions.register(lonely, "by-hand", None)
    assert mlflow.MlflowClient().get_model_version("by-hand", str(number)).tags["allows"] == "unknown"


def test_strictest_of_several_terms():
    assert provenance.strictest(["any use", "any use"]) == "any use"
    assert provenance.strictest(["research", "non-commercial"]) == "research"
    assert provenance.strictest(["any use", "what nobody has heard of"]) == "unknown"
    assert provenance.strictest([]) == "unknown"


def test_a_version_has_its_config_metrics_and_an_example_that_it_answers_with_mlflow_alone(registry, tmp_path):
    """In a process that has no import of this repository: the same numbers as here."""
    folder, _ = registry
    info = mlflow.models.get_model_info("models:/d4rt/1")
    assert ModelConfig.from_dict(info.metadata["config"]) == TINY
    model_id = mlflow.MlflowClient().get_model_version("d4rt", "1").source.rpartition("/")[2]
    logged = {metric.key: metric.value for metric in mlflow.get_logged_model(model_id).metrics}
    assert logged == {"final/val/median_relative_error/all": 0.25}

    script = """
import sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/d4rt/1")
answer = model.predict(model.input_example)
np.savez(sys.argv[1], **answer)
assert not any(name in sys.modules for name in ("pipelines", "train", "ray"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "answer.npz"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    there = np.load(tmp_path / "answer.npz")
    example = {name: torch.from_numpy(array) for name, array in signature.example(TINY.image_size).items()}
    queries = Queries(**{name: example[name] for name in ("uv_norm", "t_src", "t_tgt", "t_cam")})
    with torch.inference_mode():
        here = checkpoints.load(folder / "runs/one/step_0000020")(example["video"], example["aspect"], queries)
    assert there["xyz"].shape == (1, 2, 3) and np.array_equal(there["xyz"], here.xyz.numpy())


def test_an_alias_moves_by_a_command_that_says_why(registry, capsys):
    assert main(["promote", "--version", "2", "--alias", "challenger", "--because", "knows ScanNet"]) == 0
    assert "challenger of d4rt is version 2 now, which no version had: knows ScanNet" in capsys.readouterr().out
    assert main(["promote", "--version", "2", "--because", "better on our rooms"]) == 0
    assert mlflow.MlflowClient().get_model_version_by_alias("d4rt", "champion").version == 2
    told = tags_of(2)["promoted/champion"]
    assert "from version 1: better on our rooms" in told and "by " in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--version", "9", "--because", "x"], "no model 'models:/d4rt/9' in the registry"),
        (["--name", "none", "--version", "1", "--because", "x"], "no model 'none' in the registry"),
        (["--version", "1", "--because", "  "], "--because is empty"),
        (["--version", "1", "--alias", "latest", "--because", "x"], "'latest' is no alias"),
    ],
)
def test_what_cannot_be_promoted(words, message, registry, capsys):
    assert main(["promote", *words]) == 2
    assert message in capsys.readouterr().err


def test_promoting_makes_no_registry(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert main(["promote", "--version", "1", "--because", "x"]) == 2
    assert "there is no model registry at" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_version_that_bears_the_alias_already(registry, capsys):
    version = mlflow.MlflowClient().get_model_version_by_alias("d4rt", "champion").version
    assert main(["promote", "--version", str(version), "--because", "again"]) == 2
    assert "is champion already" in capsys.readouterr().err


def test_an_alias_goes_to_the_first_of_a_leaderboard_if_that_is_surely_better(registry, tmp_path, capsys):
    """The lower error, on the same clips; what may be chance moves nothing."""
    bearer = int(mlflow.MlflowClient().get_model_version_by_alias("d4rt", "champion").version)
    other = 3 - bearer
    scores = {bearer: [0.30, 0.40, 0.50, 0.60], other: [0.32, 0.30, 0.55, 0.55]}
    better = scores | {other: [x - 0.1 for x in scores[bearer]]}
    boards = []
    for number, of_versions in enumerate((scores, better)):
        places = []
        for version, values in of_versions.items():
            model = {"version": f"models:/d4rt/{version}"}
            places.append(evaluation(tmp_path / f"{number}-{version}", {"sintel": values}, "", model=model))
        compare(places, out=str(tmp_path / f"board-{number}"))
        boards.append(str(tmp_path / f"board-{number}"))
    promote = ["promote", "--by"]
    assert main([*promote, boards[0]]) == 2
    assert f"models:/d4rt/{other} is first on" in (said := capsys.readouterr().err) and "champion stays" in said
    assert main([*promote, boards[1]]) == 0
    assert int(mlflow.MlflowClient().get_model_version_by_alias("d4rt", "champion").version) == other
    told = tags_of(other)["promoted/champion"]
    assert f"less version {bearer}: -0.1 to -0.1" in told and "by sim3.ate" in told
    assert main([*promote, boards[1]]) == 2 and "is champion already" in capsys.readouterr().err
    assert main([*promote, boards[1], "--name", "opend4rt"]) == 2 and "versions of opend4rt" in capsys.readouterr().err
    assert main([*promote, str(tmp_path)]) == 2 and "has no leaderboard.json" in capsys.readouterr().err
    Path(boards[0], "leaderboard.json").write_text('[{"name": "models:/d4rt/1"}]')
    assert main([*promote, boards[0]]) == 2 and "is damaged (0.uri: Field required" in capsys.readouterr().err
    assert main([*promote, boards[1], "--version", "1"]) == 2 and "give either --version" in capsys.readouterr().err


def test_what_mlflow_models_serve_answers_is_what_the_model_answers(registry):
    """The application that `mlflow models serve` runs, asked over HTTP for the example."""
    model = mlflow.pyfunc.load_model("models:/d4rt/1")
    asked = {name: array.tolist() for name, array in model.input_example.items()}
    answered = TestClient(scoring_server.init(model)).post("/invocations", json={"inputs": asked})
    assert answered.status_code == 200, answered.text
    expected = model.predict(model.input_example)
    for name, values in answered.json()["predictions"].items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)
    assert set(answered.json()["predictions"]) == set(expected)
