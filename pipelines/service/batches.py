"""Micro-batches: what waits about one clip when the model becomes free is answered together.

Nothing waits for company. While the model answers, more comes in, and the busier it is the larger its batches are.
Clips take turns in the order in which their oldest question came.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch

from model import Queries
from model.decoder import Prediction
from pipelines.service.limits import busy


@dataclass(frozen=True)
class _Waiting:
    queries: Queries
    answer: Future


class Batches:
    """One thread in which a model works, and what waits for it. Any thread may ask."""

    def __init__(self, answer: Callable[[str, Queries], Prediction], batch: int, waiting: int) -> None:
        """`answer`: about one clip, of queries (1, Q, ...). At most `batch` queries are put together, and at most
        `waiting` wait."""
        self._answer, self._batch, self._most = answer, batch, waiting
        self._thread, self._lock = ThreadPoolExecutor(1, "model"), Lock()
        self._by_clip: dict[str, deque[_Waiting]] = {}
        self.waiting = 0
        """Queries that nobody works on yet."""

    def ask(self, clip: str, queries: Queries) -> Future:
        """Of a `Prediction`. What is asked must be in range: an error befalls all that is answered together.

        `Refusal` (429) if too much is waiting.
        """
        item = _Waiting(queries, Future())
        with self._lock:
            if self.waiting + len(queries) > self._most:
                raise busy(f"{self.waiting} queries wait already")
            self.waiting += len(queries)
            first = clip not in self._by_clip
            self._by_clip.setdefault(clip, deque()).append(item)
        if first:
            self._thread.submit(self._answer_next, clip)
        return item.answer

    def alone(self, work: Callable[..., Any], *arguments: Any) -> Future:
        """Something else that the model does, when its turn comes."""
        return self._thread.submit(work, *arguments)

    def _answer_next(self, clip: str) -> None:
        items = self._take(clip)
        wanted = [item for item in items if item.answer.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            together = [item.queries for item in wanted]
            answers = self._answer(clip, joined(together))
            parts = split(answers, [len(queries) for queries in together])
        except Exception as error:
            for item in wanted:
                item.answer.set_exception(error)
            return
        for item, part in zip(wanted, parts, strict=True):
            item.answer.set_result(part)

    def _take(self, clip: str) -> list[_Waiting]:
        """The oldest about it, as many as go together. If there are more, the clip queues up again, behind others."""
        with self._lock:
            items = self._by_clip[clip]
            taken = [items.popleft()]
            count = len(taken[0].queries)
            while items and count + len(items[0].queries) <= self._batch:
                taken.append(items.popleft())
                count += len(taken[-1].queries)
            self.waiting -= count
            if items:
                self._thread.submit(self._answer_next, clip)
            else:
                del self._by_clip[clip]
        return taken


def joined(queries: list[Queries]) -> Queries:
    """All about one clip, one after the other."""
    fields = zip(*(vars(each).values() for each in queries), strict=True)
    return Queries(*(torch.cat(tensors, dim=1) for tensors in fields))


def split(answers: Prediction, sizes: list[int]) -> list[Prediction]:
    """Back into parts of so many queries."""
    fields = zip(*(tensor.split(sizes, dim=1) for tensor in vars(answers).values()), strict=True)
    return [Prediction(*tensors) for tensors in fields]
