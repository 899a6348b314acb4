"""D4RT: one transformer that answers where any pixel of a video is, at any time, in any camera (arXiv 2512.08924).

    memory = model.encode(video, aspect)          # heavy, once per clip
    prediction = model.decode(memory, queries)    # light, as often as you like

This is plain single-device PyTorch. `model.recipes` turns queries into tracks, depth, point clouds and cameras;
`model.checkpoints` saves and loads.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.chunks import automatic_chunk, in_chunks
from model.confidence import Calibration
from model.config import RGB, ModelConfig
from model.decoder import Decoder, Heads, KeysValues, Prediction
from model.encoder import Droppable, Encoder, Tokenizer
from model.queries import Queries, QueryEmbedder, frame_size, unalign_corners


@dataclass(frozen=True)
class Memory:
    """What the model keeps of B clips: all a decode needs. N tokens of the decoder's width D."""

    tokens: Tensor
    """(B, N, D): video tokens in (t, h, w) order, then the aspect token if there is one."""
    keys_values: tuple[KeysValues, ...]
    """Per decoder layer, keys and values, each (B, heads, N, d)."""
    video: Tensor
    """(B, T, H, W, 3) uint8: what was encoded, for the patches of the queries."""
    aspect: Tensor
    """(B,): width / height of the raw frames."""

    @property
    def num_frames(self) -> int:
        """T, without the frame that pads an odd clip: query times run from 0 to T - 1."""
        return self.video.shape[1]


