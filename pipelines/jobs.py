"""What every job shares: errors become reasons, tries are bounded, progress is shown, and models stay loaded.

Ray repeats a task whose process died (a reader that crashes in C, too little memory, a lost node) for as long as it
keeps dying. Here it repeats it until there were `MAX_TRIES`: then the row has failed, for that reason, and the job goes
on.
"""

import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray import cloudpickle

from pipelines import telemetry
from pipelines.cluster import connect, model_resources
from pipelines.log import Bar
from pipelines.raw.place import NoRoom

TOLD = 4  # rows under way, of which it is shown what is done
MAX_TRIES = 3  # of a row whose process dies
PROGRESS_SECONDS = 5  # after which it is asked what is done of a row that takes long
READY = 2  # parts that `ahead` has ready before they are asked for
ROWS_AT_ONCE = 4096  # given to Ray Data together, each a block and so a task of its own
DIED = f"the process that worked on it died {MAX_TRIES} times: it crashed, or there was too little memory"
DIED_WITH = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)

Row = dict[str, Any]


class StopJob(ValueError):
    """What a row raises if no other row can do better: a full disk, a model that cannot be loaded."""


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


def run_tasks(
    work: Callable[[Row], Any], rows: list[Row], *, label: str, unit: str, memory: int | None = None
) -> Iterator[Outcome]:
    """Do `work` on every row, a Ray Data task each, and give what came of it as soon as it is there, in any order.

    Rows and results may be anything that can be pickled. `label` and `unit` are words of the progress bar; `memory` is
    what Ray sets aside for a row, in bytes. StopJob as soon as a row raises it.
    """
    if not rows:
        return
    connect()

    def answers() -> Iterator[tuple[int, "_Answer"]]:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            items = [
                {"number": first + place, "row": cloudpickle.dumps(row)}
                for place, row in enumerate(rows[first : first + ROWS_AT_ONCE])
            ]
            blocks = ray.data.from_items(items, override_num_blocks=len(items))
            # Of this pipeline alone: what a row raises is an answer, so only a process that died leaves none.
            blocks.context.max_errored_blocks = -1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Ray has no other way yet to bound its retries
                results = blocks.map(
                    _Attempt(work), memory=memory, ray_remote_args_fn=lambda: {"max_retries": MAX_TRIES - 1}
                )
            missing = {item["number"] for item in items}
            for item in results.iter_rows():
                missing.remove(item["number"])
                yield item["number"], cloudpickle.loads(item["answer"])
            for number in sorted(missing):
                yield number, _Answer(None, DIED)

    yield from _shown(rows, answers(), label, unit)


def run_models(
    work: type, arguments: dict[str, Any], rows: list[Row], *, label: str, unit: str, at_once: int = 1
) -> Iterator[Outcome]:
    """The same for work that needs a model: instances of `work`, made with `arguments`, are called with the rows.

    Each lives in an actor and keeps its model: an actor per GPU, without GPUs one on many CPUs. They are actors of ours
    because those of Ray Data are restarted without end when they die. An instance is called with `at_once` rows at the
    same time, in threads of its own: while one waits for `aside` or `ahead`, another has the device. If it has a dict
    `progress`, its texts are shown.
    """
    if not rows:
        return
    connect()
    resources = model_resources()
    count = int(ray.cluster_resources()["GPU"]) if "num_gpus" in resources else 1
    started: list[ray.actor.ActorHandle] = []

    def start() -> ray.actor.ActorHandle:
        actor = ray.remote(_ModelActor).options(max_restarts=0, max_concurrency=at_once + 1, **resources)
        started.append(actor.remote(cloudpickle.dumps((work, arguments))))
        return started[-1]

    def answers() -> Iterator[tuple[int, "_Answer"] | str]:
        try:
            yield from asked()
        finally:
            for actor in started:  # also of a job that was stopped: others wait for what they hold
                ray.kill(actor)

    def asked() -> Iterator[tuple[int, "_Answer"] | str]:
        idle = [start() for _ in range(min(count, len(rows)))] * at_once
        waiting, running, tries, replaced = deque(range(len(rows))), {}, Counter(), {}
        while waiting or running:
            while waiting and idle:
                actor, number = idle.pop(), waiting.popleft()
                running[actor.do.remote(cloudpickle.dumps(rows[number]))] = actor, number
            done, _ = ray.wait(list(running), timeout=PROGRESS_SECONDS)
            if not done:
                yield _progress({actor for actor, _ in running.values()})
                continue
            actor, number = running.pop(done[0])
            try:
                answer = cloudpickle.loads(ray.get(done[0]))
            except DIED_WITH:
                if actor not in replaced:  # or another of its rows has seen to it
                    replaced[actor] = start()
                idle = [replaced.get(each, each) for each in [*idle, actor]]
                tries[number] += 1
                if tries[number] < MAX_TRIES:
                    waiting.append(number)
                else:
                    yield number, _Answer(None, DIED)
            else:
                idle.append(actor)
                yield number, answer

    yield from _shown(rows, answers(), label, unit)


