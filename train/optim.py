"""Which weights learn, how fast, and by which optimiser."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model import D4RT
from model.encoder import Droppable
from train.recipe import OptimConfig, Part

ENCODER = ("encoder.", "aspect_proj.")  # how the names of its parameters begin
MOMENTUM = 0.95  # of Muon
NEWTON_SCHULZ = 5  # iterations with which Muon makes a move orthogonal
BLOCK = 64  # rows or columns that Muon takes together: as wide as heads mostly are
NARROW = 128  # a matrix whose shorter side is at most this is one block

Split = Literal["rows", "columns"]


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
    What leads into heads or neurons it splits between them by rows, what leads out of them by columns.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    encoder_share = 1.0 if config.encoder_lr is None else config.encoder_lr / config.lr
    groups: dict[tuple[float, float, Split | None], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim < 2 or id(parameter) in tables
            decay = 0.0 if spared and not config.decay_all else config.weight_decay
            share = encoder_share if part_of(name) == "encoder" else 1.0
            inside = config.optimiser == "muon" and parameter.ndim == 2 and ".blocks." in name
            muon = split_of(name) if inside else None
            groups.setdefault((decay, share, muon), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * share, "lr_share": share, "weight_decay": decay, "muon": muon}
        for (decay, share, muon), parameters in groups.items()
    ]


def split_of(name: str) -> Split:
    """How the matrix of this name, inside a layer, is split between heads or neurons."""
    return "columns" if name.endswith((".out.weight", ".ff.2.weight")) else "rows"


def blocks(matrix: Tensor, split: Split) -> Tensor:
    """A view of a matrix as (n, rows, columns): BLOCK of its rows or columns each, fewer where that does not divide
    them; a narrow one whole, which costs little, and `tiny` is better for it."""
    if min(matrix.shape) <= NARROW:
        return matrix[None]
    if split == "rows":
        return matrix.unflatten(0, (-1, math.gcd(BLOCK, len(matrix))))
    return matrix.unflatten(1, (-1, math.gcd(BLOCK, matrix.shape[1]))).transpose(0, 1)


def orthogonal(x: Tensor) -> Tensor:
    """(n, r, c) -> the same shape, bfloat16: each of n matrices U S V^T as U V^T, give or take 30 % in each direction.

    Newton and Schulz's iteration, with the coefficients of Jordan et al. 2024, by which what is small grows fastest.
    """
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)).bfloat16()
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(NEWTON_SCHULZ):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum that is made orthogonal (Jordan et al. 2024), block by block, and as large as AdamW's moves are (Liu et
    al. 2025): 0.2 sqrt(max(r, c)) times a block of r rows and c columns.

    A block is what a head of 64 channels has of a matrix, or as many neurons of an MLP. That costs an eighth of whole
    matrices for `small`, which learns faster by it (docs/log.md). Where `found_inf` is 1, as in fused AdamW, a step
    leaves everything as it is, and the host need not know.
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, group)

    def _move(self, matrix: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        kept = state["momentum_buffer"]
        weight, gradient, before = (blocks(x, group["muon"]) for x in (matrix, matrix.grad, kept))
        momentum = before.lerp(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # as Nesterov does

        size = 0.2 * max(weight.shape[1:]) ** 0.5
        moved = weight * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * size * orthogonal(ahead)
        if self.found_inf is not None:
            momentum = torch.where(self.found_inf > 0, before, momentum)
            moved = torch.where(self.found_inf > 0, weight, moved)
        before.copy_(momentum)
        weight.copy_(moved)


def shared(muon: Split | None, shard: bool) -> bool:
    """Are the matrices of such a group dealt out to the workers? See `train/sharing.py`."""
    return muon is not None or shard


def learning_rate(step: int, config: OptimConfig, steps: int) -> float:
    """Of step 0, 1, ...: linear warm-up, where step 0 is not wasted, then half a cosine down to `final_lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    return config.final_lr + (config.lr - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2
