"""Joining a cluster, starting one, and what a job may leave behind."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cluster
from train.__main__ import main

START = """
import os, sys
from pipelines import cluster
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


def test_a_temporary_folder_with_a_long_name_is_no_hindrance(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.strip()) == 56, done.stderr


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
        with pytest.raises(ValueError, match=r"--out \S+ lies in the copy of --working-dir that Ray made"):
            cluster.require_lasting(place, "--out")
    for place in ("s3://bucket/runs", str(tmp_path / "runs"), "/mnt/runs"):
        cluster.require_lasting(place, "--out")
    assert main(["tiny", "--data.mixture.planes", "1", "--dry-run"]) == 2
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["disk"].startswith("FAILED  out: runs lies in the copy of --working-dir")
    assert lines["mlflow"].startswith("FAILED  MLFLOW_TRACKING_URI: the database")
    assert not list(package.iterdir())


def test_the_commit_travels_with_a_job(monkeypatch, tmp_path):
    from train import tracking

    monkeypatch.setattr(tracking, "PACKAGE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert tracking.git_state() == ("unknown", "")
    monkeypatch.setenv("GIT_COMMIT", "0a77be2")
    assert tracking.git_state() == ("0a77be2", "")
