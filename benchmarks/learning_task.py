"""What the learning benchmark does: clips of synthetic rooms in memory, and one run of a recipe on them."""

import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from model import D4RT, ModelConfig
from model.encoder import Tokenizer
from pipelines.catalog import Catalog, load_mixture
from pipelines.datasets import DATASETS, open_sequence
from pipelines.evaluation.scores import answers_of, measure, queries_of
from pipelines.evaluation.tally import Tally
from pipelines.raw.folder import RawFolder
from pipelines.store.layout import ClipData, StoreSettings
from pipelines.synthesize.job import write_sequence
from pipelines.truth import queries as query_drawing
from pipelines.truth.clips import build_clip, spans
from train import losses
from train.config import PRESETS, TrainConfig
from train.mixture import MixturePlan
from train.optim import NEWTON_SCHULZ, blocks, learning_rate, parameter_groups
from train.parallel import computing
from train.query_batch import QueryBatch
from train.state import TrainState
from train.step import train_step

SETS = ("learn", "choose", "report")  # no choice is made by the last
SAMPLES = 4  # of queries, of each clip to learn from
WORKERS = 2  # `per_rank` takes the means of so many
MEASURED = 8  # times per run
ASKED = 256  # queries of each clip that is judged by
AGAIN = "_again"  # ends the name of a recipe with another seed

Draw = Literal["ours", "no_edges", "free_cameras", "plain"]
OURS = {name: getattr(query_drawing, name) for name in ("EDGE_SHARE", "SAME_TIME_SHARE")}
DRAWS: dict[Draw, dict[str, float]] = {
    "ours": {},
    "no_edges": {"EDGE_SHARE": 0.0},
    "free_cameras": {"SAME_TIME_SHARE": 0.0},
    "plain": {"EDGE_SHARE": 0.0, "SAME_TIME_SHARE": 0.0},
}
JUDGED: Draw = "plain"  # how the queries are drawn by which a model is judged
ByDataset = dict[str, list[ClipData]]


@dataclass(frozen=True)
class Setting:
    """Which model learns from how much."""

    model: ModelConfig
    clips: int
    """Per step."""
    queries: int
    """Per clip and step; of twice as many that are drawn."""
    steps: int
    adamw: float
    muon: float
    """Learning rates where no other is asked for."""
    precision: Literal["float32", "bfloat16"] = "float32"
    scenes: tuple[int, int, int] = (40, 6, 6)
    """Of each dataset, to learn from, to choose by and to report; two of them film each with two cameras."""

    @property
    def settings(self) -> StoreSettings:
        """Of clips in the first dataset; `replace` it for others."""
        return StoreSettings(
            dataset="kubric",
            split="all",
            frames=self.model.clip_frames,
            image_size=self.model.image_size,
            strides=(1, 1),
            hop=self.model.clip_frames,
            samples=1,
            queries=2 * self.queries,
            video="zstd",
            seed=0,
        )


SETTINGS = {
    "tiny": Setting(ModelConfig.preset("tiny"), clips=8, queries=256, steps=500, adamw=2e-3, muon=5e-3),
    "small": Setting(
        replace(ModelConfig.preset("small"), image_size=64, patch_size=8, clip_frames=8),
        clips=2,
        queries=512,
        steps=400,
        adamw=1e-3,
        muon=2e-3,
        precision="bfloat16",
    ),
}


@dataclass(frozen=True)
class Recipe:
    """What differs from ours."""

    draw: Draw = "ours"
    dropout: float = 0.0
    confidence: Literal["error", "paper"] = "error"
    displacement: Literal["scaled", "metric"] = "scaled"
    mean_per_worker: bool = False
    fresh: Literal["ours", "torch"] = "ours"
    optimiser: Literal["muon", "adamw"] = "muon"
    seed: int = 0


