"""What `--init` gives, before Ray has any part in it."""

import os
from dataclasses import replace

import fsspec
import pytest
import timm
import torch
from safetensors.torch import save_file

from model import D4RT, ModelConfig, checkpoints
from model.config import OPEND4RT
from train.config import PRESETS, TrainConfig
from train.start import pinned, read_start, start_model

MODEL = replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=2)


def begun(init: str | None, model: ModelConfig = MODEL, **changes) -> TrainConfig:
    return pinned(replace(PRESETS["tiny"][1], init=init, model=model, **changes))


def saved(folder, model: ModelConfig = MODEL) -> D4RT:
    torch.manual_seed(7)
    made = D4RT(model)
    checkpoints.save(made, folder)
    return made


def test_without_a_start_weights_depend_on_the_seed_only():
    assert read_start(begun(None)) is None
    first, again, other = (start_model(begun(None, seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["heads.weight"], other["heads.weight"])


def test_a_checkpoint_of_the_same_model_is_taken_as_it_is(tmp_path, capsys):
    expected = saved(tmp_path).state_dict()
    config = begun(str(tmp_path))
    model = start_model(config, read_start(config).weights)
    assert model.training
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert capsys.readouterr().out == f"weights of {tmp_path}: all loaded\n"


def test_a_checkpoint_on_s3(tmp_path, s3_server, s3_uri):
    expected = saved(tmp_path).state_dict()
    fs, path = fsspec.core.url_to_fs(s3_uri)
    fs.put(f"{tmp_path}/", path, recursive=True)  # through the server, which remembers what it listed before
    config = begun(s3_uri)
    assert config.init == s3_uri
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_start(config).weights.items())


@pytest.mark.parametrize(("how", "rows"), [("linear", [0, 0.5, 1, 1.5, 2, 2.5, 3]), ("repeat", [0, 1, 2, 3, 3, 3, 3])])
def test_other_clip_lengths_only_change_the_tables(tmp_path, how, rows):
    model = saved(tmp_path)
    with torch.no_grad():
        model.query_embedder.t_src_embed.weight.copy_(torch.arange(4.0)[:, None].expand(4, 96))
    checkpoints.save(model, tmp_path)
    config = begun(str(tmp_path), replace(MODEL, clip_frames=7), resize_tables=how)
    found = start_model(config, read_start(config).weights).state_dict()
    assert found["query_embedder.t_src_embed.weight"][:, 5].tolist() == rows
    assert torch.equal(found["heads.weight"], model.heads.weight)


def test_any_other_difference_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"init: .* is another model \(encoder_layers 2 there, 4 here\); set --model"):
        read_start(begun(str(tmp_path), replace(MODEL, encoder_layers=4, clip_frames=8)))


def test_opend4rt_files_start_a_model_of_their_profile(tmp_path):
    theirs = replace(MODEL, **OPEND4RT)
    torch.manual_seed(7)
    expected = D4RT(theirs)
    checkpoints.save_opend4rt(expected, tmp_path)
    init = f"opend4rt:{tmp_path}/opend4rt.ckpt"
    found = read_start(begun(init, replace(theirs, clip_frames=6))).weights
    assert found["query_embedder.t_src_embed.weight"].shape == (6, 96)
    assert torch.equal(found["heads.weight"], expected.heads.weight)
    with pytest.raises(ValueError, match=r"another model \(.*compat opend4rt there, None here"):
        read_start(begun(init))


IMAGE = replace(MODEL, encoder_width=64, encoder_heads=2, encoder_layers=6, encoder_hidden=192)


def test_an_encoder_starts_and_the_rest_is_as_fresh_as_without(tmp_path, capsys):
    torch.manual_seed(5)
    vit = timm.create_model("test_vit")
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    config = begun(f"timm:test_vit@{tmp_path}/vit.safetensors", IMAGE, seed=3)
    found, fresh = read_start(config).weights, start_model(begun(None, IMAGE, seed=3)).state_dict()
    assert torch.equal(found["encoder.blocks.1.ff.0.weight"], vit.blocks[1].mlp.fc1.weight)
    assert all(torch.equal(found[name], fresh[name]) for name in fresh if not name.startswith("encoder."))
    shown = capsys.readouterr().out
    assert shown.startswith(f"weights of timm:test_vit@{tmp_path}/vit.safetensors:\n  loaded ")
    assert "left out" in shown and "cls_token" in shown


def test_videomae_files_are_found_where_the_command_runs(tmp_path, monkeypatch):
    state = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: tensor
        for name, tensor in timm.create_model("test_vit").state_dict().items()
    }
    state = {name: tensor for name, tensor in state.items() if name not in ("cls_token", "pos_embed")}
    state["patch_embed.proj.weight"] = torch.randn(64, 3, 2, 16, 16)
    torch.save({"module": state}, tmp_path / "videomae.pth")
    monkeypatch.chdir(tmp_path)
    config = begun("videomae:videomae.pth", IMAGE)
    monkeypatch.chdir("/")
    assert config.init == f"videomae:{tmp_path}/videomae.pth"
    found = read_start(config).weights
    assert torch.equal(found["encoder.blocks.5.ff.2.weight"], state["blocks.5.mlp.fc2.weight"])


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("some/folder", "{cwd}/some/folder"),
        ("s3://bucket/checkpoint", "s3://bucket/checkpoint"),
        ("models:/d4rt/3", "models:/d4rt/3"),
        ("opend4rt:a/opend4rt.ckpt", "opend4rt:{cwd}/a/opend4rt.ckpt"),
        ("timm:test_vit", "timm:test_vit.r160_in1k"),
        ("timm:test_vit@vit.pth", "timm:test_vit@{cwd}/vit.pth"),
        ("timm:unheard_of", "timm:unheard_of"),
    ],
)
def test_a_start_is_recorded_so_that_it_keeps_its_meaning(init, expected):
    assert begun(init).init == expected.format(cwd=os.getcwd())
