"""Starting the encoder from files in the official layouts: same numbers as the official formulas and as timm itself."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from model import D4RT, ModelConfig, checkpoints
from model.config import OPEND4RT
from model.vit import check, translate

WIDTH, LAYERS, HEADS, HIDDEN = 48, 4, 4, 96
CONFIG = replace(
    ModelConfig.preset("tiny"),
    encoder_width=WIDTH,
    encoder_layers=LAYERS,
    encoder_heads=HEADS,
    encoder_hidden=HIDDEN,
    patch_size=16,
)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


# ---- files as others write them: names from the official code, numbers at random ----


def encoder(width=WIDTH, layers=LAYERS, hidden=HIDDEN, patch=16, device="cpu") -> dict[str, Tensor]:
    """The encoder of VideoMAE V2 by its official names, without its final norm."""
    shapes = {"patch_embed.proj.weight": (width, 3, 2, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(layers):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.norm1.bias": (width,),
            f"blocks.{i}.attn.q_bias": (width,),
            f"blocks.{i}.attn.v_bias": (width,),
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.norm2.bias": (width,),
            f"blocks.{i}.mlp.fc1.weight": (hidden, width),
            f"blocks.{i}.mlp.fc1.bias": (hidden,),
            f"blocks.{i}.mlp.fc2.weight": (width, hidden),
            f"blocks.{i}.mlp.fc2.bias": (width,),
        }
    torch.manual_seed(0)
    return {name: 0.2 * torch.randn(shape, device=device) for name, shape in shapes.items()}


def pretraining(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`vit_*_pt_*.pth`: an encoder with its norm, and a decoder."""
    width = len(weights["patch_embed.proj.bias"])
    extra = {"encoder.norm.weight": torch.ones(width), "encoder.norm.bias": torch.zeros(width)}
    decoder = ("mask_token", "encoder_to_decoder.weight", "decoder.blocks.0.attn.q_bias", "decoder.norm.weight")
    rest = {name: torch.ones(3) for name in (*decoder, "decoder.head.weight")}
    return {f"encoder.{name}": tensor for name, tensor in weights.items()} | extra | rest