class D4RT(nn.Module):
    """The model. Weights are freshly initialised; `checkpoints.load` brings trained ones."""

    trained_on: frozenset[str] = frozenset()
    """Digests of the clip stores from which these weights were learnt; checkpoints keep them."""
    calibration: Calibration | None = None
    """What confidences stand for: with it, answers have calibrated ones. Checkpoints keep it; none while training."""
    memory_bytes: int | None = None
    """How much memory answering may take, on its device; None: what is free. It changes no answer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width_in, width = config.encoder_width, config.decoder_width
        self.encoder = Encoder(config)
        if config.aspect_token:
            self.aspect_proj = nn.Sequential(nn.Linear(1, width_in), nn.GELU(), nn.Linear(width_in, width_in))
        self.memory_proj = nn.Linear(width_in, width) if width_in != width else nn.Identity()
        self.query_embedder = QueryEmbedder(config)
        self.decoder = Decoder(config)
        self.heads = Heads(config)
        initialise(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.heads.weight.device

    def forward(self, video: Tensor, aspect: Tensor, queries: Queries, *, checked: bool = True) -> Prediction:
        """`decode(encode(video, aspect), queries)`: what a training step calls.

        With `checked` false nothing of it waits for the device, and who asks has made sure that all is in range.
        """
        if checked:
            return self.decode(self.encode(video, aspect), queries)
        return self._decode(self.encode_unchecked(video, aspect), queries, None)

    def encode(self, video: Tensor, aspect: Tensor) -> Memory:
        """Look at B clips once (paper 2.1).

        An odd clip is padded by repeating its last frame; the padding cannot be asked about.

        Args:
            video: (B, T, H, W, 3) uint8 RGB, 1 <= T <= `config.clip_frames`; H and W are multiples of
                `config.patch_size`, best `config.image_size`, for which the model was trained.
            aspect: (B,) float, width / height of the frames before they were resized to a square.

        Raises:
            ValueError: wrong shape, size, dtype or length, or an aspect that is not positive.
        """
        check_video(video, self.config)
        check_aspect(aspect, len(video))
        return self.encode_unchecked(video.contiguous(), aspect.to(self.heads.weight.dtype))

    def encode_unchecked(self, video: Tensor, aspect: Tensor) -> Memory:
        """`encode` of what is known to be right: all of it that an exported graph can hold."""
        padding = -video.shape[1] % self.config.tubelet
        padded = torch.cat([video, video[:, -1:]], dim=1) if padding else video
        told = aspect if self.config.compat else aspect.log()
        aspect_token = self.aspect_proj(told[:, None, None]) if self.config.aspect_token else None
        tokens = self.memory_proj(self.encoder(padded, aspect_token))
        return Memory(tokens, self.decoder.keys_values(tokens), video, aspect)

    def decode(
        self,
        memory: Memory,
        queries: Queries,
        *,
        chunk_size: int | None = None,
        patch_video: Tensor | None = None,
    ) -> Prediction:
        """Answer Q queries about each clip, independently of one another (paper 2.1).

        Args:
            memory: from `encode`.
            queries: B clips with Q queries each.
            chunk_size: decode this many queries at a time; None: as many as free memory allows, and all at once
                where gradients are wanted. Same answers.
            patch_video: (B, T, Hn, Wn, 3) uint8, the same frames at any resolution: query patches are cut from it
                instead of the encoded frames (paper App. C). Where all t_src are one frame, that one will do:
                (B, 1, Hn, Wn, 3).

        Raises:
            ValueError: times outside the clip, positions outside [0, 1], or shapes that disagree with the memory.
        """
        queries.check_range(memory.num_frames)
        size = self._chunk(memory, len(queries), chunk_size)

        def answers(start: int, stop: int) -> Prediction:
            return self._decode(memory, queries.span(start, stop), patch_video)

        return Prediction.cat(in_chunks(answers, len(queries), size))

    def _decode(self, memory: Memory, queries: Queries, patch_video: Tensor | None) -> Prediction:
        source = self.embed_source(memory, queries.uv_norm, queries.t_src, patch_video=patch_video)
        return self.decode_tokens(memory, source, self.embed_target(queries.t_tgt, queries.t_cam))

    def _chunk(self, memory: Memory, num_queries: int, chunk_size: int | None) -> int:
        if chunk_size is not None:
            return chunk_size
        if torch.is_grad_enabled():
            return max(1, num_queries)
        return automatic_chunk(self.config, len(memory.video), self.device, self.memory_bytes)

    def decode_times(
        self,
        memory: Memory,
        uv_norm: Tensor,
        t_src: Tensor,
        t_tgt: Tensor,
        t_cam: Tensor,
        *,
        chunk_size: int | None = None,
        patch_video: Tensor | None = None,
    ) -> Prediction:
        """Ask about each of P points at each of K (t_tgt, t_cam): `decode` of P * K queries, cheaper.

        The source part of the query tokens, patch included, is computed once per point.

        Args:
            uv_norm, t_src: (B, P, 2) and (B, P), as in `Queries`.
            t_tgt, t_cam: (B, K) int64.
            chunk_size: about how many queries to decode at a time; None as in `decode`.

        Returns:
            Q = P * K answers per clip; the one for point p at time k is number p * K + k.
        """
        Queries(uv_norm, t_src, t_src, t_src).check_range(memory.num_frames)
        Queries(uv_norm.new_zeros(*t_tgt.shape, 2), t_tgt, t_tgt, t_cam).check_range(memory.num_frames)
        target = self.embed_target(t_tgt, t_cam)[:, None]  # (B, 1, K, D)
        num_times = max(1, t_tgt.shape[1])
        points_per_chunk = max(1, self._chunk(memory, t_src.shape[1] * num_times, chunk_size) // num_times)

        def answers(start: int, stop: int) -> Prediction:
            points = slice(start, stop)
            source = self.embed_source(memory, uv_norm[:, points], t_src[:, points], patch_video=patch_video)
            return self.decode_tokens(memory, source[:, :, None], target)

        return Prediction.cat(in_chunks(answers, t_src.shape[1], points_per_chunk))

    def embed_source(
        self, memory: Memory, uv_norm: Tensor, t_src: Tensor, *, patch_video: Tensor | None = None
    ) -> Tensor:
        """The part of a query token that a point keeps at all times: (B, P, 2), (B, P) -> (B, P, D)."""
        if uv_norm.shape[0] != memory.video.shape[0]:
            raise ValueError(f"queries are for {len(uv_norm)} clips, the memory holds {len(memory.video)}")
        if patch_video is None:
            return self.query_embedder.source(uv_norm, t_src, memory.video, memory.video)
        clips, frames = memory.video.shape[:2]
        fits = patch_video.ndim == 5 and patch_video.shape[0] == clips and patch_video.shape[1] in (1, frames)
        if patch_video.dtype != torch.uint8 or not fits:
            raise ValueError(
                f"patch_video is {patch_video.dtype} {tuple(patch_video.shape)}; it must be uint8 "
                f"({clips}, {frames}, H, W, 3): the encoded frames at another resolution; or one of them, if all "
                "queries are about it"
            )
        return self.query_embedder.source(uv_norm, t_src, memory.video, patch_video)

    def embed_target(self, t_tgt: Tensor, t_cam: Tensor) -> Tensor:
        """The part of a query token that says when and in which camera: (B, K), (B, K) -> (B, K, D)."""
        return self.query_embedder.target(t_tgt, t_cam)

    def decode_tokens(self, memory: Memory, source: Tensor, target: Tensor) -> Prediction:
        """Embedded sources and targets -> answers. The two are broadcast; all but the batch is flattened to Q."""
        tokens = self.query_embedder(source, target)
        tokens = tokens.flatten(1, -2)  # (B, Q, D)
        prediction = self.heads(self.decoder(tokens, memory.keys_values))
        if self.calibration is not None:
            prediction = replace(prediction, confidence_logit=self.calibration.apply(prediction.confidence_logit))
        if not self.config.compat:
            return prediction
        uv_tgt = prediction.uv_tgt
        return replace(prediction, uv_tgt=unalign_corners(uv_tgt, frame_size(memory.video, uv_tgt)))

    # ---- switches, none of which changes what is learnt, but dropout ----

    def set_dropout(self, share: float) -> None:
        """While training, forget this share of attention weights and of the numbers in and after the MLPs.

        D4RT has none, the default; OpenD4RT was trained with 0.1. Makes steps much slower: no fused attention kernel
        of a CPU has it.
        """
        if not 0 <= share < 1:
            raise ValueError(f"dropout ({share}) must be from 0, for none, to below 1")
        for part in self.modules():
            if isinstance(part, Droppable):
                part.dropout = share

    def set_recompute(self, on: bool) -> None:
        """Keep only the inputs of layers for the backward pass, and compute the rest again: less memory, more time."""
        self.encoder.recompute = self.decoder.recompute = on

    def compile_layers(self) -> None:
        """Let torch.compile fuse what is inside each layer. All layers of a kind share one compilation per shape: one
        for those within slots, one for those within clips, one for the decoder's."""
        for layer in (*self.encoder.blocks, *self.decoder.blocks):
            layer.compile(dynamic=False)


