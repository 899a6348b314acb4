"""Real services for tests: one private Ray cluster, one S3 server."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError
from s3fs import S3FileSystem

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tests share the cores with Ray's workers
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # or every run ends some seconds late


def pytest_itemcollected(item: pytest.Item) -> None:
    """For two processes that share the tests: one begins with all that need Ray, so that there is one cluster; the
    other goes through the rest, file by file.

    Here, and not when all are collected: there xdist has asked for the groups before.
    """
    item.add_marker(pytest.mark.xdist_group("ray" if "ray_cluster" in item.fixturenames else item.path.name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "ray_cluster" not in item.fixturenames)


@pytest.fixture(scope="session")
def ray_cluster(s3_server) -> Iterator[None]:
    """A private Ray cluster on this machine's cores, for all tests of the session. Its workers know the S3 server."""
    import pipelines.cluster

    pipelines.cluster.connect()
    yield
    pipelines.cluster.ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[None]:
    """SeaweedFS on loopback, set in the environment that s3fs reads, with an empty bucket `clips`.

    It keeps what the protocol of the clip store needs: of several that create one file, one does.
    """
    folder = tmp_path_factory.mktemp("s3")
    parts, ports = ("master", "volume", "filer", "s3"), free_ports(8)
    account = {"name": "tests", "actions": ["Admin"], "credentials": [{"accessKey": "key", "secretKey": "secret-key"}]}
    (folder / "accounts.json").write_text(json.dumps({"identities": [account]}))
    command = [shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")]
    command += ["server", "-s3", "-filer", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{part}.port={port}" for part, port in zip(parts, ports[:4], strict=True)]
    command += [f"-{part}.port.grpc={port}" for part, port in zip(parts, ports[4:], strict=True)]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # whose ports are else the same for every server
    command += [f"-s3.config={folder}/accounts.json", "-s3.allowEmptyFolder=false", "-master.telemetry=false"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=100"]

    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[3]}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    log = (folder / "log").open("wb")
    own = os.environ | {"TMPDIR": str(folder)}  # where it puts its sockets
    with log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=own) as server:
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            _make_bucket("clips", server, folder / "log")
            yield
        finally:
            server.kill()  # at once: nobody needs its data any more
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens now."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _make_bucket(name: str, server: subprocess.Popen, log: Path) -> None:
    """As soon as the server answers, for which it needs some seconds."""
    impatient = {"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 0}}
    fs = S3FileSystem(skip_instance_cache=True, config_kwargs=impatient)
    end = time.monotonic() + 120
    while True:
        try:
            fs.mkdir(name)
            return
        except (OSError, BotoCoreError) as error:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no S3 server: {log.read_text(errors='replace')[-2000:]}") from error
            time.sleep(0.2)


@pytest.fixture
def s3_uri(s3_server, request) -> str:
    """An empty s3:// prefix of its own for a test."""
    return f"s3://clips/{re.sub(r'[^A-Za-z0-9.-]', '-', request.node.name)}"
