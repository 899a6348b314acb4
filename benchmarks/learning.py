"""How fast does our recipe learn, and what does each of its choices gain over the plain choice of earlier work?

    python -m benchmarks.learning --out benchmarks/learning [--only ours plain] [--steps 400]

Clips of 8 frames of synthetic rooms in all nine layouts, and of other rooms that no training sees. A model of preset
`tiny` trains on the same clips in the same order with each recipe, a single thread each. The held-out error, the median
relative one of `evaluate clips`, is taken at intervals over queries drawn anywhere with any camera, as the plain recipe
draws them, and at the end also over queries drawn our way. Time is CPU seconds of the training steps alone.

| recipe       | what is plain                                                                         |
|--------------|---------------------------------------------------------------------------------------|
| ours         | nothing: what `python -m train tiny` does                                             |
| dropout      | 0.1, on attention and MLPs                                                            |
| no_warm_in   | confidence counts from the first step                                                 |
| metric       | displacements in metres against a scale-free prediction                               |
| per_rank     | every term averaged per worker (two of them), then over workers, whatever their masks |
| no_edges     | no queries near edges but those that chance puts there                                |
| free_cameras | t_cam drawn without regard to t_tgt                                                   |
| adamw        | AdamW moves all weights, at the learning rate that suits it best                      |
| plain        | all seven                                                                             |
| plain_muon   | all but AdamW                                                                         |
| ..._again    | ours and plain with other fresh weights and clips in another order: what chance does  |
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from model import D4RT
from pipelines.catalog import Catalog, load_mixture
from pipelines.datasets import DATASETS, open_sequence
from pipelines.evaluation.scores import ask, measure
from pipelines.evaluation.tally import Tally
from pipelines.raw.folder import RawFolder
from pipelines.store.layout import ClipData, StoreSettings
from pipelines.synthesize.job import write_sequence
from pipelines.truth import queries as query_drawing
from pipelines.truth.clips import build_clip, spans
from train import losses
from train.config import PRESETS, TrainConfig
from train.mixture import MixturePlan
from train.optim import learning_rate
from train.query_batch import QueryBatch
from train.state import TrainState
from train.step import train_step

FRAMES, SIZE, QUERIES, SAMPLES = 8, 64, 512, 4
RAW_FRAMES = 18  # per scene: two clips, one where a scan lost its pose in the middle
SCENES = {"train": 40, "held_out": 4}  # of each dataset; two of them film each with two cameras
CLIPS, WORKERS = 8, 2  # per step; `per_rank` takes the means of so many
MEASURED = 8  # times per run
AGAIN = "_again"  # ends the name of a recipe with another seed

Draw = Literal["ours", "no_edges", "free_cameras", "plain"]
OURS = {name: getattr(query_drawing, name) for name in ("EDGE_SHARE", "SAME_TIME_SHARE")}
DRAWS: dict[Draw, dict[str, float]] = {
    "ours": {},
    "no_edges": {"EDGE_SHARE": 0.0},
    "free_cameras": {"SAME_TIME_SHARE": 0.0},
    "plain": {"EDGE_SHARE": 0.0, "SAME_TIME_SHARE": 0.0},
}
HELD_OUT: tuple[Draw, ...] = ("plain", "ours")
ADAMW = {"optimiser": "adamw", "lr": 2e-3, "final_lr": 2e-5}  # of 1e-3, 2e-3 and 3e-3 as good as any
ByDataset = dict[str, list[ClipData]]


@dataclass(frozen=True)
class Recipe:
    """What differs from ours."""

    draw: Draw = "ours"
    dropout: float = 0.0
    warm_in: bool = True
    displacement: Literal["scaled", "metric"] = "scaled"
    mean_per_worker: bool = False
    muon: bool = True
    seed: int = 0


RECIPES = {
    "ours": Recipe(),
    "dropout": Recipe(dropout=0.1),
    "no_warm_in": Recipe(warm_in=False),
    "metric": Recipe(displacement="metric"),
    "per_rank": Recipe(mean_per_worker=True),
    "no_edges": Recipe(draw="no_edges"),
    "free_cameras": Recipe(draw="free_cameras"),
    "adamw": Recipe(muon=False),
    "plain": Recipe("plain", 0.1, False, "metric", mean_per_worker=True, muon=False),
    "plain_muon": Recipe("plain", 0.1, False, "metric", mean_per_worker=True),
}
RECIPES |= {name + AGAIN: replace(RECIPES[name], seed=1) for name in ("ours", "plain")}


def clips_of(dataset: str, split: str, index: int) -> dict[str, list[ClipData]]:
    """The clips of one synthetic scene with each way of drawing queries."""
    settings = StoreSettings(
        dataset=dataset,
        split="all",
        frames=FRAMES,
        image_size=SIZE,
        strides=(1, 1),
        hop=FRAMES,
        samples=SAMPLES if split == "train" else 1,
        queries=QUERIES,
        video="zstd",
        seed=0,
    )
    catalog, found = Catalog.load(dataset), {}
    with tempfile.TemporaryDirectory() as raw:
        row = {"dataset": dataset, "root": raw, "index": index}
        write_sequence(row, frames=RAW_FRAMES, size="small", seed=list(SCENES).index(split))
        for draw in DRAWS if split == "train" else HELD_OUT:
            for name, share in (OURS | DRAWS[draw]).items():
                setattr(query_drawing, name, share)
            found[draw] = []
            for name in DATASETS[dataset].find(RawFolder(raw)):
                sequence = open_sequence(dataset, raw, name)
                found[draw] += [build_clip(sequence, span, catalog, settings) for span in spans(sequence, settings)]
    return found


def make_clips() -> dict[tuple[str, str], ByDataset]:
    """All clips, by split and way of drawing."""
    jobs = [(dataset, split, i) for split, count in SCENES.items() for dataset in DATASETS for i in range(count)]
    splits: dict[tuple[str, str], ByDataset] = {}
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        for (dataset, split, _), found in zip(jobs, pool.map(clips_of, *zip(*jobs, strict=True)), strict=True):
            for draw, clips in found.items():
                splits.setdefault((split, draw), {}).setdefault(dataset, []).extend(clips)
    return splits


class Clips:
    """What a store is to training, in memory."""

    def __init__(self, clips: ByDataset, config: TrainConfig) -> None:
        weights = load_mixture("nine")
        self.clips, self.config, self.datasets = clips, config, tuple(sorted(clips))
        self.plan = MixturePlan(
            stores=self.datasets,
            weights=tuple(weights[dataset] for dataset in self.datasets),
            lengths=tuple(len(clips[dataset]) for dataset in self.datasets),
            samples=(SAMPLES,) * len(clips),
            seed=config.seed,
        )

    def columns(self, index: int) -> dict[str, Any]:
        """Clip number `index` of the run, as `train.clips.read_clip` gives it."""
        store, number, sample = self.plan.clip(index)
        clip = self.clips[self.datasets[store]][number]
        chosen = np.random.default_rng([self.plan.seed, index]).choice(QUERIES, self.config.data.queries, replace=False)
        rows = clip.queries[sample][chosen]
        columns = {name: rows[name].copy() for name in rows.dtype.names}
        return {"video": clip.video, "aspect": np.float32(clip.row["aspect"]), "dataset": store, **columns}

    def batch(self, step: int) -> QueryBatch:
        rows = [self.columns(step * CLIPS + i) for i in range(CLIPS)]
        return QueryBatch.from_columns({name: np.stack([row[name] for row in rows]) for name in rows[0]}, self.datasets)


def step_with_mean_per_worker(state: TrainState, batch: QueryBatch, config: TrainConfig) -> None:
    """What DistributedDataParallel does when every worker divides by its own counts."""
    state.zero_grad()
    for own in batch.parts(WORKERS):
        terms = losses.loss_terms(state.network(own.video, own.aspect, own.queries), own, config.loss, state.step)
        loss, _ = losses.total_loss(terms, own, losses.valid_counts(own, config.loss), config.loss)
        (loss / WORKERS).backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)
    state.update(learning_rate(state.step, config.optim, config.steps))


def held_out_error(model: D4RT, clips: ByDataset) -> float:
    """Median relative error over all queries whose point is known, as `evaluate clips` defines it."""
    model.eval()
    errors = []
    for clip in (clip for several in clips.values() for clip in several):
        truth = {name: clip.queries[0][name] for name in clip.queries.dtype.names}
        answers = ask(model, clip.video, clip.row["aspect"], truth)
        errors.append(measure(truth, answers, clip.world_from_cam, is_metric=clip.row["is_metric"]))
    model.train()
    return Tally.of(errors).scores()["median_relative_error"]["all"]


def train(name: str, clips: ByDataset, unseen: dict[Draw, ByDataset], steps: int) -> dict[str, Any]:
    """One run; its curve. `unseen`: held-out clips by way of drawing."""
    torch.set_num_threads(1)
    recipe, preset = RECIPES[name], PRESETS["tiny"][1]
    warmup = preset.loss.confidence_warmup_steps if recipe.warm_in else 0
    config = replace(
        preset,
        model=replace(preset.model, clip_frames=FRAMES),
        steps=steps,
        dropout=recipe.dropout,
        seed=recipe.seed,
        optim=replace(preset.optim, **({} if recipe.muon else ADAMW)),
        loss=replace(preset.loss, confidence_warmup_steps=warmup, displacement_norm=recipe.displacement),
    )
    stream = Clips(clips, config)
    torch.manual_seed(config.seed)
    model = D4RT(config.model).train()
    model.set_dropout(recipe.dropout)
    state = TrainState.create(model, config.optim)
    take_step = step_with_mean_per_worker if recipe.mean_per_worker else train_step
    curve, seconds = [], 0.0
    for number in range(steps):
        batch = stream.batch(number)
        start = time.process_time()
        take_step(state, batch, config)
        seconds += time.process_time() - start
        if (number + 1) % (steps // MEASURED) == 0:
            error = held_out_error(model, unseen["plain"])
            curve.append({"step": number + 1, "cpu_seconds": round(seconds, 2), "error": error})
            print(f"{name:14} step {number + 1:5}  {seconds:6.0f} s  held-out error {error:.4f}", flush=True)
    return {"recipe": asdict(recipe), "curve": curve, "error_our_queries": held_out_error(model, unseen["ours"])}


def reached(curve: list[dict[str, float]], error: float) -> tuple[float, float] | None:
    """(steps, CPU seconds) after which a curve is first at or below an error, interpolated; None if never."""
    for before, after in pairwise([curve[0], *curve]):
        if after["error"] <= error:
            share = (before["error"] - error) / ((before["error"] - after["error"]) or 1)
            return tuple(before[key] + share * (after[key] - before[key]) for key in ("step", "cpu_seconds"))
    return None


def table(runs: dict[str, dict[str, Any]]) -> str:
    """In words for the terminal; the goal is the final error of `plain`, if that was run."""
    title = "the final error of plain after"
    lines = [f"{'recipe':14} {'final error':>11} {'our queries':>11} {'CPU s':>6}   {title}"]
    goal = runs["plain"]["curve"][-1] if "plain" in runs else None
    for name, run in runs.items():
        last = run["curve"][-1]
        when = reached(run["curve"], goal["error"]) if goal else None
        found = f"{when[0]:.0f} steps, {when[1]:.0f} s ({when[1] / goal['cpu_seconds']:.0%})" if when else "-"
        lines.append(
            f"{name:14} {last['error']:11.4f} {run['error_our_queries']:11.4f} {last['cpu_seconds']:6.0f}   {found}"
        )
    return "\n".join(lines)


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """The curves over steps and over CPU seconds; a dashed one is its recipe with another seed."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colours = {name: f"C{i}" for i, name in enumerate(RECIPES)}
    for axes, key, label in zip(panels, ("step", "cpu_seconds"), ("steps", "CPU seconds of training"), strict=True):
        for name, run in runs.items():
            first, points = name.removesuffix(AGAIN), run["curve"]
            axes.plot(
                [point[key] for point in points],
                [point["error"] for point in points],
                ".-" if name == first else ".--",
                color=colours[first],
                lw=2.5 if first in ("ours", "plain") else 1.2,
                label=name,
            )
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("median relative 3D error in unseen rooms")
    panels[1].legend(loc="upper right")
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "learning", help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="recipes (default: all)")
    parser.add_argument("--steps", type=int, default=400, help="per run (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    clips = make_clips()
    unseen = {draw: clips["held_out", draw] for draw in HELD_OUT}
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        jobs = {
            name: pool.submit(train, name, clips["train", RECIPES[name].draw], unseen, arguments.steps)
            for name in arguments.only
        }
        for name, job in jobs.items():
            (arguments.out / f"{name}.json").write_text(json.dumps(job.result(), indent=1) + "\n")
    runs = {name: json.loads(path.read_text()) for name in RECIPES if (path := arguments.out / f"{name}.json").exists()}
    print(table(runs))
    draw(runs, arguments.out / "curves.png")


if __name__ == "__main__":
    main()
