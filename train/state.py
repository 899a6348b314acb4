"""What a run learns and keeps: weights, their averages, optimisers; and how large that is."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model import D4RT, checkpoints
from train.config import TrainConfig
from train.optim import freeze, parameter_groups
from train.recipe import OptimConfig

# Inside a training checkpoint. `model` is what is registered; if that is averaged weights, the others lie beside it.
MODEL, NOT_AVERAGED, OPTIMISERS = "model", "not_averaged", "optimisers.pt"


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
