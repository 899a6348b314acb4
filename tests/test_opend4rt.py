"""OpenD4RT's files: every form in which they come, what does not fit, and what we write for them.

That the numbers agree is shown in `test_opend4rt_numbers.py`.
"""

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from torch import Tensor

from model import D4RT, ModelConfig, checkpoints
from model.__main__ import main as model_main
from model.config import OPEND4RT
from model.opend4rt import to_opend4rt
from model.weights import read_tensors
from pipelines.models import load_model
from train.__main__ import main

CONFIG = replace(ModelConfig.preset("tiny"), decoder_width=64, **OPEND4RT)


def their_keys(frames: int, *, encoder: tuple, decoder: tuple, patch: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in order, from the table of OpenD4RT's checkpoints; a part is (width, layers, hidden)."""
    (c, encoder_layers, c_hidden), (d, decoder_layers, d_hidden) = encoder, decoder

    def linear(name: str, rows: int, columns: int) -> dict:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name: str, width: int) -> dict:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def attention(name: str, width: int) -> dict:
        packed = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
        return packed | linear(f"{name}.out_proj", width, width)

    keys = {"encoder.patch_embed.weight": (c, 3, 2, patch, patch), "encoder.patch_embed.bias": (c,)}
    for i in range(encoder_layers):
        layer = f"encoder.blocks.{i}"
        keys |= norm(f"{layer}.norm_attn", c) | attention(f"{layer}.attn", c) | norm(f"{layer}.norm_ff", c)
        keys |= linear(f"{layer}.ff.0", c_hidden, c) | linear(f"{layer}.ff.3", c, c_hidden)
    keys |= norm("encoder.final_norm", c)
    keys |= linear("aspect_ratio_proj.0", c, 1) | linear("aspect_ratio_proj.2", c, c)
    keys |= linear("memory_proj", d, c) | linear("query_embedder.uv_proj", d, 34)
    keys |= {f"query_embedder.t_{time}_embed.weight": (frames, d) for time in ("src", "tgt", "cam")}
    keys |= linear("query_embedder.patch_proj.0", d, 243) | linear("query_embedder.patch_proj.2", d, d)
    keys |= norm("query_embedder.out_norm", d)
    for i in range(decoder_layers):
        layer = f"decoder.blocks.{i}"
        keys |= norm(f"{layer}.norm_q", d) | norm(f"{layer}.norm_kv", d) | attention(f"{layer}.cross_attn", d)
        keys |= norm(f"{layer}.norm_ff", d)
        keys |= linear(f"{layer}.ff.0", d_hidden, d) | linear(f"{layer}.ff.3", d, d_hidden)
    keys |= norm("decoder.out_norm", d)
    heads = {"xyz": 3, "uv": 2, "visibility": 1, "displacement": 3, "normal": 3, "confidence": 1}
    for name, rows in heads.items():
        keys |= linear(f"heads.{name}_head", rows, d)
    return keys


TINY_KEYS = their_keys(4, encoder=(96, 4, 384), decoder=(64, 3, 384), patch=8)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in TINY_KEYS.items()}


@pytest.fixture
def config_yaml(tmp_path) -> Path:
    """As theirs: more words than anybody reads, `mlp_ratio` rounded."""
    document = {
        "model": {
            "clip_frames": 4,
            "input_size": [64, 64],
            "encoder": {"variant": "vit-x", "embed_dim": 96, "depth": 4, "num_heads": 4, "mlp_ratio": 4.0001},
            "decoder": {"dim": 64, "num_layers": 3, "num_heads": 4, "query_self_attention": False},
            "heads": {"xyz_head": {"dim": 3}, "output_dim_total": 13},
        }
    }
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def saved(payload: object, folder: Path) -> Path:
    torch.save(payload, folder / "opend4rt.ckpt")
    return folder / "opend4rt.ckpt"


@pytest.mark.parametrize("frames", [32, 48])
def test_the_released_sizes_have_their_627_tensors(frames):
    with torch.device("meta"):
        model = D4RT(replace(ModelConfig.preset("giant"), clip_frames=frames, **OPEND4RT))
    ours = {name: tuple(tensor.shape) for name, tensor in to_opend4rt(model.state_dict()).items()}
    theirs = their_keys(frames, encoder=(1408, 40, 6144), decoder=(1280, 8, 4480), patch=16)
    assert list(ours.items()) == list(theirs.items())
    assert len(ours) == 627
    published = {32: 1_162_433_293, 48: 1_162_494_733}
    assert sum(tensor.numel() for tensor in model.parameters()) == published[frames]


