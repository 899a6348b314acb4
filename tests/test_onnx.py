"""The exported graphs, run by onnxruntime, against the PyTorch model. Answers agree to an atol of 1e-5 (rtol 1e-4)."""

import json
import os
import re
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from model import D4RT, Memory, ModelConfig, Prediction, Queries, checkpoints, onnx_export
from model.__main__ import main
from model.confidence import Calibration
from model.config import OPEND4RT

FRAMES = 3  # odd: the graph must repeat the last frame
TINY = replace(ModelConfig.preset("tiny"), decoder_width=64, encoder_layers=2, decoder_layers=2)
CONFIGS = {
    "plain": TINY,
    "opend4rt": replace(TINY, **OPEND4RT),
    "bare": replace(TINY, decoder_width=96, aspect_token=False, query_patch=0),
}


@dataclass
class Exported:
    """A model in PyTorch, and the folder it was exported to."""

    model: D4RT
    folder: Path

    def run(self, graph: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        session = onnxruntime.InferenceSession(self.folder / graph, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {name: np.asarray(tensor) for name, tensor in inputs.items()})
        return {x.name: torch.from_numpy(y) for x, y in zip(session.get_outputs(), outputs, strict=True)}

    def ask(self, memory: Memory, queries: Queries, video: Tensor | None = None) -> dict[str, Tensor]:
        keys, values = (torch.stack(x) for x in zip(*memory.keys_values, strict=True))
        frames = memory.video if video is None else video
        return self.run("decoder.onnx", {"keys": keys, "values": values, "video": frames, **vars(queries)})


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request, tmp_path_factory) -> Exported:
    torch.manual_seed(0)
    model = D4RT(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no term is 0 or 1 by accident
            parameter.add_(0.1 * torch.randn_like(parameter))
    if request.param == "bare":
        model.calibration = Calibration((-1.0, 0.0, 2.0), ((0.3, 0.1, 0.02), (0.5, 0.2, 0.1), (1.0, 0.9, 0.3)))
    folder = tmp_path_factory.mktemp(request.param)
    checkpoints.save(model, folder / "checkpoint")
    command = ["export", str(folder / "checkpoint"), "--out", str(folder / "onnx"), "--frames", str(FRAMES)]
    assert main(command) == 0
    return Exported(model, folder / "onnx")


def random_video(clips: int = 1, height: int = 64, width: int = 64) -> Tensor:
    return torch.randint(0, 256, (clips, FRAMES, height, width, 3), dtype=torch.uint8)


def random_queries(count: int, clips: int = 1) -> Queries:
    return Queries(torch.rand(clips, count, 2), *torch.randint(0, FRAMES, (3, clips, count)))


def assert_same(found: dict[str, Tensor], expected: Prediction) -> None:
    assert found.keys() == vars(expected).keys()
    for name, tensor in vars(expected).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@torch.inference_mode()
@pytest.mark.parametrize("clips", [1, 3])
def test_video_to_answers_without_pytorch(exported, clips):
    video, aspect, queries = random_video(clips), torch.linspace(0.6, 1.8, clips), random_queries(11, clips)
    memory = exported.run("encoder.onnx", {"video": video, "aspect": aspect})
    assert memory["keys"].shape == memory["values"].shape
    found = exported.run("decoder.onnx", memory | {"video": video, **vars(queries)})
    assert_same(found, exported.model(video, aspect, queries))


@torch.inference_mode()
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_any_number_of_queries(exported, count):
    memory, queries = exported.model.encode(random_video(), torch.ones(1)), random_queries(count)
    assert_same(exported.ask(memory, queries), exported.model.decode(memory, queries))


@torch.inference_mode()
def test_corners_and_every_time(exported):
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    times = torch.cartesian_prod(*[torch.arange(FRAMES)] * 3)  # (27, 3)
    queries = Queries(corners.repeat(27, 1)[None], *times.repeat_interleave(4, dim=0).T[:, None])
    memory = exported.model.encode(random_video(), torch.ones(1))
    assert_same(exported.ask(memory, queries), exported.model.decode(memory, queries))


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(90, 160), (31, 20)])
def test_patches_come_from_frames_of_any_size(exported, height, width):
    memory, queries = exported.model.encode(random_video(), torch.ones(1)), random_queries(20)
    native = random_video(1, height, width)
    found = exported.ask(memory, queries, native)
    assert_same(found, exported.model.decode(memory, queries, patch_video=native))
    differs = (found["xyz"] - exported.model.decode(memory, queries).xyz).abs().max() > 1e-3
    assert differs == (exported.model.config.query_patch > 0)


