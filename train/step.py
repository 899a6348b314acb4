"""One optimiser step: plain PyTorch, with or without DistributedDataParallel, and nothing of Ray."""

import math
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model import D4RT, Prediction, checkpoints
from model.encoder import Droppable
from train import losses
from train.config import TrainConfig
from train.errors import TrainingDiverged
from train.query_batch import QueryBatch
from train.recipe import OptimConfig, Part

TARGET_OF = {"l3d": "xyz", "l2d": "uv_tgt", "lvis": "visible", "ldisp": "displacement", "lnormal": "normal"}
# Inside a training checkpoint. `model` is what is registered; if that is averaged weights, the others lie beside it.
MODEL, NOT_AVERAGED, OPTIMISERS = "model", "not_averaged", "optimisers.pt"
ENCODER = ("encoder.", "aspect_proj.")  # how the names of its parameters begin


@dataclass
class TrainState:
    """What a checkpoint must bring back, besides random numbers."""

    model: D4RT
    network: nn.Module
    """The model, or the DistributedDataParallel around it."""
    optimisers: tuple[torch.optim.Optimizer, ...]
    averaged: D4RT | None = None
    """With the running mean of the weights, if `optim.ema` asks for one."""
    step: int = 0
    """Steps done."""

    @classmethod
    def create(cls, model: D4RT, config: OptimConfig) -> "TrainState":
        """A fresh state for a model that is on its device already, with its dropout set."""
        for part in config.freeze:
            freeze(model, part)
        groups = parameter_groups(model, config)
        optimisers = [
            torch.optim.AdamW([group for group in groups if not group["muon"]], betas=config.betas, fused=True)
        ]
        if matrices := [group for group in groups if group["muon"]]:
            optimisers.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"))
        averaged = deepcopy(model).eval().requires_grad_(False) if config.ema else None
        return cls(model, model, tuple(optimisers), averaged)

    @property
    def result(self) -> D4RT:
        """What is registered and scored: the averaged weights if there are some."""
        return self.model if self.averaged is None else self.averaged

    def zero_grad(self) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)

    def update(self, rate: float) -> None:
        """Move the weights by their gradients, at this learning rate: a step is done."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["lr_share"]
            optimiser.step()
        self.step += 1

    def average(self, share: float) -> None:
        """Move the averaged weights towards the present ones; they keep `share`, less in the first steps."""
        share = min(share, (1 + self.step) / (10 + self.step))  # or fresh weights would weigh for 1 / (1 - share) steps
        get_ema_multi_avg_fn(share)(list(self.averaged.parameters()), list(self.model.parameters()), self.step)

    def save(self, folder: Path) -> None:
        """A model checkpoint in `folder`/model, and beside it what only training needs."""
        checkpoints.save(self.result, folder / MODEL)
        if self.averaged is not None:
            checkpoints.save(self.model, folder / NOT_AVERAGED)
        states = [optimiser.state_dict() for optimiser in self.optimisers]
        torch.save({"step": self.step, "optimisers": states}, folder / OPTIMISERS)

    def restore(self, folder: Path) -> None:
        """Go on exactly where `save` was called."""
        self.result.load_state_dict(checkpoints.load(folder / MODEL).state_dict())
        if self.averaged is not None:
            self.model.load_state_dict(checkpoints.load(folder / NOT_AVERAGED).state_dict())
        saved = torch.load(folder / OPTIMISERS, map_location=self.model.device, weights_only=True)
        for optimiser, before in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(before)
        self.step = saved["step"]


def held_bytes(config: TrainConfig) -> dict[str, int]:
    """What a `worker` holds of a model all the time, and what a `checkpoint` does: weights, averaged ones, and, of what
    learns, gradients and the running means of AdamW, two, or Muon, one. All float32."""
    with torch.device("meta"):
        model = D4RT(config.model)
    for part in config.optim.freeze:
        freeze(model, part)
    weights = sum(x.numel() for x in model.parameters()) * (2 if config.optim.ema else 1)
    groups = [
        (sum(x.numel() for x in group["params"]), group["muon"]) for group in parameter_groups(model, config.optim)
    ]
    gradients = sum(count for count, _ in groups)
    means = sum(count * (1 if muon else 2) for count, muon in groups)
    return {"worker": 4 * (weights + gradients + means), "checkpoint": 4 * (weights + means)}


def part_of(name: str) -> Part:
    """Which part of a D4RT a parameter or module of this name belongs to."""
    return "encoder" if f"{name}.".startswith(ENCODER) else "decoder"


def freeze(model: D4RT, part: Part) -> None:
    """Let a part stay as it is: no gradients, for which nothing is kept in memory then, and no dropout."""
    for name, parameter in model.named_parameters():
        if part_of(name) == part:
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if part_of(name) == part and isinstance(module, Droppable):
            module.dropout = 0.0


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """What learns, by decay, by share of the learning rate, and by whether Muon moves it.

    Biases, norms and timestep tables are not decayed. Muon takes the matrices inside the layers of encoder and decoder:
    it makes all directions of a move equally long, which is no use where rows are looked up or numbers come in and out.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    encoder_share = 1.0 if config.encoder_lr is None else config.encoder_lr / config.lr
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim < 2 or id(parameter) in tables
            decay = 0.0 if spared and not config.decay_all else config.weight_decay
            share = encoder_share if part_of(name) == "encoder" else 1.0
            muon = config.optimiser == "muon" and parameter.ndim == 2 and ".blocks." in name
            groups.setdefault((decay, share, muon), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * share, "lr_share": share, "weight_decay": decay, "muon": muon}
        for (decay, share, muon), parameters in groups.items()
    ]


