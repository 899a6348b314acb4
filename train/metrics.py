"""The metrics of a step: means by term and dataset, and what is to be said of a step that diverged."""

import torch
from torch import Tensor

from model import Prediction
from train import losses
from train.config import TrainConfig
from train.errors import TrainingDiverged
from train.query_batch import QueryBatch

TARGET_OF = {"l3d": "xyz", "l2d": "uv_tgt", "lvis": "visible", "ldisp": "displacement", "lnormal": "normal"}


def step_metrics(numbers: Tensor, datasets: tuple[str, ...], config: TrainConfig, step: int) -> dict[str, float]:
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
