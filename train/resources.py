"""What of a Ray cluster a training run takes."""

import math
import time
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources

from pipelines.log import say
from train.config import TrainConfig

TRAIN_SHARE = 0.7  # of the cluster's CPUs, at most one per worker; the rest reads clips
MAX_READERS = 8  # of a worker: they decode 200 clips a second and more, of 48 frames of 256x256
ASK_AGAIN_SECONDS = 2.0  # whether there is a GPU


def wait_for_gpu(config: TrainConfig) -> None:
    """With `--device gpu`, until the cluster has one: nodes may still be on their way, and an autoscaler is asked."""
    told = False
    while config.device == "gpu" and not ray.cluster_resources().get("GPU"):
        if not told:
            say("the cluster has no GPU yet: waiting for the first", run=config.name)
            request_resources(bundles=[{"GPU": 1}] * config.workers)
        told = True
        time.sleep(ASK_AGAIN_SECONDS)
    if told:
        request_resources(bundles=[])  # from here on Ray Train says what it needs


@dataclass(frozen=True)
class Resources:
    """What of the cluster goes where. A worker is given its own CPUs and those of its readers together."""

    gpus: int
    """That it has; each worker takes one if there are any."""
    worker_cpus: float
    reader_cpus: float
    """Per worker, on its node, for reading its clips."""

    @classmethod
    def of_cluster(cls, config: TrainConfig) -> "Resources":
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if config.device == "cpu":
            nodes = [{"CPU": node.get("CPU", 0.0)} for node in nodes]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        share = largest_share(nodes, config.workers)
        worker = min(1.0, TRAIN_SHARE * share)
        return cls(
            gpus=gpus,
            worker_cpus=round_down(worker),
            reader_cpus=round_down(min(MAX_READERS, share - worker)),
        )


def largest_share(nodes: list[dict[str, float]], workers: int) -> float:
    """CPUs of a node that each worker can have so that all find room, and a GPU if there are any: as many workers as
    there are GPUs, if those are fewer. `nodes`: the resources of each; without any yet, 1."""
    nodes = [node for node in nodes if node.get("CPU")]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)

    def room(share: float) -> int:
        return sum(min(int(node["CPU"] / share + 1e-6), int(node.get("GPU", 0)) if gpus else workers) for node in nodes)

    shares = {node["CPU"] / count for node in nodes for count in range(1, workers + 1)}
    return max((share for share in shares if room(share) >= min(workers, gpus or workers)), default=1.0)


def round_down(cpus: float) -> float:
    """To what Ray counts, so that a node has room for all of its parts."""
    return math.floor(cpus * 100) / 100
