"""`ray job submit`, as README has it, to a cluster with a dashboard: what a job writes is there when it has ended."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from plane_store import write_plane_store

from benchmarks.servers import free_ports
from pipelines.store.reader import ClipStore
from pipelines.synthesize.job import write_sequence

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")
CLIPS = "--split all --frames 4 --image-size 64 --queries 64"
STARTED_SECONDS, JOB_SECONDS = 120, 180
TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str]]:
    """Addresses of a cluster of its own, which asks for a token and ends with its processes: for jobs, and of Ray."""
    gcs, dashboard, agent, metrics, client = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="rj", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--ray-client-server-port={client}", "--include-dashboard=true", f"--temp-dir={folder}"]
        command += ["--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"]
        address = f"http://127.0.0.1:{dashboard}"
        with open(f"{folder}/log", "wb") as log:
            head = psutil.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_answer(f"{address}/api/jobs/", head, Path(folder, "log"))
            yield address, f"127.0.0.1:{gcs}"
        finally:
            children = head.children(recursive=True)
            for process in [head, *children]:
                process.kill()
            psutil.wait_procs([head, *children], timeout=20)


@pytest.fixture
def dashboard(cluster) -> str:
    return cluster[0]


def environment() -> dict[str, str]:
    """With the token, and without what says that there is a cluster already."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}


def wait_for_answer(url: str, head: psutil.Popen, log: Path) -> None:
    end = time.monotonic() + STARTED_SECONDS
    while True:
        try:
            asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
            urllib.request.urlopen(asked, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if head.poll() is not None or time.monotonic() > end:
                pytest.fail(f"no cluster: {log.read_text()[-3000:]}")
            time.sleep(0.5)


def submit(dashboard: str, command: list[str], *options: str, **variables: str) -> tuple[int, str]:
    """The exit code of `ray job submit` and all that it printed."""
    given = ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": variables})]
    return ray_job(dashboard, "submit", *given, *options, "--", *command)


def ray_job(dashboard: str, word: str, *rest: str) -> tuple[int, str]:
    done = subprocess.run(
        [RAY, "job", word, "--address", dashboard, *rest],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=JOB_SECONDS,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": TOKEN[::-1]}])
def test_who_has_no_token_or_another_one_is_told_so_at_once(cluster, given):
    command = "from pipelines.cluster import connect; connect()"
    known = environment() | {"RAY_ADDRESS": cluster[1]} | given
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, env=known, capture_output=True, text=True, timeout=60
    )
    assert f"ValueError: the Ray cluster at RAY_ADDRESS={cluster[1]} asks for a token" in done.stderr


@pytest.mark.slow
def test_a_job_keeps_what_it_writes_and_refuses_a_place_that_would_go_with_it(dashboard, tmp_path):
    """Three commands in one job, since each job starts slowly."""
    raw, store, registry = tmp_path / "raw", tmp_path / "store", f"sqlite:///{tmp_path}/mlflow.db"
    for index in range(2):
        write_sequence({"dataset": "tartanair", "root": str(raw), "index": index}, frames=4, size="small", seed=0)
    convert = f"{sys.executable} -m pipelines convert tartanair --raw {raw} {CLIPS} --store"
    train = f"{sys.executable} -m train tiny --data.mixture.{store} 1 --data.queries 64 --steps 20"
    train += f" --optim.warmup-steps 5 --workers 1 --name job --out {tmp_path}/runs"
    script = f"{convert} store; test $? = 2 && {convert} {store} && {train}"

    code, said = submit(dashboard, ["bash", "-c", script], MLFLOW_TRACKING_URI=registry, GIT_COMMIT="0a77be2")
    assert code == 0 and "registered models:/d4rt/1, alias champion" in said, said
    assert "--store store is a place of this Ray job alone" in said and "Traceback" not in said
    assert len(ClipStore(str(store))) == 2
    assert (tmp_path / "runs/job/step_0000020/position.json").exists()

    import mlflow

    mlflow.set_tracking_uri(registry)
    version = mlflow.MlflowClient().get_model_version_by_alias("d4rt", "champion")
    assert mlflow.get_run(version.run_id).data.tags["git_commit"] == "0a77be2"


@pytest.mark.long
def test_a_job_that_is_stopped_keeps_its_checkpoint(dashboard, tmp_path):
    """With the time to end that infra/runtime-env.yaml gives it."""
    import mlflow

    store, registry = write_plane_store(tmp_path / "planes", clips=4, queries=64), f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(registry)
    wait = yaml.safe_load((ROOT / "infra/runtime-env.yaml").read_text())["env_vars"]
    words = f"train tiny --data.mixture.{store} 1 --data.queries 64 --steps 9000 --checkpoint-every 9000"
    submit(
        dashboard,
        [sys.executable, "-m", *words.split(), *f"--workers 1 --name stopped --out {tmp_path}/runs".split()],
        *("--no-wait", "--submission-id", "stopped"),
        MLFLOW_TRACKING_URI=registry,
        **wait,
    )
    run = wait_for_steps(mlflow, "stopped")
    assert ray_job(dashboard, "stop", "stopped")[0] == 0
    assert "Job 'stopped' was stopped" in ray_job(dashboard, "status", "stopped")[1]
    assert mlflow.get_run(run).info.status == "KILLED"
    (checkpoint,) = (tmp_path / "runs/stopped").glob("step_*/position.json")
    assert 0 < int(checkpoint.parent.name.removeprefix("step_")) < 9000


def wait_for_steps(mlflow, name: str) -> str:
    """The id of the MLflow run of that name, as soon as it has a point of its curves."""
    end = time.monotonic() + JOB_SECONDS
    while time.monotonic() < end:
        found = mlflow.search_runs(
            experiment_names=["d4rt"], filter_string=f"run_name = '{name}'", output_format="list"
        )
        if found and found[0].data.metrics.get("step"):
            return found[0].info.run_id
        time.sleep(0.5)
    pytest.fail(f"run {name} has not begun to train")
