"""One optimiser step: plain PyTorch, with or without DistributedDataParallel, and nothing of Ray."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import Prediction
from model.precision import fused_attention
from train import losses
from train.config import TrainConfig
from train.errors import TrainingDiverged
from train.metrics import Numbers, broken_clips, named
from train.optim import learning_rate
from train.parallel import SMALLEST_SCALE, ToHost, computing
from train.query_batch import QueryBatch
from train.state import TrainState


def train_step(
    state: TrainState, batch: QueryBatch, config: TrainConfig, also: Callable[[], Tensor] | None = None
) -> dict[str, float]:
    """Learn from one batch, this worker's part of it, and return the metrics of the whole batch: `take_step`, waited
    for."""
    return take_step(state, batch, config, also).metrics(state, config)


def take_step(
    state: TrainState, batch: QueryBatch, config: TrainConfig, also: Callable[[], Tensor] | None = None
) -> "Taken":
    """Learn from one batch, this worker's part of it, without a wait for the device.

    `also`: another loss, (), to be made smaller in the same step; it is in no metric.

    If a loss or a gradient is not finite, nothing that is learnt changes; `Taken.metrics` then says so.
    """
    counts = losses.valid_counts(batch, config.loss)
    state.zero_grad()
    parts, predictions, mine = batch.parts(config.accumulate), [], 0
    for number, part in enumerate(parts, 1):
        prediction, sums = add_gradients(state, part, counts, config, last=number == len(parts))
        mine = mine + torch.cat([sums.flatten(), losses.monitors(prediction, part, config.loss)])
        predictions.append(prediction)
    if also is not None:
        loss = also()
        with fused_attention(batch.video.device):
            (loss if state.loss_scale is None else loss * state.loss_scale.scale).backward()
    if state.loss_scale is not None:
        state.loss_scale.unscale(state.model.parameters())
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)

    queries = losses.per_dataset(torch.full_like(batch.aspect, batch.xyz.shape[1]), batch)
    reduced = losses.sum_over_workers(torch.cat([mine, queries]))
    loss_is_finite = reduced[: counts.numel()].isfinite().all()
    broken = (~(loss_is_finite & grad_norm.isfinite())).float()
    scale = torch.ones_like(grad_norm) if state.loss_scale is None else state.loss_scale.scale
    numbers = ToHost(torch.cat([reduced, counts.flatten(), torch.stack([grad_norm, scale])]))

    step, rate = state.step, learning_rate(state.step, config.optim, config.steps)
    state.update(rate, broken)
    if state.averaged is not None:
        state.average(config.optim.ema)
    return Taken(step, rate, numbers, parts, predictions)


def add_gradients(
    state: TrainState, part: QueryBatch, counts: Tensor, config: TrainConfig, *, last: bool
) -> tuple[Prediction, Tensor]:
    """(answers, without gradient; sums of the terms by dataset) of a part of a step whose valid queries are `counts`.

    Workers exchange gradients once per step, with the `last` part.
    """
    wait = isinstance(state.network, DistributedDataParallel) and not last
    device = part.video.device
    with state.network.no_sync() if wait else nullcontext():
        with computing(config, device):
            prediction = state.network(part.video, part.aspect, part.queries, checked=False)
        terms = losses.loss_terms(prediction, part, config.loss, state.step)
        loss, sums = losses.total_loss(terms, part, counts, config.loss)
        if state.loss_scale is not None:
            loss = loss * state.loss_scale.scale
        with fused_attention(device):  # layers that are computed again ask for it again
            loss.backward()
    return Prediction(**{name: answer.detach() for name, answer in vars(prediction).items()}), sums


@dataclass(frozen=True)
class Taken:
    """A step that the device may still be busy with."""

    step: int
    rate: float
    numbers: ToHost
    parts: list[QueryBatch]
    predictions: list[Prediction]

    def metrics(
        self, state: TrainState, config: TrainConfig, clip: Callable[[int], str] = "clip {} of the step".format
    ) -> dict[str, float]:
        """The metrics of the whole batch, the same on all workers, once the device has them.

        Of a step that changed nothing, because a loss or a gradient was not finite: `skipped_steps` 1; if float16's
        scale was too large for it, which is then halved, `overflowed_steps` 1. Raises TrainingDiverged, on all workers,
        if `config.max_skipped` are spent, naming term, step, datasets and clips; `clip` has words for one by its place
        among the clips of all workers. What was skipped is in `state.skipped`.
        """
        datasets = self.parts[0].datasets
        numbers = Numbers.of(self.numbers.read(), datasets)
        if numbers.finite:
            return numbers.metrics(datasets, config) | {"lr": self.rate}
        loss = named(~numbers.sums.isfinite(), datasets)
        if not loss and numbers.scale > SMALLEST_SCALE:
            return {"lr": self.rate, "overflowed_steps": 1.0}
        text = self.reason(loss, config, clip)
        state.skipped.append(text)
        if len(state.skipped) > config.max_skipped:
            raise TrainingDiverged(f"{text}; look at these data, or lower optim.lr")
        return {"lr": self.rate, "skipped_steps": 1.0}

    def reason(self, loss: str, config: TrainConfig, clip: Callable[[int], str]) -> str:
        """Of a step that is not finite. All workers must call this."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        broken = torch.cat(
            [broken_clips(*pair, config, self.step) for pair in zip(self.predictions, self.parts, strict=True)], dim=1
        )  # (terms, clips of this worker)
        everywhere = broken.new_zeros(world, *broken.shape)
        everywhere[rank] = broken
        everywhere = losses.sum_over_workers(everywhere).cpu() > 0
        clips = everywhere.any(1).flatten().nonzero().flatten().tolist()
        dataset = losses.sum_over_workers(self.by_dataset(broken)).cpu() > 0
        where = f": {loss}" if loss else f" though the loss is: in {named(dataset, self.parts[0].datasets)}"
        if not clips:
            where = where if loss else " though the loss is: inside the network"
        what = "loss" if loss else "gradient"
        names = f" ({', '.join(map(clip, clips))})" if clips else ""
        return f"{what} is not finite at step {self.step}{where}{names}"

    def by_dataset(self, broken: Tensor) -> Tensor:
        """(terms, clips of this worker) -> (terms, datasets)."""
        dataset = torch.cat([part.dataset for part in self.parts])
        return broken.new_zeros(len(broken), len(self.parts[0].datasets)).index_add(1, dataset, broken)
