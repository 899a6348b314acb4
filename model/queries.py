"""What can be asked, and how a question becomes a token.

A query asks: where is the point seen at `uv_norm` in frame `t_src`, at time `t_tgt`, in the camera of frame `t_cam`?
Its token is one sum (paper 2.2, Fig. 2), then a LayerNorm:

    Fourier(u, v) + T_src[t_src] + patch(u, v, t_src)      the source part: once per point
    + T_tgt[t_tgt] + T_cam[t_cam]                          the target part: cheap, once per question

The two parts are separate functions because a track asks about one point at every time.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn

from model.config import COORDINATES, RGB, ModelConfig
from model.encoder import PixelNorm


@dataclass(frozen=True)
class Queries:
    """Q questions about each of B clips; all tensors on one device.

    Raises ValueError for shapes that disagree and for times that are not int64.
    """

    uv_norm: Tensor
    """(B, Q, 2) float: position in frame t_src as (x / width, y / height), pixel centres at +0.5; within [0, 1]."""
    t_src: Tensor
    """(B, Q) int64: the frame in which the point is pointed at."""
    t_tgt: Tensor
    """(B, Q) int64: the time at which we want to know it."""
    t_cam: Tensor
    """(B, Q) int64: the frame whose camera expresses the answer."""

    def __post_init__(self) -> None:
        shape = tuple(self.uv_norm.shape)
        if len(shape) != 3 or shape[-1] != COORDINATES:
            raise ValueError(f"uv_norm has shape {shape}; queries need (B, Q, 2)")
        for name in ("t_src", "t_tgt", "t_cam"):
            times = getattr(self, name)
            if tuple(times.shape) != shape[:2]:
                raise ValueError(f"{name} has shape {tuple(times.shape)}; with uv_norm {shape} it must be {shape[:2]}")
            if times.dtype != torch.int64:
                raise ValueError(f"{name} is {times.dtype}; frame numbers must be int64, convert with .long()")

    def __len__(self) -> int:
        """Q."""
        return self.uv_norm.shape[1]

    def to(self, device: torch.device | str) -> Self:
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def span(self, start: int, stop: int) -> Self:
        """Questions start to stop of every clip."""
        return type(self)(*(getattr(self, field.name)[:, start:stop] for field in fields(self)))

    def check_range(self, num_frames: int) -> None:
        """Raise ValueError, with field and value, for a time outside the clip or a position outside the frame.

        Nothing is clamped: a wrong time would silently read another frame. Costs one read from the device.
        """
        if len(self) == 0:
            return
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        limits = torch.stack([limit.float() for x in tensors.values() for limit in x.aminmax()]).tolist()
        for name, lowest, highest in zip(tensors, limits[::2], limits[1::2], strict=True):
            if name == "uv_norm":
                if not (lowest >= 0 and highest <= 1):  # written so that NaN fails
                    raise ValueError(
                        f"uv_norm runs from {lowest:g} to {highest:g}, outside [0, 1]; "
                        "divide pixel positions by the (width, height) of the frame"
                    )
            elif lowest < 0 or highest >= num_frames:
                wrong = int(lowest if lowest < 0 else highest)
                raise ValueError(
                    f"{name} has {wrong}, but the clip has {num_frames} frames: times run from 0 to {num_frames - 1}"
                )


def fourier_features(uv_norm: Tensor, octaves: int) -> Tensor:
    """(..., 2) -> (..., 2 * (1 + 2 * octaves)); in float32 at least, because 128 pi u in bfloat16 would be noise.

    For u, then for v: the value, sin(2^k pi u) for k = 0, 1, ..., then the cosines.
    """
    frequencies = torch.pi * 2.0 ** torch.arange(octaves, device=uv_norm.device, dtype=uv_norm.dtype)
    angles = uv_norm[..., None] * frequencies  # (..., 2, octaves)
    return torch.cat([uv_norm[..., None], angles.sin(), angles.cos()], dim=-1).flatten(-2)


def gather_patches(video: Tensor, uv_norm: Tensor, t_src: Tensor, size: int) -> Tensor:
    """The size x size pixels centred at each position, bilinear, the border replicated.

    All samples of a patch are one pixel apart, hence share their fractional part: (size + 1)^2 whole pixels are
    gathered once and blended first along x, then along y. Frames are never copied.

    Args:
        video: (B, T, H, W, 3) uint8; any resolution.
        uv_norm: (B, Q, 2) float32 or float64, from 0 to 1.
        t_src: (B, Q) int64.

    Returns:
        (B, Q, 3, size, size) from 0 to 255, in the dtype of `uv_norm`: channel, row, column.
    """
    b, t, h, w, _ = video.shape
    u, v = uv_norm.unbind(-1)
    position = torch.stack([u * w, v * h], dim=-1) - 0.5  # pixel 0 has its centre at 0
    corner = position.floor()
    along_x, along_y = (position - corner)[..., None, None, None, :].unbind(-1)  # each (B, Q, 1, 1, 1)
    taps = torch.arange(size + 1, device=video.device) - size // 2
    columns, rows = (corner.long()[..., None] + taps).unbind(-2)  # each (B, Q, size + 1)
    frames = torch.arange(b, device=video.device)[:, None] * t + t_src
    lines = frames[..., None] * h + rows.clamp(0, h - 1)
    pixels = lines[..., None] * w + columns.clamp(0, w - 1)[..., None, :]  # (B, Q, size + 1, size + 1)
    patches = video.reshape(-1, RGB).index_select(0, pixels.flatten()).view(*pixels.shape, RGB)
    patches = rearrange(patches, "b q y x c -> b q c y x").to(uv_norm.dtype)
    patches = torch.lerp(patches[..., :-1], patches[..., 1:], along_x)
    return torch.lerp(patches[..., :-1, :], patches[..., 1:, :], along_y)


def align_corners(uv_norm: Tensor, size: Tensor) -> Tensor:
    """Our positions to OpenD4RT's, px / (W - 1) where px = 0 at the centre of the first pixel; `size`: (W, H)."""
    return (uv_norm * size - 0.5) / (size - 1)


