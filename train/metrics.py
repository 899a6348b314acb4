"""The metrics of a step: means by term and dataset, and what is to be said of a step that diverged."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model import Prediction
from train import losses
from train.config import TrainConfig
from train.query_batch import QueryBatch

TARGET_OF = {"l3d": "xyz", "l2d": "uv_tgt", "lvis": "visible", "ldisp": "displacement", "lnormal": "normal"}


@dataclass(frozen=True)
class Numbers:
    """Of a step, over all workers, on the CPU."""

    sums: Tensor
    """(terms, datasets), of the values that count."""
    counts: Tensor
    """(terms, datasets), of what counts."""
    watched: dict[str, float]
    """Sums by `losses.MONITORS`."""
    queries: Tensor
    """(datasets,)"""
    grad_norm: float
    scale: float
    """Of float16's loss; else 1."""

    @classmethod
    def of(cls, numbers: Tensor, datasets: tuple[str, ...]) -> "Numbers":
        """From one row of them, as `take_step` lays them out."""
        grid = len(losses.TERMS) * len(datasets)
        sums, watched, queries, counts, last = numbers.split([grid, len(losses.MONITORS), len(datasets), grid, 2])
        grids = (x.view(-1, len(datasets)) for x in (sums, counts))
        return cls(*grids, dict(zip(losses.MONITORS, watched.tolist(), strict=True)), queries, *last.tolist())

    @property
    def finite(self) -> bool:
        return bool(self.sums.isfinite().all()) and math.isfinite(self.grad_norm)

    def metrics(self, datasets: tuple[str, ...], config: TrainConfig) -> dict[str, float]:
        """By name."""
        sums, counts, queries, watch = self.sums, self.counts, self.queries, self.watched
        means = dict(zip(losses.TERMS, (sums.sum(1) / counts.sum(1).clamp(min=1)).tolist(), strict=True))
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
            "grad_norm": self.grad_norm,
            **({"loss_scale": self.scale} if config.precision == "float16" else {}),
            "dropped_clips": watch["dropped"],
            **masked,
        }


def named(bad: Tensor, datasets: tuple[str, ...]) -> str:
    """A table (terms, datasets) of what is wrong, in words; empty if nothing is."""
    return ", ".join(
        f"{term} ({', '.join(name for d, name in enumerate(datasets) if bad[i, d])})"
        for i, term in enumerate(losses.TERMS)
        if bad[i].any()
    )


def broken_clips(prediction: Prediction, batch: QueryBatch, config: TrainConfig, step: int) -> Float[Tensor, "terms B"]:
    """1 for a term of a clip that is not finite, or sends a gradient that is not finite into the answers.

    An answer that is not finite gives one even where the loss masks it.
    """
    answers = {name: x.detach().requires_grad_() for name, x in vars(prediction).items()}
    terms = losses.loss_terms(Prediction(**answers), batch, config.loss, step)
    table = []
    for value, mask in (terms[name] for name in losses.TERMS):
        counted = torch.where(mask, value, 0)
        gradients = torch.autograd.grad(counted.sum(), answers.values(), retain_graph=True, allow_unused=True)
        numbers = [counted, *(gradient for gradient in gradients if gradient is not None)]
        table.append(torch.stack([(~x.isfinite()).flatten(1).any(1) for x in numbers]).any(0).float())
    return torch.stack(table)
