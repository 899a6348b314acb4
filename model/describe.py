"""How large a model is and what it costs, in closed form: no weight is allocated and nothing is run.

    parameters(config)                      by part, counted on torch's meta device
    memory_bytes(config, frames)            what `D4RT.encode` returns
    saved_bytes(config, frames, queries)    what a training step keeps between its forward and its backward pass

FLOP are `ModelConfig`'s. `table` puts all of it into one text, which `python -m model describe giant` prints.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from model.checkpoints import CONFIG, folder_of, read_config
from model.config import COORDINATES, PRESETS, RGB, ModelConfig
from model.d4rt import D4RT

PARTS = {  # as in OpenD4RT's published list
    "encoder": "encoder",
    "aspect": "aspect_proj",
    "memory_proj": "memory_proj",
    "query embedder": "query_embedder",
    "decoder": "decoder",
    "heads": "heads",
}
FRAMES = (16, 32, 48)  # of the columns, where the model takes them
TRAINED_BYTES = 4 * 4  # per parameter: weight, gradient and AdamW's two averages, float32
FLOAT32, BFLOAT16 = 4, 2
PRECISIONS = {"float32": False, "bfloat16 autocast": True}


def find_config(target: str) -> ModelConfig:
    """The config of a preset, or in a checkpoint folder. A folder named like a preset is meant by `./name`."""
    if target not in PRESETS and ("/" in target or Path(target).exists()):
        return read_config(folder_of(target) / CONFIG)
    try:
        return ModelConfig.preset(target)
    except ValueError as error:
        raise ValueError(f"{error}. Or give a folder with {CONFIG}") from None


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part and, last, their `total`."""
    with torch.device("meta"):
        model = D4RT(config)
    children = dict(model.named_children())
    counts = {
        part: sum(x.numel() for x in children[name].parameters()) if name in children else 0
        for part, name in PARTS.items()
    }
    return counts | {"total": sum(x.numel() for x in model.parameters())}


def memory_bytes(config: ModelConfig, num_frames: int, *, autocast: bool) -> dict[str, int]:
    """Of one clip's `Memory`: `tokens`, `keys and values`, `video`; in float32 or under autocast to bfloat16."""
    narrow = BFLOAT16 if autocast else FLOAT32
    projected = config.encoder_width != config.decoder_width  # else the tokens come from a LayerNorm
    numbers = (config.video_tokens(num_frames) + config.aspect_token) * config.decoder_width
    return {
        "tokens": numbers * (narrow if projected else FLOAT32),
        "keys and values": numbers * config.decoder_layers * 2 * narrow,
        "video": num_frames * config.image_size**2 * RGB,
    }


def saved_bytes(
    config: ModelConfig, num_frames: int, num_queries: int, *, autocast: bool, recompute: bool, clips: int = 1
) -> int:
    """What autograd keeps of some clips and the queries of each for the backward pass, without the loss.

    A layer keeps, per token, what goes into its two LayerNorms (float32 always), into its linear maps and into the
    attention, and its MLP's hidden numbers before and after the GELU. Autocast also keeps a copy in 16 bits of every
    weight that passes a gradient on: one, however many clips there are. With `recompute`, layers keep their input only,
    and the backward pass holds one whole layer at a time, the largest of which is counted, or, if they are more, the
    copies of all weights, which the forward pass holds.

    Agrees with what autograd saves to 0.5 %. The working memory of single operations comes on top. Of a compiled model,
    or with dropout, it is not true.
    """
    narrow = BFLOAT16 if autocast else FLOAT32
    copied = BFLOAT16 if autocast else 0
    wide_in, wide_out = config.encoder_width, config.decoder_width
    video = config.video_tokens(num_frames)
    memory = video + config.aspect_token
    keys_values = memory_bytes(config, num_frames, autocast=autocast)["keys and values"]

    def layer(tokens: int, part: str, maps: int) -> tuple[int, int, int]:
        """(all it keeps, of that its input, copies of its weights); `maps`: square matrices of its attention for these
        tokens."""
        width, heads, hidden = (getattr(config, f"{part}_{size}") for size in ("width", "heads", "hidden"))
        exact = 2 * width + 4 + heads  # LayerNorms' inputs, their means and deviations, the attention's normalisers
        linear = (maps + 2) * width + 2 * hidden
        weights = maps * width**2 + 2 * width * hidden
        return tokens * (exact * FLOAT32 + linear * narrow), tokens * width * FLOAT32, weights * copied

    project_memory = (memory * (2 * FLOAT32 + wide_out * narrow), 0, 2 * wide_out**2 * copied)
    layers = [layer(memory if i % 2 else video, "encoder", maps=4) for i in range(config.encoder_layers)]
    layers += [project_memory, layer(num_queries, "decoder", maps=2)] * config.decoder_layers

    tubelet = RGB * config.tubelet * config.patch_size**2
    fourier, patch = COORDINATES * (1 + 2 * config.fourier_octaves), RGB * config.query_patch**2
    project = wide_in if wide_in != wide_out else 0
    embed_patch = wide_out if config.query_patch else 0
    ends = (
        video * tubelet * narrow
        + memory * (wide_in * FLOAT32 + project * narrow)
        + num_queries * ((fourier + patch + 2 * embed_patch) * narrow + 3 * wide_out * FLOAT32)
        + memory * wide_out * FLOAT32  # what the norms before keys and values are given
        + keys_values
    )
    copies_at_ends = (config.aspect_token * wide_in**2 + (project + embed_patch) * wide_out) * copied
    copies = copies_at_ends + sum(weights for _, _, weights in layers)
    if not recompute:
        return copies + clips * (ends + sum(whole for whole, _, _ in layers))
    one_layer = max(clips * (whole - inputs) + weights for whole, inputs, weights in layers)
    return clips * (ends + sum(inputs for _, inputs, _ in layers)) + max(copies, copies_at_ends + one_layer)


