"""The curves of a run in MLflow: every step once, whatever was interrupted, even while MLflow is away."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric

from train import tracking

ASK_AGAIN_SECONDS = 5.0
CLOSE_SECONDS = 10.0


class MetricLog:
    """Writes a run's curves in order, each step once, even if it is reached again after a restart.

    A thread sends what `write` is given. While MLflow does not answer, training goes on and points are kept; what is
    `unsent` goes into every checkpoint, so nothing is lost if the worker is.
    """

    def __init__(
        self, tracking_uri: str, run_id: str, unsent: list[dict[str, Any]], say: Callable[[str], object]
    ) -> None:
        """`unsent`: the points that the checkpoint has; `say` is told when MLflow is away and when it is back."""
        self.client, self.run_id, self.say, self.uri = mlflow.MlflowClient(tracking_uri), run_id, say, tracking_uri
        self.points, self.changed, self.closing = list(unsent), threading.Condition(), False
        self.last_step: int | None = None  # that MLflow has; None: ask
        self.thread = threading.Thread(target=self._send_all, daemon=True)
        self.thread.start()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        with self.changed:
            self.points.append({"step": step, "time": int(time.time() * 1000), "metrics": {**metrics, "step": step}})
            self.changed.notify()

    def unsent(self) -> list[dict[str, Any]]:
        return list(self.points)

    def close(self) -> None:
        """Send what is there, but do not wait long for MLflow."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(CLOSE_SECONDS)

    def _send_all(self) -> None:
        away = False
        with tracking.impatient():
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.points or self.closing)
                try:
                    self._send()
                except tracking.UNREACHABLE as error:
                    self.last_step = None  # a request may have come through whose answer did not
                    if not away:
                        self.say(f"MLflow at {self.uri} does not answer: curves are kept and sent later ({error})")
                    away = True
                    with self.changed:
                        if self.changed.wait_for(lambda: self.closing, ASK_AGAIN_SECONDS):
                            return
                    continue
                if away:
                    self.say("MLflow answers again: all points of the curves are sent")
                away = False
                if self.closing and not self.points:
                    return

    def _send(self) -> None:
        if self.last_step is None:
            # A step is written in one transaction, this metric with it: what is here is all that was written.
            self.last_step = int(self.client.get_run(self.run_id).data.metrics.get("step", 0))
        while self.points:
            point = self.points[0]
            if point["step"] > self.last_step:  # else training repeats itself: what the lost worker logged stands
                entries = [Metric(key, value, point["time"], point["step"]) for key, value in point["metrics"].items()]
                self.client.log_batch(self.run_id, metrics=entries)
                self.last_step = point["step"]
            self.points.pop(0)


def log_validation(tracking_uri: str, run_id: str, step: int, scores: dict[str, Any], files: Path) -> None:
    """The scores of "all" clips and of each dataset as points of the run's curves, once, and a folder of files."""
    client = mlflow.MlflowClient(tracking_uri)
    if any(point.step == step for point in client.get_metric_history(run_id, "val/queries/all")):
        return
    client.log_artifacts(run_id, str(files), f"validation/step_{step:07d}")
    now, entries = int(time.time() * 1000), []
    for group, score in scores.items():
        prefix = "val" if group == "all" else f"val/{group}"
        known = {key: value for key, value in tracking.flatten(score).items() if isinstance(value, int | float)}
        entries += [Metric(f"{prefix}/{key.replace('.', '/')}", value, now, step) for key, value in known.items()]
    client.log_batch(run_id, metrics=entries)  # in one transaction: all of them or none
