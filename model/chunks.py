"""How many queries to decode at a time: as many as free memory allows, because an answer depends on no other."""

import math
import os
from collections.abc import Callable
from typing import TypeVar

import torch

from model.config import ModelConfig

MEMORY_SHARE = 0.25  # of what is free: other work goes on, and allocators need room
SMALLEST = 256
LARGEST_CPU, LARGEST = 2048, 65_536  # a CPU gains nothing beyond (docs/log.md); for others a guess
CPU_RAN_OUT = "DefaultCPUAllocator: can't allocate memory"

Part = TypeVar("Part")


def bytes_per_query(config: ModelConfig) -> int:
    """What decoding one more query takes at its peak, without gradients, in float32.

    Six tensors of the decoder's width and two of its MLP's are alive at once; its patch took less before.
    """
    return 4 * (6 * config.decoder_width + 2 * config.decoder_hidden)


def free_memory(device: torch.device) -> int:
    """Bytes on this device that could be allocated now."""
    if device.type == "cuda":
        reserved_unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved_unused
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def automatic_chunk(config: ModelConfig, num_clips: int, device: torch.device, memory: int | None) -> int:
    """Queries per clip to decode at a time. `memory`: bytes that may be taken in all; None: all that are free."""
    free = free_memory(device) if memory is None else min(memory, free_memory(device))
    affordable = MEMORY_SHARE * free / bytes_per_query(config)
    largest = LARGEST_CPU if device.type == "cpu" else LARGEST
    return max(1, int(min(max(affordable, SMALLEST), largest)) // num_clips)


def least_memory(config: ModelConfig) -> int:
    """Bytes of memory that suffice for the fewest queries that are ever begun with."""
    return math.ceil(SMALLEST * bytes_per_query(config) / MEMORY_SHARE)


def in_chunks(work: Callable[[int, int], Part], length: int, size: int) -> list[Part]:
    """`work(start, stop)` of consecutive pieces; of one empty piece if there is nothing, so that shapes survive.

    Where memory runs out, pieces are halved from there on, unless gradients are wanted.
    """
    if size < 1:
        raise ValueError(f"chunk_size ({size}) must be at least 1, or None to choose it by free memory")
    parts, start = [], 0
    while start < length or not parts:
        stop = min(start + size, length)
        try:
            parts.append(work(start, stop))
        except RuntimeError as error:
            if not ran_out(error) or stop - start < 2 or torch.is_grad_enabled():
                raise
            size = (stop - start) // 2
        else:
            start = stop
            continue
        if torch.cuda.is_available():  # out here, where the error no longer holds what was half done
            torch.cuda.empty_cache()
    return parts


def ran_out(error: Exception) -> bool:
    """Whether an error means that there was no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or CPU_RAN_OUT in str(error)
