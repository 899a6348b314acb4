"""The learning benchmark: each recipe changes what it says and nothing else, and the table reads its curves right."""

import argparse
import dataclasses
import json

import numpy as np
import pytest
import torch
from test_losses import half_of, train_config, uneven_batch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.learning
from benchmarks.learning import best_plain, reached, recipe_and_rate, table
from benchmarks.learning_task import (
    AGAIN,
    DRAWS,
    JUDGED,
    OURS,
    RECIPES,
    SETTINGS,
    clips_of,
    config_of,
    flops_of_step,
    start_as_torch_does,
    step_with_mean_per_worker,
)
from model import D4RT
from pipelines.query_table import FLAG_BITS
from pipelines.truth import queries as query_drawing
from train.config import PRESETS
from train.state import TrainState
from train.step import train_step

TINY = SETTINGS["tiny"]


def test_each_recipe_changes_one_choice_and_plain_all_of_them():
    ours = dataclasses.asdict(RECIPES["ours"]) | OURS

    def changed(name: str) -> set[str]:
        recipe = RECIPES[name]
        choices = dataclasses.asdict(recipe) | OURS | DRAWS[recipe.draw]
        return {choice for choice, value in choices.items() if choice != "draw" and value != ours[choice]}

    several = ("ours", "adamw_torch_start")
    single = [changed(name) for name in RECIPES if name not in several and "plain" not in name and AGAIN not in name]
    assert [len(choices) for choices in single] == [1] * 8
    assert changed("plain") == set.union(*single) and len(changed("plain")) == 8
    assert changed("plain_muon") == changed("plain") - {"optimiser"}
    assert changed("adamw_torch_start") == {"optimiser", "fresh"}
    assert changed("ours") == set() and changed("ours_again") == {"seed"}


def test_ours_is_what_training_does():
    """But for the length of the run, and the clips of both workers in one step."""
    config, preset = config_of(TINY, RECIPES["ours"], None, 500), PRESETS["tiny"][1]
    for name in ("model", "optim", "loss", "dropout", "precision"):
        assert getattr(config, name) == getattr(preset, name), name
    plain = config_of(SETTINGS["small"], RECIPES["plain"], 3e-3, 500)
    assert (plain.optim.lr, plain.optim.optimiser, plain.dropout) == (3e-3, "adamw", 0.1)
    assert (plain.loss.confidence, plain.loss.lconf, plain.loss.confidence_warmup_steps) == ("paper", 0.2, 0)


def test_queries_are_drawn_as_the_recipe_says(monkeypatch):
    """Edges get 30 % or what chance gives; t_cam = t_tgt in 40 % and a quarter of the rest, or in a quarter of all."""
    for name in OURS:
        monkeypatch.setattr(query_drawing, name, OURS[name])  # what `clips_of` sets is put back
    found = clips_of(TINY, set(DRAWS), "kubric", "learn", 0)
    edges, same = {}, {}
    for draw, clips in found.items():
        queries = np.concatenate([clip.queries.ravel() for clip in clips])
        edges[draw] = (queries["flags"] & FLAG_BITS["edge"] > 0).mean()
        same[draw] = (queries["t_cam"] == queries["t_tgt"]).mean()
    for draw in ("ours", "free_cameras"):
        assert edges[draw] > 0.3 > edges["no_edges"] + 0.05
    assert edges["no_edges"] == pytest.approx(edges["plain"], abs=0.03)
    for draw in ("ours", "no_edges"):
        assert same[draw] == pytest.approx(0.4 + 0.6 / 4, abs=0.03)
    for draw in ("plain", "free_cameras"):
        assert same[draw] == pytest.approx(1 / 4, abs=0.03)
    unseen = [clips_of(TINY, set(), "kubric", split, 0)[JUDGED][0].video for split in ("choose", "report")]
    videos = [found["plain"][0].video, *unseen]
    assert not any(np.array_equal(a, b) for i, a in enumerate(videos) for b in videos[:i])


def test_torchs_own_start_is_that_of_its_modules():
    torch.manual_seed(0)
    model = D4RT(TINY.model)
    start_as_torch_does(model)
    attention = nn.MultiheadAttention(96, 4)

    def std(weight: torch.Tensor) -> float:
        return weight.std().item()

    assert std(model.encoder.blocks[0].attn.qkv.weight) == pytest.approx(std(attention.in_proj_weight), rel=0.03)
    assert model.encoder.blocks[0].attn.qkv.bias.abs().max() == 0
    assert std(model.query_embedder.t_src_embed.weight) == pytest.approx(1, rel=0.1)
    assert std(model.decoder.blocks[0].ff[0].weight) == pytest.approx(std(nn.Linear(96, 384).weight), rel=0.03)
    assert model.heads.bias.abs().max() < 96**-0.5


