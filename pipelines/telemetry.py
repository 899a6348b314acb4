"""What Prometheus is told while a job or a run is under way, through the metrics that every Ray node serves.

Ray serves them as `ray_NAME`; `infra/grafana-dashboard.json` draws them. All are the newest value of something.
"""

from functools import cache

from ray.util.metrics import Gauge

METRICS: dict[str, tuple[str, tuple[str, ...]]] = {  # what it is, by which labels
    "d4rt_job_waiting": ("sequences, groups or videos that have no outcome yet", ("job",)),
    "d4rt_job_done": ("those that have one", ("job",)),
    "d4rt_job_failed": ("those of them that failed", ("job",)),
    "d4rt_train_step": ("optimiser steps done", ("run",)),
    "d4rt_train_loss": ("mean since the point before", ("run",)),
    "d4rt_train_grad_norm": ("of the gradient before it is clipped", ("run",)),
    "d4rt_train_clips_per_second": ("of all workers", ("run",)),
    "d4rt_train_seconds_per_step": ("seconds", ("run",)),
    "d4rt_train_data_wait_share": ("of step time that goes by waiting for clips, 0 to 1", ("run",)),
    "d4rt_train_mfu": ("share of what the device can do, 0 to 1; of known GPUs", ("run",)),
    "d4rt_train_tflops_per_worker": ("TFLOP/s", ("run",)),
    "d4rt_train_peak_memory_gb": ("of a worker, GB", ("run",)),
    "d4rt_train_workers": ("that train", ("run",)),
    "d4rt_train_skipped_steps": ("left out since the point before", ("run",)),
    "d4rt_train_clips_ordered": ("clips that readers have been asked for and have not delivered", ("run", "rank")),
    "d4rt_service_clips": ("encoded clips that are held", ("replica",)),
    "d4rt_service_clip_bytes": ("memory that they take, bytes", ("replica",)),
    "d4rt_service_waiting": ("queries that wait for the model", ("replica",)),
    "d4rt_service_batch_queries": ("queries of the newest batch", ("replica",)),
    "d4rt_service_batch_seconds": ("that it took, seconds", ("replica",)),
    "d4rt_service_encode_seconds": ("that the newest video took to encode, seconds", ("replica",)),
}


def show(group: str, values: dict[str, int | float], **labels: str) -> None:
    """Give Ray those of the values that are metrics `d4rt_GROUP_KEY`. This process must be connected to Ray."""
    for key, value in values.items():
        if (name := f"d4rt_{group}_{key}") in METRICS:
            _gauge(name).set(value, tags=labels)


@cache
def _gauge(name: str) -> Gauge:
    what, labels = METRICS[name]
    return Gauge(name, what, tag_keys=labels)
