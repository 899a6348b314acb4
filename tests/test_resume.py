"""Where a run goes on, without Ray: checkpoints are found only whole, curves wait for MLflow, the monitors warn."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import IOBase
from pathlib import Path
from types import SimpleNamespace

import mlflow
import psutil
import pytest
import ray
import torch
from plane_store import write_plane_store
from ray.train import Checkpoint
from ray.train.torch import TorchTrainer
from safetensors import safe_open

from benchmarks.servers import MlflowServer
from model import D4RT, ModelConfig, checkpoints
from pipelines.partial import scratch_path
from pipelines.store.reader import ClipStore
from pipelines.whole import read_file
from train import curves, record, run_folder, tracking, versions
from train.averages import SETTLED_STEPS, Averages
from train.checkpoint import HostMemory
from train.config import PRESETS
from train.errors import CheckpointFailed, RunFailed
from train.lease import Lease
from train.loop import train
from train.progress import printed_progress
from train.run_folder import Position
from train.state import TrainState

MODEL = replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1)
FILES = ("optimisers.pt", "model/weights.safetensors", "model/config.json")


def files_of(position: Position) -> dict[str, Callable[[IOBase], object]]:
    """What writes the files of a checkpoint, in their order."""
    contents = {name: name.encode() * 1000 for name in FILES}
    writers = {name: lambda file, content=content: file.write(content) for name, content in contents.items()}
    return writers | {"position.json": position.write}


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path) -> str:
    """URI of the folder of a run."""
    return str(tmp_path / "run") if request.param == "local" else request.getfixturevalue("s3_uri")


def test_the_newest_whole_checkpoint_is_found_as_it_was(run):
    fs, folder = run_folder.open_folder(run)
    assert run_folder.newest(fs, folder) is None
    position = Position(step=40, clips=320, workers=2, clips_per_worker=4, unsent=[{"step": 40}])
    for step in (5, 40):
        run_folder.store(files_of(replace(position, step=step)), f"{run}/step_{step:07d}", Lease(run, 1))
    assert run_folder.newest(fs, folder) == f"{folder}/step_0000040"
    for name in FILES:
        assert read_file(f"{run}/step_0000040/{name}") == name.encode() * 1000
    assert Position.load(f"{run}/step_0000040") == position


def test_a_checkpoint_comes_back_bit_for_bit_and_the_next_step_changes_nothing_of_it(run):
    """Weights, averaged ones and optimisers, written while training goes on; read by the library of the format."""
    config = replace(PRESETS["tiny"][1].optim, ema=0.5)
    state, again = (TrainState.create(D4RT(MODEL), config) for _ in range(2))
    for _ in range(2):
        for parameter in state.model.parameters():
            bits = torch.randint(-(2**31), 2**31, parameter.shape, dtype=torch.int32)
            parameter.grad = torch.where(bits.view(torch.float32).isfinite(), bits.view(torch.float32), 1.0).clamp(
                -9, 9
            )
        state.update(1e-3)
        state.average(0.5)
    state.model.trained_on = state.averaged.trained_on = frozenset({"b", "a"})

    def content(of: TrainState) -> list[torch.Tensor]:
        states = [optimiser.state_dict()["state"] for optimiser in of.optimisers]
        moments = [x for by_number in states for moments in by_number.values() for x in moments.values()]
        return [*of.model.state_dict().values(), *of.averaged.state_dict().values(), *moments]

    before, memory = [tensor.clone() for tensor in content(state)], HostMemory()
    files = state.writers(state.progress(), memory.copy)
    state.update(1e-3)
    run_folder.store(files, f"{run}/step_0000002", Lease(run, 1))
    assert not torch.equal(content(state)[0], before[0])
    with Checkpoint(*reversed(run_folder.open_folder(f"{run}/step_0000002"))).as_directory() as folder:
        again.restore(Path(folder))
        with safe_open(f"{folder}/model/weights.safetensors", "pt") as file:
            assert file.metadata() == {"trained_on": "a,b"}
            assert set(file.keys()) == set(state.model.state_dict())
    assert again.step == 2
    for found, expected in zip(content(again), before, strict=True):
        assert torch.equal(found, expected)

    held = {name: tensor.data_ptr() for name, tensor in memory.held.items()}
    state.writers(state.progress(), memory.copy)
    assert held == {name: tensor.data_ptr() for name, tensor in memory.held.items()}  # no memory anew


def test_a_checkpoint_cut_short_after_any_file_is_none(tmp_path):
    """Also its model: config.json, which says that weights are whole, comes after them."""
    fs, folder = run_folder.open_folder(str(tmp_path / "run"))
    place, files = Path(folder), files_of(Position(step=20))
    run_folder.store(files, f"{folder}/step_0000020", Lease(folder, 1))
    order = []
    for name in ("position.json", "model/config.json", "model/weights.safetensors"):
        half = place / f"step_{40 + len(order):07d}"
        (half / name).mkdir(parents=True)  # a folder where the file should be: it cannot be written
        (half / name / "in_the_way").touch()
        with pytest.raises(CheckpointFailed, match="could not be written"):
            run_folder.store(files, f"{folder}/{half.name}", Lease(folder, 1))
        assert not (half / "position.json").is_file()
        order.append({file for file in FILES if (half / file).is_file()})
        assert run_folder.newest(fs, folder) == f"{folder}/step_0000020"
    assert order[0] == set(FILES) and order[1] == set(FILES) - {"model/config.json"}
    assert "model/config.json" not in order[2]
    run_folder.sweep(fs, folder, {f"{folder}/step_0000020"})
    assert [path.name for path in place.iterdir()] == ["step_0000020"]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("", False),
        ('{"checkpoint_results": [{"che', False),
        *((content, False) for content in ("", "{}", "[]", '{"checkpoint_results": [1]}', "[" * 100_000)),
        ('{"checkpoint_results": [{"checkpoint_dir_name": "step_0000010", "metrics": {}}]}', False),  # which is gone
        ('{"checkpoint_results": [{"checkpoint_dir_name": "step_0000020", "metrics": {}}]}', True),
        ('{"checkpoint_results": []}', True),
    ],
)
def test_ray_trains_list_is_deleted_only_if_it_is_cut_short_or_wrong(tmp_path, content, kept):
    fs, folder = run_folder.open_folder(str(tmp_path / "run"))
    run_folder.mend(fs, folder)  # of a run that has none
    run_folder.store(files_of(Position(step=20)), f"{folder}/step_0000020", Lease(folder, 1))
    snapshot = Path(folder, "checkpoint_manager_snapshot.json")
    snapshot.write_text(content)
    run_folder.mend(fs, folder)
    assert snapshot.exists() == kept


# Files may not grow beyond 100 kB: what a full disk does to a writer, without root and for this process alone.
FULL = """
import resource, sys
from model import D4RT
from train import run_folder
from train.checkpoint import HostMemory
from train.config import PRESETS
from train.errors import CheckpointFailed
from train.lease import Lease
from train.state import TrainState
config = PRESETS["tiny"][1]
state = TrainState.create(D4RT(config.model), config.optim)
for parameter in state.model.parameters():
    parameter.grad = parameter * 0
