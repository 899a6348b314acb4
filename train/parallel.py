"""How a step runs on its device and beside other workers: precision, kernels, compilation, recomputation, wrapping.

| asked for            | does                                                                             |
|----------------------|----------------------------------------------------------------------------------|
| precision            | autocast to 16 bits; for float16 the loss is scaled (`LossScale`)                |
| recompute            | layers keep their inputs only                                                    |
| compile              | torch.compile inside each layer, for the shapes of this run alone                |
| workers              | DistributedDataParallel; gradients live in its buffers, not beside them          |
| shard, or Muon       | the optimiser is shared out: `train/sharing.py`                                  |

Nothing in a step waits for the device. What the host wants to know of it, it reads while the next step runs (`ToHost`).
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import D4RT
from model.precision import attention_kernel, fused_attention
from train.config import TrainConfig

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FIRST_SCALE, SMALLEST_SCALE, GROWTH_STEPS = 2.0**16, 1.0, 2_000  # of losses in float16, as torch.amp.GradScaler has it
PEAK_TFLOPS = {  # dense, in 16 bits, by how the name of the device begins; from NVIDIA's data sheets
    "NVIDIA B200": 2250,
    "NVIDIA H200": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100": 989,
    "NVIDIA A100": 312,
    "NVIDIA L40S": 362,
    "NVIDIA A10": 125,
    "Tesla V100": 125,
}


def prepare(model: D4RT, config: TrainConfig) -> D4RT:
    """The same model, with its switches for training."""
    model.set_dropout(config.dropout)
    model.set_recompute(config.recompute)
    if config.compile:
        from torch._dynamo import config as dynamo  # takes a second to import

        dynamo.optimize_ddp = False  # it would cut layers up, for an overlap that whole layers have
        model.compile_layers()
    return model


def beside_others(model: D4RT) -> nn.Module:
    """The model as it exchanges gradients with those of other workers; alone, the model itself."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    # Buffers are constants, which need not be sent.
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


@contextmanager
def computing(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Around forward passes, and around backward passes, which may compute layers again."""
    dtype = DTYPES[config.precision]
    with fused_attention(device), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def words(config: TrainConfig, device: torch.device) -> str:
    """On what and by which kernels a worker computes; ValueError if attention has no fused one on this GPU."""
    if device.type == "cpu":
        return f"CPU threads of each worker: {torch.get_num_threads()}; {config.precision}"
    kernel = attention_kernel(config.model, device, DTYPES[config.precision], config.dropout)
    return f"{torch.cuda.get_device_name(device)}; {config.precision}; attention by the {kernel} kernel"


class LossScale:
    """What a float16 loss is multiplied with, lest its gradients become zero; halved when they overflow.

    The rule of torch.amp.GradScaler, which waits for the device before each step of an optimiser that is not fused.
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.tensor(FIRST_SCALE, device=device)
        self.steps = torch.zeros((), device=device)  # since it last changed

    def unscale(self, parameters: Iterator[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(self.scale)

    def update(self, broken: Tensor) -> None:
        """`broken`: () float, 1 if gradients were not finite."""
        bad, grows = broken > 0, self.steps + 1 >= GROWTH_STEPS
        halved = (self.scale / 2).clamp(min=SMALLEST_SCALE)
        self.scale = torch.where(bad, halved, torch.where(grows, self.scale * 2, self.scale))
        self.steps = torch.where(bad | grows, 0, self.steps + 1)


class ToHost:
    """Numbers on their way to the host; `read` waits until they are there."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers.to("cpu", non_blocking=True)  # from a GPU, into pinned memory
        self.arrived = None
        if numbers.is_cuda:
            self.arrived = torch.cuda.Event(blocking=True)  # the core is better used by a reader of clips
            self.arrived.record()

    def read(self) -> Tensor:
        if self.arrived:
            self.arrived.synchronize()
        return self.numbers


def usage(config: TrainConfig, frames: int, seconds_per_step: float, device: torch.device) -> dict[str, float]:
    """For the curves: TFLOP/s of this worker's clips, their share of what the device can do if that is known, and the
    most memory that was in use.

    FLOP are those of the matrix products of a forward pass, three times: a gradient takes two. What is computed again
    does not count.
    """
    forward = config.model.flops_encode(frames) + config.model.flops_decode(config.data.queries, frames)
    teraflops = 3 * forward * config.data.clips_per_worker / seconds_per_step / 1e12
    found = {"tflops_per_worker": teraflops}
    if device.type != "cuda":
        return found | {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
    name = torch.cuda.get_device_name(device)
    peaks = (peak for start, peak in PEAK_TFLOPS.items() if name.startswith(start))
    if config.precision != "float32" and (peak := next(peaks, None)):
        found["mfu"] = teraflops / peak
    return found | {"peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