def check_video(video: Tensor, config: ModelConfig) -> None:
    """Raise ValueError unless the video is (B, T, H, W, 3) uint8 in whole patches and 1 <= T <= clip_frames."""
    shape, size, patch = tuple(video.shape), config.image_size, config.patch_size
    if len(shape) != 5 or shape[-1] != RGB:
        raise ValueError(f"video has shape {shape}; it must be (B, T, H, W, 3)")
    if video.dtype != torch.uint8:
        raise ValueError(f"video is {video.dtype}; it must be uint8 from 0 to 255, the model normalises pixels itself")
    if shape[1] < 1:
        raise ValueError("video has no frames; a clip needs at least 1")
    if shape[1] > config.clip_frames:
        raise ValueError(
            f"video has {shape[1]} frames, the model takes at most {config.clip_frames} (clip_frames); "
            "take fewer, or a model with more clip_frames, or model.recipes.long_video, which has windows"
        )
    if shape[2] % patch or shape[3] % patch or 0 in shape[2:4]:
        raise ValueError(
            f"frames are {shape[2]}x{shape[3]} (height x width), the model takes multiples of {patch}, best "
            f"{size}x{size}; resize without cropping and give the raw width / height as `aspect`"
        )


def check_aspect(aspect: Tensor, num_clips: int) -> None:
    """Raise ValueError unless the aspect ratios are (B,), positive and finite."""
    if tuple(aspect.shape) != (num_clips,):
        raise ValueError(
            f"aspect has shape {tuple(aspect.shape)}; it must be ({num_clips},): the raw width / height per clip"
        )
    if not bool(((aspect > 0) & aspect.isfinite()).all()):
        raise ValueError(f"aspect is {aspect.tolist()}; width / height must be positive and finite")


@torch.no_grad()
def initialise(model: D4RT) -> None:
    """Set every weight. Random ones are normal with this standard deviation, cut at +-2.

    | parameter                                     | value                                             |
    |-----------------------------------------------|---------------------------------------------------|
    | weights of linear maps, tokenizer             | std 1 / sqrt(inputs): unit variance at any width  |
    | the last linear map of each residual branch   | std 0.02 / sqrt(2 layers): layers begin near zero |
    | heads                                         | std 0.02                                          |
    | timestep tables                               | std 0.5: on a par with position and patch         |
    | biases                                        | 0; the head's z: `z_bias`, so points are in front |
    | LayerNorm                                     | scale 1, shift 0                                  |

    A plain 0.02 everywhere drowns patch and times beneath the position in narrow models, which then learn far slower.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | Tokenizer):
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.5)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for layers in (model.encoder.blocks, model.decoder.blocks):
        for branch_end in (end for layer in layers for end in layer.branch_ends):
            nn.init.trunc_normal_(branch_end.weight, std=0.02 / (2 * len(layers)) ** 0.5)
    nn.init.trunc_normal_(model.heads.weight, std=0.02)
    model.heads.bias[2] = model.config.z_bias
