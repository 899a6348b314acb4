"""The decoder: each question looks into the memory by itself, eight times, and thirteen numbers come out.

Queries never attend to one another (the paper saw "major performance drops" when they did, 2.2), so an answer does
not depend on what else is asked, and questions can be decoded in chunks of any size. Keys and values depend on the
memory alone: they are projected once per video and kept.
"""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.confidence import EVEN_ERROR
from model.config import OUTPUT_CHANNELS, ModelConfig
from model.encoder import Attention, FeedForward, run

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each (B, heads, N, d)."""

CONFIDENCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Prediction:
    """The answers to Q queries about each of B clips, float32 (paper 2.3, Fig. 7).

    Lengths are in the model's unit, one for a whole clip but otherwise arbitrary. Axes are OpenCV's: x right, y down,
    z forward.
    """

    xyz: Tensor
    """(B, Q, 3): the point at t_tgt, in the camera of t_cam."""
    uv_tgt: Tensor
    """(B, Q, 2): its projection into frame t_tgt, in [0, 1] where it is inside the image; not clamped."""
    visible_logit: Tensor
    """(B, Q): is it seen in frame t_tgt?"""
    displacement: Tensor
    """(B, Q, 3): the point at t_tgt minus the point at t_src, both in the camera of t_cam; 0 for a static point."""
    normal: Tensor
    """(B, Q, 3), unit length: of its surface at t_tgt, axes of t_cam, towards the camera that saw it at t_src."""
    confidence_logit: Tensor
    """(B, Q): how much to trust xyz."""

    @property
    def visible(self) -> Tensor:
        """(B, Q) bool: visible with a probability above one half."""
        return self.visible_logit > 0

    @property
    def confidence(self) -> Tensor:
        """(B, Q), from 1e-4 to 1 - 1e-4."""
        return self.confidence_logit.sigmoid().clamp(CONFIDENCE_FLOOR, 1 - CONFIDENCE_FLOOR)

    @property
    def log_error(self) -> Tensor:
        """(B, Q): log of the relative error b that a confidence c = 0.1 / (0.1 + b) stands for, if it was learnt as
        that (`LossConfig.confidence`) or is calibrated (`model/confidence.py`)."""
        return math.log(EVEN_ERROR) - self.confidence_logit

    @classmethod
    def from_channels(cls, channels: Tensor) -> Self:
        """(B, Q, 13) float32, in the order of the fields -> their meanings."""
        xyz, uv_tgt, visible, displacement, normal, confidence = channels.split([3, 2, 1, 3, 3, 1], dim=-1)
        normal = F.normalize(normal, dim=-1, eps=1e-6)
        return cls(xyz, uv_tgt, visible.squeeze(-1), displacement, normal, confidence.squeeze(-1))

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Predictions for consecutive queries, joined."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts], dim=1) for field in fields(cls)))


class CrossAttention(Attention):
    """Multi-head attention of queries into the memory, with biases on queries, keys, values and output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, memory: Tensor) -> KeysValues:  # (B, N, D)
        keys, values = rearrange(self.kv(memory), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return keys, values

    def forward(self, x: Tensor, keys_values: KeysValues) -> Tensor:  # (B, Q, D) -> (B, Q, D)
        queries = rearrange(self.q(x), "b q (h d) -> b h q d", h=self.heads)
        return self.attend(queries, *keys_values)


class DecoderLayer(nn.Module):
    """Cross-attention, then an MLP; pre-norm for the queries and, separately, for the memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.norm_q = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm_kv = nn.LayerNorm(width, eps=config.norm_eps)
        self.cross_attn = CrossAttention(width, config.decoder_heads)
        self.norm_ff = nn.LayerNorm(width, eps=config.norm_eps)
        self.ff = FeedForward(width, config.decoder_hidden, width)

    @property
    def branch_ends(self) -> tuple[nn.Linear, nn.Linear]:
        """What the two residual branches end in; these begin near zero."""
        return self.cross_attn.out, self.ff[-1]

    def keys_values(self, memory: Tensor) -> KeysValues:
        return self.cross_attn.keys_values(self.norm_kv(memory))

    def forward(self, x: Tensor, keys_values: KeysValues) -> Tensor:
        x = x + self.cross_attn(self.norm_q(x), keys_values)
        return x + self.ff(self.norm_ff(x))


class Decoder(nn.Module):
    """A stack of decoder layers and a final LayerNorm."""

    recompute = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.out_norm = nn.LayerNorm(config.decoder_width, eps=config.norm_eps)

    def keys_values(self, memory: Tensor) -> tuple[KeysValues, ...]:
        """Memory (B, N, D) -> what each layer attends to."""
        # In the precision of the norms, once: under autocast each layer would make and keep a copy of its own.
        memory = memory.to(self.out_norm.weight.dtype)
        return tuple(run(layer.keys_values, memory, recompute=self.recompute) for layer in self.blocks)

    def forward(self, x: Tensor, keys_values: tuple[KeysValues, ...]) -> Tensor:
        """Query tokens (B, Q, D) -> decoded tokens (B, Q, D)."""
        for layer, layer_keys_values in zip(self.blocks, keys_values, strict=True):
            x = run(layer, x, layer_keys_values, recompute=self.recompute)
        return self.out_norm(x)


class Heads(nn.Linear):
    """The paper's six linear heads, side by side in one matrix: decoded token to thirteen numbers.

    In float32 at least, also under autocast and in a bfloat16 model: it would round a position to three digits.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.decoder_width, OUTPUT_CHANNELS)

    def forward(self, x: Tensor) -> Prediction:  # (B, Q, D)
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return Prediction.from_channels(F.linear(x.to(exact), self.weight.to(exact), self.bias.to(exact)))
