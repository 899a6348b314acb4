"""The metrics between two points of the curves: their means, how long it all took, and what looks wrong in them."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from pipelines.catalog import Catalog
from train.config import TrainConfig

# What `warnings` points out, and `diagnose`.
LOW_Z_RATIO = 0.3  # predicted depth varies this little within a clip: a known way to fail
LOW_CONFIDENCE = 0.05  # the 3D error then counts next to nothing
HIGH_DATA_WAIT = 0.1  # of step time,
SETTLED_STEPS = 50  # without the first so many, in which the readers start, and over at least as many

COUNTED = ("dropped_clips", "skipped_steps", "overflowed_steps")

T = TypeVar("T")


def without_normals(dataset: str) -> bool:
    """Whether its catalog says so. Of data without a catalog nothing is known."""
    with suppress(ValueError):
        return Catalog.load(dataset).normals == "none"
    return False


class Averages:
    def __init__(self, config: TrainConfig, step: int, workers: int) -> None:
        self.config, self.workers = config, workers
        self.warned: set[str] = set()
        self.total_steps, self.total_seconds, self.total_waited = 0, 0.0, 0.0
        self._clear(step)

    def _clear(self, step: int) -> None:
        self.first_step, self.began, self.waited = step, time.perf_counter(), 0.0
        self.metrics: list[dict[str, float]] = []

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time spent waiting for each but the first, which has to start the readers, is kept."""
        iterator = iter(batches)
        batch = next(iterator, None)
        self._clear(self.first_step)
        while batch is not None:
            yield batch
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - asked

    def skip(self, seconds: float) -> None:
        """So much time went by in which nothing was to be learnt."""
        self.began += seconds

    def add(self, metrics: dict[str, float]) -> None:
        self.metrics.append(metrics)

    def close(self, step: int) -> tuple[dict[str, float], list[str]]:
        """(metrics, lines for the terminal) of the steps since the last call, up to `step`.

        Metrics are means over the steps that have them; `COUNTED` ones are sums; `warning/KIND` is 1 where a warning
        of that kind is among the lines, which it is once.
        """
        seconds = time.perf_counter() - self.began
        steps = step - self.first_step
        names = {name: None for metrics in self.metrics for name in metrics}
        means = {}
        for name in names:
            values = [metrics[name] for metrics in self.metrics if name in metrics]
            means[name] = sum(values) / (1 if name in COUNTED else len(values))
        clips = steps * self.workers * self.config.data.clips_per_worker
        means |= {
            "clips_per_second": clips / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_share": self.waited / seconds,
        }
        self.total_steps += steps
        if self.total_steps > SETTLED_STEPS:
            self.total_seconds += seconds
            self.total_waited += self.waited
        self._clear(step)
        new = {kind: text for kind, text in self._warnings(step, means).items() if kind not in self.warned}
        self.warned |= new.keys()
        lines = [self._line(step, means), *(f"warning: step {step}: {text}" for text in new.values())]
        return means | {f"warning/{kind}": 1.0 for kind in new}, lines

    def _warnings(self, step: int, means: dict[str, float]) -> dict[str, str]:
        """What is wrong and what helps, by kind."""
        found = {}
        warm = step > self.config.loss.confidence_warmup_steps + self.config.optim.warmup_steps
        if warm and means.get("z_ratio", math.nan) < LOW_Z_RATIO:  # data without 3D labels have none
            found["variance_collapse"] = (
                f"variance collapse: predicted depth varies {means['z_ratio']:.2f} times as much as the truth within a "
                "clip; lower optim.lr, start from weights that know depth (--init), or look at the data"
            )
        paper = self.config.loss.confidence == "paper"
        if warm and paper and means.get("confidence", math.nan) < LOW_CONFIDENCE:
            found["confidence_collapse"] = (
                f"confidence collapse: {means['confidence']:.3f} on average, so 3D errors hardly count; raise "
                "loss.confidence_warmup_steps or loss.lconf, or lower optim.lr"
            )
        for name in [name for name, value in means.items() if name.startswith("masked/") and value == 1]:
            _, target, dataset = name.split("/")
            if target == "normal" and without_normals(dataset):
                continue
            found[f"no_valid_{target}.{dataset}"] = (
                f"no valid entries: not one {target} of dataset {dataset} is known; right if the dataset has none, "
                "else look at its store with: python -m pipelines inspect"
            )
        if self.total_steps >= 2 * SETTLED_STEPS and self.total_waited > HIGH_DATA_WAIT * self.total_seconds:
            share = self.total_waited / self.total_seconds
            found["data_wait"] = (
                f"data wait: {share:.0%} of step time goes by waiting for clips; give the cluster more CPUs, or the "
                "stores a faster disk or network"
            )
        return found

    def _line(self, step: int, means: dict[str, float]) -> str:
        total = self.config.steps
        left = timedelta(seconds=round((total - step) * means["seconds_per_step"]))
        ratio = means.get("z_ratio", math.nan)  # data without 3D labels have none
        notes = {"dropped_clips": "clips without scale", "skipped_steps": "steps left out"}
        noted = "".join(f"  {means[name]:.0f} {words}" for name, words in notes.items() if means.get(name))
        return (
            f"step {step:>{len(str(total))}}/{total}  loss {means.get('loss', math.nan):.4f}  z-ratio {ratio:.2f}  "
            f"lr {means['lr']:.1e}  {means['clips_per_second']:.1f} clips/s  "
            f"data wait {means['data_wait_share']:.0%}  {left} left{noted}"
        )
