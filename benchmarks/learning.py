"""How fast does our recipe learn, and what does each of its choices gain over the plain choice of earlier work?

    python -m benchmarks.learning                                     `tiny`, all recipes
    python -m benchmarks.learning small --only plain_lean@3e-4 plain_lean@5e-4 plain_lean@1e-3 --report
    python -m benchmarks.learning small --only ours adamw ours_again --steps 150 --report

Synthetic rooms in all nine layouts, in three sets: to learn from, to choose by, and to report. Nothing is chosen by the
last: the table has it with --report only. `tiny`: 4 frames of 64x64, 500 steps, about two minutes a run; `small`: 8
frames of 64x64, 400 steps in bfloat16, about a quarter of an hour a run. A model trains on the same clips in the same
order with each recipe, on one thread. The error is the median relative one of `evaluate clips`, over queries drawn
anywhere with any camera. Costs are steps, FLOP of the matrix products, which no machine changes, and CPU seconds of the
training steps alone. NAME@RATE is a recipe with another learning rate.

| recipe            | what is plain                                                                         |
|-------------------|---------------------------------------------------------------------------------------|
| ours              | nothing: what `python -m train tiny` does                                             |
| dropout           | 0.1, on attention and MLPs                                                            |
| paper_confidence  | confidence multiplies the 3D error, from the first step                               |
| metric            | displacements in metres against a scale-free prediction                               |
| per_rank          | every term averaged per worker (two of them), then over workers, whatever their masks |
| no_edges          | no queries near edges but those that chance puts there                                |
| free_cameras      | t_cam drawn without regard to t_tgt                                                   |
| torch_start       | fresh weights as PyTorch's modules have them                                          |
| adamw             | AdamW moves all weights                                                               |
| adamw_torch_start | both of these                                                                         |
| plain             | all eight                                                                             |
| plain_muon        | all but AdamW                                                                         |
| plain_lean        | all but dropout and means per worker, for the time they cost                          |
| ..._again         | ours, adamw and plain with other fresh weights and order of clips: what chance does   |
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.learning_task import AGAIN, RECIPES, SETTINGS, make_clips, train

COSTS = ("step", "tflop", "cpu_seconds")


def reached(curve: list[dict[str, Any]], error: float, judged: str) -> dict[str, float] | None:
    """The costs after which a curve is first at or below an error, interpolated; None if never."""
    for before, after in pairwise([curve[0], *curve]):
        was, now = before[judged]["error"], after[judged]["error"]
        if now <= error:
            share = (was - error) / ((was - now) or 1)
            return {cost: before[cost] + share * (after[cost] - before[cost]) for cost in COSTS}
    return None


def best_plain(runs: dict[str, dict[str, Any]]) -> str | None:
    """Which plain run, of several learning rates, ends with the smallest error on the clips to choose by."""
    names = [name for name in runs if name.partition("@")[0] in ("plain", "plain_lean")]
    return min(names, key=lambda name: runs[name]["curve"][-1]["choose"]["error"], default=None)


def table(runs: dict[str, dict[str, Any]], judged: str) -> str:
    """In words for the terminal; the goal is the final error of the best `plain`, if that was run."""
    lines = [
        f"{'on the clips to ' + ('choose by' if judged == 'choose' else 'report'):22} {'error':>7} {'moving':>7} "
        f"{'rank':>6} {'TFLOP':>7} {'CPU s':>6}   the final error of plain after"
    ]
    plain = best_plain(runs)
    goal = runs[plain]["curve"][-1] if plain else None
    for name, run in runs.items():
        last = run["curve"][-1]
        when = reached(run["curve"], goal[judged]["error"], judged) if goal else None
        error, moving, rank = (last[judged][key] for key in ("error", "moving", "rank"))
        lines.append(
            f"{name:22} {error:7.4f} {moving or float('nan'):7.4f} {rank or 0:6.2f} {last['tflop']:7.1f} "
            f"{last['cpu_seconds']:6.0f}   {shares(when, goal) if when else '-'}"
        )
    return "\n".join(lines)


def shares(when: dict[str, float], goal: dict[str, float]) -> str:
    """Costs, and what part they are of those of plain."""
    parts = zip(("steps", "TFLOP", "s"), COSTS, strict=True)
    return ", ".join(f"{when[cost]:.0f} {unit} ({when[cost] / goal[cost]:.0%})" for unit, cost in parts)


def draw(runs: dict[str, dict[str, Any]], judged: str, path: Path) -> None:
    """The curves over steps and over FLOP; a dashed one is its recipe with another seed."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colours = {name: f"C{i}" for i, name in enumerate(RECIPES)}
    for axes, key, label in zip(panels, COSTS, ("steps", "TFLOP of training"), strict=False):
        for name, run in runs.items():
            first = name.partition("@")[0].removesuffix(AGAIN)
            axes.plot(
                [point[key] for point in run["curve"]],
                [point[judged]["error"] for point in run["curve"]],
                ".--" if AGAIN in name else ".-",
                color=colours[first],
                lw=2.5 if first in ("ours", "plain") else 1.2,
                label=name,
            )
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(alpha=0.3)
    worst = max(run["curve"][-1][judged]["error"] for run in runs.values())
    panels[0].set(ylabel="median relative 3D error in unseen rooms", ylim=(0, 2 * worst))  # how runs end, not begin
    panels[1].legend(loc="upper right")
    figure.savefig(path, dpi=110)


def recipe_and_rate(word: str) -> tuple[str, float | None]:
    """`plain@1e-3` -> ("plain", 0.001). Raises argparse.ArgumentTypeError."""
    name, at, rate = word.partition("@")
    try:
        if name not in RECIPES or (at and not 0 < float(rate) < 1):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(RECIPES)}, nor one of them @RATE") from None
    return name, float(rate) if at else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="?", choices=SETTINGS, default="tiny")
    parser.add_argument("--only", nargs="+", type=recipe_and_rate, help="recipes (default: all)")
    parser.add_argument("--steps", type=int, help="per run (default: the setting's)")
    parser.add_argument("--scenes", type=int, nargs=3, help="of each dataset, to learn from, choose by and report")
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="show the set that nothing is chosen by")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/learning_SETTING)")
    arguments = parser.parse_args(argv)
    setting = SETTINGS[arguments.setting]
    if arguments.scenes:
        setting = replace(setting, scenes=tuple(arguments.scenes))
    steps = arguments.steps or setting.steps
    out = arguments.out or Path(__file__).parent / "results" / f"learning_{arguments.setting}"
    out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    asked = arguments.only or [(name, None) for name in RECIPES]
    clips = make_clips(setting, [name for name, _ in asked])
    with ProcessPoolExecutor(max_workers=arguments.processes, mp_context=get_context("spawn")) as pool:
        jobs = {
            name if rate is None else f"{name}@{rate:g}": pool.submit(train, name, setting, rate, clips, steps)
            for name, rate in asked
        }
        for name, job in jobs.items():
            (out / f"{name}.json").write_text(json.dumps(job.result(), indent=1) + "\n")
    runs = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    print(table(runs, "choose"))
    if arguments.report:
        print(table(runs, "report"))
    draw(runs, "choose", out / "curves.png")


if __name__ == "__main__":
    main()
