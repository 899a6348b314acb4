"""Servers on loopback that can be killed and started again, what they hold outliving them: for tests, and `soak`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path

from botocore.exceptions import BotoCoreError
from s3fs import S3FileSystem

START_SECONDS = 300
BUCKET = "clips"


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens now."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Server(ABC):
    """A `with` block sets what clients look for in the environment, and leaves no process behind."""

    user: int | None = None
    """Who runs it, if not who starts it."""

    def __init__(self, folder: Path, command: list[str], own: dict[str, str], clients: dict[str, str]) -> None:
        """`folder`: what it keeps, and its log; `own`, `clients`: environments of the server, and of who asks it."""
        self.log, self._command, self._own, self._clients = folder / "log", command, own, clients

    def __enter__(self) -> "Server":
        self._before = {name: os.environ.get(name) for name in self._clients}
        os.environ.update(self._clients)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for name, value in self._before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    def environment(self) -> dict[str, str]:
        return os.environ | self._own

    def start(self) -> None:
        """Returns as soon as it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
                user=self.user,
            )
        end = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{self._command[0]} does not serve: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9, with all its processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves."""


class S3Server(Server):
    """SeaweedFS with an empty bucket `clips`; s3fs finds it by the environment.

    It keeps what the protocol of the clip store needs: of several that create one file, one does.
    """

    def __init__(self, folder: Path) -> None:
        parts, ports = ("master", "volume", "filer", "s3"), free_ports(8)
        keys = {"accessKey": "key", "secretKey": "secret-key"}
        account = {"name": "tests", "actions": ["Admin"], "credentials": [keys]}
        (folder / "accounts.json").write_text(json.dumps({"identities": [account]}))
        command = [shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")]
        command += ["server", "-s3", "-filer", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-{part}.port={port}" for part, port in zip(parts, ports[:4], strict=True)]
        command += [f"-{part}.port.grpc={port}" for part, port in zip(parts, ports[4:], strict=True)]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # whose ports are else the same for every server
        command += [f"-s3.config={folder}/accounts.json", "-s3.allowEmptyFolder=false", "-master.telemetry=false"]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=100"]
        clients = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[3]}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }
        super().__init__(folder, command, {"TMPDIR": str(folder)}, clients)  # where it puts its sockets

    def answers(self) -> bool:
        impatient = {"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 0}}
        fs = S3FileSystem(skip_instance_cache=True, config_kwargs=impatient)
        try:
            fs.mkdir(BUCKET)
        except FileExistsError:
            return True
        except (OSError, BotoCoreError):
            return False
        return True


class MlflowServer(Server):
    """Its database and artifacts lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"
        places = [f"--backend-store-uri=sqlite:///{folder}/server.db", f"--artifacts-destination={folder}"]
        command = [sys.executable, "-m", "mlflow", "server", *places, "--host=127.0.0.1", f"--port={port}"]
        own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        super().__init__(folder, [*command, "--workers=1"], own, {"MLFLOW_TRACKING_URI": self.uri})

    def __enter__(self) -> "MlflowServer":
        import mlflow  # which takes seconds: not all who use this module need it

        self._mlflow, self._used_before = mlflow, mlflow.get_tracking_uri()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._mlflow.set_tracking_uri(self._used_before)  # or what comes next would look for this one
        super().__exit__()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False