state.update(0.0)
files = state.writers(state.progress(), HostMemory().copy)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name in ("optimisers.pt", "model/weights.safetensors"):
    try:
        run_folder.store({name: files[name]}, f"{sys.argv[1]}/step_0000002", Lease(sys.argv[1], 1))
    except CheckpointFailed as error:
        print(error)
"""


def test_a_full_disk_is_said_and_leaves_nothing_that_looks_whole(tmp_path):
    shown = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True).stdout
    lines = shown.splitlines()
    assert len(lines) == 2, shown
    for line in lines:
        assert line.startswith(f"checkpoint {tmp_path}/step_0000002 could not be written ([Errno 27] File too large")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_checkpoint_that_cannot_be_downloaded_for_lack_of_room_is_refused(tmp_path, monkeypatch):
    fs, folder = run_folder.open_folder(str(tmp_path))
    run_folder.store(files_of(Position(step=20)), f"{folder}/step_0000020", Lease(folder, 1))
    run_folder.require_room_for(fs, f"{folder}/step_0000020")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=50_000))
    with pytest.raises(ValueError, match=r"step_0000020 takes 0\.00 GB, .* has 0\.00 GB free: make room there, or let"):
        run_folder.require_room_for(fs, f"{folder}/step_0000020")


def test_what_a_killed_worker_had_downloaded_is_deleted_by_the_next_one(tmp_path, monkeypatch):
    fs, folder = run_folder.open_folder(str(tmp_path / "run"))
    run_folder.store(files_of(Position(step=20)), f"{folder}/step_0000020", Lease(folder, 1))
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("pipelines.partial.NEW_SECONDS", 0)
    checkpoint = Checkpoint(f"{folder}/step_0000020", fs)

    if (killed := os.fork()) == 0:
        with run_folder.downloaded(checkpoint, "a" * 32):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    assert (scratch_path("a" * 32) / run_folder.POSITION).is_file()

    with run_folder.downloaded(checkpoint, "b" * 32) as there:
        assert Position.load(there).step == 20
        assert list(temporary.iterdir()) == [there] == [scratch_path("b" * 32)]
    assert list(temporary.iterdir()) == []


# Python waits for the thread, which waits for what never comes.
WORKER = """
import queue, threading
from pipelines import cluster
cluster.end_with_node()
threading.Thread(target=queue.Queue().get).start()
print("waiting", flush=True)
"""
NODE = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_worker_ends_with_its_node_whatever_it_waits_for():
    with subprocess.Popen([sys.executable, "-c", NODE, WORKER], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout.readline() == "waiting\n"
        (worker,) = psutil.Process(node.pid).children()
        node.kill()
        try:
            node.communicate(timeout=60)  # until both have let go of the pipe
        finally:
            with suppress(psutil.Error):
                worker.kill()


class Lost(TorchTrainer):
    """Whose controller Ray ended, as the machine has no memory left."""

    def __init__(self) -> None:
        pass

    def fit(self) -> None:
        raise ray.exceptions.OutOfMemoryError("1 worker(s) were killed, as memory is low.\nTop 10 memory users:")


def test_a_lost_controller_is_said_in_words(ray_cluster):
    config = replace(PRESETS["tiny"][1], name="mine")
    with printed_progress("mine") as progress, pytest.raises(RunFailed) as failed:
        train(config, Lost(), progress)
    assert str(failed.value) == (
        "run mine failed, because Ray lost its controller: 1 worker(s) were killed, as memory is low.; "
        "the same command with --name mine goes on from its last checkpoint"
    )


def test_an_alias_means_what_it_meant_when_the_run_began(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    given = replace(PRESETS["tiny"][1], out=str(tmp_path / "runs"), name="mine", init="models:/d4rt@champion")
    tracking.connect()
    model = D4RT(ModelConfig.preset("tiny"))
    for number in (1, 2):
        versions.register(checkpoints.save(model, tmp_path / str(number)), "d4rt", "champion")
        config = record.meant(given, record.recorded(given))
        assert config.init == "models:/d4rt/1"  # also of a finished run, whose own model is the champion now
        record.claim(config, [], given.init)
    other = replace(given, init="models:/d4rt/2")
    asked = record.meant(other, record.recorded(other))
    there = r"init: models:/d4rt@champion = models:/d4rt/1 there, models:/d4rt/2 asked"
    with pytest.raises(ValueError, match=rf"begun with another config \({there}\)"):
        record.require_same(asked, record.recorded(other), other.init)


def test_a_run_that_goes_on_says_which_store_is_another_one_now(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    config = replace(PRESETS["tiny"][1], out=str(tmp_path / "runs"), name="mine")
    tracking.connect()

    def claimed(seed: int) -> record.Record:
        shutil.rmtree(tmp_path / "planes", ignore_errors=True)
        return record.claim(config, [ClipStore(write_plane_store(tmp_path / "planes", clips=2, seed=seed))], None)

    begun, again = claimed(0), claimed(0)
    assert begun == again and not capsys.readouterr().out
    changed = claimed(1)
    assert f"warning: store {tmp_path}/planes has changed since the run began" in capsys.readouterr().out
    (before,), (now,) = begun.stores.values(), changed.stores.values()
    assert len(set(now)) == 2 and now[:1] == before
    replace(changed, model="models:/d4rt/1").save(f"{config.out}/{config.name}")
    assert claimed(1).model == "models:/d4rt/1"


# --- MLflow ----------------------------------------------------------------------------------------------------------


def test_curves_wait_for_mlflow_and_each_step_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "ASK_AGAIN_SECONDS", 0.2)
    said, back = [], threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if "answers again" in line:
            back.set()

    with MlflowServer(tmp_path / "server") as server:
        client = mlflow.MlflowClient(server.uri)
        run_id = client.create_run(client.create_experiment("curves")).info.run_id

        def points() -> list[tuple[int, float]]:
            return [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")]

        log = curves.MetricLog(server.uri, run_id, [], say)
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 10})
        log.close()
        assert points() == [(1, 0.1), (2, 0.2), (3, 0.3)] and not log.unsent() and not said

        server.kill()
        log = curves.MetricLog(server.uri, run_id, [], say)
        for step in (2, 3, 4, 5):  # as after a restart from step 1
            log.write(step, {"loss": -1.0 if step < 4 else step / 10})
        log.close()
        kept = json.loads(json.dumps(log.unsent()))  # as a checkpoint has them
        assert [point["step"] for point in kept] == [2, 3, 4, 5]
        assert len(said) == 1 and f"MLflow at {server.uri} does not answer: curves are kept and sent later" in said[0]

        log = curves.MetricLog(server.uri, run_id, kept, say)
        log.write(6, {"loss": 0.6})
        server.start()
        assert back.wait(60)
        log.write(7, {"loss": 0.7})
        log.close()
        assert points() == [(step, step / 10) for step in range(1, 8)]

        with pytest.raises(ValueError, match=f"run mine was recorded as {'0' * 32}, which MLflow at .* does not know"):
            tracking.connect()
            tracking.check_run("0" * 32, "mine")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_mlflow_that_does_not_answer_stops_a_run_at_the_start(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match=f"MLflow at {uri} cannot be used, so nothing was begun .*: start its server"):
        tracking.connect()


# --- monitors --------------------------------------------------------------------------------------------------------


GOOD = {
    "loss": 0.1,
    "z_ratio": 0.9,
    "confidence": 0.5,
    "lr": 1e-4,
    "dropped_clips": 0.0,
    "masked/normal/kubric": 0.99,
    "masked/normal/scannet": 0.5,
}


def windows(config, metrics: dict[str, float], first=1000, count=3) -> tuple[list[dict], list[str]]:
    """What is logged and what is printed over some windows of one step each."""
    averages, logged, lines = Averages(config, first, workers=2), [], []
    for step in range(first + 1, first + 1 + count):
        averages.add(GOOD | metrics)
        means, shown = averages.close(step)
        logged.append(means)
        lines += shown
    return logged, [line for line in lines if line.startswith("warning")]


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ({"z_ratio": 0.29}, "variance_collapse", "variance collapse: predicted depth varies 0.29 times"),
        ({"confidence": 0.04}, "confidence_collapse", "confidence collapse: 0.040 on average"),
        ({"masked/normal/kubric": 1.0}, "no_valid_normal.kubric", "not one normal of dataset kubric is known"),
        ({"masked/uv_tgt/scannet": 1.0}, "no_valid_uv_tgt.scannet", "not one uv_tgt of dataset scannet is known"),
        ({"masked/normal/mine": 1.0}, "no_valid_normal.mine", "not one normal of dataset mine is known"),
    ],
)
def test_what_looks_wrong_is_said_once_with_the_step(bad, kind, words):
    config = PRESETS["tiny"][1]
    if kind == "confidence_collapse":  # only where it multiplies the error
        assert not windows(config, bad)[1]
        config = replace(config, loss=replace(config.loss, confidence="paper"))
    logged, warnings = windows(config, bad)
    assert len(warnings) == 1 and warnings[0].startswith("warning: step 1001: ") and words in warnings[0]
    found = [{name for name in means if name.startswith("warning/")} for means in logged]
    assert found == [{f"warning/{kind}"}, set(), set()]
    assert not windows(config, {})[1]
    assert not windows(config, {"masked/normal/scannet": 1.0})[1]  # which has none, by its catalog


def test_a_model_that_has_just_begun_is_not_warned_about():
    config = PRESETS["tiny"][1]  # 50 steps of warm-up of each kind
    assert not windows(config, {"z_ratio": 0.1, "confidence": 0.01}, first=90)[1]


def test_waiting_for_data_is_said_when_it_lasts(monkeypatch):
    """A clock by hand: a step takes a second, some of which it waits; in the first steps the readers start."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def batches():
        for step in range(2 * SETTLED_STEPS + 2):
            now[0] += first if step < SETTLED_STEPS else later
            yield "a batch"

    for first, later, expected in ((0.2, 0.2, ["20%"]), (0.08, 0.08, []), (0.9, 0.08, []), (0.0, 0.12, ["12%"])):
        averages, warnings = Averages(PRESETS["tiny"][1], 0, workers=2), []
        for step, _ in enumerate(averages.timed(batches()), 1):
            now[0] += 1 - (first if step <= SETTLED_STEPS else later)
            averages.add(GOOD)
            if step % 10 == 0:
                warnings += [line for line in averages.close(step)[1] if line.startswith("warning")]
        assert len(warnings) == len(expected)
        assert all(f"data wait: {share}" in line for share, line in zip(expected, warnings, strict=True))


@pytest.mark.parametrize("content", ["", "null", '{"foo": 1}', '{"step": "1"}', '{"step": -1}', "[" * 100_000])
def test_a_position_that_cannot_be_is_refused(content, tmp_path):
    (tmp_path / run_folder.POSITION).write_text(content)
    with pytest.raises(ValueError, match=r"position\.json is damaged \(.*\): delete this checkpoint"):
        Position.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"stores": [1]}, {"stores": {"a": []}}, {"run_id": 5}, {"run_id": None}, {"config": 1}, {"foo": 1}]
)
def test_a_damaged_run_is_no_run(change, tmp_path):
    config = replace(PRESETS["tiny"][1], out=str(tmp_path), name="run")
    content = {"config": config.to_dict(), "run_id": "abc", "stores": {}, "model": None} | change
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*\): choose another --name"):
        record.claim(config, [], None)