@torch.inference_mode()
@pytest.mark.parametrize("field", ["t_src", "t_tgt", "t_cam", "uv_norm"])
def test_what_pytorch_refuses_is_answered_nan_and_nothing_else_is(exported, field):
    """The tables have a fourth row: time 3 would be answered wrongly, not refused, if nobody looked."""
    memory, queries = exported.model.encode(random_video(), torch.ones(1)), random_queries(12)
    wrong = getattr(queries, field).clone()
    values = [-0.01, 1.01, 100.0, torch.nan] if field == "uv_norm" else [-1, FRAMES, 4, -(2**40)]
    columns = wrong.view(12, -1)  # u and v, or the time
    spoilt = list(product(values, range(columns.shape[1])))
    for row, (value, column) in enumerate(spoilt):
        columns[row, column] = value
    with pytest.raises(ValueError, match=field):
        exported.model.decode(memory, replace(queries, **{field: wrong}))
    found, right = exported.ask(memory, replace(queries, **{field: wrong})), exported.model.decode(memory, queries)
    for name, tensor in found.items():
        assert tensor[:, : len(spoilt)].isnan().all(), name
        rest = getattr(right, name)[:, len(spoilt) :]
        torch.testing.assert_close(tensor[:, len(spoilt) :], rest, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_wrong_aspect_spoils_its_own_clip_only(exported):
    aspects, video, queries = [1.0, 0.0, -1.0, torch.inf, torch.nan], random_video(5), random_queries(4, 5)
    memory = exported.run("encoder.onnx", {"video": video, "aspect": torch.tensor(aspects)})
    found = exported.run("decoder.onnx", memory | {"video": video, **vars(queries)})
    for name, tensor in found.items():
        assert tensor[0].isfinite().all() and tensor[1:].isnan().all(), name


def test_clips_of_another_length_or_size_are_refused_by_the_runtime(exported):
    for video in (random_video()[:, :2], random_video(1, 72, 64)):
        with pytest.raises(Exception, match="Got invalid dimensions for input: video"):
            exported.run("encoder.onnx", {"video": video, "aspect": torch.ones(1)})
    with torch.inference_mode():
        memory = exported.model.encode(random_video(), torch.ones(1))
    with pytest.raises(Exception, match="Got invalid dimensions for input: video"):
        exported.ask(memory, random_queries(3), random_video()[:, :2])
    longer = replace(memory, keys_values=tuple((k[:, :, 1:], v[:, :, 1:]) for k, v in memory.keys_values))
    with pytest.raises(Exception, match=r"Got invalid dimensions for input: (keys|values)"):
        exported.ask(longer, random_queries(3))


def test_the_files_say_what_they_are_and_nothing_of_this_machine(exported):
    names = ["decoder.onnx", "decoder.onnx.data", "encoder.onnx", "encoder.onnx.data"]
    assert sorted(x.name for x in exported.folder.iterdir()) == names
    assert [x.name for x in exported.folder.parent.iterdir() if x.name.startswith(".")] == []
    for graph in ("encoder.onnx", "decoder.onnx"):
        assert str(Path(onnx_export.__file__).parent).encode() not in (exported.folder / graph).read_bytes()
        session = onnxruntime.InferenceSession(exported.folder / graph, providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map
        assert facts["frames"] == str(FRAMES)
        assert ModelConfig.from_dict(json.loads(facts["config"])) == exported.model.config
    weights = sum((exported.folder / name).stat().st_size for name in names if name.endswith(".data"))
    assert weights == pytest.approx(4 * sum(x.numel() for x in exported.model.parameters()), rel=0.1)
    assert max((exported.folder / name).stat().st_size for name in names[::2]) < weights  # so 2 GB is no limit


# ---- refusals ----


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return checkpoints.save(D4RT(TINY), tmp_path / "checkpoint")


def test_graphs_that_disagree_with_pytorch_are_not_left(checkpoint, tmp_path, capsys, monkeypatch):
    """Weights that change between writing and checking stand for an exporter's mistake."""
    write = onnx_export.write_graphs

    def write_and_change(model, *arguments):
        write(model, *arguments)
        with torch.no_grad():
            model.heads.bias[8] += 0.1  # displacement z

    monkeypatch.setattr(onnx_export, "write_graphs", write_and_change)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "onnx"), "--frames", "1"]) == 2
    assert re.search("displacement of decoder.onnx differs from PyTorch's by", capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "5"], r"--frames \(5\) must be from 1 to 4"),
        (["--frames", "0"], r"--frames \(0\) must be from 1 to 4"),
        (["--out", "checkpoint"], "checkpoint exists already and is not overwritten"),
    ],
)
def test_wrong_orders_are_refused(checkpoint, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(checkpoint.parent)
    assert main(["export", "checkpoint", "--out", "onnx", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert os.listdir() == ["checkpoint"] and len(os.listdir("checkpoint")) == 2


def test_a_missing_package_is_named_with_its_remedy(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(checkpoint), "--out", "onnx"]) == 1
    assert re.search(r"onnxscript is missing.*\.\[export\]", capsys.readouterr().err)
