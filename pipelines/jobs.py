"""What every job shares: one row is one task, errors become reasons, tries are bounded, and progress is shown.

Ray repeats a task whose worker process died (a reader that crashes in C, too little memory, a lost node) for as long as
it keeps dying. Here each start of a row is counted in an actor of the job: after `MAX_TRIES` the row has failed, for
that reason, and the job goes on.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cloudpickle
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from pipelines.cluster import connect

MAX_TRIES = 3  # of a row whose worker process dies
ROWS_AT_ONCE = 4096  # given to Ray Data together, each a block of its own: more would only make it slow to plan

Row = dict[str, Any]


class StopJob(ValueError):
    """What a row raises if no other row can do better: a full disk, a place that cannot be written."""


@dataclass(frozen=True)
class Outcome:
    """What came of a row."""

    row: Row
    result: Any
    """What the work returned; None if it failed."""
    reason: str
    """Why it failed; empty if it did not."""

    @property
    def failed(self) -> bool:
        return self.reason != ""


def reason_of(error: Exception) -> str:
    """An error as one text for people. A ValueError is one of ours and says all; of others the kind says most."""
    return str(error) if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Models:
    """For work that needs a model: a class whose instances do the rows, each in an actor that keeps its model.

    The arguments of the constructor should be short texts and numbers, which Ray passes along with the call.
    """

    work: type
    arguments: dict[str, Any]


def outcomes(
    work: Callable[[Row], Any] | Models, rows: Iterable[Row], *, label: str, unit: str, memory: int | None = None
) -> Iterator[Outcome]:
    """Do `work` on every row on the cluster, and give what came of each as soon as it is there, in any order.

    `label` and `unit` are words of the progress bar; `memory` is what Ray sets aside for one row, in bytes. Results
    may be anything that can be pickled. StopJob, as soon as one row raises it.
    """
    rows = list(rows)
    if not rows:
        return
    connect()
    tries = _Tries.options(scheduling_strategy=_here()).remote()
    settings: dict[str, Any] = {"memory": memory} if memory else {}
    if isinstance(work, Models):
        attempt: Any = _ModelAttempt
        settings |= {"fn_constructor_kwargs": {"models": work, "tries": tries}, **_actors(len(rows))}
    else:
        attempt = _Attempt(work, tries)

    failed = 0
    with _bar(len(rows), label, unit) as bar:
        for numbers in _chunks(range(len(rows)), ROWS_AT_ONCE):
            items = [{"number": number, "row": cloudpickle.dumps(rows[number])} for number in numbers]
            done = ray.data.from_items(items, override_num_blocks=len(items)).map(attempt, **settings)

            for answer in done.iter_rows():
                if answer["stop"]:
                    raise StopJob(answer["reason"])
                failed += answer["reason"] != ""
                bar.set_postfix({"failed": failed} if failed else {}, refresh=False)
                bar.update()
                yield Outcome(rows[answer["number"]], cloudpickle.loads(answer["result"]), answer["reason"])


def require_few_failures(failed: int, total: int, allowed: float, remedy: str) -> None:
    """ValueError if more than the share `allowed` of the rows failed."""
    if failed > allowed * total:
        raise ValueError(f"{failed} of {total} failed (allowed share: {allowed:g}), see above; {remedy}")


@ray.remote(num_cpus=0)
class _Tries:
    """How often each row was begun."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def begin(self, number: int) -> int:
        """The number of this try, from 1."""
        self._begun[number] = self._begun.get(number, 0) + 1
        return self._begun[number]


@dataclass(frozen=True)
class _Attempt:
    """The task: a pickled row to its pickled result or the reason why there is none."""

    work: Callable[[Row], Any]
    tries: ray.actor.ActorHandle

    def __call__(self, item: Row) -> Row:
        answer = {"number": item["number"], "result": cloudpickle.dumps(None), "reason": "", "stop": False}
        if ray.get(self.tries.begin.remote(item["number"])) > MAX_TRIES:
            died = f"the process that worked on it died {MAX_TRIES} times: it crashed, or used more memory than there is"
            return answer | {"reason": died}
        try:
            return answer | {"result": cloudpickle.dumps(self.work(cloudpickle.loads(item["row"])))}
        except StopJob as error:
            return answer | {"reason": str(error), "stop": True}
        except Exception as error:  # whatever it is, it becomes this row's reason
            return answer | {"reason": reason_of(error)}
