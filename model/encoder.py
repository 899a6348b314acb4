"""The video encoder: tubelets become tokens, then layers alternate between looking within two frames and everywhere.

    video (B, T, H, W, 3) uint8
      -> tokens (B, T/2 * H/16 * W/16, C)     one per 2x16x16 block of pixels, plus a fixed position code
      -> even layers: attention within each temporal slot (2 frames)          paper 2.2, "local frame-wise"
         odd layers:  attention within the clip and the aspect token           "global self-attention"
      -> final LayerNorm

What is unusual: nothing is learned about position, so fewer frames than the model was built for are simply the first
rows of the position table, and frames of another size get a table of their own; and the aspect token, which comes last,
takes part in global layers only.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import RGB, ModelConfig

VIDEOMAE_GRID = (8, 14, 14)  # slots, rows, columns of a VideoMAE at 16 frames of 224x224 in patches of 16


class Droppable(nn.Module):
    """A part that forgets a share of its numbers while training, if told to by `D4RT.set_dropout`."""

    dropout = 0.0

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Attention(Droppable):
    """What self-attention and cross-attention share: softmax attention in parts, and a linear map after it."""

    out: nn.Linear

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, heads, Q, d) against (B, heads, N, d) twice -> (B, Q, heads * d).

        One fused kernel. Its result lies in memory as (B, Q, heads, d), so merging the heads moves nothing.
        """
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        return self.out(rearrange(attended, "b h q d -> b q (h d)"))


class FeedForward(Droppable, nn.Sequential):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, hidden: int, width_out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width_out))

    def forward(self, x: Tensor) -> Tensor:
        widen, activate, narrow = self
        return self.drop(narrow(self.drop(activate(widen(x)))))


def run(layer: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """`layer(*inputs)`; with `recompute`, what its gradient needs is not kept but computed again, for memory's sake."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


def sinusoid(num_positions: int, width: int) -> Tensor:
    """Position code (num_positions, width) float32: row n has sin(n w_k) in channel 2k and cos(n w_k) in 2k+1.

    w_k = 10000^(-2k / width), as in the Transformer and in VideoMAE. Computed in float64, then rounded.
    """
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    angles = torch.arange(num_positions, dtype=torch.float64, device="cpu")[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def position_table(config: ModelConfig, rows: int, columns: int) -> Tensor:
    """Position code of every video token of a full clip, (tokens, encoder_width) float32, in (t, h, w) order.

    `rows` and `columns`: tokens of one frame. `flat` numbers the tokens one after the other. `resampled` takes the
    table of a VideoMAE, whose frames are 14x14 tokens, and interpolates it trilinearly, so that a place in the image
    keeps the code it was pretrained with.
    """
    slots = -(-config.clip_frames // config.tubelet)
    if config.pos_layout == "flat":
        return sinusoid(slots * rows * columns, config.encoder_width)
    t, h, w = VIDEOMAE_GRID
    table = rearrange(sinusoid(t * h * w, config.encoder_width), "(t h w) c -> 1 c t h w", t=t, h=h, w=w)
    table = F.interpolate(table, size=(slots, rows, columns), mode="trilinear", align_corners=False)
    return rearrange(table, "1 c t h w -> (t h w) c").contiguous()


def real_device() -> torch.device | None:
    """Where to put a fixed table: the default device, but never `meta`, which would forget the numbers."""
    return torch.device("cpu") if torch.get_default_device().type == "meta" else torch.get_default_device()


class PixelNorm(nn.Module):
    """uint8 to normalised floats: (x / 255 - mean) / std, for channels in any one dimension."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mean, std = (torch.tensor(x, device=real_device()) for x in (config.pixel_mean, config.pixel_std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, pixels: Tensor, channels_from_end: int) -> Tensor:
        """`channels_from_end`: how many dimensions come after the channels, which are last for 0."""
        shape = (RGB,) + (1,) * channels_from_end
        return torch.addcmul(self.shift.view(shape), pixels.to(self.scale.dtype), self.scale.view(shape))


class Tokenizer(nn.Module):
    """Video to tokens: a 3D convolution whose stride is its kernel, written as the matrix product it is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kernel = (config.tubelet, config.patch_size, config.patch_size)
        self.weight = nn.Parameter(torch.empty(config.encoder_width, RGB, *self.kernel))
        self.bias = nn.Parameter(torch.empty(config.encoder_width))
        self.normalise = PixelNorm(config)

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 with even T -> (B, N, C), tokens in (t, h, w) order."""
        t, h, w = self.kernel
        tubelets = rearrange(video, "b (T t) (H h) (W w) c -> b (T H W) c (t h w)", t=t, h=h, w=w)
        return F.linear(self.normalise(tubelets, channels_from_end=1).flatten(2), self.weight.flatten(1), self.bias)


class SelfAttention(Attention):
    """Multi-head self-attention with biases on queries, keys, values and output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, N, C)
        queries, keys, values = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.attend(queries, keys, values)


class EncoderLayer(nn.Module):
    """A pre-norm Transformer layer; whether it is local or global is decided by the tokens it is given."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.norm_attn = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = SelfAttention(width, config.encoder_heads)
        self.norm_ff = nn.LayerNorm(width, eps=config.norm_eps)
        self.ff = FeedForward(width, config.encoder_hidden, width)

    @property
    def branch_ends(self) -> tuple[nn.Linear, nn.Linear]:
        """What the two residual branches end in; these begin near zero."""
        return self.attn.out, self.ff[-1]

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, N, C)
        x = x + self.attn(self.norm_attn(x))
        return x + self.ff(self.norm_ff(x))


