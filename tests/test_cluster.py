"""Joining a cluster, starting one, and what a job may leave behind."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray

from pipelines import cluster
from pipelines.__main__ import main as pipelines_main
from pipelines.raw.place import RAY_JOB, absolute, lasting
from train.__main__ import main

ROOT = Path(__file__).parents[1]
START = """
import os, sys
from pipelines import cluster
from pipelines.__main__ import main as pipelines_main
from pipelines.raw.place import RAY_JOB, absolute, lasting
cluster.connect()
print(cluster.ray.get_runtime_context().get_node_id())
cluster.ray.shutdown()
"""


def test_a_cluster_that_is_gone_is_said_in_words():
    """A port on which nobody listens, one on which somebody else does, and a name that nobody has."""
    with socket.socket() as silent, socket.socket() as closed:
        for probe in (silent, closed):
            probe.bind(("127.0.0.1", 0))
        silent.listen()
        ports = [probe.getsockname()[1] for probe in (silent, closed)]
        for address in (*(f"127.0.0.1:{port}" for port in ports), f"ray://127.0.0.1:{ports[0]}", "no-host.invalid:9"):
            with pytest.raises(ValueError, match=f"no Ray cluster at RAY_ADDRESS={address} .no answer in 1 seconds"):
                cluster.require_answer(address, seconds=1)


def test_a_private_cluster_is_reached_from_this_machine_alone_and_not_without_its_token(ray_cluster, tmp_path):
    heard = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            if "ray" in " ".join(process.cmdline()):
                heard += [link.laddr.ip for link in process.net_connections() if link.status == psutil.CONN_LISTEN]
    assert len(heard) >= 4 and set(heard) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}

    address = ray.get_runtime_context().gcs_address
    stranger = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", START], env=stranger, capture_output=True, text=True)
    assert f"ValueError: the Ray cluster at RAY_ADDRESS={address} asks for a token" in done.stderr


def test_an_empty_address_is_none_and_a_dashboard_is_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")  # for Ray, too
    assert cluster.is_private()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not cluster.is_private()
    with pytest.raises(ValueError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:8265 \(that is a dashboard"):
        cluster.require_answer("http://127.0.0.1:8265")


def test_tasks_of_a_private_cluster_have_the_priority_of_the_command(ray_cluster):
    assert ray.get(ray.remote(num_cpus=0)(lambda: os.nice(0)).remote()) == os.nice(0)


def test_a_temporary_folder_with_a_long_name_is_no_hindrance(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True)
    said, node = done.stdout.split("\n", 1)
    assert done.returncode == 0 and said == "starting Ray" and len(node.strip()) == 56, done.stderr


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Where a job stands that was submitted with --working-dir."""
    folder = tmp_path / "session_1/runtime_resources/working_dir_files/_ray_pkg_0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return folder


def test_what_a_job_would_lose_is_refused(package, tmp_path, capsys):
    for place in ("runs", str(package / "runs"), "./a/../runs"):
        with pytest.raises(ValueError, match=r"--out \S+ is a place of this Ray job alone"):
            lasting(place, "--out")
    for place in ("s3://bucket/runs", str(tmp_path / "runs"), "/mnt/runs"):
        assert lasting(place, "--out") == place
    assert main(["tiny", "--data.mixture.planes", "1", "--dry-run"]) == 2
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["disk"].startswith("FAILED  out: runs is a place of this Ray job alone")
    assert lines["mlflow"].startswith("FAILED  MLFLOW_TRACKING_URI: the database")
    assert not list(package.iterdir())


def test_a_relative_place_is_refused_in_a_job_wherever_it_runs(tmp_path, monkeypatch):
    """Also without --working-dir. Outside of jobs it is where the user stands."""
    monkeypatch.chdir(tmp_path)
    assert lasting("runs/a/", "--out") == absolute("runs/a") == f"{tmp_path}/runs/a"
    assert absolute("s3://bucket/a/") == "s3://bucket/a"
    monkeypatch.setenv(RAY_JOB, "{}")
    with pytest.raises(ValueError, match="--out runs is a place of this Ray job alone"):
        lasting("runs", "--out")
    assert lasting(f"{tmp_path}/runs", "--out") == f"{tmp_path}/runs"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("synthesize tartanair --out place", "--out"),
        ("audit tartanair --raw raw --out place", "--out"),
        ("convert tartanair --raw raw --store place", "--store"),
        ("inspect /nowhere --out place", "--out"),
        ("inspect place", "--out"),
        ("infer --model m --video v --out place", "--out"),
        ("evaluate clips --model m --data d --out place", "--out"),
    ],
)
def test_every_command_refuses_it_before_the_work(command, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RAY_JOB, "{}")
    with pytest.raises(ValueError, match=f"{option} place"):
        pipelines_main(command.split())
    assert not list(tmp_path.iterdir())


def test_the_commit_travels_with_a_job(monkeypatch, tmp_path):
    from train import tracking

    monkeypatch.setattr(tracking, "PACKAGE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert tracking.git_state() == ("unknown", "")
    monkeypatch.setenv("GIT_COMMIT", "0a77be2")
    assert tracking.git_state() == ("0a77be2", "")


def test_the_object_store_is_as_large_as_needed_and_the_memory_allows(monkeypatch):
    gigabyte = 1 << 30

    def asked(cores: int, available: float, shared: float, held: int = 0) -> float:
        monkeypatch.setattr(cluster, "cores", lambda: cores)
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available * gigabyte))
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=shared * gigabyte))
        return cluster.object_store_bytes(held) / gigabyte

    monkeypatch.setattr(Path, "read_text", lambda _: "max\n")
    assert asked(2, 20, 20) == 1
    assert asked(16, 200, 100) == 8
    assert asked(16, 200, 100, held=8 * gigabyte) == 17
    assert asked(16, 10, 100) == pytest.approx(3)
    assert asked(16, 200, 4) == pytest.approx(3.6)
    assert asked(16, 200, 0.0625) == 8  # a container's usual /dev/shm: Ray takes a file
    assert asked(16, 0, 100) == cluster.SMALLEST_OBJECT_STORE / gigabyte
    monkeypatch.setattr(Path, "read_text", lambda _: f"{10 * gigabyte}\n")  # a container's limit
    assert asked(16, 200, 100) == pytest.approx(3)