def table(config: ModelConfig, frames: list[int] | None, num_queries: int) -> str:
    """All figures, for clips of each number of frames: by default 16, 32 and 48, up to `clip_frames`, and that one.

    Raises ValueError for frames the model does not take, and for no queries.
    """
    frames = frames or sorted({t for t in FRAMES if t < config.clip_frames} | {config.clip_frames})
    if not all(1 <= t <= config.clip_frames for t in frames):
        raise ValueError(f"--frames {frames} must be from 1 to {config.clip_frames}, the model's clip_frames")
    if num_queries < 1:
        raise ValueError(f"--queries ({num_queries}) must be at least 1")
    counts = parameters(config)

    def row(label: str, number: Callable[[int], float]) -> str:
        return f"  {label:42}" + "".join(f"{three_digits(number(t)):>12}" for t in frames)

    lines = ["parameters", *(f"  {part:42}{count:>14,}" for part, count in counts.items())]
    lines += ["", f"{'frames of a clip':44}" + "".join(f"{t:>12}" for t in frames)]
    lines += ["", "GFLOP of matrix products, two per multiply-add"]
    lines += [
        row("encode a clip", lambda t: config.flops_encode(t) / 1e9),
        row("  of which keys and values", lambda t: config.flops_keys_values(t) / 1e9),
        row("decode a query", lambda t: config.flops_decode(1, t) / 1e9),
        row(f"decode {num_queries:,} queries", lambda t: config.flops_decode(num_queries, t) / 1e9),
    ]
    lines += ["", "GB to answer, besides working memory"]
    lines += [row("weights, float32", lambda _: counts["total"] * FLOAT32 / 1e9)]
    for precision, autocast in PRECISIONS.items():
        for part in ("tokens", "keys and values"):
            label = f"{part} of a clip, {precision}"
            lines += [row(label, lambda t, p=part, a=autocast: memory_bytes(config, t, autocast=a)[p] / 1e9)]
    lines += [row("video of a clip, uint8", lambda t: memory_bytes(config, t, autocast=False)["video"] / 1e9)]
    lines += ["", f"GB to train on one clip with {num_queries:,} queries, besides working memory"]
    lines += [row("weights, gradients, AdamW, float32", lambda _: counts["total"] * TRAINED_BYTES / 1e9)]
    for precision, autocast in PRECISIONS.items():
        for label, recompute in ((f"kept for the gradients, {precision}", False), ("  with layers recomputed", True)):
            switches = {"autocast": autocast, "recompute": recompute}
            lines += [row(label, lambda t, s=switches: saved_bytes(config, t, num_queries, **s) / 1e9)]
    return "\n".join(lines)


def three_digits(number: float) -> str:
    """0.485, 24.6, 16,814: three significant digits, and whole numbers whole."""
    return f"{number:,.{max(0, 2 - math.floor(math.log10(number)))}f}"