RECIPES = {
    "ours": Recipe(),
    "dropout": Recipe(dropout=0.1),
    "paper_confidence": Recipe(confidence="paper"),
    "metric": Recipe(displacement="metric"),
    "per_rank": Recipe(mean_per_worker=True),
    "no_edges": Recipe(draw="no_edges"),
    "free_cameras": Recipe(draw="free_cameras"),
    "torch_start": Recipe(fresh="torch"),
    "adamw": Recipe(optimiser="adamw"),
    "adamw_torch_start": Recipe(optimiser="adamw", fresh="torch"),
    "plain": Recipe("plain", 0.1, "paper", "metric", mean_per_worker=True, fresh="torch", optimiser="adamw"),
    "plain_muon": Recipe("plain", 0.1, "paper", "metric", mean_per_worker=True, fresh="torch"),
}
# As plain as that costs nothing: on a CPU dropout doubles the time of a step, and runs are short.
RECIPES["plain_lean"] = replace(RECIPES["plain"], dropout=0.0, mean_per_worker=False)
RECIPES |= {name + AGAIN: replace(RECIPES[name], seed=1) for name in ("ours", "adamw", "plain", "plain_lean")}


def clips_of(setting: Setting, draws: set[Draw], dataset: str, split: str, index: int) -> dict[Draw, list[ClipData]]:
    """The clips of one synthetic scene: to learn from, with each of these ways of drawing queries; else as they are
    judged."""
    learn, frames = split == "learn", setting.model.clip_frames
    settings = replace(setting.settings, dataset=dataset, samples=SAMPLES if learn else 1)
    catalog, found = Catalog.load(dataset), {}
    with tempfile.TemporaryDirectory() as raw:
        # A scan may lose its pose in the middle: two frames more leave room for two clips around it.
        row = {"dataset": dataset, "root": raw, "index": index}
        write_sequence(row, frames=2 * frames + 2, size="small", seed=SETS.index(split))
        for draw in draws if learn else (JUDGED,):
            for name, share in (OURS | DRAWS[draw]).items():
                setattr(query_drawing, name, share)
            found[draw] = []
            for name in DATASETS[dataset].find(RawFolder(raw)):
                sequence = open_sequence(dataset, raw, name)
                found[draw] += [build_clip(sequence, span, catalog, settings) for span in spans(sequence, settings)]
    return found


def make_clips(setting: Setting, recipes: Iterable[str]) -> dict[tuple[str, Draw], ByDataset]:
    """All clips that these recipes need, by set and way of drawing."""
    draws = {RECIPES[name].draw for name in recipes}
    jobs = [
        (setting, draws, dataset, split, index)
        for split, count in zip(SETS, setting.scenes, strict=True)
        for dataset in DATASETS
        for index in range(count)
    ]
    made: dict[tuple[str, Draw], ByDataset] = {}
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        for (_, _, dataset, split, _), found in zip(jobs, pool.map(clips_of, *zip(*jobs, strict=True)), strict=True):
            for draw, clips in found.items():
                made.setdefault((split, draw), {}).setdefault(dataset, []).extend(clips)
    return made


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
        clip, count = self.clips[self.datasets[store]][number], self.config.data.queries
        rows = clip.queries[sample]
        rows = rows[np.random.default_rng([self.plan.seed, index]).choice(len(rows), count, replace=False)]
        columns = {name: rows[name].copy() for name in rows.dtype.names}
        return {"video": clip.video, "aspect": np.float32(clip.row["aspect"]), "dataset": store, **columns}

    def batch(self, step: int) -> QueryBatch:
        count = self.config.data.clips_per_worker
        rows = [self.columns(step * count + i) for i in range(count)]
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


@torch.no_grad()
def start_as_torch_does(model: D4RT) -> None:
    """Fresh weights of nn.Linear, nn.MultiheadAttention (Xavier, q, k and v in one) and nn.Embedding (variance 1)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
        if isinstance(module, Tokenizer):
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)
        if name.endswith((".qkv", ".q", ".kv")):
            bound = (6 / (4 * module.in_features)) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


def flops_of_step(config: TrainConfig) -> int:
    """Of the matrix products: a backward pass needs twice a forward pass; and Muon's."""
    frames = config.model.clip_frames
    clip = config.model.flops_encode(frames) + config.model.flops_decode(config.data.queries, frames)
    with torch.device("meta"):
        groups = parameter_groups(D4RT(config.model), config.optim)
    muon = 0
    for group in groups:
        for matrix in group["params"] if group["muon"] else ():
            number, *sides = blocks(matrix, group["muon"]).shape
            short, long = sorted(sides)
            muon += NEWTON_SCHULZ * number * (4 * short**2 * long + 2 * short**3)
    return 3 * config.data.clips_per_worker * clip + muon


