"""The optimiser, shared out: each worker moves its matrices and sends them to the others.

All workers have the same gradients, so it does not matter who moves a matrix: the numbers are those of an optimiser
that is not shared out, bit for bit. Muon, whose moves are the dearest part of a small step, is always shared out;
AdamW, whose running means are half of what a worker holds, if the run has `shard`. Vectors are moved by everybody.

An optimiser moves what has a gradient and keeps running means of nothing else: a worker drops the gradients of what is
another's. A checkpoint has the whole, so that any number of workers can go on from it.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from train.optim import Muon

MEANS = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}


class Shares:
    """Which matrices are moved by which worker; the same on all of them."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of `parameters`, the matrices are dealt out, the largest first, each to who has least so far."""
        alone = not dist.is_initialized()
        self.rank, world = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
        self.dealt: list[list[nn.Parameter]] = [[] for _ in range(world)]
        matrices = [x for x in parameters if x.ndim >= 2] if world > 1 else []
        for matrix in sorted(matrices, key=nn.Parameter.numel, reverse=True):
            min(self.dealt, key=size_of).append(matrix)
        self.others = {id(x) for rank, share in enumerate(self.dealt) if rank != self.rank for x in share}

    def drop_gradients_of_others(self) -> None:
        for share in self.dealt[: self.rank] + self.dealt[self.rank + 1 :]:
            for parameter in share:
                parameter.grad = None

    @torch.no_grad()
    def spread(self) -> None:
        """What each worker has moved goes to all others. All workers must call this."""
        for owner, share in enumerate(self.dealt):
            if share:
                mine = owner == self.rank
                flat = torch.cat([x.flatten() for x in share]) if mine else share[0].new_empty(size_of(share))
                dist.broadcast(flat, owner)
                if not mine:
                    for parameter, moved in zip(share, flat.split([x.numel() for x in share]), strict=True):
                        parameter.copy_(moved.view_as(parameter))

    def whole(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """Its state as if it were not shared out, on worker 0, what others kept of it on the CPU; on the others what
        they have. All workers must call this, after a step."""
        state, numbers = optimiser.state_dict(), positions(optimiser)
        for owner, share in enumerate(self.dealt[1:], 1):
            moved = [x for x in share if id(x) in numbers]
            if not moved or self.rank not in (0, owner):
                continue
            for name in MEANS[type(optimiser)]:
                if self.rank == owner:
                    send(torch.cat([optimiser.state[x][name].flatten() for x in moved]))
                else:
                    shapes = [torch.Size() if name == "step" else x.shape for x in moved]
                    for parameter, mean in zip(moved, received(shapes, owner, moved[0]), strict=True):
                        state["state"].setdefault(numbers[id(parameter)], {})[name] = mean
        return state

    def mine(self, optimiser: torch.optim.Optimizer, whole: dict[str, Any]) -> dict[str, Any]:
        """Of a whole state, what this worker keeps."""
        dropped = {number for parameter, number in positions(optimiser).items() if parameter in self.others}
        return whole | {"state": {number: means for number, means in whole["state"].items() if number not in dropped}}


def positions(optimiser: torch.optim.Optimizer) -> dict[int, int]:
    """id of a parameter -> its number in `optimiser.state_dict()`."""
    parameters = (parameter for group in optimiser.param_groups for parameter in group["params"])
    return {id(parameter): number for number, parameter in enumerate(parameters)}


def size_of(share: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in share)


def send(flat: torch.Tensor) -> None:
    """To worker 0. As a batch of one: what is sent alone would get a NCCL communicator of its own for each pair."""
    (sent,) = dist.batch_isend_irecv([dist.P2POp(dist.isend, flat, 0)])
    sent.wait()


def received(shapes: list[torch.Size], owner: int, like: torch.Tensor) -> list[torch.Tensor]:
    """What `owner` sends, tensors of these shapes, on the CPU; it comes by way of where `like` is."""
    sizes = [shape.numel() for shape in shapes]
    flat = like.new_empty(sum(sizes))
    (got,) = dist.batch_isend_irecv([dist.P2POp(dist.irecv, flat, owner)])
    got.wait()
    return [part.view(shape) for part, shape in zip(flat.cpu().split(sizes), shapes, strict=True)]
