"""Does a step fit into a worker's memory? Reckoned from the config, before anything is allocated.

step_bytes         what a step needs at its peak: weights, averages, gradients, what the backward pass needs
require_fit        ValueError if a worker has less
explained          around a step: what to change if it did not fit after all
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from model.describe import saved_bytes
from train.config import TrainConfig
from train.errors import OutOfMemory
from train.state import held_bytes

GPU_RESERVE = 3e9  # CUDA itself, the buffers of NCCL, and what kernels work with
ADVICE = "raise --accumulate, lower --data.clips-per-worker or --data.queries, or add --recompute"


def step_bytes(config: TrainConfig, frames: int) -> int:
    """What a worker needs for a step, besides the working memory of single operations. Frozen parts need less.

    Gradients are there all the time if workers exchange them or parts of a step add them up, and twice if both do: what
    parts add up is not yet in the buffers of DistributedDataParallel. Else they grow while what the backward pass needs
    shrinks.
    """
    held, clips = held_bytes(config), config.data.clips_per_worker // config.accumulate
    saved = saved_bytes(
        config.model,
        frames,
        config.data.queries,
        autocast=config.precision != "float32",
        recompute=config.recompute,
        clips=clips,
    )
    if config.workers > 1 and config.accumulate > 1:
        return held["worker"] + 2 * held["gradients"] + saved
    if config.workers > 1 or config.accumulate > 1:
        return held["worker"] + held["gradients"] + saved
    return held["worker"] + max(held["gradients"], saved)


def memory_of(device: torch.device, workers: int) -> tuple[float, str]:
    """(bytes that each of so many workers on this machine has for steps, words for where)."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.total_memory - GPU_RESERVE, f"{properties.name}, some of it reserved,"
    return psutil.virtual_memory().total / workers, "its share of this machine"


def device_here(config: TrainConfig) -> torch.device:
    """On which a step would be taken on this machine."""
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def memory_here(config: TrainConfig) -> tuple[float, str]:
    """The same as `memory_of`, where this machine is the one that trains. ValueError if it lacks the GPU asked for."""
    device = device_here(config)
    if config.device == "gpu" and device.type == "cpu":
        raise ValueError(
            "--device gpu: PyTorch finds no GPU on this machine; leave it out to train on its CPUs, or let RAY_ADDRESS "
            "name a cluster that has some"
        )
    return memory_of(device, config.workers)


def require_fit(config: TrainConfig, frames: int, limit: float, device: str) -> str:
    """How much a step takes of how much there is, in words. ValueError, with what to change, if it is too much."""
    size = step_bytes(config, frames)
    text = f"a step takes each worker about {size / 1e9:.2f} GB and working memory; {device} has {limit / 1e9:.1f} GB"
    if size > limit:
        raise ValueError(f"{text}: {advice(config)}")
    return text


def advice(config: TrainConfig) -> str:
    more = ", or --shard" if config.workers > 1 and not config.shard else ""
    return f"{ADVICE}{more}. None of it changes what a step learns but the clips and queries"


@contextmanager
def explained(config: TrainConfig, step: int) -> Iterator[None]:
    """OutOfMemory, in words, for what PyTorch raises when there is none left."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(out_of_memory(config, step, error)) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # what PyTorch says of a CPU
            raise
        raise OutOfMemory(out_of_memory(config, step, error)) from error


def out_of_memory(config: TrainConfig, step: int, error: Exception) -> str:
    said = str(error).strip().partition("\n")[0] or "of the machine"
    return f"out of memory at step {step} ({said}): {advice(config)}; the same command then goes on"
