"""OpenD4RT's forward pass, written out in plain tensor operations: what our model must equal, and is timed against.

Nothing is shared with `model/`. Weights are a state dict under OpenD4RT's own keys, and everything runs in their dtype,
so float64 weights give the numbers to float64. The work is done the way open implementations do it: attention in single
steps (scores, softmax, dropout, sum), or in PyTorch's fused kernel where they train, a whole frame gathered for every
query to cut its patch from, and the keys and values of the memory projected anew for every chunk of queries.

Conventions are OpenD4RT's: video (B, T, 3, H, W), from 0 to 1 and not normalised; u = px / (W - 1), v = py / (H - 1)
where the centre of a pixel has integer coordinates; times count from 0; aspect is W / H of the original video.
Shapes: `B` clips, `T` frames, `H W` pixels, `N` memory tokens, `Q` queries, `C` channels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
BANDS = 8  # octaves of the Fourier features
PATCH = 9  # pixels along a side of the patch around a query
HEADS = {"xyz": 3, "uv": 2, "visibility": 1, "displacement": 3, "normal": 3, "confidence": 1}


@dataclass(frozen=True)
class PlainD4RT:
    """`dropout` is 0.1 where OpenD4RT trains, and 0 where it infers."""

    weights: dict[str, Tensor]
    encoder_heads: int
    decoder_heads: int
    dropout: float = 0.0
    fused_attention: bool = False

    def encode(self, video: Tensor, aspect: Tensor) -> Tensor:
        """video (B, T, 3, H, W) with an even T, aspect (B,) -> memory (B, N, C), the aspect token last if there is one.

        Nothing is pooled, however many tokens there are.
        """
        kernel, bias = (self.weights[f"encoder.patch_embed.{name}"] for name in ("weight", "bias"))
        volume, step = video.transpose(1, 2), kernel.shape[2:]
        if any(size % each for size, each in zip(volume.shape[2:], step, strict=True)):
            raise ValueError(f"frames, height and width are {(*volume.shape[2:],)}: pad to multiples of {(*step,)}")
        x = F.conv3d(volume, kernel, bias, stride=step)
        slots = x.shape[2]
        x = x.flatten(2).transpose(1, 2)  # (B, t h w, C)
        num_video = x.shape[1]
        x = x + position_code(num_video, x.shape[2]).to(x)
        if "aspect_ratio_proj.0.weight" in self.weights:
            x = torch.cat([x, self.two_linears("aspect_ratio_proj", aspect.to(x)[:, None, None])], 1)
        for i in range(self.num_blocks("encoder")):
            block = f"encoder.blocks.{i}"
            if i % 2 == 0:  # within each slot of two frames; the aspect token is left as it is
                frames = x[:, :num_video].unflatten(1, (slots, -1)).flatten(0, 1)  # (B t, h w, C)
                frames = self.encoder_block(block, frames)
                x = torch.cat([frames.unflatten(0, (-1, slots)).flatten(1, 2), x[:, num_video:]], 1)
            else:
                x = self.encoder_block(block, x)
        x = self.norm("encoder.final_norm", x)
        return self.linear("memory_proj", x) if "memory_proj.weight" in self.weights else x

    def decode(
        self, memory: Tensor, video: Tensor, uv: Tensor, times: tuple[Tensor, Tensor, Tensor], chunk: int | None = None
    ) -> dict[str, Tensor]:
        """uv (B, Q, 2), times t_src, t_tgt and t_cam (B, Q) -> the raw outputs of the six heads, (B, Q, size)."""
        answers = []
        for start in range(0, uv.shape[1], chunk or uv.shape[1]):
            part = slice(start, start + (chunk or uv.shape[1]))
            x = self.query_tokens(video, uv[:, part], *(t[:, part] for t in times))
            for i in range(self.num_blocks("decoder")):
                block = f"decoder.blocks.{i}"
                key = self.norm(f"{block}.norm_kv", memory)
                x = x + self.attention(f"{block}.cross_attn", self.norm(f"{block}.norm_q", x), key, self.decoder_heads)
                x = x + self.feed_forward(f"{block}.ff", self.norm(f"{block}.norm_ff", x))
            x = self.norm("decoder.out_norm", x)
            answers.append({name: self.linear(f"heads.{name}_head", x) for name in HEADS})
        return {name: torch.cat([answer[name] for answer in answers], 1) for name in HEADS}

    def query_tokens(self, video: Tensor, uv: Tensor, t_src: Tensor, t_tgt: Tensor, t_cam: Tensor) -> Tensor:
        x = self.linear("query_embedder.uv_proj", fourier_features(uv))
        for name, t in (("t_src", t_src), ("t_tgt", t_tgt), ("t_cam", t_cam)):
            x = x + self.weights[f"query_embedder.{name}_embed.weight"][t]
        x = x + self.two_linears("query_embedder.patch_proj", patches(video, uv, t_src))
        return self.norm("query_embedder.out_norm", x)

    def encoder_block(self, name: str, x: Tensor) -> Tensor:
        normed = self.norm(f"{name}.norm_attn", x)
        x = x + self.attention(f"{name}.attn", normed, normed, self.encoder_heads)
        return x + self.feed_forward(f"{name}.ff", self.norm(f"{name}.norm_ff", x))

    def attention(self, name: str, x: Tensor, memory: Tensor, heads: int) -> Tensor:
        """softmax(q kᵀ / √c) v for each head of c channels; the packed projection holds the rows of q, k and v."""
        projections = zip(
            self.weights[f"{name}.in_proj_weight"].chunk(3), self.weights[f"{name}.in_proj_bias"].chunk(3), strict=True
        )
        q, k, v = (
            F.linear(source, weight, bias).unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, N or Q, c)
            for source, (weight, bias) in zip((x, memory, memory), projections, strict=True)
        )
        if self.fused_attention:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)
        else:
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3)
            mixed = F.dropout(scores.softmax(-1), self.dropout) @ v
        return self.linear(f"{name}.out_proj", mixed.transpose(1, 2).flatten(2))

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        hidden = F.dropout(F.gelu(self.linear(f"{name}.0", x)), self.dropout)
        return F.dropout(self.linear(f"{name}.3", hidden), self.dropout)

    def two_linears(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.2", F.gelu(self.linear(f"{name}.0", x)))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPS)

    def num_blocks(self, stack: str) -> int:
        return sum(key.startswith(f"{stack}.blocks.") and key.endswith(".norm_ff.weight") for key in self.weights)


def position_code(num_tokens: int, channels: int) -> Tensor:
    """(N, C) float64: sine in even and cosine in odd channels of n · 10000^(-2k/C), k counting pairs of channels."""
    n = torch.arange(num_tokens, dtype=torch.float64)[:, None]
    angle = n * 10000 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


def fourier_features(uv: Tensor) -> Tensor:
    """(B, Q, 2) -> (B, Q, 34): for u, then for v: itself, eight sines, eight cosines, of 2^k · π times it."""
    angle = uv[..., None] * math.pi * 2.0 ** torch.arange(BANDS).to(uv)
    return torch.cat([uv[..., None], angle.sin(), angle.cos()], -1).flatten(2)


def patches(video: Tensor, uv: Tensor, t_src: Tensor) -> Tensor:
    """(B, Q, 3 · 9 · 9), ordered channel, dy, dx: bilinear samples of frame t_src, its border replicated."""
    batch, count = t_src.shape
    height, width = video.shape[3:]
    frames = video[torch.arange(batch)[:, None], t_src].flatten(0, 1)  # (B Q, 3, H, W)
    offsets = torch.arange(PATCH).to(uv) - PATCH // 2
    x = uv[..., :1] * (width - 1) + offsets  # (B, Q, 9) pixels
    y = uv[..., 1:] * (height - 1) + offsets
    grid = torch.stack(
        [
            (2 * x / (width - 1) - 1)[:, :, None, :].expand(-1, -1, PATCH, -1),
            (2 * y / (height - 1) - 1)[:, :, :, None].expand(-1, -1, -1, PATCH),
        ],
        -1,
    )
    cut = F.grid_sample(frames, grid.flatten(0, 1), mode="bilinear", padding_mode="border", align_corners=True)
    return cut.flatten(1).unflatten(0, (batch, count))


def to_opend4rt(uv: Tensor, width: int, height: int) -> Tensor:
    """Positions px / W, where the first pixel's centre is 0.5, as px / (W - 1), where it is 0."""
    size = uv.new_tensor([width, height])
    return (uv * size - 0.5) / (size - 1)