def trainer_payload(state: dict) -> dict:
    """What OpenD4RT's trainer saves."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimiser = torch.optim.AdamW([parameter])
    optimiser.step()
    return {
        "model": state,
        "optimizer": optimiser.state_dict(),
        "scheduler": {"step_id": 6000},
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "global_step": 6000,
        "best_val": None,
        "best_metric_name": "loss",
        "train_config": {"lr": 4e-6, "datasets": ["kubric"]},
    }


FORMS = {
    "with optimiser": trainer_payload,
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 1},
    "module": lambda state: {"module": state},
    "network": lambda state: {"network": state},
    "net": lambda state: {"net": state},
    "prefixed": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    "compiled": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_file_gives_the_same_model(form, state, config_yaml, tmp_path):
    model = checkpoints.load_opend4rt(saved(FORMS[form](state), tmp_path), config_yaml)
    assert model.config == CONFIG and not model.training
    layer, theirs = model.decoder.blocks[2].cross_attn, state["decoder.blocks.2.cross_attn.in_proj_weight"]
    assert torch.equal(layer.q.weight, theirs[:64]) and torch.equal(layer.kv.weight, theirs[64:])
    assert torch.equal(model.heads.bias[3:5], state["heads.uv_head.bias"])
    back = to_opend4rt(model.state_dict())
    assert list(back) == list(TINY_KEYS) and all(torch.equal(back[name], state[name]) for name in state)


def test_the_oldest_way_of_torch_to_save_and_half_precision_are_read(state, config_yaml, tmp_path):
    path = tmp_path / "opend4rt.ckpt"
    torch.save({"model": {name: x.half() for name, x in state.items()}}, path, _use_new_zipfile_serialization=False)
    model = checkpoints.load_opend4rt(path, config_yaml)
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.heads.weight[:3], state["heads.xyz_head.weight"].half().float())


def test_only_the_weights_of_a_large_file_are_read(state, config_yaml, tmp_path):
    """An optimiser three times the size of the weights stays on disk."""
    large = torch.zeros(3 << 24)  # 200 MB
    path = saved({"model": state, "optimizer": {"state": {0: {"exp_avg": large}}}}, tmp_path)
    del large
    before = resident_bytes()
    model = checkpoints.load_opend4rt(path, config_yaml)
    assert resident_bytes() - before < 50e6
    assert model.config == CONFIG


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_without_memory_projection_and_aspect_token(config_yaml, tmp_path):
    keys = their_keys(4, encoder=(96, 4, 384), decoder=(96, 3, 384), patch=8)
    state = {k: torch.ones(v) for k, v in keys.items() if not k.startswith(("memory_proj", "aspect_ratio_proj"))}
    document = yaml.safe_load(config_yaml.read_text())
    document["model"]["decoder"]["dim"] = 96
    config_yaml.write_text(yaml.safe_dump(document))
    model = checkpoints.load_opend4rt(saved(state, tmp_path), config_yaml)
    assert model.config == replace(CONFIG, decoder_width=96, aspect_token=False)


def without(name: str):
    return lambda state: {"model": {key: tensor for key, tensor in state.items() if key != name}}


def holds_itself() -> dict:
    payload = {}
    payload["model"] = payload
    return payload


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("heads.uv_head.bias"), "opend4rt.ckpt does not fit .*model.yaml. missing: heads.uv_head.bias"),
        (without("encoder.blocks.1.norm_ff.weight"), "missing: encoder.blocks.1.norm_ff.weight"),
        (without("query_embedder.uv_proj.weight"), "no tensor query_embedder.uv_proj.weight of OpenD4RT's form"),
        (lambda state: state | {"heads.depth_head.bias": torch.ones(1)}, "unexpected: heads.depth_head.bias"),
        (
            lambda state: state | {"decoder.out_norm.weight": torch.ones(63)},
            r"wrong shape: decoder.out_norm.weight is \(63,\), the config asks for \(64,\)",
        ),
        (
            lambda state: state | {"heads.xyz_head.weight": torch.ones(4, 64)},
            r"heads.xyz_head.weight is \(4, 64\), the config asks for \(3, 64\)",
        ),
        (
            lambda state: state | {"query_embedder.t_cam_embed.weight": torch.ones(5, 64)},
            r"t_cam_embed.weight is \(5, 64\), the config asks for \(4, 64\)",
        ),
        (
            lambda state: {"optimizer": {}, "global_step": 3},
            "holds optimizer, global_step, but no weights under any of",
        ),
        (lambda state: [1, 2], "holds a list, not weights by name"),
        (lambda state: holds_itself(), "holds a dict, not weights by name"),
        (lambda state: state | {7: torch.ones(1)}, "but no weights under any of"),
        (lambda state: {"model": state, "config": Path("/")}, "more than tensors and plain values, which is never"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(change, message, state, config_yaml, tmp_path):
    with pytest.raises(ValueError, match=message):
        checkpoints.load_opend4rt(saved(change(state), tmp_path), config_yaml)


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_byte_is_wrong_there_is_no_other_error(zipped, tmp_path):
    rng, path = random.Random(0), tmp_path / "opend4rt.ckpt"
    torch.save({"model": {"a": torch.ones(3, 4)}, "step": 1}, path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 30


def test_damaged_and_missing_files_are_refused_by_name(state, config_yaml, tmp_path):
    path = saved({"model": state}, tmp_path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"opend4rt\.ckpt is (damaged|neither)|opend4rt\.ckpt holds more than"):
            checkpoints.load_opend4rt(path, config_yaml)
    with pytest.raises(ValueError, match=r"none\.ckpt does not exist"):
        checkpoints.load_opend4rt(tmp_path / "none.ckpt", config_yaml)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        checkpoints.load_opend4rt(path, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("clip_frames: 8", "clip_frames is 4 by the tensors and 8 by the yaml: not a pair"),
        ("encoder: {depth: 6}", "encoder_layers is 4 by the tensors and 6 by the yaml"),
        ("decoder: {mlp_ratio: 4.0}", "decoder MLPs are 384 wide by the tensors, mlp_ratio 4.0 by the yaml"),
        ("encoder: {num_heads: 5}", r"encoder_width \(96\) must be a multiple of encoder_heads \(5\)"),
        ("encoder: {num_heads: four}", "model.yaml: num_heads is 'four', not a number"),
        ("{clip_frames: 4, data: {clip_frames: 8}}", "model.yaml: clip_frames is both 4 and 8"),
        ("- 1", "holds no fields of a model"),
        ("a: [", "is not YAML"),
        ("&all {clip_frames: 8, decoder: {again: *all}}", "clip_frames is 4 by the tensors and 8 by the yaml"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_yaml_that_says_otherwise_is_refused(document, message, state, config_yaml, tmp_path):
    config_yaml.write_text(document)
    with pytest.raises(ValueError, match=message):
        checkpoints.load_opend4rt(saved(state, tmp_path), config_yaml)


def test_heads_that_the_yaml_leaves_out_are_those_of_their_defaults(tmp_path, config_yaml):
    """By width: 12 at 768, 16 at 1024 and 1408, else 8; in the decoder one per 64 channels, 16 at most."""
    config_yaml.write_text("{}")
    for width, decoder_width, heads in ((768, 1280, (12, 16)), (96, 128, (8, 2))):
        keys = their_keys(4, encoder=(width, 2, 8), decoder=(decoder_width, 1, 8), patch=8)
        state = {name: torch.zeros(1).expand(shape) for name, shape in keys.items()}
        config = checkpoints.load_opend4rt(saved(state, tmp_path), config_yaml).config
        assert (config.encoder_heads, config.decoder_heads) == heads
        assert config.image_size == 256


def test_a_released_pair_is_registered_and_runs(state, config_yaml, tmp_path, monkeypatch, capsys):
    path = saved({"model": state}, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    command = ["register", "--opend4rt", str(path), "--config", str(config_yaml), "--name", "released"]
    assert main([*command, "--alias", "open"]) == 0
    assert "registered models:/released/1, alias open" in capsys.readouterr().out
    tags = mlflow.MlflowClient().get_model_version_by_alias("released", "open").tags
    assert tags["compat"] == "opend4rt" and tags["parameters"] == str(sum(x.numel() for x in state.values()))
    assert tags["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    registered = load_model("models:/released@open")
    assert all(torch.equal(x, state[name]) for name, x in to_opend4rt(registered.state_dict()).items())
    assert main(command[:3]) == 2
    assert "register takes either --checkpoint FOLDER, or --opend4rt CKPT with --config" in capsys.readouterr().err


def test_what_we_write_is_their_pair_and_comes_back(state, config_yaml, tmp_path, capsys):
    model = checkpoints.load_opend4rt(saved({"model": state}, tmp_path), config_yaml)
    folder = checkpoints.save_opend4rt(model, tmp_path / "export")
    assert sorted(path.name for path in folder.iterdir()) == ["model.yaml", "opend4rt.ckpt"]
    payload = torch.load(folder / "opend4rt.ckpt", weights_only=True)
    assert list(payload) == ["model"]
    assert {name: tuple(x.shape) for name, x in payload["model"].items()} == TINY_KEYS
    assert all(torch.equal(payload["model"][name], tensor) for name, tensor in state.items())
    again = checkpoints.load_opend4rt(folder / "opend4rt.ckpt", folder / "model.yaml")
    assert again.config == model.config
    # And through our own form of checkpoint, which keeps what OpenD4RT's weights need.
    ours = checkpoints.save(model, tmp_path / "ours")
    assert checkpoints.load(ours).config.compat == "opend4rt"
    assert model_main(["export", str(ours), "--to", "opend4rt", "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "opend4rt.ckpt").read_bytes() == (folder / "opend4rt.ckpt").read_bytes()
    assert model_main(["export", str(ours), "--to", "opend4rt", "--out", str(tmp_path / "again")]) == 2
    assert "again exists already and is not overwritten" in capsys.readouterr().err


def test_a_model_that_is_not_theirs_is_not_written_as_theirs(tmp_path):
    with pytest.raises(ValueError, match=r"OpenD4RT cannot run this model.*trained with --model.compat opend4rt"):
        checkpoints.save_opend4rt(D4RT(ModelConfig.preset("tiny")), tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("change", [{"norm_eps": 1e-6}, {"pixel_mean": (0.5,) * 3}, {"pos_layout": "resampled"}])
def test_what_their_weights_need_cannot_be_changed(change):
    with pytest.raises(ValueError, match=f"compat 'opend4rt' needs {next(iter(change))}"):
        replace(CONFIG, **change)
