"""In which precision, and by which kernels of attention, a model computes on a GPU.

    with half_on_gpu(device): ...         to answer: bfloat16 autocast, fused attention
    with fused_attention(device): ...     attention by a fused kernel, or an error

PyTorch falls back to its unfused attention without a word when no fused kernel takes the shapes: ten times slower, and
with 6145 tokens 1.2 GB for each layer and clip. Here that is an error. Which of the fused ones it takes is PyTorch's to
say, by the GPU: cuDNN's on an H100, flash on an A100. An order of our own would not hold: PyTorch replaces it at the
first attention of a process, so that a layer that is computed again could get another kernel than the first time.

A CPU computes as it always does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.config import ModelConfig

KERNELS = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
}


@contextmanager
def fused_attention(device: torch.device | str) -> Iterator[None]:
    """On CUDA, attention by one of `KERNELS`; RuntimeError of PyTorch if none can."""
    if torch.device(device).type != "cuda":
        yield
        return
    with sdpa_kernel(list(KERNELS)):
        yield


@contextmanager
def half_on_gpu(device: torch.device | str) -> Iterator[None]:
    """How a trained model answers: on CUDA under autocast to bfloat16 by fused attention, elsewhere in float32."""
    kind = torch.device(device).type
    with fused_attention(device), torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        yield


def attention_kernel(config: ModelConfig, device: torch.device, dtype: torch.dtype, dropout: float) -> str:
    """The name of the kernel that `fused_attention` takes on this GPU; ValueError if there is none."""
    channels = config.encoder_width // config.encoder_heads
    shape = 1, config.encoder_heads, config.video_tokens(config.clip_frames), channels
    token = torch.empty(shape, device=device, dtype=dtype, requires_grad=True)
    try:
        with fused_attention(device):
            return KERNELS[SDPBackend(torch._fused_sdp_choice(token, token, token, dropout_p=dropout))]
    except (RuntimeError, KeyError):
        raise ValueError(
            f"no fused kernel of attention for heads of {channels} channels in {str(dtype).removeprefix('torch.')} on "
            f"{torch.cuda.get_device_name(device)}: choose another --precision"
        ) from None
