"""Real services for tests: one private Ray cluster, one S3 server."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tests share the cores with Ray's workers
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # or every run ends some seconds late


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For two processes that share the tests: one begins with all that need Ray, so that there is one cluster; the
    other goes through the rest, file by file."""
    for item in items:
        needs_ray = "ray_cluster" in item.fixturenames
        item.add_marker(pytest.mark.xdist_group("ray" if needs_ray else item.path.name))
    items.sort(key=lambda item: "ray_cluster" not in item.fixturenames)


@pytest.fixture(scope="session")
def ray_cluster(s3_server) -> Iterator[None]:
    """A private Ray cluster on this machine's cores, for all tests of the session. Its workers know the S3 server."""
    import pipelines.cluster

    pipelines.cluster.connect()
    yield
    pipelines.cluster.ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[Path]:
    """An S3 server on loopback, set in the environment that s3fs reads; gives the folder whose children are buckets."""
    root = tmp_path_factory.mktemp("s3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    command = [rclone, "serve", "s3", root, "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret-key"]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            _wait_for(port)
            yield root
        finally:
            server.terminate()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture
def s3_uri(s3_server, request) -> str:
    """An empty s3:// prefix of its own for a test."""
    bucket = s3_server / "clips"
    bucket.mkdir(exist_ok=True)
    return f"s3://clips/{request.node.name.replace('[', '-').replace(']', '')}"
