"""A cluster that loses a machine and gets it back: two Ray nodes on this one, the second of which is killed."""

import os
import subprocess
import sys
from itertools import pairwise

import mlflow
import pytest
from plane_store import write_plane_store

from train.run_folder import Position

# A node of one core each, so a training worker each. The run goes on until it has been seen with two workers, with one
# and with two again; then SIGTERM stops it.
PROGRAM = """
import os, subprocess, sys, time
import mlflow
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 200 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
second = cluster.add_node(**node)
words = [sys.executable, "-m", "train", "tiny", *sys.argv[1:]]
train = subprocess.Popen(words, env={**os.environ, "RAY_ADDRESS": cluster.address})

def workers():
    found = mlflow.search_runs(experiment_names=["d4rt"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found[0].info.run_id, "workers") if found else []
    return [point.value for point in sorted(history, key=lambda point: point.step)]

end = time.monotonic() + 450

def wait_for(condition):
    while not condition(workers()) and train.poll() is None and time.monotonic() < end:
        time.sleep(0.2)

wait_for(lambda seen: len(seen) >= 6)  # of which every fifth has a checkpoint
cluster.remove_node(second, allow_graceful=False)
wait_for(lambda seen: seen.count(1.0) >= 6)
cluster.add_node(**node)
wait_for(lambda seen: seen[-2:] == [2.0] * 2 and len(seen) % 5 == 1)  # between two checkpoints
train.terminate()
train.wait()
cluster.shutdown()
"""


@pytest.mark.long
def test_a_run_loses_and_regains_a_node_without_a_restart_by_hand(tmp_path, monkeypatch):
    write_plane_store(tmp_path / "planes", clips=24, queries=64, seed=3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    words = (
        f"--data.mixture.{tmp_path}/planes 1 --model.encoder-layers 2 --model.decoder-layers 1 --data.queries 32 "
        "--data.clips-per-worker 2 --workers 2 --min-workers 1 --steps 100000 --checkpoint-every 20 --log-every 4 "
        f"--out {tmp_path}/runs --name elastic"
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words.split()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    ).stdout
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("d4rt").experiment_id])
    assert run.info.status == "KILLED"

    def curve(metric: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.value) for point in history)

    steps = [step for step, _ in curve("loss")]
    assert steps == list(range(4, steps[-1] + 1, 4))  # each once
    workers = [int(count) for _, count in curve("workers")]
    changes = [count for count, before in zip(workers, [0, *workers], strict=False) if count != before]
    assert changes == [2, 1, 2]
    # Four steps of two clips per worker between two points; where the number changes, what was done again lies between.
    clips = [int(count) for _, count in curve("clips")]
    for before, after in pairwise(range(len(clips))):
        if workers[before] == workers[after]:
            assert clips[after] - clips[before] == 8 * workers[after]
    for line in (
        "before 2; a step sees 2 clips, before 4",
        "before 1; a step sees 4 clips, before 2",
        f"run elastic was stopped at step {steps[-1]}: the same command with --name elastic goes on from its last",
    ):
        assert line in shown, shown
    assert Position.load(f"{tmp_path}/runs/elastic/step_{steps[-1]:07d}").step == steps[-1]  # nothing is lost
