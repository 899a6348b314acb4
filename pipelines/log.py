"""What jobs say on their way. Tables and reports, which are what was asked for, are printed as they are."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from model.command_line import line, says_json
from pipelines.problems import counted

REDRAW_SECONDS = 0.2  # of a bar on a terminal
LOG_SECONDS = 15  # from one line about how far a job is to the next, where there is no bar

T = TypeVar("T")


def say(text: str, **about: object) -> None:
    """A line for people, beside the progress bar if there is one; or, with D4RT_LOG=json, an object that has besides
    what it is `about`: run, step, store, sequence, video, ..."""
    with tqdm.external_write_mode():
        print(line(text, **about), flush=True)


class Bar:
    """How far a job is: a bar on a terminal; elsewhere, or with D4RT_LOG=json, a line now and then and one at the end.

    `label` and `unit` are words for the job and for one of the `total`. What is over within `delay` seconds is not
    shown.
    """

    def __init__(self, total: int, label: str, unit: str, delay: int = 0) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = self.failed = 0
        self.live = sys.stderr.isatty() and not says_json()
        pause = {"mininterval": REDRAW_SECONDS, "maxinterval": REDRAW_SECONDS}
        self.bar = tqdm(total=total, desc=label, unit=unit, delay=delay, disable=not self.live, **pause)
        self.began = self.told = time.monotonic()
        self.delay = delay

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, *, failed: bool = False) -> None:
        """One more is done."""
        self.done += 1
        self.failed += failed
        if self.live:
            if self.failed:
                self.bar.set_postfix(failed=self.failed, refresh=False)
            self.bar.update()
            return
        now = time.monotonic()
        over = self.done == self.total and now >= self.began + self.delay
        if over or now >= self.told + LOG_SECONDS:
            self._tell()

    def doing(self, what: str) -> None:
        """What is under way of those that are not done yet."""
        if self.live:
            self.bar.set_postfix_str(f"{what}, failed={self.failed}" if self.failed else what)
        elif time.monotonic() >= self.told + LOG_SECONDS:
            self._tell(f": {what}" if what else "")

    def _tell(self, more: str = "") -> None:
        self.told = time.monotonic()
        failed = f", {self.failed} failed" if self.failed else ""
        words = f"{self.label}: {self.done} of {counted(self.total, self.unit)}{failed}{more}"
        waiting = self.total - self.done
        say(words, job=self.label, done=self.done, waiting=waiting, failed=self.failed)


def shown(items: Iterable[T], total: int, label: str, unit: str, delay: int = 0) -> Iterator[T]:
    """The items, behind a `Bar`: each is done when the next is asked for."""
    with Bar(total, label, unit, delay) as bar:
        for item in items:
            yield item
            bar.add()
