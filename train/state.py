"""What a run learns and keeps: weights, their averages, optimisers; and how large that is."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from io import IOBase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model import D4RT, checkpoints
from train.config import TrainConfig
from train.optim import Muon, freeze, parameter_groups, shared
from train.parallel import LossScale
from train.recipe import OptimConfig
from train.sharing import Shares

# Inside a training checkpoint. `model` is what is registered; if that is averaged weights, the others lie beside it.
MODEL, NOT_AVERAGED, OPTIMISERS = "model", "not_averaged", "optimisers.pt"


@dataclass
class TrainState:
    """What a checkpoint must bring back, besides random numbers."""

    model: D4RT
    network: nn.Module
    """The model, or the DistributedDataParallel around it."""
    optimisers: tuple[torch.optim.Optimizer, ...]
    shares: Shares
    """Who moves what."""
    averaged: D4RT | None = None
    """With the running mean of the weights, if `optim.ema` asks for one."""
    step: int = 0
    """Steps done."""
    loss_scale: LossScale | None = None
    """In float16."""
    skipped: list[str] = field(default_factory=list)
    """Why steps were left out, of those that `max_skipped` counts."""

    @classmethod
    def create(
        cls, model: D4RT, config: OptimConfig, *, shard: bool = False, precision: str = "float32"
    ) -> "TrainState":
        """A fresh state for a model that is on its device already, with its dropout set. `shard` and `precision` are
        those of a `TrainConfig`."""
        for part in config.freeze:
            freeze(model, part)
        groups = parameter_groups(model, config)
        optimisers = [
            torch.optim.AdamW([group for group in groups if not group["muon"]], betas=config.betas, fused=True)
        ]
        if matrices := [group for group in groups if group["muon"]]:
            optimisers.append(Muon(matrices, {}))
        return cls(
            model=model,
            network=model,
            optimisers=tuple(optimisers),
            shares=Shares(x for group in groups if shared(group["muon"], shard) for x in group["params"]),
            averaged=deepcopy(model).eval().requires_grad_(False) if config.ema else None,
            loss_scale=LossScale(model.device) if precision == "float16" else None,
        )

    @property
    def result(self) -> D4RT:
        """What is registered and scored: the averaged weights if there are some."""
        return self.model if self.averaged is None else self.averaged

    def zero_grad(self) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)

    def update(self, rate: float, broken: Tensor | None = None) -> None:
        """Move the weights by their gradients, at this learning rate: a step is done. All workers must call this.

        `broken`: () float32; where it is 1 nothing changes but the number of steps, and float16's scale.
        """
        self.shares.drop_gradients_of_others()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["lr_share"]
            optimiser.found_inf = broken
            optimiser.step()
        self.shares.spread()
        if self.loss_scale is not None and broken is not None:
            self.loss_scale.update(broken)
        self.step += 1

    def average(self, share: float) -> None:
        """Move the averaged weights towards the present ones; they keep `share`, less in the first steps."""
        share = min(share, (1 + self.step) / (10 + self.step))  # or fresh weights would weigh for 1 / (1 - share) steps
        get_ema_multi_avg_fn(share)(list(self.averaged.parameters()), list(self.model.parameters()), self.step)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint has besides weights: on worker 0, the others have a part. All workers must call this."""
        scale = self.loss_scale
        return {
            "step": self.step,
            "optimisers": [self.shares.whole(optimiser) for optimiser in self.optimisers],
            "skipped": self.skipped,
            "loss_scale": {} if scale is None else {"scale": scale.scale, "steps": scale.steps},
        }

    def writers(self, progress: dict[str, Any], copy: Callable[[Any, str], Any]) -> dict[str, Callable[[IOBase], None]]:
        """What writes each file that `restore` needs: a model checkpoint in MODEL, and what only training needs, which
        is `progress`, as `progress()` gives it.

        `copy` gives a copy on the CPU of nested values, by a name for them; it is called now, and training may go on
        before anything is written.
        """
        content = copy(progress, OPTIMISERS)
        files = {OPTIMISERS: lambda file: torch.save(content, file)}
        models = {MODEL: self.result} if self.averaged is None else {NOT_AVERAGED: self.model, MODEL: self.result}
        for name, model in models.items():
            writers = checkpoints.writers(model, copy(model.state_dict(), name))
            files |= {f"{name}/{file}": write for file, write in writers.items()}
        return files

    def restore(self, folder: Path) -> None:
        """Go on exactly where `writers` was called, whose files are in this folder. ValueError if other code did that,
        which divided the weights otherwise."""
        result = checkpoints.load(folder / MODEL)
        self.result.load_state_dict(result.state_dict())
        self.model.trained_on = self.result.trained_on = self.result.trained_on | result.trained_on
        if self.averaged is not None:
            self.model.load_state_dict(checkpoints.load(folder / NOT_AVERAGED).state_dict())
        # All workers of a node read it: mapped, they share what is read. Not on a CPU, whose tensors would stay mapped.
        mapped = self.model.device.type == "cuda"
        saved = torch.load(folder / OPTIMISERS, map_location="cpu", weights_only=True, mmap=mapped)
        for optimiser, before in zip(self.optimisers, saved["optimisers"], strict=True):
            if divided(before["param_groups"]) != divided(optimiser.param_groups):
                raise ValueError(
                    "its last checkpoint is of another version of this code, whose optimiser cannot go on: begin a run "
                    "with another --name from its weights, --init RUN/step_N"
                )
            optimiser.load_state_dict(self.shares.mine(optimiser, before))
        self.step, self.skipped = saved["step"], saved.get("skipped", [])
        if self.loss_scale is not None:
            for name, number in saved.get("loss_scale", {}).items():
                setattr(self.loss_scale, name, number.to(self.model.device))


def divided(groups: list[dict[str, Any]]) -> list[int]:
    """How many weights there are in each group of an optimiser."""
    return [len(group["params"]) for group in groups]


def held_bytes(config: TrainConfig) -> dict[str, int]:
    """What a `model` is, what a `worker` holds of it all the time, its `gradients` aside, and a `checkpoint`: weights,
    averaged ones, and, of what learns, the running means of AdamW, two, or Muon, one. All float32."""
    with torch.device("meta"):
        model = D4RT(config.model)
    for part in config.optim.freeze:
        freeze(model, part)
    weights = sum(x.numel() for x in model.parameters()) * (2 if config.optim.ema else 1)
    groups = [
        (sum(x.numel() for x in group["params"]), group["muon"]) for group in parameter_groups(model, config.optim)
    ]
    means = sum(count * (1 if muon else 2) for count, muon in groups)
    held = weights + sum(
        count * (1 if muon else 2) // (config.workers if shared(muon, config.shard) else 1) for count, muon in groups
    )
    return {
        "model": 4 * sum(x.numel() for x in model.parameters()),
        "worker": 4 * held,
        "gradients": 4 * sum(count for count, _ in groups),
        "checkpoint": 4 * (weights + means),
    }
