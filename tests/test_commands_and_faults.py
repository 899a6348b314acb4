"""Whole commands on S3, with a tracking server, while every few requests to both fail: they end with the same bytes."""

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import mlflow
import pytest
from proxy import FAULTS, Proxy
from s3fs import S3FileSystem

from benchmarks.servers import MlflowServer
from pipelines.models import load_model, model_digest
from pipelines.store.reader import ClipStore
from pipelines.whole import read_file, sizes

# Requests, one of which fails. MLflow is sent fewer, and some calls are begun anew as a whole if an answer breaks off.
EVERY = {"AWS_ENDPOINT_URL": 12, "MLFLOW_TRACKING_URI": 25}
STEPS = 6
CONVERT = "--split all --frames 4 --image-size 64 --queries 64"
MODEL = "--model.encoder-layers 2 --model.decoder-layers 1 --data.queries 48 --data.clips-per-worker 2"
TRAIN = f"--workers 1 --optim.warmup-steps 2 --checkpoint-every 2 --log-every 1 --max-failures 2 --steps {STEPS}"
COMMANDS = (
    f"pipelines convert tartanair --raw {{base}}/raw --store {{base}}/{{here}}/clips {CONVERT}",
    f"train tiny {MODEL} {TRAIN} --data.mixture.{{base}}/{{here}}/clips 1 --out {{base}}/{{here}}/runs --name run "
    "--register-as {here}",
    "pipelines infer --model models:/{here}@champion --dataset tartanair --video {base}/raw --grid 4 "
    "--out {base}/{here}/results",
    "pipelines evaluate clips --model models:/{here}@champion --data {base}/{here}/clips --out {base}/{here}/scores",
    "pipelines status {base}/{here}/results",
)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_commands_end_with_the_same_bytes(s3_uri, tmp_path):
    """One store, run, version, result and score is made undisturbed, one through proxies that know every fault."""
    synthesize = f"pipelines synthesize tartanair --out {tmp_path}/raw --scenes 2 --frames 6 --size small"
    run(synthesize, tmp_path, {})
    S3FileSystem().put(f"{tmp_path}/raw", f"{s3_uri}/raw", recursive=True)
    with MlflowServer(tmp_path / "mlflow") as tracking:
        servers = {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "MLFLOW_TRACKING_URI": tracking.uri}
        for command in COMMANDS:
            run(command.format(base=s3_uri, here="quiet"), tmp_path, servers)
        with ExitStack() as proxies:
            disturbed, opened = {}, []
            for name, address in servers.items():
                proxy = proxies.enter_context(Proxy(int(re.search(r":(\d+)$", address)[1])))
                opened.append(proxy)
                proxy.disturb(*FAULTS, every=EVERY[name])
                disturbed[name] = f"http://127.0.0.1:{proxy.port}"
            for command in COMMANDS:
                run(command.format(base=s3_uri, here="disturbed"), tmp_path, disturbed)
            assert all(proxy.faults >= len(FAULTS) for proxy in opened)
        assert made(s3_uri, "disturbed") == made(s3_uri, "quiet")
        client = mlflow.MlflowClient()
        assert len(client.search_runs([each.experiment_id for each in client.search_experiments()])) == 2


def run(command: str, folder: Path, places: dict[str, str]) -> None:
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=folder,
        env={**os.environ, **places, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    assert "Traceback" not in done.stdout, f"{command}\n{done.stdout}"


def made(base: str, here: str) -> dict[str, object]:
    """What the commands made, by names that are the same in both places."""
    folder = f"{base}/{here}"
    arrays = {name: read_file(f"{folder}/results/{name}") for name in sizes(f"{folder}/results") if ".npz" in name}
    assert len(arrays) >= 4 and all(arrays.values())
    client = mlflow.MlflowClient()
    (version,) = client.search_model_versions(f"name = '{here}'")
    recorded = client.get_run(version.run_id)
    history = client.get_metric_history(version.run_id, "loss")
    logged = client.search_logged_models([recorded.info.experiment_id])
    return {
        "version": (version.version, recorded.info.status, [(point.step, point.value) for point in history]),
        "logged models": [model.status for model in logged if model.source_run_id == version.run_id],
        "store": ClipStore(f"{folder}/clips").info["digest"],
        **{place: names(f"{folder}/{place}") for place in ("clips", "runs/run", "results", "scores")},
        "run": model_digest(load_model(f"{folder}/runs/run/step_{STEPS:07d}")),
        "registered": model_digest(load_model(f"models:/{here}@champion")),
        "measured": json.loads(read_file(f"{folder}/scores/metrics.json"))["scores"],
        **arrays,
    }


def names(uri: str) -> set[str]:
    """Of what lies in a folder. A folder without files, which some servers show for a while, is nothing on S3."""
    return {name.partition("/")[0] for name in sizes(uri)}