def unalign_corners(uv: Tensor, size: Tensor) -> Tensor:
    """Back."""
    return (uv * (size - 1) + 0.5) / size


def timestep_table(config: ModelConfig) -> nn.Embedding:
    """One row per frame, not yet set: on the meta device, torch's own random start imports SymPy, 160 MB and 4 s."""
    rows = torch.empty(config.clip_frames, config.decoder_width)
    return nn.Embedding.from_pretrained(rows, freeze=False)


class QueryEmbedder(nn.Module):
    """Questions to tokens; D is the decoder's width. See the top of this file."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, pixels = config.decoder_width, RGB * config.query_patch**2
        self.octaves, self.patch_size, self.compat = config.fourier_octaves, config.query_patch, config.compat
        self.uv_proj = nn.Linear(COORDINATES * (1 + 2 * config.fourier_octaves), width)
        self.t_src_embed, self.t_tgt_embed, self.t_cam_embed = (timestep_table(config) for _ in range(3))
        if self.patch_size:
            self.normalise = PixelNorm(config)
            self.patch_proj = nn.Sequential(nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, width))
        self.out_norm = nn.LayerNorm(width, eps=config.norm_eps)

    def source(self, uv_norm: Tensor, t_src: Tensor, video: Tensor, patch_video: Tensor) -> Tensor:
        """Where a point is seen -> (B, Q, D).

        Args:
            uv_norm, t_src: (B, Q, 2) and (B, Q).
            video: (B, T, H, W, 3) uint8, the encoded frames.
            patch_video: the same frames at any resolution, to cut patches from; or the one that all t_src mean.
        """
        dtype = self.uv_proj.weight.dtype
        uv_norm = uv_norm.to(torch.promote_types(dtype, torch.float32))
        position = align_corners(uv_norm, frame_size(video, uv_norm)) if self.compat else uv_norm
        token = self.uv_proj(fourier_features(position, self.octaves).to(dtype)) + self.t_src_embed(t_src)
        if self.patch_size:
            only = patch_video.shape[1] == 1
            token = token + self.embed_patches(patch_video, uv_norm, torch.zeros_like(t_src) if only else t_src)
        return token

    def embed_patches(self, video: Tensor, uv_norm: Tensor, t_src: Tensor) -> Tensor:
        """The local appearance around each point, (B, Q, D)."""
        patches = gather_patches(video, uv_norm, t_src, self.patch_size)
        return self.patch_proj(self.normalise(patches, channels_from_end=2).flatten(2))

    def target(self, t_tgt: Tensor, t_cam: Tensor) -> Tensor:
        """(B, Q), (B, Q) -> (B, Q, D)."""
        return self.t_tgt_embed(t_tgt) + self.t_cam_embed(t_cam)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The two parts, broadcast against each other -> tokens for the decoder."""
        return self.out_norm(source + target)


def frame_size(video: Tensor, like: Tensor) -> Tensor:
    """(W, H) of (B, T, H, W, 3). Filled in on the device: numbers sent there would be waited for."""
    return torch.stack([like.new_full((), video.shape[3]), like.new_full((), video.shape[2])])
