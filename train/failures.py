"""What is said when workers fail, and when there is to be no other try."""

import re

import ray
import ray.train
from ray.train import Checkpoint, UserCallback

from train.errors import CheckpointFailed, NotShared, OutOfMemory, RunFailed

TOLD = 3  # different errors of workers


class Failures(UserCallback):
    """In Ray's controller: tells why workers restart, and ends a run that fails too often without getting on.

    Ray itself counts all failures of a run. One on machines that come and go has any number of them in its weeks, and
    each is followed by new checkpoints.
    """

    def __init__(self, allowed: int, progress: ray.actor.ActorHandle) -> None:
        self.allowed, self.progress = allowed, progress
        self.in_a_row = 0

    def after_report(self, run_context: object, metrics: list[dict], checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self.in_a_row = 0

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """RunFailed, which ends the run, when there were more than are allowed, or where another try is no use."""
        self.progress.workers_are_up.remote(False)
        why, failures = reason_of_workers(worker_exceptions), worker_exceptions.values()
        if any(isinstance(failure, OutOfMemory | NotShared) for failure in failures):
            raise RunFailed(why)
        if not any(getattr(cause_of(failure), "preempted", False) for failure in failures):  # Ray knew of it before
            self.in_a_row += 1
        if self.in_a_row > self.allowed:
            times = f" ({self.in_a_row} times, without a new checkpoint)" if self.in_a_row > 1 else ""
            raise RunFailed(f"{why}{times}")
        self.progress.add.remote(f"workers failed: {why}; trying again")


def reason(error: ray.train.TrainingFailedError) -> str:
    """Why a run failed: what we found wrong, else Ray's words."""
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, RunFailed):
        return str(cause)
    return reason_of_workers(getattr(error, "worker_failures", {})) or str(error)


def reason_of_workers(failures: dict[int, Exception]) -> str:
    """The same, of what workers raised. The error of a reading task comes as the text of its traceback."""
    for failure in failures.values():
        if isinstance(failure, ValueError | CheckpointFailed | NotShared | OutOfMemory):
            return str(failure)
        if found := re.findall(r"^ValueError: (.+)$", str(failure), re.MULTILINE):
            return found[-1]
    # When a process died, others fail too, since they no longer hear of it: that is not worth telling.
    lost = [rank for rank, failure in failures.items() if isinstance(cause_of(failure), ray.exceptions.RayActorError)]
    if died := sorted(lost):
        return f"worker {', '.join(map(str, died))} died: killed, out of memory, or with its node"
    last_lines = [(str(failure).strip() or type(failure).__name__).splitlines()[-1] for failure in failures.values()]
    different = list(dict.fromkeys(last_lines))
    return "; ".join(different[:TOLD]) + (f"; and {len(different) - TOLD} more" if len(different) > TOLD else "")


def cause_of(failure: Exception) -> Exception:
    """Ray wraps the death of a worker that it asks how it is."""
    return getattr(failure, "health_check_failure", failure)
