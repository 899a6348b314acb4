"""An encoder that has seen much before: weights of video and image transformers that others trained.

    load_videomae(model, file)    VideoMAE and VideoMAE V2, S to g, as their authors or transformers wrote them
    load_timm(model, name)        any plain image ViT of timm; its kernel then looks at both frames of a tubelet alike

Block i becomes layer i, be that local or global. Both go the same way: names and layout into ours, a check that
nothing is missing or has no place, the patch kernel to our pixels and patch size, and only then into the model.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.config import ModelConfig
from model.d4rt import D4RT
from model.vit import KERNEL, KERNEL_BIAS, check, translate
from model.weights import read_tensors, usable

# timm is imported where it is needed: it takes seconds, and registered models, which carry this folder, do without.


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a file and of a model."""

    source: str
    loaded: tuple[str, ...]
    """The model's names."""
    resized: tuple[str, ...]
    """Those of them that had another size, with both sizes."""
    left_out: tuple[str, ...]
    """The file's names."""
    fresh: tuple[str, ...]
    """The model's names: nothing came for them."""

    def __str__(self) -> str:
        parts = {"loaded": self.loaded, "resized": self.resized, "left out": self.left_out, "fresh": self.fresh}
        lines = [f"  {part:9}{len(names):4}  {', '.join(folded(names))}" for part, names in parts.items()]
        return "\n".join([f"weights of {self.source}:", *lines])