def test_flop_of_a_step_is_three_forward_passes_and_muons():
    def flops(name: str) -> int:
        return flops_of_step(config_of(TINY, RECIPES[name], None, 500))

    def muons(short: int, long: int) -> int:
        """Five times: A = X X^T; B = b A + c A A; X = a X + B X."""
        x = torch.randn(short, long)
        counter = FlopCounterMode(display=False)
        with counter:
            for _ in range(5):
                a = x @ x.T
                x = x + (a + a @ a) @ x
        return counter.get_total_flops()

    config = TINY.model
    assert flops("adamw") == 3 * 8 * (config.flops_encode(4) + config.flops_decode(256, 4))
    mlp, square = 2 * muons(96, 384), muons(96, 96)
    encoder = config.encoder_layers * (muons(96, 288) + square + mlp)
    decoder = config.decoder_layers * (2 * square + muons(96, 192) + mlp)
    assert flops("ours") - flops("adamw") == encoder + decoder

    small = config_of(SETTINGS["small"], RECIPES["ours"], None, 500)
    blocks = [(12, 384, 18 + 6 + 2 * 24), (8, 512, 8 + 16 + 8 + 2 * 32)]  # layers, width, blocks of 64 of a layer
    clips = 3 * 2 * (small.model.flops_encode(8) + small.model.flops_decode(512, 8))
    assert flops_of_step(small) - clips == sum(layers * count * muons(64, width) for layers, width, count in blocks)


def test_mean_per_worker_is_the_mean_of_the_gradients_of_each_worker_alone():
    config, batch = train_config(), uneven_batch()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, clip_norm=1e6))

    def gradient(take_step, batch) -> torch.Tensor:
        torch.manual_seed(0)
        state = TrainState.create(D4RT(config.model), config.optim)
        take_step(state, batch, config)
        assert state.step == 1
        return torch.cat([p.grad.flatten() for p in state.model.parameters()])

    found = gradient(step_with_mean_per_worker, batch)
    alone = [gradient(train_step, half_of(batch, rank)) for rank in (0, 1)]
    torch.testing.assert_close(found, (alone[0] + alone[1]) / 2, rtol=1e-4, atol=1e-6)
    whole = gradient(train_step, batch)
    assert (found - whole).norm() > 0.1 * whole.norm()


def curve(*errors: float, seconds: float = 2.0) -> list[dict]:
    """A point every 10 steps, which take so many seconds and TFLOP; the clips to report are twice as hard."""
    return [
        {
            "step": 10 * n,
            "tflop": 3.0 * n,
            "cpu_seconds": seconds * n,
            "choose": {"error": error, "moving": 2 * error, "rank": -0.5, "rank_moving": None},
            "report": {"error": 2 * error, "moving": None, "rank": None, "rank_moving": None},
        }
        for n, error in enumerate(errors, 1)
    ]


@pytest.mark.parametrize(
    ("error", "expected"), [(0.6, (10, 2)), (0.5, (10, 2)), (0.42, (18, 3.6)), (0.3, (36, 7.2)), (0.1, None)]
)
def test_an_error_is_reached_between_two_points(error, expected):
    """The first time counts, though the curve rises again."""
    found = reached(curve(0.5, 0.4, 0.45, 0.2), error, "choose")
    assert (found and (found["step"], found["cpu_seconds"])) == (expected and pytest.approx(expected))


def test_table_gives_the_shares_of_the_costs_of_the_best_plain():
    runs = {
        "ours": {"curve": curve(0.4, 0.2)},
        "plain@0.001": {"curve": curve(0.5, 0.4, 0.35, 0.3, seconds=4.0)},
        "plain@0.1": {"curve": curve(0.9, 0.8, 0.7, 0.6)},
    }
    assert best_plain(runs) == "plain@0.001" and best_plain({"ours": runs["ours"]}) is None
    for judged, error in (("choose", "0.2000"), ("report", "0.4000")):
        ours, plain, other = table(runs, judged).splitlines()[1:]
        assert ours.split()[:2] == ["ours", error]
        assert ours.endswith("15 steps (38%), 4 TFLOP (38%), 3 s (19%)")
        assert plain.endswith("(100%)") and other.endswith("-")


def test_a_recipe_may_have_another_rate():
    assert recipe_and_rate("plain@1e-3") == ("plain", 1e-3) and recipe_and_rate("ours") == ("ours", None)
    for word in ("plainer", "plain@fast", "plain@", "plain@0", "@1e-3"):
        with pytest.raises(argparse.ArgumentTypeError, match="is none of"):
            recipe_and_rate(word)


@pytest.mark.long
def test_a_whole_run_writes_its_curves_and_shows_both_sets(tmp_path, capsys):
    words = f"--only ours plain@2e-3 --steps 4 --scenes 1 1 1 --processes 1 --report --out {tmp_path}"
    benchmarks.learning.main(words.split())
    shown = capsys.readouterr().out
    assert "on the clips to choose by" in shown and "on the clips to report" in shown
    ours, plain = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ours", "plain@0.002"))
    assert [point["step"] for point in ours["curve"]] == [1, 2, 3, 4]
    assert plain["rate"] == 2e-3 and plain["recipe"]["optimiser"] == "adamw"
    for point in (*ours["curve"], *plain["curve"]):
        assert point["choose"]["error"] > 0 and point["report"]["error"] > 0 and point["tflop"] > 0
    assert (tmp_path / "curves.png").stat().st_size > 10_000
