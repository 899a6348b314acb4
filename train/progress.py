"""Between a training run's workers and its command: worker 0 hands lines to an actor, the command prints them; the
command asks for a stop, worker 0 hears of it.

Ray's own forwarding of logs is off (see `pipelines/cluster.py`), since it shows everything of everybody.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.log import say

POLL_SECONDS = 0.5


class Progress:
    """An actor with a queue of lines. It belongs to the command, so it outlasts restarts of the workers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int | None]] = []
        """And the step that each is about."""
        self.asked_to_stop, self.up = False, False

    def add(self, line: str, step: int | None = None) -> None:
        self.lines.append((line, step))

    def take(self) -> list[tuple[str, int | None]]:
        taken, self.lines = self.lines, []
        return taken

    def workers_are_up(self, up: bool) -> None:
        self.up = up

    def stop(self) -> bool:
        """Whether there are workers that will hear of it."""
        self.asked_to_stop = True
        return self.up

    def stopping(self) -> bool:
        return self.asked_to_stop


@contextmanager
def printed_progress(run: str) -> Iterator[ray.actor.ActorHandle]:
    """Give the actor to the workers of the run of that name; while the block runs, what they add is printed."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other nodes may go
    lasting = {"max_restarts": -1, "max_task_retries": -1}  # when it is ended for lack of memory
    progress = ray.remote(Progress).options(num_cpus=0, scheduling_strategy=here, **lasting).remote()
    done = threading.Event()

    def show() -> None:
        while not done.wait(POLL_SECONDS):
            _print_lines(progress, run)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        done.set()
        thread.join()
        _print_lines(progress, run)


def _print_lines(progress: ray.actor.ActorHandle, run: str) -> None:
    for line, step in ray.get(progress.take.remote()):
        say(line, run=run, **({} if step is None else {"step": step}))