def folded(names: Iterable[str]) -> list[str]:
    """Modules rather than tensors, and what is numbered only once: encoder.blocks.*, encoder.final_norm."""
    return list(dict.fromkeys(re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\..*", ".*", name)) for name in names))


def load_videomae(model: D4RT, path: str | Path) -> Report:
    """Give the encoder the weights of a VideoMAE file: from pretraining, distilled, fine-tuned or from transformers.

    The final norm stays as it is where the file has none, the biases of keys become 0. A kernel of another patch size
    is resized; in the OpenD4RT profile as OpenD4RT does it, which also shows it pixels from 0 to 1 unaccounted for.

    Raises ValueError, naming the file, for one that is not whole, not of this encoder's size, or holds anything that
    has no place here; the model is then as before.
    """
    source = str(path)
    state, left_out = translate(read_tensors(path), source)
    check(state, model, source)
    parity = model.config.compat == "opend4rt"
    if not parity:
        fold_pixels(state, ModelConfig.pixel_mean, ModelConfig.pixel_std, model.config)  # VideoMAE's are ImageNet's
    return install(model, state, left_out, source, plain_resize=parity)


def load_timm(model: D4RT, name: str) -> Report:
    """Give the encoder the weights of a plain image ViT of timm, as it names it: `vit_base_patch16_224`.

    They come from timm's hub or its cache, or with `NAME@FILE` from a file of this model. A video that stands still
    then gives the tokens of the image, in whatever normalisation the image model was trained.

    Raises ValueError, naming the model, if there is none, it cannot be had, is not of this encoder's size or is no
    plain ViT; our model is then as before.
    """
    import timm

    name, _, file = name.partition("@")
    source = f"timm:{name}" + (f"@{file}" if file else "")
    if name not in (names := [*timm.list_models(), *timm.list_pretrained()]):
        near = ", ".join(difflib.get_close_matches(name, names, n=3)) or "timm.list_models() lists them"
        raise ValueError(f"timm knows no model {name!r}; did you mean {near}?")
    with torch.device("meta"):  # names and shapes suffice to refuse it before anything is downloaded
        vit = timm.create_model(name)
    state, _ = translate(vit.state_dict(), source)
    heads = heads_of(vit, source)
    check(inflated(state, model.config.tubelet), model, source, heads)
    state, left_out = translate(read_tensors(file) if file else download(name), source)
    state = inflated(state, model.config.tubelet)
    check(state, model, source, heads)
    fold_pixels(state, vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"], model.config)
    return install(model, state, left_out, source, plain_resize=False)


def heads_of(vit: nn.Module, source: str) -> int:
    """Of a plain ViT. ValueError for one that computes something else, which the names of its weights do not show."""
    from timm.models.vision_transformer import Block, VisionTransformer

    block = vit.blocks[0] if isinstance(vit, VisionTransformer) else None
    if type(block) is not Block:
        blocks = "" if block is None else f" of {type(block).__name__}"
        raise ValueError(f"{source} is a {type(vit).__name__}{blocks}, no plain ViT: choose another")
    if str(block.mlp.act) != str(nn.GELU()):
        raise ValueError(f"{source} has the activation {block.mlp.act}, not the exact GELU: choose another")
    return block.attn.num_heads


def download(name: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"timm:{name} cannot be had: {error} Without internet, give a file of its weights: timm:{name}@FILE"
        ) from None


def full_name(name: str) -> str:
    """Of a timm model, with the weights that a bare name means today: vit_base_patch16_224.augreg2_in21k_ft_in1k."""
    import timm

    known = timm.get_pretrained_cfg(name)
    return f"{known.architecture}.{known.tag}" if known and known.tag else name


def inflated(state: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
    """The kernel of images (C, 3, h, w) for so many frames at a time: each has its share, so that still ones add up."""
    kernel = state[KERNEL].float() / frames
    return state | ({KERNEL: torch.stack([kernel] * frames, dim=2)} if kernel.ndim == 4 else {})


def fold_pixels(state: dict[str, Tensor], mean: tuple, std: tuple, config: ModelConfig) -> None:
    """Let the kernel, made for pixels (x - mean) / std, give the same for pixels as this model normalises them.

    With x = our std * y + our mean:  w (x - mean) / std  =  (w our std / std) y  +  w (our mean - mean) / std.
    """
    values = (mean, std, config.pixel_mean, config.pixel_std)
    mean, std, our_mean, our_std = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1, 1) for x in values)
    kernel = state[KERNEL].double()  # (C, 3, t, h, w)
    offset = (kernel * ((our_mean - mean) / std)).flatten(1).sum(1)
    state[KERNEL_BIAS] = (state[KERNEL_BIAS].double() + offset).float()
    state[KERNEL] = (kernel * (our_std / std)).float()


def fold_layer_scales(state: dict[str, Tensor]) -> None:
    """gamma * (W x + b) is a linear map itself."""
    for name in [name for name in state if name.endswith(".gamma")]:
        gamma, end = state.pop(name).float(), name.removesuffix(".gamma")
        state[f"{end}.weight"] = gamma[:, None] * state[f"{end}.weight"].float()
        state[f"{end}.bias"] = gamma * state[f"{end}.bias"].float()


def resized_kernel(kernel: Tensor, side: int, *, plain: bool) -> Tensor:
    """A patch kernel for another patch size, (C, 3, t, h, w) float32 -> (C, 3, t, side, side).

    To a patch that is resized it responds as before to the original: for a growing patch exactly, else as nearly as
    can be, and to a constant exactly (pseudo-inverse of the resize: FlexiViT, arXiv 2212.08013; with antialiasing
    constants would not be kept). `plain`: interpolated like a picture, as OpenD4RT does; 14 to 16 makes them 1.31 times
    as large.
    """
    if plain:
        return F.interpolate(kernel, size=(kernel.shape[2], side, side), mode="trilinear", align_corners=False)
    from timm.layers import resample_patch_embed

    slices = rearrange(kernel, "c rgb t h w -> (c t) rgb h w")
    slices = resample_patch_embed(slices, [side, side], antialias=False)
    return rearrange(slices, "(c t) rgb h w -> c rgb t h w", t=kernel.shape[2])


def install(
    model: D4RT, state: dict[str, Tensor], left_out: tuple[str, ...], source: str, *, plain_resize: bool
) -> Report:
    """Copy the checked tensors into the model, in its precision. ValueError, naming the source, for NaN among them."""
    state = usable(state, source)
    side, resized = model.config.patch_size, ()
    height, width = state[KERNEL].shape[3:]
    if (height, width) != (side, side):
        state[KERNEL] = resized_kernel(state[KERNEL].float(), side, plain=plain_resize)
        resized = (f"{KERNEL} from {height}x{width} to {side}x{side}",)
    fold_layer_scales(state)
    model.load_state_dict(state, strict=False)
    names = list(model.state_dict())
    loaded, fresh = (tuple(name for name in names if (name in state) == wanted) for wanted in (True, False))
    return Report(source, loaded, resized, left_out, fresh)