def config_of(setting: Setting, recipe: Recipe, rate: float | None, steps: int) -> TrainConfig:
    """The run that a recipe asks for; `rate` instead of its learning rate."""
    preset = PRESETS["tiny"][1]
    warmup = min(preset.optim.warmup_steps, steps // 10)
    rate = rate or {"adamw": setting.adamw, "muon": setting.muon}[recipe.optimiser]
    optim = replace(preset.optim, optimiser=recipe.optimiser, lr=rate, final_lr=rate / 100, warmup_steps=warmup)
    paper = {"confidence": "paper", "lconf": 0.2, "confidence_warmup_steps": 0}
    changed = paper if recipe.confidence == "paper" else {}
    loss = replace(preset.loss, displacement_norm=recipe.displacement, **changed)
    return replace(
        preset,
        model=setting.model,
        data=replace(preset.data, queries=setting.queries, clips_per_worker=setting.clips),
        loss=loss,
        optim=optim,
        dropout=recipe.dropout,
        precision=setting.precision,
        seed=recipe.seed,
        steps=steps,
    )


@torch.inference_mode()
def errors_on(model: D4RT, clips: ByDataset, config: TrainConfig) -> dict[str, float | None]:
    """Median relative error, as `evaluate clips` defines it, of all points and of moving ones; and how well confidence
    ranks the answers.

    Of some queries of each clip, in the precision of training; without cameras, which would cost more than all steps.
    """
    model.eval()
    tally = Tally()
    for clip in (clip for several in clips.values() for clip in several):
        truth = {name: clip.queries[0][name][:ASKED].copy() for name in clip.queries.dtype.names}
        with computing(config, model.device):
            memory = model.encode(torch.from_numpy(clip.video)[None], torch.tensor([clip.row["aspect"]]).float())
            prediction = model.decode(memory, queries_of(truth))
        answers = answers_of(model, prediction, np.tile(np.eye(4, dtype=np.float32), (len(clip.video), 1, 1)))
        tally.add(measure(truth, answers, clip.world_from_cam, is_metric=clip.row["is_metric"]))
    model.train()
    scores = tally.scores()
    error, rank = scores["median_relative_error"], scores["confidence"]["rank_correlation"]
    return {"error": error["all"], "moving": error["moving"], "rank": rank["all"], "rank_moving": rank["moving"]}


def train(
    name: str, setting: Setting, rate: float | None, clips: dict[tuple[str, Draw], ByDataset], steps: int
) -> dict[str, Any]:
    """One run: its recipe, and its curve on the clips to choose by and on those to report."""
    torch.set_num_threads(1)
    recipe = RECIPES[name]
    config = config_of(setting, recipe, rate, steps)
    stream = Clips(clips["learn", recipe.draw], config)
    torch.manual_seed(config.seed)
    model = D4RT(config.model).train()
    if recipe.fresh == "torch":
        start_as_torch_does(model)
    model.set_dropout(recipe.dropout)
    state = TrainState.create(model, config.optim)
    take_step = step_with_mean_per_worker if recipe.mean_per_worker else train_step
    flops, curve, seconds = flops_of_step(config), [], 0.0
    for number in range(1, steps + 1):
        batch = stream.batch(number - 1)
        start = time.process_time()
        take_step(state, batch, config)
        seconds += time.process_time() - start
        if number % (steps // min(MEASURED, steps)) == 0:
            point = {"step": number, "tflop": number * flops / 1e12, "cpu_seconds": round(seconds, 2)}
            point |= {split: errors_on(model, clips[split, JUDGED], config) for split in ("choose", "report")}
            curve.append(point)
            print(f"{name:18} step {number:5}  {seconds:6.0f} s  error {point['choose']['error']:.4f}", flush=True)
    return {"recipe": asdict(recipe), "rate": config.optim.lr, "curve": curve}
