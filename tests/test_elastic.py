"""A cluster that loses a machine and gets it back: two Ray nodes on this one, the second of which is killed."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from plane_store import write_plane_store

# A node of one core each, so a training worker each. The run goes on until it has been seen with two workers, with one
# and with two again; more than one end would not be new (see test_train.py).
PROGRAM = """
import json, os, signal, sys, threading, time
from dataclasses import replace
import mlflow
from ray.cluster_utils import Cluster
from train import loop
from train.config import PRESETS, DataConfig
from train.errors import RunFailed

folder = sys.argv[1]
node = {"num_cpus": 1, "object_store_memory": 200 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
os.environ["RAY_ADDRESS"] = cluster.address
loop.RESIZE_SECONDS = 2
tiny = PRESETS["tiny"][1]
config = replace(
    tiny,
    model=replace(tiny.model, encoder_layers=2, decoder_layers=1),
    data=DataConfig(mixture={f"{folder}/planes": 1.0}, queries=32, clips_per_worker=2),
    steps=100_000, workers=2, min_workers=1, checkpoint_every=20, log_every=10, out=f"{folder}/runs", name="elastic",
)

def workers():
    found = mlflow.search_runs(experiment_names=["d4rt"], output_format="list")
    if not found:
        return []
    history = mlflow.MlflowClient().get_metric_history(found[0].info.run_id, "workers")
    return [point.value for point in sorted(history, key=lambda point: point.step)]

def wait_for(condition):
    end = time.monotonic() + 200
    while not condition() and time.monotonic() < end:
        time.sleep(0.5)

def disturb():
    try:
        wait_for(lambda: len(workers()) >= 4)
        cluster.remove_node(second, allow_graceful=False)
        wait_for(lambda: 1.0 in workers())
        cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
        wait_for(lambda: workers()[-1] == 2.0)
        time.sleep(2)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=disturb).start()
try:
    loop.run(config)
except RunFailed as error:
    print(error)
(run,) = mlflow.search_runs(experiment_names=["d4rt"], output_format="list")
client = mlflow.MlflowClient()
curves = {name: client.get_metric_history(run.info.run_id, name) for name in ("workers", "clips", "loss")}
with open(f"{folder}/curves.json", "w") as file:
    json.dump({name: [(point.step, point.value) for point in curve] for name, curve in curves.items()}, file)
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_run_loses_and_regains_a_node_without_a_restart_by_hand(tmp_path):
    write_plane_store(tmp_path / "planes", clips=24, queries=64, seed=3)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    curves = json.loads((tmp_path / "curves.json").read_text())
    steps = [step for step, _ in curves["loss"]]
    assert steps == list(range(10, steps[-1] + 1, 10))  # each once
    workers = [int(count) for _, count in curves["workers"]]
    changes = [count for count, before in zip(workers, [0, *workers], strict=False) if count != before]
    assert changes == [2, 1, 2]
    # Ten steps of two clips per worker between two points; where the number changes, what was done again lies between.
    clips = [int(count) for _, count in curves["clips"]]
    for before, after in pairwise(range(len(clips))):
        if workers[before] == workers[after]:
            assert clips[after] - clips[before] == 20 * workers[after]
    assert "before 2; a step sees 2 clips, before 4" in done.stdout
    assert "before 1; a step sees 4 clips, before 2" in done.stdout
