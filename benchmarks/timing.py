"""CPU seconds: what a function costs this process, whatever else the machine is doing."""

import time
from collections.abc import Callable


def cpu_seconds(function: Callable[[], object], runs: int) -> float:
    """The least CPU time of a few runs, after one that warms up."""
    function()
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)
