"""One optimiser step: plain PyTorch, with or without DistributedDataParallel, and nothing of Ray."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model import D4RT, Prediction, checkpoints
from train import losses
from train.config import OptimConfig, TrainConfig
from train.errors import TrainingDiverged
from train.query_batch import QueryBatch

TARGET_OF = {"l3d": "xyz", "l2d": "uv_tgt", "lvis": "visible", "ldisp": "displacement", "lnormal": "normal"}
MODEL, OPTIMISER = "model", "optimiser.pt"  # inside a training checkpoint


@dataclass
class TrainState:
    """What a checkpoint must bring back, besides random numbers."""

    model: D4RT
    network: nn.Module
    """The model, or the DistributedDataParallel around it."""
    optimiser: torch.optim.AdamW
    step: int = 0
    """Steps done."""

    @classmethod
    def create(cls, model: D4RT, config: OptimConfig) -> "TrainState":
        """A fresh state for a model that is on its device already."""
        return cls(model, model, torch.optim.AdamW(decay_groups(model, config), betas=config.betas, fused=True))

    def save(self, folder: Path) -> None:
        """A model checkpoint in `folder`/model, and beside it what only training needs."""
        checkpoints.save(self.model, folder / MODEL)
        torch.save({"step": self.step, "optimiser": self.optimiser.state_dict()}, folder / OPTIMISER)

    def restore(self, folder: Path) -> None:
        """Go on exactly where `save` was called."""
        self.model.load_state_dict(checkpoints.load(folder / MODEL).state_dict())
        saved = torch.load(folder / OPTIMISER, map_location=self.model.device, weights_only=True)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step = saved["step"]


def decay_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Biases, norms and timestep tables are not decayed."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed, free = [], []
    for parameter in model.parameters():
        (free if parameter.ndim < 2 or id(parameter) in tables else decayed).append(parameter)
    return [
        {"params": decayed, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": free, "lr": config.lr, "weight_decay": 0.0},
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
    device = batch.video.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
        prediction = state.network(batch.video, batch.aspect, batch.queries)
    terms = losses.loss_terms(prediction, batch, config.loss, state.step)
    loss, sums, counts = losses.total_loss(terms, batch, config.loss)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)

    watched = losses.monitors(prediction, batch, config.loss)
    queries = losses.per_dataset(torch.full_like(batch.aspect, batch.xyz.shape[1]), batch)
    reduced = losses.sum_over_workers(torch.cat([sums.flatten(), watched, queries]))
    parts = torch.cat([reduced, counts.flatten(), grad_norm[None]]).cpu()  # the only wait for the device
    metrics = summarise(parts, batch.datasets, config, state.step)
    if not math.isfinite(metrics["grad_norm"]):
        found = named(broken_gradients(prediction, batch, config, state.step), batch.datasets)
        where = f"in {found}" if found else "inside the network"
        raise TrainingDiverged(
            f"gradient is not finite at step {state.step} though the loss is: {where}; look at these data, or lower "
            "optim.lr"
        )

    rate = learning_rate(state.step, config.optim, config.steps)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.step()
    state.step += 1
    return metrics | {"lr": rate}


def summarise(parts: Tensor, datasets: tuple[str, ...], config: TrainConfig, step: int) -> dict[str, float]:
    """Global sums, as `train_step` lays them out, to metrics by name."""
    grid = len(losses.TERMS) * len(datasets)
    sums, watched, queries, counts, grad_norm = parts.split([grid, len(losses.MONITORS), len(datasets), grid, 1])
    sums, counts = sums.view(-1, len(datasets)), counts.view(-1, len(datasets))
    check_finite(sums, datasets, step)
    means = dict(zip(losses.TERMS, (sums.sum(1) / counts.sum(1).clamp(min=1)).tolist(), strict=True))
    watch = dict(zip(losses.MONITORS, watched.tolist(), strict=True))
    clips = max(1.0, watch["clips"])
    masked = {
        f"masked/{TARGET_OF[term]}/{name}": 1 - counts[i, d].item() / queries[d].item()
        for i, term in enumerate(losses.TERMS)
        for d, name in enumerate(datasets)
        if term in TARGET_OF and queries[d] > 0
    }
    return {
        "loss": sum(getattr(config.loss, name) * value for name, value in means.items()),
        **{f"loss/{name}": value for name, value in means.items()},
        "confidence": watch["confidence"] / clips,
        "spread_ratio": watch["spread"] / max(watch["spread_true"], 1e-12),
        "z_ratio": watch["z_std"] / max(watch["z_std_true"], 1e-12),
        "z_correlation": watch["z_correlation"] / clips,
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
    """Which terms send a gradient that is not finite into the answers about which datasets, (terms, datasets) bool.

    An answer that is not finite gives one even where the loss masks it. All workers must call this.
    """
    answers = {name: x.detach().requires_grad_() for name, x in vars(prediction).items()}
    terms = losses.loss_terms(Prediction(**answers), batch, config.loss, step)
    table = []
    for value, mask in (terms[name] for name in losses.TERMS):
        total = torch.where(mask, value, 0).sum()
        gradients = torch.autograd.grad(total, answers.values(), retain_graph=True, allow_unused=True)
        bad = [(~gradient.isfinite()).flatten(1).any(1) for gradient in gradients if gradient is not None]
        table.append(losses.per_dataset(torch.stack(bad).any(0).float(), batch))
    return losses.sum_over_workers(torch.stack(table)).cpu() > 0
