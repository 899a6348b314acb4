"""One optimiser step: plain PyTorch, with or without DistributedDataParallel, and nothing of Ray."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import Prediction
from train import losses
from train.config import TrainConfig
from train.errors import TrainingDiverged
from train.metrics import broken_gradients, named, step_metrics
from train.optim import learning_rate
from train.query_batch import QueryBatch
from train.state import TrainState


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
    metrics = step_metrics(numbers, batch.datasets, config, state.step)
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
