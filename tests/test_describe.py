"""The figures of `python -m model describe`, against published ones and against what torch really does."""

import re
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from model import D4RT, ModelConfig, Queries, checkpoints, describe
from model.__main__ import main

TINY = ModelConfig.preset("tiny")
LONG = replace(TINY, clip_frames=8)
SHAPES = {
    "equal widths": LONG,
    "other decoder width": replace(LONG, decoder_width=64),
    "neither aspect nor patch": replace(LONG, aspect_token=False, query_patch=0),
    "longer than wide": replace(ModelConfig.preset("small"), encoder_layers=4, decoder_layers=2, image_size=160),
}


def clip(config: ModelConfig, num_frames: int, num_queries: int):
    size = config.image_size
    video = torch.randint(0, 256, (1, num_frames, size, size, 3), dtype=torch.uint8)
    queries = Queries(torch.rand(1, num_queries, 2), *torch.randint(0, num_frames, (3, 1, num_queries)))
    return video, torch.ones(1), queries


def storages(tensors) -> dict[int, int]:
    """Bytes by address: views of the same numbers count once."""
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


# ---- parameters and FLOP ----


@pytest.mark.parametrize(
    ("frames", "query_embedder", "total"), [(32, 2_122_240, 1_162_433_293), (48, 2_183_680, 1_162_494_733)]
)
def test_parameters_of_giant_are_those_published_for_opend4rt(frames, query_embedder, total):
    assert describe.parameters(replace(ModelConfig.preset("giant"), clip_frames=frames)) == {
        "encoder": 1_012_173_952,
        "aspect": 1_986_688,
        "memory_proj": 1_803_520,
        "query embedder": query_embedder,
        "decoder": 144_330_240,
        "heads": 16_653,
        "total": total,
    }


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_parts_are_all_there_is(config):
    counts = describe.parameters(config)
    assert counts["total"] == sum(x.numel() for x in D4RT(config).parameters())
    assert counts["total"] == sum(count for part, count in counts.items() if part != "total")
    assert (counts["aspect"] > 0) == config.aspect_token
    assert (counts["memory_proj"] > 0) == (config.encoder_width != config.decoder_width)


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("small", "0.62 0.34 0.13 0.14 0.05 0.34"),
        ("base", "1.8 1.0 0.43 0.25 0.12 0.62"),
        ("large", "5.6 3.3 1.5 0.37 0.21 0.96"),
        ("huge", "11.0 6.6 3.0 0.49 0.32 1.3"),
        ("giant", "16.8 10.3 4.7 0.49 0.32 1.3"),
    ],
)
def test_flops_are_those_of_the_specification(preset, published):
    """TFLOP of the encoder's layers at 48, 32 and 16 frames; at 48, GFLOP of a query, TFLOP of keys and values, and of
    these with 2048 queries. To one unit of the last digit given there.
    """
    config = ModelConfig.preset(preset)
    wide, narrow = config.encoder_width, config.decoder_width
    project = config.flops_keys_values(48)

    def layers(frames: int) -> int:  # without tokenizer, aspect token and `memory_proj`
        tokens = frames // 2 * 16 * 16
        ends = tokens * wide * 3 * 2 * 16 * 16 + wide * (1 + wide) + (tokens + 1) * wide * narrow * (wide != narrow)
        return config.flops_encode(frames) - config.flops_keys_values(frames) - 2 * ends

    ours = [layers(t) / 1e12 for t in (48, 32, 16)]
    ours += [config.flops_decode(1, 48) / 1e9, project / 1e12, (project + config.flops_decode(2048, 48)) / 1e12]
    for figure, text in zip(ours, published.split(), strict=True):
        assert figure == pytest.approx(float(text), abs=10.0 ** -len(text.partition(".")[2]))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_flops_of_keys_and_values_are_those_torch_counts(config):
    model = D4RT(config)
    video, aspect, _ = clip(config, 5, 1)
    tokens = model.encode(video, aspect).tokens
    with FlopCounterMode(display=False) as counter:
        model.decoder.keys_values(tokens)
    assert config.flops_keys_values(5) == counter.get_total_flops()


