"""How many queries to decode at a time: as many as free memory allows, because an answer depends on no other."""

import os

import torch

from model.config import ModelConfig

MEMORY_SHARE = 0.25  # of what is free: other work goes on, and allocators need room
SMALLEST = 256
LARGEST_CPU, LARGEST = 2048, 65_536  # a CPU gains nothing beyond (docs/log.md); for others a guess


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


def automatic_chunk(config: ModelConfig, num_clips: int, device: torch.device) -> int:
    """Queries per clip to decode at a time."""
    affordable = MEMORY_SHARE * free_memory(device) / bytes_per_query(config)
    largest = LARGEST_CPU if device.type == "cpu" else LARGEST
    return max(1, int(min(max(affordable, SMALLEST), largest)) // num_clips)


def chunks(length: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive pieces; one empty piece if there is nothing, so that shapes survive."""
    if size < 1:
        raise ValueError(f"chunk_size ({size}) must be at least 1, or None to choose it by free memory")
    return [(start, min(start + size, length)) for start in range(0, max(1, length), size)]
