"""Weights that others cast, damaged, mislabelled or never downloaded: taken where nothing is lost, else named."""

import argparse
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model import D4RT, ModelConfig, checkpoints, describe
from model.__main__ import main
from model.config import OPEND4RT
from model.weights import read_tensors

TINY = replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1)
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    return checkpoints.save(D4RT(TINY), tmp_path / "checkpoint")


def rewrite(folder: Path, change) -> dict[str, torch.Tensor]:
    state = {name: change(name, tensor) for name, tensor in load_file(folder / "weights.safetensors").items()}
    save_file(state, folder / "weights.safetensors")
    return state


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrower_floats_become_float32_without_a_change(folder, kind):
    cast = rewrite(folder, lambda _, tensor: tensor.to(kind))
    model = checkpoints.load(folder)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor.to(kind), cast[name])
    video = torch.randint(0, 256, (1, 4, 64, 64, 3), dtype=torch.uint8)
    assert model.encode(video, torch.ones(1)).tokens.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, x: x.double(), r"weights.safetensors: \S+ is float64; weights are float32, or bfloat16 or float16"),
        (lambda _, x: x.int(), "is int32; weights are"),
        (lambda name, x: x * float("nan") if name == "heads.bias" else x, "heads.bias has values that are not finite"),
        (lambda name, x: x / 0 if name == "heads.weight" else x, "heads.weight has values that are not finite"),
    ],
)
def test_weights_that_cannot_be_taken_as_they_are_are_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder_width", 96.0, r"encoder_width \(96.0\) must be a whole number"),
        ("decoder_layers", True, r"decoder_layers \(True\) must be a whole number"),
        ("aspect_token", 1, r"aspect_token \(1\) must be true or false"),
        ("norm_eps", "1e-6", r"norm_eps \('1e-6'\) must be a number"),
        ("norm_eps", float("nan"), "must be finite"),
        ("pixel_mean", ["0.4", 0.4, 0.4], r"pixel_mean \('0.4'\) must be a number"),
        ("encoder_layers", 10**12, "must be from 1 to 512"),
    ],
)
def test_a_config_edited_by_hand_is_refused_by_field(folder, key, value, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        checkpoints.load(folder)


class Trap:
    """Rebuilding it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PAGE, "a web page, not weights"),
        (POINTER, "a Git LFS pointer: .*git lfs pull"),
        (b"", "it is empty"),
        (b'{"image_size": 64}', "it is JSON"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF file"),
        (bytes(100), "of a kind unknown here"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_no_weights_is_called_what_it_is(content, words, name, tmp_path, folder):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is .*{words}"):
        read_tensors(path)
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"weights.safetensors is damaged or not a safetensors file .*{words}"):
        checkpoints.load(folder)
    with pytest.raises(ValueError, match=f"{name} is a file .*a checkpoint is the folder"):
        checkpoints.load(path)


def test_what_the_disk_refuses_is_said_in_words():
    """A name that is too long stands for all of it: what may not be read, a root may."""
    name = "a" * 300
    for read in (read_tensors, checkpoints.load, checkpoints.trained_on):
        with pytest.raises(ValueError, match=f"{name} cannot be read .File name too long"):
            read(name)
    with pytest.raises(ValueError, match=r"cannot be read .File name too long"):
        describe.find_config(f"./{name}")


def test_the_content_counts_and_not_the_suffix(tmp_path):
    state = {"a": torch.arange(3.0)}
    save_file(state, tmp_path / "weights.bin")
    torch.save(state, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        assert torch.equal(read_tensors(path)["a"], state["a"])


def test_arguments_that_a_script_kept_beside_the_weights_do_no_harm(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "weights.pth")
    assert read_tensors(tmp_path / "weights.pth")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_named_never_rebuilt_and_nobody_is_told_how(zipped, tmp_path):
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    for content, name in (({"model": nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"), (Trap(sprung), "mkdir")):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=f"never loaded: an object of .*{name}") as refused:
            read_tensors(path)
        assert not {"weights_only", "trust", "safe_globals"} & set(str(refused.value).replace("`", " ").split())
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match=r"never loaded|not a file of"):
        read_tensors(path)
    assert not sprung.exists()


def test_a_training_checkpoint_stands_for_the_model_in_it(folder, tmp_path, capsys):
    step = tmp_path / "runs/mine/step_0000200"
    (step / "model").parent.mkdir(parents=True)
    folder.rename(step / "model")
    assert checkpoints.load(step).config == TINY
    assert main(["describe", str(step)]) == 0
    assert main(["describe", str(step / "model")]) == 0
    assert capsys.readouterr().out.count("parameters\n") == 2


def test_export_says_what_it_wrote_and_refuses_a_place_it_cannot_make_before_it_loads(tmp_path, capsys):
    checkpoints.save(D4RT(replace(TINY, **OPEND4RT)), tmp_path / "theirs")
    assert main(["export", str(tmp_path / "theirs"), "--to", "opend4rt", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/out: model.yaml, opend4rt.ckpt\n"
    (tmp_path / "file").touch()
    for form in ("opend4rt", "onnx"):
        assert main(["export", "nowhere", "--to", form, "--out", str(tmp_path / "file/out")]) == 2
        assert f"{tmp_path}/file is no folder that can be written" in capsys.readouterr().err


def test_opend4rt_takes_an_odd_layer_which_is_local():
    """The last layer attends within two frames: what frames 2 and 3 show changes no token of frames 0 and 1 in it."""
    config = replace(TINY, encoder_layers=1, **OPEND4RT)
    torch.manual_seed(0)
    model = D4RT(config).eval()
    video = torch.randint(0, 256, (1, 4, 64, 64, 3), dtype=torch.uint8)
    changed = video.clone()
    changed[:, 2:] = 255 - changed[:, 2:]
    tokens, others = (model.encode(clip, torch.ones(1)).tokens for clip in (video, changed))
    half = config.video_tokens(2)
    assert torch.equal(tokens[:, :half], others[:, :half])
    assert not torch.allclose(tokens[:, half:-1], others[:, half:-1])
    with pytest.raises(ValueError, match=r"encoder_layers \(3\) must be even"):
        replace(TINY, encoder_layers=3)


def test_opend4rt_weights_with_an_odd_number_of_layers_come_and_go(tmp_path):
    torch.manual_seed(0)
    model = D4RT(replace(TINY, encoder_layers=3, **OPEND4RT))
    checkpoints.save_opend4rt(model, tmp_path)
    again = checkpoints.load_opend4rt(tmp_path / "opend4rt.ckpt", tmp_path / "model.yaml")
    assert again.config.encoder_layers == 3
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in again.state_dict().items())
