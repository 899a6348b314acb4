"""The tensors of a plain vision transformer, by whatever names it was written down, as those of our encoder.

translate(weights)    our names, our layout; what an encoder does not need is set aside
check(state)          nothing is missing, nothing has another size
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from model.config import PRESETS
from model.d4rt import D4RT
from model.weights import check_state

KERNEL, KERNEL_BIAS = "encoder.patch_embed.weight", "encoder.patch_embed.bias"
FINAL_NORM = "encoder.final_norm."
PLAIN = {  # files of VideoMAE and timm: here, below `encoder.`
    "patch_embed.proj": "patch_embed",
    "blocks.*.norm1": "blocks.*.norm_attn",
    "blocks.*.attn": "blocks.*.attn",  # q_bias and v_bias; keys have none
    "blocks.*.attn.qkv": "blocks.*.attn.qkv",
    "blocks.*.attn.proj": "blocks.*.attn.out",
    "blocks.*.ls1": "blocks.*.attn.out",  # LayerScale: gamma
    "blocks.*.norm2": "blocks.*.norm_ff",
    "blocks.*.mlp.fc1": "blocks.*.ff.0",
    "blocks.*.mlp.fc2": "blocks.*.ff.2",
    "blocks.*.ls2": "blocks.*.ff.2",
    "norm": "final_norm",
}
TRANSFORMERS = {  # files of transformers
    "embeddings.patch_embeddings.projection": "patch_embed",
    "encoder.layer.*.layernorm_before": "blocks.*.norm_attn",
    "encoder.layer.*.attention.attention": "blocks.*.attn",
    "encoder.layer.*.attention.attention.query": "blocks.*.attn.query",
    "encoder.layer.*.attention.attention.key": "blocks.*.attn.key",
    "encoder.layer.*.attention.attention.value": "blocks.*.attn.value",
    "encoder.layer.*.attention.output.dense": "blocks.*.attn.out",
    "encoder.layer.*.layernorm_after": "blocks.*.norm_ff",
    "encoder.layer.*.intermediate.dense": "blocks.*.ff.0",
    "encoder.layer.*.output.dense": "blocks.*.ff.2",
    "layernorm": "final_norm",
}
KINDS = ("weight", "bias", "q_bias", "v_bias", "gamma")
TABLES = {"patch_embed.proj.weight": PLAIN, "embeddings.patch_embeddings.projection.weight": TRANSFORMERS}
"""Which table it is shows in the name of the kernel. What stands before that stands before every name."""
NOT_OURS = re.compile(  # pretraining's decoder, other tokens and positions, and what comes after the tokens
    r"(decoder|encoder_to_decoder|mask_token|cls_token|dist_token|reg_token|pos_embed"
    r"|fc_norm|attn_pool|head|head_dist|classifier)(\.|$)"
)


def translate(weights: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A file's weights -> (the encoder's tensors under our names and in our layout, names that it does not need).

    Raises ValueError for tensors that have no place.
    """
    kernels = [
        (name.removesuffix(end), table) for name in weights for end, table in TABLES.items() if name.endswith(end)
    ]
    if len(kernels) != 1:
        raise ValueError(f"{source} holds {len(kernels)} patch embeddings ({' or '.join(TABLES)}); a plain ViT has one")
    (prefix, table), state, left_out, homeless = kernels[0], {}, [], []
    for name, tensor in weights.items():
        inner = name.removeprefix(prefix)
        ours = renamed(inner, table) if name.startswith(prefix) else None
        if ours is not None:
            state[ours] = tensor
        else:
            (left_out if NOT_OURS.match(inner) else homeless).append(name)
    if homeless:
        numberless = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in homeless)
        raise ValueError(f"{source} is no plain ViT; in this encoder there is no place for {', '.join(numberless)}")
    for layer in layer_numbers(state):
        join_attention(state, f"encoder.blocks.{layer}.attn")
    return state, tuple(left_out)


def renamed(name: str, table: dict[str, str]) -> str | None:
    """blocks.3.norm1.bias -> encoder.blocks.3.norm_attn.bias; None if the table does not know it."""
    number = re.search(r"\.(\d+)\.", name)
    layer = number[1] if number else ""
    stem, _, kind = name.replace(f".{layer}.", ".*.", 1).rpartition(".")
    return f"encoder.{table[stem]}.{kind}".replace("*", layer) if stem in table and kind in KINDS else None


def layer_numbers(state: dict[str, Tensor]) -> list[int]:
    return sorted({int(number[1]) for name in state if (number := re.match(r"encoder\.blocks\.(\d+)\.", name))})


def join_attention(state: dict[str, Tensor], attn: str) -> None:
    """Queries, keys and values as one matrix with one bias, where they come apart. Keys come without bias: it is 0."""
    weights = [f"{attn}.{part}.weight" for part in ("query", "key", "value")]
    if alike(state, weights):
        state[f"{attn}.qkv.weight"] = torch.cat([state.pop(name) for name in weights])
    biases = [f"{attn}.q_bias", f"{attn}.v_bias"]
    if alike(state, biases):
        of_queries, of_values = (state.pop(name) for name in biases)
        state[f"{attn}.qkv.bias"] = torch.cat([of_queries, torch.zeros_like(of_values), of_values])


def alike(state: dict[str, Tensor], names: list[str]) -> bool:
    """All there and of one shape. Where not, `check` will say so."""
    shapes = {state[name].shape if name in state else torch.Size() for name in names}
    return len(shapes) == 1 and torch.Size() not in shapes


def check(state: dict[str, Tensor], model: D4RT, source: str, heads: int | None = None) -> None:
    """ValueError unless these are the tensors of this model's encoder; the kernel may have another patch size.

    `heads`: where they are known; weights do not tell, but all encoders of a size of ours have the same number.
    """
    config = model.config
    theirs = {
        "encoder_width": state[KERNEL].shape[:1].numel(),
        "encoder_layers": max(layer_numbers(state), default=-1) + 1,
        "encoder_hidden": next((tensor.numel() for name, tensor in state.items() if name.endswith(".ff.0.bias")), 0),
    }
    usual = (preset["encoder_heads"] for preset in PRESETS.values() if theirs.items() <= preset.items())
    theirs["encoder_heads"] = heads or next(usual, config.encoder_heads)
    if changed := [key for key, value in theirs.items() if getattr(config, key) != value]:
        differences = ", ".join(f"{key} {theirs[key]} there, {getattr(config, key)} here" for key in changed)
        fitting = [name for name, preset in PRESETS.items() if theirs.items() <= preset.items()]
        advice = f"the preset {fitting[0]!r} has it" if fitting else "no preset has it, so set --model.*"
        raise ValueError(f"{source} is another encoder ({differences}): {advice}, or choose other weights")
    expected = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("encoder.")}
    if not any(name.startswith(FINAL_NORM) for name in state):
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(FINAL_NORM)}
    if state[KERNEL].ndim == 5:
        expected[KERNEL] = torch.empty(*expected[KERNEL].shape[:3], *state[KERNEL].shape[3:], device="meta")
    expected |= {name: torch.empty(config.encoder_width) for name in state if name.endswith(".gamma")}
    check_state(state, expected, Path(source), "the encoder")
    if odd := [f"{name} {tensor.dtype}" for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise ValueError(f"{source} is quantised ({', '.join(odd)}): give a file of floating-point numbers")