# ---- memory ----


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_bytes_of_a_clip_are_those_of_its_memory(config, autocast):
    video, aspect, _ = clip(config, 5, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        memory = D4RT(config).encode(video, aspect)
    assert describe.memory_bytes(config, 5, autocast=autocast) == {
        "tokens": memory.tokens.nbytes,
        "keys and values": sum(x.nbytes for pair in memory.keys_values for x in pair),
        "video": memory.video.nbytes,
    }


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_bytes_of_a_training_step_are_those_autograd_saves(config, autocast, recompute):
    model = D4RT(config).train()
    model.set_recompute(recompute)
    video, aspect, queries = clip(config, 7, 100)
    known = storages([*model.parameters(), *model.buffers(), *vars(queries).values()])
    saved: list[torch.Tensor] = []
    with (
        saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        memory = model.encode(video, aspect)
        model.decode(memory, queries)
        saved += [x for pair in memory.keys_values for x in pair]  # which recomputation keeps out of the hooks' sight
        before = len(saved)
        if recompute:  # then the backward pass has one whole layer besides, its input aside
            tokens = torch.randn(1, config.video_tokens(7) + config.aspect_token, config.encoder_width)
            known |= storages([tokens])
            model.encoder.blocks[1](tokens.requires_grad_())
    kept = sum(size for address, size in storages(saved[:before]).items() if address not in known)
    if recompute:
        layer = sum(size for address, size in storages(saved[before:]).items() if address not in known)
        at_ends = 2 * sum(x.weight.numel() for x in linear_maps(model, blocks=False)) * autocast
        copies = 2 * sum(x.weight.numel() for x in linear_maps(model, blocks=True)) * autocast + at_ends
        kept += max(copies, at_ends + layer) - at_ends  # those at the ends are not computed again: autograd saves them
    figure = describe.saved_bytes(config, 7, 100, autocast=autocast, recompute=recompute)
    assert figure == pytest.approx(kept, rel=0.005)


def linear_maps(model: D4RT, *, blocks: bool) -> list[torch.nn.Linear]:
    """Those inside layers, or all others, whose input has a gradient, so that autocast's copy of the weight is kept."""
    first = ("aspect_proj.0", "query_embedder.uv_proj", "query_embedder.patch_proj.0", "heads")
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in first and (".blocks." in name) == blocks
    ]


def test_weights_are_copied_once_for_all_clips():
    """Under autocast the second clip of a step adds what a clip keeps, and no copy of a weight; nor, if layers are
    computed again, does it add less than what enters each of them."""
    config = ModelConfig.preset("giant")
    for recompute in (False, True):
        one, two, three = (
            describe.saved_bytes(config, 48, 2048, autocast=True, recompute=recompute, clips=n) for n in (1, 2, 3)
        )
        assert 0 < one - (two - one) <= 2 * describe.parameters(config)["total"]
        assert three - two >= two - one > 40 * 6144 * 1408 * 4


def test_training_holds_sixteen_bytes_per_parameter():
    model = D4RT(TINY)
    optimiser = torch.optim.AdamW(model.parameters())
    sum(x.sum() for x in vars(model(*clip(TINY, 4, 10))).values()).backward()
    optimiser.step()
    averages = [state[name] for state in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = [*model.parameters(), *(x.grad for x in model.parameters()), *averages]
    assert sum(x.nbytes for x in held) == describe.parameters(TINY)["total"] * describe.TRAINED_BYTES


# ---- the command ----


def row(text: str, label: str) -> list[str]:
    return re.search(rf"^ *{re.escape(label)}  +(.*)$", text, re.MULTILINE)[1].split()


def test_the_table_of_giant(capsys):
    assert main(["describe", "giant"]) == 0
    text = capsys.readouterr().out
    assert row(text, "total") == ["1,162,494,733"]
    assert row(text, "frames of a clip") == ["16", "32", "48"]
    assert row(text, "decode a query")[-1] == "0.492"
    assert row(text, "weights, gradients, AdamW, float32") == ["18.6"] * 3  # GB, as in the specification
    half = [float(x) for x in row(text, "keys and values of a clip, bfloat16 autocast")]
    assert half[-1] == pytest.approx(240 * 2**20 / 1e9, rel=0.003)  # 240 MiB, ditto
    kept, recomputed = row(text, "kept for the gradients, bfloat16 autocast"), row(text, "with layers recomputed")
    assert float(kept[-1]) > 5 * float(recomputed[-1])


def test_a_checkpoint_and_other_sizes(tmp_path, capsys):
    folder = checkpoints.save(D4RT(LONG), tmp_path / "checkpoint")
    assert main(["describe", str(folder), "--frames", "3", "8", "--queries", "10"]) == 0
    text = capsys.readouterr().out
    assert row(text, "frames of a clip") == ["3", "8"]
    assert row(text, "decode 10 queries")[1] == f"{LONG.flops_decode(10, 8) / 1e9:.5f}"
    assert "to train on one clip with 10 queries" in text
    assert main(["describe", str(folder)]) == 0
    assert row(capsys.readouterr().out, "frames of a clip") == ["8"]


def test_a_folder_named_like_a_preset_is_meant_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(D4RT(LONG), "giant")
    assert describe.find_config("giant") == ModelConfig.preset("giant")
    assert describe.find_config("./giant") == LONG


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gaint"], "unknown model preset 'gaint': did you mean 'giant'"),
        (["opend4rt-refine"], "did you mean 'opend4rt'"),  # which is a recipe for that model
        (["no/such/folder"], r"no/such/folder/config.json does not exist"),
        (["tiny", "--frames", "5"], r"--frames \[5\] must be from 1 to 4"),
        (["tiny", "--frames", "0"], r"--frames \[0\] must be from 1 to 4"),
        (["tiny", "--queries", "0"], r"--queries \(0\) must be at least 1"),
    ],
)
def test_what_cannot_be_described_is_refused(arguments, message, capsys):
    assert main(["describe", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
