"""Which weights learn, how fast, and by which optimiser."""

import math

import torch
from torch import Tensor, nn

from model import D4RT
from model.encoder import Droppable
from train.recipe import OptimConfig, Part

ENCODER = ("encoder.", "aspect_proj.")  # how the names of its parameters begin


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


def freeze_memory(model: D4RT) -> None:
    """Let all rest that makes the memory of a clip, so that it stays what it is while the rest learns."""
    freeze(model, "encoder")
    for name, parameter in model.named_parameters():
        if name.startswith("memory_proj.") or ".norm_kv." in name or ".cross_attn.kv." in name:
            parameter.requires_grad_(False)


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


class Muon(torch.optim.Muon):
    """PyTorch's, with what fused AdamW has: where `found_inf` is 1 a step leaves everything as it is, and the host need
    not know."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        matrices = [x for group in self.param_groups for x in group["params"] if x.grad is not None]
        for matrix in matrices:
            self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
        tensors = [x for matrix in matrices for x in (matrix, self.state[matrix]["momentum_buffer"])]
        before = [x.clone() for x in tensors]
        super().step()
        if self.found_inf is not None:
            for x, old in zip(tensors, before, strict=True):
                x.copy_(torch.where(self.found_inf > 0, old, x))


def shared(muon: bool, shard: bool) -> bool:
    """Are the matrices of such a group dealt out to the workers? See `train/sharing.py`."""
    return muon or shard


def learning_rate(step: int, config: OptimConfig, steps: int) -> float:
    """Of step 0, 1, ...: linear warm-up, where step 0 is not wasted, then half a cosine down to `final_lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    return config.final_lr + (config.lr - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2
