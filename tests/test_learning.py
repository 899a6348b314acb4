"""The learning benchmark: each recipe changes what it says and nothing else, and the table reads its curves right."""

import dataclasses

import numpy as np
import pytest
import torch
from test_losses import half_of, train_config, uneven_batch

from benchmarks.learning import AGAIN, DRAWS, OURS, RECIPES, clips_of, reached, step_with_mean_per_worker, table
from model import D4RT
from pipelines.query_table import FLAG_BITS
from pipelines.truth import queries as query_drawing
from train.config import PRESETS
from train.state import TrainState
from train.step import train_step


def test_each_recipe_changes_one_choice_and_plain_all_of_them():
    ours = dataclasses.asdict(RECIPES["ours"]) | OURS

    def changed(name: str) -> set[str]:
        recipe = RECIPES[name]
        choices = dataclasses.asdict(recipe) | OURS | DRAWS[recipe.draw]
        return {choice for choice, value in choices.items() if choice != "draw" and value != ours[choice]}

    single = [changed(name) for name in RECIPES if name != "ours" and "plain" not in name and AGAIN not in name]
    assert [len(choices) for choices in single] == [1] * 7
    assert changed("plain") == set.union(*single) and len(changed("plain")) == 7
    assert changed("plain_muon") == changed("plain") - {"muon"}
    assert RECIPES["ours"].muon == (PRESETS["tiny"][1].optim.optimiser == "muon")
    assert changed("ours") == set() and changed("ours_again") == {"seed"}


def test_queries_are_drawn_as_the_recipe_says(monkeypatch):
    """Edges get 30 % or what chance gives; t_cam = t_tgt in 40 % and an eighth of the rest, or in an eighth of all."""
    for name in OURS:
        monkeypatch.setattr(query_drawing, name, OURS[name])  # what `clips_of` sets is put back
    found = clips_of("kubric", "train", 0)
    edges, same = {}, {}
    for draw, clips in found.items():
        queries = np.concatenate([clip.queries.ravel() for clip in clips])
        edges[draw] = (queries["flags"] & FLAG_BITS["edge"] > 0).mean()
        same[draw] = (queries["t_cam"] == queries["t_tgt"]).mean()
    for draw in ("ours", "free_cameras"):
        assert edges[draw] > 0.3 > edges["no_edges"] + 0.05
    assert edges["no_edges"] == pytest.approx(edges["plain"], abs=0.03)
    for draw in ("ours", "no_edges"):
        assert same[draw] == pytest.approx(0.4 + 0.6 / 8, abs=0.03)
    for draw in ("plain", "free_cameras"):
        assert same[draw] == pytest.approx(1 / 8, abs=0.03)


def test_mean_per_worker_is_the_mean_of_the_gradients_of_each_worker_alone():
    config, batch = train_config(), uneven_batch()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, clip_norm=1e9))

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


def curve(*errors: float, seconds: float = 2.0) -> list[dict[str, float]]:
    """A point every 10 steps, which take so many seconds."""
    return [{"step": 10 * n, "cpu_seconds": seconds * n, "error": error} for n, error in enumerate(errors, 1)]


@pytest.mark.parametrize(
    ("error", "expected"), [(0.6, (10, 2)), (0.5, (10, 2)), (0.42, (18, 3.6)), (0.3, (36, 7.2)), (0.1, None)]
)
def test_an_error_is_reached_between_two_points(error, expected):
    """The first time counts, though the curve rises again."""
    assert reached(curve(0.5, 0.4, 0.45, 0.2), error) == (expected and pytest.approx(expected))


def test_table_gives_the_share_of_the_time_of_plain():
    runs = {
        "ours": {"curve": curve(0.4, 0.2), "error_our_queries": 0.25},
        "plain": {"curve": curve(0.5, 0.4, 0.35, 0.3, seconds=4.0), "error_our_queries": 0.35},
        "metric": {"curve": curve(0.9, 0.8), "error_our_queries": 0.85},
    }
    ours, plain, metric = table(runs).splitlines()[1:]
    assert ours.split() == ["ours", "0.2000", "0.2500", "4", "15", "steps,", "3", "s", "(19%)"]
    assert plain.split()[-2:] == ["s", "(100%)"] and metric.split()[-1] == "-"