def from_opend4rt(uv: Tensor, width: int, height: int) -> Tensor:
    size = uv.new_tensor([width, height])
    return (uv * (size - 1) + 0.5) / size


def random_state(
    *,
    width: int,
    layers: int,
    hidden: int,
    decoder_width: int,
    decoder_layers: int,
    decoder_hidden: int,
    clip_frames: int,
    patch_size: int = 16,
    aspect_token: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A float64 state dict under OpenD4RT's keys with no norm, bias or table at 0 or 1, where a mistake could hide.

    `memory_proj` is there if the widths differ, `aspect_ratio_proj` if there is an aspect token.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def normal(key: str, *shape: int, mean: float = 0.0, std: float) -> None:
        state[key] = mean + std * torch.randn(shape, dtype=torch.float64, generator=generator)

    def linear(name: str, rows: int, *columns: int, separator: str = ".") -> None:
        normal(f"{name}{separator}weight", rows, *columns, std=math.prod(columns) ** -0.5)
        normal(f"{name}{separator}bias", rows, std=0.3)

    def norm(name: str, size: int) -> None:
        normal(f"{name}.weight", size, mean=1, std=0.3)
        normal(f"{name}.bias", size, std=0.3)

    def block(name: str, size: int, norms: tuple[str, ...], attention: str, inner: int) -> None:
        for each in norms:
            norm(f"{name}.{each}", size)
        linear(f"{name}.{attention}.in_proj", 3 * size, size, separator="_")
        linear(f"{name}.{attention}.out_proj", size, size)
        norm(f"{name}.norm_ff", size)
        linear(f"{name}.ff.0", inner, size)
        linear(f"{name}.ff.3", size, inner)

    linear("encoder.patch_embed", width, 3, 2, patch_size, patch_size)
    for i in range(layers):
        block(f"encoder.blocks.{i}", width, ("norm_attn",), "attn", hidden)
    norm("encoder.final_norm", width)
    if aspect_token:
        linear("aspect_ratio_proj.0", width, 1)
        linear("aspect_ratio_proj.2", width, width)
    if decoder_width != width:
        linear("memory_proj", decoder_width, width)
    linear("query_embedder.uv_proj", decoder_width, 2 * (1 + 2 * BANDS))
    for name in ("t_src", "t_tgt", "t_cam"):
        normal(f"query_embedder.{name}_embed.weight", clip_frames, decoder_width, std=1)
    linear("query_embedder.patch_proj.0", decoder_width, 3 * PATCH**2)
    linear("query_embedder.patch_proj.2", decoder_width, decoder_width)
    norm("query_embedder.out_norm", decoder_width)
    for i in range(decoder_layers):
        block(f"decoder.blocks.{i}", decoder_width, ("norm_q", "norm_kv"), "cross_attn", decoder_hidden)
    norm("decoder.out_norm", decoder_width)
    for name, size in HEADS.items():
        linear(f"heads.{name}_head", size, decoder_width)
    return state