def aside(work: Callable[..., Any], *arguments: Any, cpus: int = 1) -> Callable[[], Any]:
    """Do `work` in a process of its own, wherever in the cluster there is room; call what comes back to wait for it.

    That raises what `work` raises, and ValueError if its process died `MAX_TRIES` times. `cpus=0` if it mostly waits.
    """
    connect()
    bounds = {"num_cpus": min(cpus, _cpus_aside()), "max_retries": MAX_TRIES - 1}
    answer = ray.remote(_call).options(**bounds).remote(work, *arguments)
    return lambda: _got(answer)


def ahead(work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """What the generator `work` yields in a process of its own, `READY` parts of it before they are asked for."""
    connect()
    bounds = {"num_cpus": _cpus_aside(), "max_retries": MAX_TRIES - 1, "_generator_backpressure_num_objects": READY}
    parts = ray.remote(_iterate).options(num_returns="streaming", **bounds)
    for part in parts.remote(work, *arguments):
        yield _got(part)


def _cpus_aside() -> int:
    """What Ray sets aside for a process that a model waits for. Where models run on CPUs, those of several jobs may
    hold all there are: then none, or all would wait for ever."""
    return 1 if "num_gpus" in model_resources() else 0


def _call(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


def _iterate(work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    yield from work(*arguments)


def _got(answer: ray.ObjectRef) -> Any:
    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except DIED_WITH:
        raise ValueError(DIED) from None


def require_few_failures(failed: int, total: int, unit: str, allowed: float, remedy: str) -> None:
    """ValueError if more than the share `allowed` of `total` failed."""
    if failed > allowed * total:
        raise ValueError(f"{failed} of {total} {unit} failed, see above (allowed share: {allowed:g}): {remedy}")


@dataclass(frozen=True)
class _Answer:
    """What a task or actor says of a row."""

    result: Any
    reason: str = ""
    stop: bool = False
    """The reason is one for the whole job."""


def _progress(actors: set[ray.actor.ActorHandle]) -> str:
    """What is done of the rows that actors work on; those that do not answer have just died, or are starting."""
    asked = [actor.progress.remote() for actor in actors]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=1)
    told = []
    for answer in ready:
        with suppress(*DIED_WITH):
            told += ray.get(answer)
    return ", ".join(sorted(told)[:TOLD])


def _shown(rows: list[Row], answers: Iterator[tuple[int, _Answer] | str], label: str, unit: str) -> Iterator[Outcome]:
    """The outcomes behind a `Bar`. Text is what is under way."""
    telemetry.show("job", {"waiting": len(rows), "done": 0, "failed": 0}, job=label)
    with closing(answers), Bar(len(rows), label, unit) as bar:
        for told in answers:
            if isinstance(told, str):
                bar.doing(told)
                continue
            number, answer = told
            if answer.stop:
                raise StopJob(answer.reason)
            bar.add(failed=answer.reason != "")
            figures = {"waiting": len(rows) - bar.done, "done": bar.done, "failed": bar.failed}
            telemetry.show("job", figures, job=label)
            yield Outcome(rows[number], answer.result, answer.reason)


def _answer(work: Callable[[Row], Any], row: Row) -> _Answer:
    try:
        return _Answer(work(row))
    except Exception as error:  # whatever it is, it becomes this row's reason
        return _Answer(None, reason_of(error), stop=isinstance(error, StopJob | NoRoom))


@dataclass(frozen=True)
class _Attempt:
    """A task of Ray Data: {"number", "row"} to {"number", "answer"}, row and answer pickled."""

    work: Callable[[Row], Any]

    def __call__(self, item: Row) -> Row:
        answer = _answer(self.work, cloudpickle.loads(item["row"]))
        return {"number": item["number"], "answer": cloudpickle.dumps(answer)}


class _ModelActor:
    """Makes its worker with the first row, so that a model which cannot be loaded is an error like any other."""

    def __init__(self, made_of: bytes) -> None:
        self._made_of, self._work, self._making = made_of, None, threading.Lock()

    def progress(self) -> list[str]:
        return sorted(getattr(self._work, "progress", {}).values())

    def do(self, row: bytes) -> bytes:
        with self._making:
            if self._work is None:
                work, arguments = cloudpickle.loads(self._made_of)
                try:
                    self._work = work(**arguments)
                except Exception as error:
                    return cloudpickle.dumps(_Answer(None, reason_of(error), stop=True))
        return cloudpickle.dumps(_answer(self._work, cloudpickle.loads(row)))