class Encoder(nn.Module):
    """Video and aspect token to memory, paper 2.2. See the top of this file."""

    recompute = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = Tokenizer(config)
        self.blocks = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.final_norm = nn.LayerNorm(config.encoder_width, eps=config.norm_eps)
        table = position_table(config, config.grid_size, config.grid_size)
        self.register_buffer("position", table.to(real_device()), persistent=False)
        self.other_positions: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def forward(self, video: Tensor, aspect_token: Tensor | None) -> Tensor:
        """Encode a clip.

        Args:
            video: (B, T, H, W, 3) uint8, T even and at most `clip_frames`, H and W multiples of `patch_size`.
            aspect_token: (B, 1, C), or None for a model without one.

        Returns:
            (B, N, C): the video tokens in (t, h, w) order, then the aspect token if there is one.
        """
        x = self.patch_embed(video)
        rows, columns = (length // self.config.patch_size for length in video.shape[2:4])
        num_video, extra = x.shape[1], [] if aspect_token is None else [aspect_token]
        x = x + self._positions(rows, columns)[:num_video]
        x = torch.cat([x, *extra], dim=1)  # (B, N, C)
        for i, layer in enumerate(self.blocks):
            if i % 2 == 0:
                x = self._within_slots(layer, x, num_video, rows * columns)
            else:
                x = run(layer, x, recompute=self.recompute)
        return self.final_norm(x)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The table of the model's own frames; for frames of another size one that is made when it is first needed."""
        if (rows, columns) == (self.config.grid_size, self.config.grid_size):
            return self.position
        key = (rows, columns, self.position.device, self.position.dtype)
        if key not in self.other_positions:
            self.other_positions = {key: position_table(self.config, rows, columns).to(self.position)}
        return self.other_positions[key]

    def _within_slots(self, layer: nn.Module, x: Tensor, num_video: int, slot_tokens: int) -> Tensor:
        """Apply a layer to each temporal slot by itself; tokens after the video pass unchanged."""
        slots = rearrange(x[:, :num_video], "b (t n) c -> (b t) n c", n=slot_tokens)
        slots = rearrange(run(layer, slots, recompute=self.recompute), "(b t) n c -> b (t n) c", b=x.shape[0])
        return torch.cat([slots, x[:, num_video:]], dim=1) if num_video < x.shape[1] else slots