def distilled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`vit_b_k710_dl_from_giant.pth`, and fine-tuned ones."""
    return weights | {name: torch.ones(3) for name in ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")}


def transformers(weights: dict[str, Tensor], prefix: str = "videomae.") -> dict[str, Tensor]:
    """`VideoMAEForVideoClassification` of transformers; without prefix `VideoMAEModel`."""
    official = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    theirs = {}
    for name, tensor in weights.items():
        if name.startswith("patch_embed"):
            theirs[name.replace("patch_embed.proj", f"{prefix}embeddings.patch_embeddings.projection")] = tensor
            continue
        _, layer, rest = name.split(".", 2)
        layer = f"{prefix}encoder.layer.{layer}"
        if rest == "attn.qkv.weight":
            for part, matrix in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[f"{layer}.attention.attention.{part}.weight"] = matrix
        elif rest.endswith(("q_bias", "v_bias")):
            theirs[f"{layer}.attention.{rest.replace('attn', 'attention')}"] = tensor
        else:
            stem, kind = rest.rsplit(".", 1)
            theirs[f"{layer}.{official[stem]}.{kind}"] = tensor
    if prefix:
        theirs |= {name: torch.ones(3) for name in ("fc_norm.weight", "classifier.weight", "classifier.bias")}
    return theirs


def fresh(config: ModelConfig = CONFIG) -> D4RT:
    torch.manual_seed(1)
    return D4RT(config).eval()


def loaded(folder: Path, payload: object, config: ModelConfig = CONFIG) -> D4RT:
    torch.save(payload, folder / "videomae.pth")
    model = fresh(config)
    checkpoints.load_videomae(model, folder / "videomae.pth")
    return model


def video(frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (1, frames, 64, 64, 3), dtype=torch.uint8, generator=generator)


def tokens(model: D4RT) -> Tensor:
    with torch.no_grad():
        return model.encoder(video(), torch.ones(1, 1, CONFIG.encoder_width))


# ---- VideoMAE ----


def test_every_tensor_of_a_pretraining_file_has_its_place_bit_for_bit(tmp_path):
    weights = encoder()
    payload = pretraining(weights)
    payload |= {"encoder.norm.weight": torch.randn(WIDTH), "encoder.norm.bias": torch.randn(WIDTH)}
    state = loaded(tmp_path, {"model": payload, "epoch": 3}).state_dict()
    pairs = {
        "encoder.patch_embed": "patch_embed.proj",
        **{f"encoder.blocks.{i}.norm_attn": f"blocks.{i}.norm1" for i in range(LAYERS)},
        **{f"encoder.blocks.{i}.attn.out": f"blocks.{i}.attn.proj" for i in range(LAYERS)},
        **{f"encoder.blocks.{i}.norm_ff": f"blocks.{i}.norm2" for i in range(LAYERS)},
        **{f"encoder.blocks.{i}.ff.0": f"blocks.{i}.mlp.fc1" for i in range(LAYERS)},
        **{f"encoder.blocks.{i}.ff.2": f"blocks.{i}.mlp.fc2" for i in range(LAYERS)},
    }
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            assert torch.equal(state[f"{ours}.{kind}"], weights[f"{theirs}.{kind}"]), ours
    for i in range(LAYERS):
        attn = f"encoder.blocks.{i}.attn.qkv"
        assert torch.equal(state[f"{attn}.weight"], weights[f"blocks.{i}.attn.qkv.weight"])
        q, k, v = state[f"{attn}.bias"].split(WIDTH)
        assert torch.equal(q, weights[f"blocks.{i}.attn.q_bias"]) and torch.equal(v, weights[f"blocks.{i}.attn.v_bias"])
        assert not k.any()
    for kind in ("weight", "bias"):
        assert torch.equal(state[f"encoder.final_norm.{kind}"], payload[f"encoder.norm.{kind}"])
    untouched = fresh().state_dict()
    assert all(torch.equal(state[name], untouched[name]) for name in state if not name.startswith("encoder."))


STYLES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "pre-training": lambda w: {"model": pretraining(w)},
    "distilled": lambda w: {"module": distilled(w)},
    "fine-tuned, nothing around it": distilled,
    "trained in parallel": lambda w: {f"module.{name}": tensor for name, tensor in distilled(w).items()},
    "below model.": lambda w: {f"model.{name}": tensor for name, tensor in distilled(w).items()},
    "transformers": transformers,
    "transformers, the bare model": lambda w: transformers(w, prefix=""),
}


@pytest.mark.parametrize("style", STYLES)
def test_all_styles_give_the_same_encoder(tmp_path, style):
    """And half precision is widened: these numbers exist in it."""
    weights = {name: tensor.half().float() for name, tensor in encoder().items()}
    expected = tokens(loaded(tmp_path, {"model": pretraining(weights)}))
    assert (expected - tokens(fresh())).abs().max() > 0.1
    model = loaded(tmp_path, STYLES[style]({name: tensor.half() for name, tensor in weights.items()}))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(tokens(model), expected)


def test_safetensors_are_read_too(tmp_path):
    save_file(transformers(encoder()), tmp_path / "model.safetensors")
    model = fresh()
    checkpoints.load_videomae(model, tmp_path / "model.safetensors")
    assert torch.equal(tokens(model), tokens(loaded(tmp_path, encoder())))


def test_layers_compute_what_videomae_computes(tmp_path):
    """Its block, written out from the file's own tensors."""
    weights = {name: tensor.double() for name, tensor in encoder().items()}
    model = loaded(tmp_path, encoder())
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    for i in range(LAYERS):
        w = {name.removeprefix(f"blocks.{i}."): t for name, t in weights.items() if name.startswith(f"blocks.{i}.")}
        bias = torch.cat([w["attn.q_bias"], torch.zeros(WIDTH), w["attn.v_bias"]])
        qkv = norm(x, f"blocks.{i}.norm1") @ w["attn.qkv.weight"].T + bias
        q, k, v = qkv.view(2, 7, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        y = x + mixed.transpose(1, 2).reshape(2, 7, WIDTH) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        hidden = norm(y, f"blocks.{i}.norm2") @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        y = y + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
        torch.testing.assert_close(model.encoder.blocks[i](x.float()).double(), y, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.5, 0.6, 0.7)}])
