"""Where a run goes on, without Ray: checkpoints are found only whole, curves wait for MLflow, the monitors warn."""

import json
import re
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import psutil
import pyarrow.fs
import pytest
from mlflow_server import MlflowServer
from plane_store import write_plane_store
from upath import UPath

from pipelines.store.reader import ClipStore
from train import curves, run_folder, tracking
from train.averages import SETTLED_STEPS, Averages
from train.config import PRESETS
from train.errors import CheckpointFailed
from train.lease import Lease
from train.run_folder import Position

FILES = ("model/config.json", "model/weights.safetensors", "optimisers.pt")


def local_checkpoint(folder: Path, position: Position) -> Path:
    """What a worker has before it is on its way."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)
    position.save(folder)
    return folder


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path) -> tuple[pyarrow.fs.FileSystem, str, Path]:
    """The folder of a run, and where it lies on this disk."""
    if request.param == "local":
        return *run_folder.open_folder(str(tmp_path / "run")), tmp_path / "run"
    uri = request.getfixturevalue("s3_uri")
    return *run_folder.open_folder(uri), UPath(uri, use_listings_cache=False)


def test_the_newest_whole_checkpoint_is_found_as_it_was(run, tmp_path):
    fs, folder, place = run
    assert run_folder.newest(fs, folder) is None
    position = Position(step=40, clips=320, workers=2, clips_per_worker=4, unsent=[{"step": 40}])
    for step in (5, 40):
        local = local_checkpoint(tmp_path / f"checkpoint{step}", replace(position, step=step))
        stored = run_folder.store(local, fs, f"{folder}/step_{step:07d}", Lease(folder, 1))
    assert run_folder.newest(fs, folder) == f"{folder}/step_0000040" == stored.path
    for name in FILES:
        assert (place / "step_0000040" / name).read_bytes() == name.encode() * 1000
    with stored.as_directory() as copy:
        assert Position.load(copy) == position


def test_a_checkpoint_cut_short_after_any_file_is_none(tmp_path):
    """Also its model: config.json, which says that weights are whole, comes after them."""
    fs, folder = run_folder.open_folder(str(tmp_path / "run"))
    place = Path(folder)
    local = local_checkpoint(tmp_path / "checkpoint", Position(step=20))
    run_folder.store(local, fs, f"{folder}/step_0000020", Lease(folder, 1))
    order = []
    for name in ("position.json", "model/config.json", "model/weights.safetensors"):
        half = place / f"step_{40 + len(order):07d}"
        (half / name).mkdir(parents=True)  # a folder where the file should be: it cannot be written
        (half / name / "in_the_way").touch()
        with pytest.raises(CheckpointFailed, match="could not be written"):
            run_folder.store(local, fs, f"{folder}/{half.name}", Lease(folder, 1))
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
    run_folder.store(
        local_checkpoint(tmp_path / "checkpoint", Position(step=20)), fs, f"{folder}/step_0000020", Lease(folder, 1)
    )
    snapshot = Path(folder, "checkpoint_manager_snapshot.json")
    snapshot.write_text(content)
    run_folder.mend(fs, folder)
    assert snapshot.exists() == kept


# Files may not grow beyond 100 kB: what a full disk does to a writer, without root and for this process alone.
FULL = """
import resource, signal, sys
from pathlib import Path
from model import D4RT, ModelConfig
from train.config import PRESETS
from train.errors import CheckpointFailed
from train.worker import write_checkpoint
from train.run_folder import Position
from train.state import TrainState
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = PRESETS["tiny"][1]
state = TrainState.create(D4RT(config.model), config.optim)
write_checkpoint(state, Position(step=1), Path(sys.argv[1], "good"))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint(state, Position(step=2), Path(sys.argv[1], "full"))
except CheckpointFailed as error:
    print(error)
"""


def test_a_full_disk_where_a_checkpoint_is_written_first(tmp_path):
    for name in ("good", "full"):
        (tmp_path / name).mkdir()
    shown = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"checkpoint {tmp_path}/full could not be written \(.+\): make room there, .*\n", shown)
    assert Position.load(tmp_path / "good").step == 1
    assert not (tmp_path / "full/position.json").exists()


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


def test_a_run_that_goes_on_says_which_store_is_another_one_now(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    config = replace(PRESETS["tiny"][1], out=str(tmp_path / "runs"), name="mine")
    tracking.connect()

    def claimed(seed: int) -> run_folder.Record:
        shutil.rmtree(tmp_path / "planes", ignore_errors=True)
        return run_folder.claim(config, [ClipStore(write_plane_store(tmp_path / "planes", clips=2, seed=seed))])

    begun, again = claimed(0), claimed(0)
    assert begun == again and not capsys.readouterr().out
    changed = claimed(1)
    assert f"warning: store {tmp_path}/planes has changed since the run began" in capsys.readouterr().out
    (before,), (now,) = begun.stores.values(), changed.stores.values()
    assert len(set(now)) == 2 and now[:1] == before
    replace(changed, model="models:/d4rt/1").save(f"{config.out}/{config.name}")
    with pytest.raises(ValueError, match=r"run mine in .* is finished \(models:/d4rt/1\)"):
        claimed(1)


# --- MLflow ----------------------------------------------------------------------------------------------------------


def test_curves_wait_for_mlflow_and_each_step_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "ASK_AGAIN_SECONDS", 0.2)
    said, back = [], threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if "answers again" in line:
            back.set()

    with MlflowServer(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
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
    with pytest.raises(
        ValueError, match=f"MLflow at {uri} cannot be used, so nothing was trained .*: start its server"
    ):
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
    record = {"config": config.to_dict(), "run_id": "abc", "stores": {}, "model": None} | change
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*\): choose another --name"):
        run_folder.claim(config, [])
