"""The metrics between two points of the curves: their means, and how long it all took."""

import math
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from train.config import TrainConfig

LOW_Z_RATIO = 0.3  # predicted depth varies this little within a clip: a known way to fail, so it is pointed out
LOW_CONFIDENCE = 0.05  # the 3D error then counts next to nothing

T = TypeVar("T")


class Window:
    def __init__(self, config: TrainConfig, step: int) -> None:
        self.config = config
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

    def add(self, metrics: dict[str, float]) -> None:
        self.metrics.append(metrics)

    def close(self, step: int) -> tuple[dict[str, float], str]:
        """(metrics, line for the terminal) of the steps since the last call, up to `step`.

        Metrics are means over the steps that have them; `dropped_clips` is a sum.
        """
        seconds = time.perf_counter() - self.began
        steps = step - self.first_step
        names = {name: None for metrics in self.metrics for name in metrics}
        means = {}
        for name in names:
            values = [metrics[name] for metrics in self.metrics if name in metrics]
            means[name] = sum(values) / (1 if name == "dropped_clips" else len(values))
        clips = steps * self.config.workers * self.config.data.clips_per_worker
        means |= {
            "clips_per_second": clips / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_share": self.waited / seconds,
        }
        self._clear(step)
        return means, self._line(step, means)

    def _line(self, step: int, means: dict[str, float]) -> str:
        total = self.config.steps
        left = timedelta(seconds=round((total - step) * means["seconds_per_step"]))
        warm = step > self.config.loss.confidence_warmup_steps + self.config.optim.warmup_steps
        ratio = means.get("z_ratio", math.nan)  # data without 3D labels have none
        low = " (low!)" if warm and ratio < LOW_Z_RATIO else ""
        dropped = f"  {means['dropped_clips']:.0f} clips without scale" if means["dropped_clips"] else ""
        return (
            f"step {step:>{len(str(total))}}/{total}  loss {means['loss']:.4f}  z-ratio {ratio:.2f}{low}  "
            f"lr {means['lr']:.1e}  {means['clips_per_second']:.1f} clips/s  "
            f"data wait {means['data_wait_share']:.0%}  {left} left{dropped}"
        )
