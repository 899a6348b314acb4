"""The suite itself: two processes that share it must see the same tests, whenever each of them starts."""

import os
import subprocess
import sys

import pytest


def test_every_process_collects_the_same_tests(request):
    """What this process collected, and what another one does now, seconds later, with other hashes and addresses.

    An id that holds a time, an address or a random number would differ, and pytest-xdist would run nothing.
    """
    arguments = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        request.config.option.markexpr,
        *request.config.args,
    ]
    hashes = {"PYTHONHASHSEED": "12345"}
    found = subprocess.run(
        arguments, capture_output=True, text=True, cwd=request.config.rootpath, env=os.environ | hashes
    )
    assert found.returncode == 0, found.stdout[-2000:]

    files: dict[str, list[str]] = {}
    for item in request.session.items:
        files.setdefault(item.path.name, []).append(item.name)
    lines = [line for line in found.stdout.splitlines() if "::" in line]
    there: dict[str, list[str]] = {}
    for line in lines:
        path, _, name = line.partition("::")
        there.setdefault(os.path.basename(path), []).append(name)
    assert {name: sorted(ids) for name, ids in there.items()} == {name: sorted(ids) for name, ids in files.items()}


def test_one_process_has_all_tests_that_need_ray(request):
    """Or each of them starts a cluster, and trains what the other has trained."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process has all tests")
    groups = {item.nodeid.rpartition("@")[2] for item in request.session.items if "ray_cluster" in item.fixturenames}
    assert groups <= {"ray"}
    assert request.node.nodeid.endswith("@test_collection.py")
