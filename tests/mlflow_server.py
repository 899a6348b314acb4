"""An MLflow server on loopback that tests can kill and start again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow


class MlflowServer:
    """Its database and artifacts lie in `folder` and outlive it. A `with` block leaves no process behind."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "MlflowServer":
        self.used_before = mlflow.get_tracking_uri()
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        mlflow.set_tracking_uri(self.used_before)  # or what comes next would look for this one

    def start(self) -> None:
        places = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination", self.folder]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *places, *address],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise TimeoutError(f"no MLflow server at {self.uri}")

    def kill(self) -> None:
        """kill -9 the server with its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
