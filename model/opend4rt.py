"""OpenD4RT's released checkpoints: our model with their weights gives their numbers, and theirs can load ours.

    opend4rt.ckpt     what torch.save wrote: {"model": weights by name, optimiser and more}
    model.yaml        sizes; a checkpoint says nothing of heads and image size

The architecture is the same (`ModelConfig` with the fields `OPEND4RT`), only tensors are laid out differently:

| OpenD4RT                                      | here                                                          |
|-----------------------------------------------|---------------------------------------------------------------|
| aspect_ratio_proj                             | aspect_proj                                                   |
| attn.in_proj_*, attn.out_proj                 | attn.qkv, attn.out                                            |
| cross_attn.in_proj_* rows of q, k, v          | cross_attn.q, cross_attn.kv                                   |
| ff.3                                          | ff.2; they count dropout as a layer                           |
| heads.xyz_head, uv_head, visibility_head, ... | heads: one matrix, rows in this order                         |
| no memory_proj where the widths agree         | the same                                                      |
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from model.config import OPEND4RT, RGB, TUBELET, ModelConfig
from model.d4rt import D4RT
from model.weights import check_state, read_tensors, readable, usable

CHECKPOINT, CONFIG = "opend4rt.ckpt", "model.yaml"
HEADS = ("xyz", "uv", "visibility", "displacement", "normal", "confidence")
HEAD_ROWS = (3, 2, 1, 3, 3, 1)
RENAMED = (  # theirs, ours
    ("aspect_ratio_proj.", "aspect_proj."),
    (".attn.in_proj_", ".attn.qkv."),
    ("attn.out_proj.", "attn.out."),
    (".ff.3.", ".ff.2."),
)
SPELLINGS = {  # in model.yaml, below `encoder` or `decoder`
    "width": ("embed_dim", "dim", "width", "hidden_dim", "hidden_size"),
    "layers": ("depth", "num_layers", "layers"),
    "heads": ("num_heads", "heads", "num_attention_heads"),
    "mlp_ratio": ("mlp_ratio", "ff_ratio"),
}
COMMON = {  # anywhere
    "clip_frames": ("clip_frames", "num_frames"),
    "image_size": ("image_size", "img_size", "input_size"),
    "fourier_octaves": ("uv_num_bands",),
}
DEFAULT_HEADS = {768: 12, 1024: 16, 1408: 16}
"""Of their encoders by width, where the yaml does not tell; 8 for others."""


def load_opend4rt(checkpoint: str | Path, config: str | Path) -> D4RT:
    """Their model, in eval mode on the CPU. Only the weights are read, out of a mapped file.

    Raises ValueError, naming the file, for one that is damaged or executable, for tensors that are missing, unexpected
    of the wrong shape or not finite, and for a yaml that says otherwise than the tensors.
    """
    theirs = usable(read_tensors(checkpoint), Path(checkpoint))
    sizes = config_of(theirs, read_yaml(config), f"{checkpoint} with {config}")
    with torch.device("meta"):  # no memory and no initialisation: the file's tensors become the weights
        model = D4RT(sizes)
    check_state(theirs, to_opend4rt(model.state_dict()), Path(checkpoint), str(config))
    model.load_state_dict(from_opend4rt(theirs), strict=True, assign=True)
    return model.eval()


def save_opend4rt(model: D4RT, folder: str | Path) -> Path:
    """Write the pair of files that OpenD4RT loads strictly, and return the folder. Each file appears whole.

    Raises ValueError for a model that theirs cannot represent.
    """
    config, folder = model.config, Path(folder)
    if config.compat != "opend4rt" or config.query_patch == 0:
        raise ValueError(
            "OpenD4RT cannot run this model: it feeds other positions, aspects and pixels to the weights (compat "
            f"{config.compat!r}, query_patch {config.query_patch}). Only models that came from OpenD4RT, or were "
            "trained with --model.compat opend4rt, go back to it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: x.detach().float().cpu().contiguous() for name, x in to_opend4rt(model.state_dict()).items()}
    torch.save({"model": state}, folder / f"{CHECKPOINT}.partial")
    (folder / f"{CONFIG}.partial").write_text(yaml.safe_dump(to_yaml(config), sort_keys=False))
    for name in (CHECKPOINT, CONFIG):
        os.replace(folder / f"{name}.partial", folder / name)
    return folder


def from_opend4rt(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names and layout -> ours."""
    ours: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if ".cross_attn.in_proj_" in name:
            layer, kind = name.split("in_proj_")
            ours[f"{layer}q.{kind}"], ours[f"{layer}kv.{kind}"] = tensor.split([len(tensor) // 3, len(tensor) * 2 // 3])
        elif not name.startswith("heads."):
            for old, new in RENAMED:
                name = name.replace(old, new)
            ours[name] = tensor
    for kind in ("weight", "bias"):
        ours[f"heads.{kind}"] = torch.cat([theirs[f"heads.{head}_head.{kind}"] for head in HEADS])
    return {name: tensor.clone() for name, tensor in ours.items()}  # whole tensors of our own, out of the mapped file


def to_opend4rt(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Back, in the order in which OpenD4RT lists them."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if ".cross_attn.q." in name:
            theirs[name.replace("q.", "in_proj_")] = torch.cat([tensor, ours[name.replace(".q.", ".kv.")]])
        elif name == "heads.weight":
            weights, biases = tensor.split(HEAD_ROWS), ours["heads.bias"].split(HEAD_ROWS)
            for head, weight, bias in zip(HEADS, weights, biases, strict=True):
                theirs |= {f"heads.{head}_head.weight": weight, f"heads.{head}_head.bias": bias}
        elif ".cross_attn.kv." not in name and name != "heads.bias":
            for old, new in RENAMED:
                name = name.replace(new, old)
            theirs[name] = tensor
    return theirs


def config_of(theirs: Mapping[str, Tensor], told: Mapping[str, Any], where: str) -> ModelConfig:
    """Sizes from the tensors themselves; heads and image size from the yaml. ValueError where the two disagree."""

    def shape(name: str, *axes: int) -> list[int]:
        if name not in theirs or theirs[name].ndim <= max(axes):
            raise ValueError(f"{where}: there is no tensor {name} of OpenD4RT's form, so this is no checkpoint of it")
        return [theirs[name].shape[axis] for axis in axes]

    encoder_width, channels, tubelet, patch = shape("encoder.patch_embed.weight", 0, 1, 2, 3)
    if (channels, tubelet) != (RGB, TUBELET):
        raise ValueError(f"{where}: encoder.patch_embed takes {channels} channels of {tubelet} frames, not 3 of 2")
    frames, decoder_width = shape("query_embedder.t_src_embed.weight", 0, 1)
    (uv_features,), (pixels,) = (
        shape("query_embedder.uv_proj.weight", 1),
        shape("query_embedder.patch_proj.0.weight", 1),
    )
    found = {
        "encoder_width": encoder_width,
        "encoder_layers": layers(theirs, "encoder"),
        "encoder_hidden": shape("encoder.blocks.0.ff.0.weight", 0)[0],
        "decoder_width": decoder_width,
        "decoder_layers": layers(theirs, "decoder"),
        "decoder_hidden": shape("decoder.blocks.0.ff.0.weight", 0)[0],
        "clip_frames": frames,
        "patch_size": patch,
        "fourier_octaves": (uv_features // 2 - 1) // 2,
        "query_patch": round((pixels / RGB) ** 0.5),
        "aspect_token": "aspect_ratio_proj.0.weight" in theirs,
    }
    for key in sorted(found.keys() & told.keys()):
        if told[key] != found[key]:
            raise ValueError(f"{where}: {key} is {found[key]} by the tensors and {told[key]} by the yaml: not a pair")
    for part in ("encoder", "decoder"):
        width, hidden, ratio = found[f"{part}_width"], found[f"{part}_hidden"], told.get(f"{part}_mlp_ratio")
        if ratio is not None and abs(ratio * width - hidden) > 1:  # theirs rounds up, and the ratio itself is rounded
            raise ValueError(f"{where}: {part} MLPs are {hidden} wide by the tensors, mlp_ratio {ratio} by the yaml")
    guess = {
        "encoder_heads": DEFAULT_HEADS.get(encoder_width, 8),
        "decoder_heads": min(max(decoder_width // 64, 1), 16),
        "image_size": 256,
    }
    return ModelConfig(**found, **(guess | {key: told[key] for key in guess.keys() & told.keys()}), **OPEND4RT)


def layers(theirs: Mapping[str, Tensor], part: str) -> int:
    numbers = (re.match(rf"{part}\.blocks\.(\d+)\.", name) for name in theirs)
    return 1 + max((int(number[1]) for number in numbers if number), default=0)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """What a model.yaml tells of our config's fields, and of `encoder_mlp_ratio` and `decoder_mlp_ratio`.

    Their yaml holds many more words, which their code does not read either. ValueError, naming file and field, for a
    file that is not YAML and for a size that is not a number.
    """
    try:
        with readable(path):
            if not Path(path).is_file():
                raise ValueError(f"{path} does not exist; give the model.yaml that belongs to the checkpoint")
            document = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no fields of a model")
    told: dict[str, Any] = {}
    seen: set[tuple[int, str | None]] = set()  # YAML can refer to what it holds, even to what holds it

    def walk(value: Any, part: str | None, name: str) -> None:
        if isinstance(value, dict):
            if (id(value), part) in seen:
                return
            seen.add((id(value), part))
            for key, inner in value.items():
                walk(inner, str(key) if key in ("encoder", "decoder") else part, str(key))
            return
        fields = {field for field, spellings in COMMON.items() if name in spellings}
        fields |= {f"{part}_{field}" for field, spellings in SPELLINGS.items() if part and name in spellings}
        for field in fields:
            number = value[0] if isinstance(value, list) and len(set(map(str, value))) == 1 else value  # [256, 256]
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"{path}: {name} is {value!r}, not a number")
            if told.setdefault(field, number) != number:
                raise ValueError(f"{path}: {name} is both {told[field]} and {number}")

    walk(document, None, "")
    return told


def to_yaml(config: ModelConfig) -> dict[str, Any]:
    """The fields of a model.yaml; `read_yaml` reads them back."""
    return {
        "clip_frames": config.clip_frames,
        "image_size": config.image_size,
        "aspect_ratio_token": config.aspect_token,
        "encoder": {
            "embed_dim": config.encoder_width,
            "depth": config.encoder_layers,
            "num_heads": config.encoder_heads,
            "mlp_ratio": config.encoder_hidden / config.encoder_width,
            "tubelet_size": [config.tubelet, config.patch_size, config.patch_size],
            "attention_pattern": "interleaved_local_framewise_and_global",
            "max_tokens": config.video_tokens(config.clip_frames),
            "pretrained": False,
        },
        "decoder": {
            "embed_dim": config.decoder_width,
            "depth": config.decoder_layers,
            "num_heads": config.decoder_heads,
            "mlp_ratio": config.decoder_hidden / config.decoder_width,
        },
        "query": {"uv_num_bands": config.fourier_octaves, "rgb_patch_size": config.query_patch},
    }
