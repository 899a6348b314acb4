"""CPU seconds: what a function costs this process, whatever else the machine is doing. On a GPU, wall time."""

import time
from collections.abc import Callable

import torch

GPU_WARM_UP = 2  # runs, in which memory is taken and kernels are chosen


def cpu_seconds(function: Callable[[], object], runs: int, enough: float = float("inf")) -> float:
    """The least CPU time of a few runs, after one that warms up.

    Once the runs have taken `enough` seconds no further one begins, and the first counts as well.
    """
    seconds = []
    for _ in range(1 + runs):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
        if sum(seconds) > enough:
            return min(seconds)
    return min(seconds[1:])


def cpu_seconds_in_turn(*functions: Callable[[], object], runs: int) -> list[float]:
    """The least CPU time of each over a few rounds of all, after one that warms up: what changes on the machine then
    befalls them alike, so that their ratio is fair."""
    rounds = []
    for _ in range(1 + runs):
        seconds = []
        for function in functions:
            start = time.process_time()
            function()
            seconds.append(time.process_time() - start)
        rounds.append(seconds)
    return [min(seconds) for seconds in zip(*rounds[1:], strict=True)]


def device_seconds(function: Callable[[], object], device: torch.device, runs: int, enough: float) -> float:
    """On a GPU the mean wall time of a few runs in a row, until it is done with the last; else `cpu_seconds`."""
    if device.type == "cpu":
        return cpu_seconds(function, runs, enough)
    for _ in range(GPU_WARM_UP):
        function()
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(runs):
        function()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / runs
