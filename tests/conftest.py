"""Real services for tests: one private Ray cluster, one S3 server."""

import os
import re
from collections.abc import Iterator

import pytest

from benchmarks.servers import S3Server

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
def joins_cluster(ray_cluster) -> dict[str, str]:
    """Variables with which a command joins that cluster instead of starting one."""
    from pipelines.cluster import ray

    # On Linux, Ray takes 127.0.0.1 for another address of this machine unless it is told that it is one machine alone.
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[None]:
    """An S3 server, set in the environment that s3fs reads, with an empty bucket `clips`."""
    with S3Server(tmp_path_factory.mktemp("s3")):
        yield


@pytest.fixture
def s3_uri(s3_server, request) -> str:
    """An empty s3:// prefix of its own for a test."""
    return f"s3://clips/{re.sub(r'[^A-Za-z0-9.-]', '-', request.node.name)}"