def test_tokens_are_videomaes_convolution_of_imagenet_pixels(tmp_path, changes):
    """However the model itself normalises."""
    weights = encoder()
    model = loaded(tmp_path, weights, replace(CONFIG, **changes))
    pixels = ((video() / 255 - MEAN) / STD).permute(0, 4, 1, 2, 3)  # (B, 3, T, H, W)
    maps = F.conv3d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=(2, 16, 16))
    torch.testing.assert_close(model.encoder.patch_embed(video()), maps.flatten(2).mT, atol=1e-4, rtol=1e-4)


# The official sizes: name, width, layers, heads, hidden, patch.
SIZES = [
    ("small", 384, 12, 6, 1536, 16),
    ("base", 768, 12, 12, 3072, 16),
    ("large", 1024, 24, 16, 4096, 16),
    ("huge", 1280, 32, 16, 5120, 16),
    ("giant", 1408, 40, 16, 6144, 14),
]


@pytest.mark.parametrize(("preset", "width", "layers", "heads", "hidden", "patch"), SIZES)
@pytest.mark.parametrize("style", ["pre-training", "transformers"])
def test_all_official_sizes_fit_their_preset(preset, width, layers, heads, hidden, patch, style):
    with torch.device("meta"):  # names and shapes only
        model = D4RT(ModelConfig.preset(preset))
    assert model.config.encoder_heads == heads
    weights = encoder(width, layers, hidden, patch, device="meta")
    state, _ = translate(pretraining(weights) if style == "pre-training" else transformers(weights), "FILE")
    check(state, model, "FILE")
    missing = {name for name in model.state_dict() if name.startswith("encoder.")} - state.keys()
    assert missing == (set() if style == "pre-training" else {"encoder.final_norm.weight", "encoder.final_norm.bias"})
    with pytest.raises(ValueError, match=rf"encoder_heads {heads} there, {heads // 2} here\): the preset '{preset}'"):
        check(state, replace_config(model, encoder_heads=heads // 2), "FILE")


def replace_config(model: D4RT, **changes) -> D4RT:
    with torch.device("meta"):
        return D4RT(replace(model.config, **changes))


# ---- another patch size ----


def responses(kernel: Tensor, patch: Tensor) -> Tensor:
    """(C, 3, t, p, p), (p, p) in all channels and frames -> (C,)"""
    return (kernel * patch).sum(dim=(1, 2, 3, 4))


def test_a_kernel_of_14_pixels_responds_at_16_as_before(tmp_path):
    weights = encoder(patch=14)
    before = weights["patch_embed.proj.weight"]
    after = loaded(tmp_path, weights).encoder.patch_embed.weight.detach()
    assert after.shape == (WIDTH, 3, 2, 16, 16)
    patches = [torch.ones(14, 14), torch.arange(14.0).expand(14, 14), torch.arange(14.0)[:, None].expand(14, 14)]
    for patch in [*patches, torch.rand(14, 14)]:
        larger = F.interpolate(patch[None, None], size=(16, 16), mode="bicubic")[0, 0]
        torch.testing.assert_close(responses(after, larger), responses(before, patch), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.sum((3, 4)), before.sum((3, 4)), atol=1e-4, rtol=1e-4)  # each frame for itself


def test_a_kernel_that_shrinks_keeps_its_response_to_a_constant(tmp_path):
    weights = encoder(patch=16)
    model = loaded(tmp_path, weights, replace(CONFIG, patch_size=8))
    before, after = weights["patch_embed.proj.weight"], model.encoder.patch_embed.weight.detach()
    torch.testing.assert_close(after.sum((1, 2, 3, 4)), before.sum((1, 2, 3, 4)), atol=1e-4, rtol=1e-4)


def test_the_opend4rt_profile_interpolates_the_kernel_like_a_picture(tmp_path):
    weights = encoder(patch=14)
    weights["patch_embed.proj.weight"][0] = 0.5
    model = loaded(tmp_path, weights, replace(CONFIG, **OPEND4RT))
    after, before = model.encoder.patch_embed.weight.detach(), weights["patch_embed.proj.weight"]
    assert (after[0].sum() / before[0].sum()).item() == pytest.approx(1.306, 1e-3)  # of a constant: 16^2 / 14^2
    at, known = (np.arange(16) + 0.5) * 14 / 16, np.arange(14) + 0.5
    rows = np.stack([np.interp(at, known, before[3, 2, 1, :, x].numpy()) for x in range(14)], axis=1)
    expected = np.stack([np.interp(at, known, rows[y]) for y in range(16)])
    np.testing.assert_allclose(after[3, 2, 1].numpy(), expected, atol=1e-6)
    assert torch.equal(model.encoder.patch_embed.bias, weights["patch_embed.proj.bias"])


# ---- timm ----


def image_model(name: str, folder: Path) -> tuple[torch.nn.Module, str]:
    """A model of timm in its smallest size, every weight at random, and what `load_timm` calls it."""
    vit = timm.create_model(name, img_size=64).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    save_file(vit.state_dict(), folder / f"{name}.safetensors")
    return vit, f"{name}@{folder}/{name}.safetensors"


def config_for(vit: torch.nn.Module, **changes) -> ModelConfig:
    sizes = {"encoder_width": 64, "encoder_layers": len(vit.blocks), "encoder_hidden": 192, "encoder_heads": 2}
    return replace(CONFIG, **sizes, **changes)


@pytest.mark.parametrize("changes", [{}, {"pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)}])
def test_a_still_clip_gives_the_tokens_of_the_image_in_its_own_normalisation(tmp_path, changes):
    vit, name = image_model("test_vit", tmp_path)
    assert vit.pretrained_cfg["mean"] == vit.pretrained_cfg["std"] == (0.5, 0.5, 0.5)  # not ours
    model = fresh(config_for(vit, **changes))
    checkpoints.load_timm(model, name)
    still = video(frames=1)
    expected = vit.patch_embed((still[:, 0].permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).flatten(1, -2)
    torch.testing.assert_close(model.encoder.patch_embed(still.repeat(1, 2, 1, 1, 1)), expected, atol=1e-4, rtol=1e-4)


def test_a_grey_image_gives_the_same_at_another_patch_size(tmp_path):
    vit, name = image_model("test_vit", tmp_path)
    model = fresh(config_for(vit, patch_size=8))
    checkpoints.load_timm(model, name)
    grey = torch.full((1, 2, 64, 64, 3), 90, dtype=torch.uint8)
    expected = vit.patch_embed((grey[:, 0].permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).flatten(1, -2)
    torch.testing.assert_close(model.encoder.patch_embed(grey)[:, 0], expected[:, 0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])  # the second one has LayerScale, registers and fc_norm
def test_layers_compute_what_those_of_timm_compute(tmp_path, name):
    vit, source = image_model(name, tmp_path)
    assert hasattr(vit.blocks[0].ls1, "gamma") == (name == "test_vit2")
    model = fresh(config_for(vit))
    checkpoints.load_timm(model, source)
    x = torch.randn(2, 9, vit.embed_dim)
    for ours, theirs in zip(model.encoder.blocks, vit.blocks, strict=True):
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
    expected = vit.norm(x) if name == "test_vit" else F.layer_norm(x, [64], eps=1e-6)
    torch.testing.assert_close(model.encoder.final_norm(x), expected, atol=1e-5, rtol=1e-5)


def test_a_name_alone_is_looked_up_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    vit = timm.create_model("test_vit")
    repository = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = fresh(config_for(vit))
    with pytest.raises(ValueError, match=r"test_vit cannot be had: .* give a file of its weights: timm:test_vit@FILE"):
        checkpoints.load_timm(model, "test_vit")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(vit.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    checkpoints.load_timm(model, "test_vit")
    torch.testing.assert_close(model.encoder.blocks[5].ff[0].weight, vit.blocks[5].mlp.fc1.weight)


# ---- what is said, and what is refused ----


def test_the_report_accounts_for_every_tensor(tmp_path):
    payload = distilled(encoder(patch=14))
    torch.save(payload, tmp_path / "file.pth")
    model = fresh()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = checkpoints.load_videomae(model, tmp_path / "file.pth")
    assert set(report.loaded) | set(report.fresh) == set(before) and not set(report.loaded) & set(report.fresh)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(report.loaded)
    assert {"encoder.final_norm.weight", "aspect_proj.0.weight", "heads.bias"} <= set(report.fresh)
    assert report.left_out == ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
    shown = str(report).splitlines()
    assert shown[0] == f"weights of {tmp_path}/file.pth:"
    assert shown[1].split() == ["loaded", str(2 + LAYERS * 12), "encoder.patch_embed,", "encoder.blocks.*"]
    assert shown[2].split(maxsplit=2) == ["resized", "1", "encoder.patch_embed.weight from 14x14 to 16x16"]
    assert shown[3].split() == ["left", "out", "4", "fc_norm,", "head"]
    assert "encoder.final_norm, aspect_proj.*" in shown[4]


def without(*ends: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in encoder().items() if not name.endswith(ends)}


VIDEOMAE_REFUSED = {
    "no kernel": (lambda: without("patch_embed.proj.weight"), "holds 0 patch embeddings"),
    "no bias of it": (lambda: without("patch_embed.proj.bias"), "missing: encoder.patch_embed.bias"),
    "a missing tensor": (lambda: without("blocks.2.mlp.fc1.weight"), "missing: encoder.blocks.2.ff.0.weight"),
    "a missing block": (
        lambda: {name: tensor for name, tensor in encoder().items() if ".1." not in name},
        "missing: encoder.blocks.1.attn.out.bias, ",
    ),
    "a missing key": (
        lambda: {name: t for name, t in transformers(encoder()).items() if "1.attention.attention.key" not in name},
        "missing: encoder.blocks.1.attn.qkv.weight; unexpected: encoder.blocks.1.attn.query.weight, ",
    ),
    "half a norm": (
        lambda: {name: t for name, t in pretraining(encoder()).items() if name != "encoder.norm.bias"},
        "missing: encoder.final_norm.bias",
    ),
    "another shape": (
        lambda: encoder() | {"blocks.0.mlp.fc2.weight": torch.ones(HIDDEN, WIDTH)},
        r"encoder.blocks.0.ff.2.weight is \(96, 48\), the config asks for \(48, 96\)",
    ),
    "three frames a tubelet": (
        lambda: encoder() | {"patch_embed.proj.weight": torch.ones(WIDTH, 3, 3, 16, 16)},
        r"encoder.patch_embed.weight is \(48, 3, 3, 16, 16\)",
    ),
    "a model of images": (
        lambda: encoder() | {"patch_embed.proj.weight": torch.ones(WIDTH, 3, 16, 16)},
        r"encoder.patch_embed.weight is \(48, 3, 16, 16\)",
    ),
    "something unknown": (
        lambda: encoder() | {f"blocks.{i}.attn.q_norm.weight": torch.ones(12) for i in range(4)} | {"a": torch.ones(1)},
        r"no place for blocks\.\*\.attn\.q_norm\.weight, a$",
    ),
    "integers": (
        lambda: encoder() | {"blocks.3.norm1.weight": torch.ones(WIDTH, dtype=torch.int8)},
        r"quantised \(encoder.blocks.3.norm_attn.weight torch.int8\)",
    ),
    "fewer layers": (
        lambda: encoder(layers=2),
        r"\(encoder_layers 2 there, 4 here\): no preset has it, so set --model\.\*",
    ),
    "a size with a preset": (
        lambda: encoder(width=384, layers=12, hidden=1536),
        r"\(encoder_width 384 there, 48 here, .*encoder_heads 6 there, 4 here\): the preset 'small' has it",
    ),
}


@pytest.mark.parametrize("case", VIDEOMAE_REFUSED)
def test_a_videomae_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, case):
    payload, message = VIDEOMAE_REFUSED[case]
    torch.save(payload(), tmp_path / "file.pth")
    model = fresh()
    with pytest.raises(ValueError, match=rf"file\.pth .*{message}"):
        checkpoints.load_videomae(model, tmp_path / "file.pth")
    untouched = fresh().state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_bass_patch16_224", r"timm knows no model 'vit_bass_patch16_224'; did you mean vit_base_patch16_224"),
        ("vit_base_patch16_224.nonsense", r"timm knows no model .*did you mean vit_base_patch16_224"),
        ("hf-hub:timm/vit_base_patch16_224", "timm knows no model"),
        ("resnet18", "timm:resnet18 holds 0 patch embeddings"),
        ("vit_base_patch16_224", r"encoder_width 768 there, 48 here.*the preset 'base' has it"),
        ("vit_base_patch16_rope_224", r"no place for blocks\.\*\.gamma_1, blocks\.\*\.gamma_2"),
        ("vit_base_patch16_clip_224", r"no place for norm_pre\.weight, norm_pre\.bias"),
        ("vit_base_patch16_clip_quickgelu_224", "no place for norm_pre"),
        ("vit_base_patch16_rpn_224", "VisionTransformer of ResPostBlock, no plain ViT"),
        ("eva02_tiny_patch14_224", "no place for|is a Eva"),
        ("vit_giant_patch14_dinov2", r"has the activation SiLU\(\), not the exact GELU"),
        ("vit_base_patch32_siglip_256", r"has the activation GELUTanh\(\)"),
        ("test_vit3", "encoder_layers 9 there, 4 here"),
    ],
)
def test_an_image_model_of_another_kind_is_refused_before_anything_is_downloaded(name, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.load_timm(fresh(), name)


def test_the_heads_of_an_image_model_must_be_ours(tmp_path):
    vit, name = image_model("test_vit", tmp_path)
    with pytest.raises(ValueError, match=r"encoder_heads 2 there, 4 here"):
        checkpoints.load_timm(fresh(replace(config_for(vit), encoder_heads=4)), name)


def test_a_file_of_another_image_model_is_refused(tmp_path):
    vit, name = image_model("test_vit", tmp_path)
    model = fresh(replace(config_for(vit), encoder_layers=8))
    with pytest.raises(ValueError, match=r"test_vit2@.* is another encoder \(encoder_layers 6 there, 8 here\)"):
        checkpoints.load_timm(model, name.replace("test_vit@", "test_vit2@"))


# ---- timestep tables ----


def state_of(frames: int) -> dict[str, Tensor]:
    torch.manual_seed(4)
    state = D4RT(replace(CONFIG, clip_frames=frames)).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def tables(state: dict[str, Tensor]) -> list[np.ndarray]:
    return [state[f"query_embedder.t_{which}_embed.weight"].numpy() for which in ("src", "tgt", "cam")]


@pytest.mark.parametrize(("before", "now"), [(32, 48), (48, 32), (4, 7), (7, 4), (1, 3), (3, 1), (8, 8)])
def test_timestep_tables_grow_and_shrink(before, now):
    state = state_of(before)
    rules = {
        "linear": lambda table: np.stack(
            [np.interp(np.linspace(0, before - 1, now), np.arange(before), column) for column in table.T], axis=1
        ),
        "nearest": lambda table: table[[n * before // now for n in range(now)]],
        "repeat": lambda table: np.concatenate([table, np.repeat(table[-1:], now, axis=0)])[:now],
    }
    for how, rule in rules.items():
        resized = checkpoints.resize_tables(state, now, how)
        for found, table in zip(tables(resized), tables(state), strict=True):
            np.testing.assert_allclose(found, rule(table), atol=1e-6)
            if before == now:
                np.testing.assert_array_equal(found, table)
        assert all(resized[name] is state[name] for name in state if "_embed.weight" not in name or "patch" in name)
        D4RT(replace(CONFIG, clip_frames=now)).load_state_dict(resized, strict=True)
