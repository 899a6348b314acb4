"""The memory of all processes below this one, and whether they end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

EVERY_SECONDS = 5.0
END_SECONDS = 30.0  # that all may take to end
KINDS = {  # how the command line tells
    "convert": "-m pipelines convert",
    "train": "-m train",
    "infer": "-m pipelines infer",
    "training worker": "ray::RayTrainWorker",
    "model's actor": "ray::_ModelActor",
    "other workers of Ray": "ray::",
    "raylet": "/raylet",
    "Ray's head": "/gcs_server",
}
OURS = ("convert", "train", "infer", "training worker", "model's actor", "other workers of Ray")


class Watch:
    """Looks every few seconds, while the block runs."""

    def __init__(self) -> None:
        self.seen: set[psutil.Process] = set()
        self.points: list[tuple[float, dict[str, float]]] = []
        """Time, and MB of the largest process of each kind: what it does not share."""
        self.peak = 0.0
        """MB of all together."""
        self._over, self._measuring = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Only what is seen in this block counts as memory."""
        self._measuring = True
        yield
        self._measuring = False

    def _watch(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            largest, total = {}, 0.0
            for process in psutil.Process().children(recursive=True):
                self.seen.add(process)
                with suppress(psutil.Error):
                    title, memory = " ".join(process.cmdline()), process.memory_info()
                    megabytes = (memory.rss - memory.shared) / 1e6
                    total += megabytes
                    kind = next((kind for kind, mark in KINDS.items() if mark in title), "others")
                    largest[kind] = max(largest.get(kind, 0.0), megabytes)
            if self._measuring:
                self.points.append((time.monotonic(), largest))
                self.peak = max(self.peak, total)

    def thirds(self) -> dict[str, list[float]]:
        """MB of the largest process of each kind in the first third of the time, the second, the last."""
        first, last = self.points[0][0], self.points[-1][0]
        parts = {kind: [0.0, 0.0, 0.0] for kind in (*KINDS, "others")}
        for moment, largest in self.points:
            third = min(2, int(3 * (moment - first) / (last - first)))
            for kind, megabytes in largest.items():
                parts[kind][third] = max(parts[kind][third], round(megabytes))
        return parts

    def require_flat(self, most: float) -> str:
        for kind, (first, _, last) in self.thirds().items():
            if kind in OURS and first and last > (1 + most) * first:
                raise AssertionError(f"{kind} grows, from {first:.0f} to {last:.0f} MB")
        return f"no process takes {most:.0%} more memory in the last third than in the first"

    def require_none_left(self) -> str:
        """Of all processes that were seen, when everything has been ended."""
        end = time.monotonic() + END_SECONDS
        while left := list(filter(runs, self.seen)):
            if time.monotonic() > end:
                raise AssertionError(f"processes are left: {left}")
            time.sleep(1)
        return f"of {len(self.seen)} processes none is left"


def runs(process: psutil.Process) -> bool:
    """One of which only the exit code is left does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