def learning_rate(step: int, config: OptimConfig, steps: int) -> float:
    """Of step 0, 1, ...: linear warm-up, where step 0 is not wasted, then half a cosine down to `final_lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    return config.final_lr + (config.lr - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def train_step(state: TrainState, batch: QueryBatch, config: TrainConfig) -> dict[str, float]:
    """Learn from one batch, this worker's part of it, and return the metrics of the whole batch.

    The metrics are the same on all workers. Raises TrainingDiverged, on all of them and before any weight changes,
    for a loss or a gradient that is not finite, naming term, step and datasets.
    """
    counts = losses.valid_counts(batch, config.loss)
    state.zero_grad()
    parts, predictions, mine = batch.parts(config.accumulate), [], 0
    for number, part in enumerate(parts, 1):
        prediction, sums = add_gradients(state, part, counts, config, last=number == len(parts))
        mine = mine + torch.cat([sums.flatten(), losses.monitors(prediction, part, config.loss)])
        predictions.append(prediction)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)

    queries = losses.per_dataset(torch.full_like(batch.aspect, batch.xyz.shape[1]), batch)
    reduced = losses.sum_over_workers(torch.cat([mine, queries]))
    numbers = torch.cat([reduced, counts.flatten(), grad_norm[None]]).cpu()  # the only wait for the device
    metrics = summarise(numbers, batch.datasets, config, state.step)
    if not math.isfinite(metrics["grad_norm"]):
        tables = [broken_gradients(*pair, config, state.step) for pair in zip(predictions, parts, strict=True)]
        found = named(losses.sum_over_workers(sum(tables)).cpu() > 0, batch.datasets)
        where = f"in {found}" if found else "inside the network"
        raise TrainingDiverged(
            f"gradient is not finite at step {state.step} though the loss is: {where}; look at these data, or lower "
            "optim.lr"
        )

    rate = learning_rate(state.step, config.optim, config.steps)
    state.update(rate)
    if state.averaged is not None:
        state.average(config.optim.ema)
    return metrics | {"lr": rate}


def add_gradients(
    state: TrainState, part: QueryBatch, counts: Tensor, config: TrainConfig, *, last: bool
) -> tuple[Prediction, Tensor]:
    """(answers, without gradient; sums of the terms by dataset) of a part of a step whose valid queries are `counts`.

    Workers exchange gradients once per step, with the `last` part.
    """
    wait = isinstance(state.network, DistributedDataParallel) and not last
    device = part.video.device
    with state.network.no_sync() if wait else nullcontext():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            prediction = state.network(part.video, part.aspect, part.queries)
        terms = losses.loss_terms(prediction, part, config.loss, state.step)
        loss, sums = losses.total_loss(terms, part, counts, config.loss)
        loss.backward()
    return Prediction(**{name: answer.detach() for name, answer in vars(prediction).items()}), sums


def summarise(numbers: Tensor, datasets: tuple[str, ...], config: TrainConfig, step: int) -> dict[str, float]:
    """Global sums, as `train_step` lays them out, to metrics by name."""
    grid = len(losses.TERMS) * len(datasets)
    sums, watched, queries, counts, grad_norm = numbers.split([grid, len(losses.MONITORS), len(datasets), grid, 1])
    sums, counts = sums.view(-1, len(datasets)), counts.view(-1, len(datasets))
    check_finite(sums, datasets, step)
    means = dict(zip(losses.TERMS, (sums.sum(1) / counts.sum(1).clamp(min=1)).tolist(), strict=True))
    watch = dict(zip(losses.MONITORS, watched.tolist(), strict=True))
    masked = {
        f"masked/{TARGET_OF[term]}/{name}": 1 - counts[i, d].item() / queries[d].item()
        for i, term in enumerate(losses.TERMS)
        for d, name in enumerate(datasets)
        if term in TARGET_OF and queries[d] > 0
    }
    scaled = (
        {
            "confidence": watch["confidence"] / watch["clips"],
            "spread_ratio": watch["spread"] / max(watch["spread_true"], 1e-12),
            "z_ratio": watch["z_std"] / max(watch["z_std_true"], 1e-12),
            "z_correlation": watch["z_correlation"] / watch["clips"],
        }
        if watch["clips"]
        else {}
    )  # nothing to compare in a batch whose points are not known
    return {
        "loss": sum(getattr(config.loss, name) * value for name, value in means.items()),
        **{f"loss/{name}": value for name, value in means.items()},
        **scaled,
        "grad_norm": grad_norm.item(),
        "dropped_clips": watch["dropped"],
        **masked,
    }


def check_finite(sums: Tensor, datasets: tuple[str, ...], step: int) -> None:
    if found := named(~sums.isfinite(), datasets):
        raise TrainingDiverged(f"loss is not finite at step {step}: {found}; look at these data, or lower optim.lr")


def named(bad: Tensor, datasets: tuple[str, ...]) -> str:
    """A table (terms, datasets) of what is wrong, in words; empty if nothing is."""
    return ", ".join(
        f"{term} ({', '.join(name for d, name in enumerate(datasets) if bad[i, d])})"
        for i, term in enumerate(losses.TERMS)
        if bad[i].any()
    )


def broken_gradients(prediction: Prediction, batch: QueryBatch, config: TrainConfig, step: int) -> Tensor:
    """Which terms send a gradient that is not finite into the answers about which datasets: clips, (terms, datasets).

    An answer that is not finite gives one even where the loss masks it.
    """
    answers = {name: x.detach().requires_grad_() for name, x in vars(prediction).items()}
    terms = losses.loss_terms(Prediction(**answers), batch, config.loss, step)
    table = []
    for value, mask in (terms[name] for name in losses.TERMS):
        total = torch.where(mask, value, 0).sum()
        gradients = torch.autograd.grad(total, answers.values(), retain_graph=True, allow_unused=True)
        bad = [(~gradient.isfinite()).flatten(1).any(1) for gradient in gradients if gradient is not None]
        table.append(losses.per_dataset(torch.stack(bad).any(0).float(), batch))
    return torch.stack(table)
