"""CPU seconds: what a function costs this process, whatever else the machine is doing."""

import time
from collections.abc import Callable


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
