"""`--dry-run`: what is wrong is said in words, before anything costs anything."""

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from plane_store import write_plane_store
from saved_state import save

from model import D4RT, ModelConfig, checkpoints
from train.__main__ import main
from train.config import PRESETS, OptimConfig
from train.state import MODEL, TrainState, held_bytes

CHECKS = ("stores", "weights", "shapes", "memory", "disk", "lease", "mlflow")


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    write_plane_store(tmp_path / "planes", clips=4, queries=64)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(words: str, capsys) -> tuple[int, dict[str, str]]:
    """(exit code, what is said of each check)."""
    code = main(f"tiny --data.mixture.planes 1 --data.queries 48 --dry-run {words}".split())
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return code, {name: said for name, said in lines if name in CHECKS}


def test_all_that_is_there_is_said_and_nothing_is_left_behind(workplace, capsys):
    torch_weights = checkpoints.save(D4RT(ModelConfig.preset("tiny")), workplace / "begin")
    before = sorted(path.name for path in workplace.iterdir())
    write_plane_store(workplace / "held_out", clips=3, queries=64, seed=1)
    before.append("held_out")
    code, said = checked(f"--init {torch_weights} --validation.stores held_out", capsys)
    assert code == 0 and tuple(said) == CHECKS
    assert all(text.startswith("ok ") for text in said.values())
    assert "1 with 4 clips of 4 frames, 3 clips to judge by" in said["stores"]
    assert "a step of fresh weights, all layers, clips: 8, loss: " in said["shapes"]
    assert not mlflow.search_runs(experiment_names=["d4rt"], output_format="list")
    assert sorted(path.name for path in workplace.iterdir()) == sorted(
        [*before, "mlflow.db", "mlflow.db.lock", "mlartifacts"]
    )


@pytest.mark.parametrize(
    ("words", "check", "message"),
    [
        ("--data.mixture.nowhere 1", "stores", "nowhere: not a clip store"),
        ("--model.image-size 32", "stores", "frames of 64 pixels, the model takes 32"),
        ("--validation.stores nowhere", "stores", "no store.json in"),
        ("--validation.stores planes", "stores", "a model is judged on scenes it has not seen"),
        ("--loss.dynamic-reweight kubric median", "stores", "--loss.dynamic-reweight names kubric"),
        ("--init nothing", "weights", "nothing/config.json does not exist"),
        ("--data.clips-per-worker 100000", "memory", "raise --accumulate, lower --data.clips-per-worker"),
        ("--out planes/store.json/runs", "disk", "planes/store.json is a file: give another place"),
        ("--out planes/store.json", "disk", "planes/store.json is a file: give another place"),
        ("--out /proc/runs", "disk", "out: /proc: "),
        ("--out s3://no-such-bucket/runs", "disk", "out: s3://no-such-bucket/runs: there is no such file, folder or"),
    ],
)
def test_what_is_missing_fails_by_its_name(words, check, message, workplace, capsys, s3_server):
    code, said = checked(words, capsys)
    assert code == 2
    assert said[check].startswith("FAILED ") and message in said[check]
    if check == "memory":
        assert "a step of fresh weights, the first layers, since all are too much for the cpu here" in said["shapes"]
    lost = {"shapes", "memory"} if check == "stores" else set()
    assert {name for name, text in said.items() if text.startswith("FAILED")} == {check} | lost


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 cannot be used, so nothing was begun"),
        (
            "sqlite:////no/such/folder/mlflow.db",
            "MLflow's database sqlite:////no/such/folder/mlflow.db: there is no folder /no/such/folder; make it",
        ),
    ],
)
def test_mlflow_that_is_away_is_named_and_all_else_is_checked(uri, message, workplace, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, said = checked("", capsys)
    assert code == 2
    assert said.pop("mlflow").startswith(f"FAILED  {message}")
    assert set(said) == {"stores", "weights", "shapes", "memory", "disk", "lease"}
    assert all(text.startswith("ok ") for text in said.values())


@pytest.mark.parametrize(
    "optim", [OptimConfig(), OptimConfig(ema=0.9, optimiser="muon"), OptimConfig(freeze=("encoder",))]
)
def test_a_checkpoint_is_as_large_as_said(optim, tmp_path):
    config = replace(PRESETS["tiny"][1], optim=replace(optim, warmup_steps=1))
    state = TrainState.create(D4RT(config.model), config.optim)
    for parameter in state.model.parameters():
        if parameter.requires_grad:
            parameter.grad = parameter * 0
    state.update(0.0)
    save(state, tmp_path)
    assert (tmp_path / MODEL).is_dir()
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size == pytest.approx(held_bytes(config)["checkpoint"], rel=0.02)
