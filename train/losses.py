"""The six loss terms (paper 2.3, App. A): one function each, and one place that masks, averages and weighs them.

    l3d      confidence * |phi(p / s_p) - phi(g / s_g)|, phi(x) = sign(x) log(1 + |x|); s a clip's own mean |z|
    lconf    -log confidence
    l2d      |uv - uv_true|              lvis     binary cross-entropy
    ldisp    |d / s_p - d_true / s_g|    lnormal  1 - cosine

A term function returns a value per query and which of them count, both (B, Q). Everything is float32. Values are
averaged over all valid queries of the whole batch on all workers, never over per-worker or per-clip means: those are
wrong as soon as masks differ. Nothing is masked by z: seen from a fixed camera a point may well be behind it.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from model import Prediction
from train.config import MIN_POINTS, LossConfig
from train.query_batch import QueryBatch

TERMS = ("l3d", "lconf", "l2d", "lvis", "ldisp", "lnormal")
SCALE_FLOOR = 1e-4

Term = tuple[Float[Tensor, "B Q"], Bool[Tensor, "B Q"]]
"""A value per query, and which of them count."""


@dataclass(frozen=True)
class Scales:
    """By what lengths are divided, per clip."""

    predicted: Float[Tensor, "B 1 1"]
    """Gradient flows through it: stretching a prediction as a whole changes nothing."""
    true: Float[Tensor, "B 1 1"]
    enough: Bool[Tensor, "B 1"]
    """Clips with at least `MIN_POINTS` known points; in the others no length is compared."""


def masked_mean(values: Float[Tensor, "B Q"], mask: Bool[Tensor, "B Q"]) -> Float[Tensor, "B"]:
    """Over the queries that count; 0 where there are none."""
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)


def clip_scales(prediction: Prediction, batch: QueryBatch, config: LossConfig) -> Scales:
    """`paper`: each side by its own mean |z| over the valid queries. `joint`: both by the truth's mean distance."""
    known = batch.xyz_valid
    if config.normalisation == "paper":
        predicted = masked_mean(prediction.xyz[..., 2].abs(), known)
        true = masked_mean(batch.xyz[..., 2].abs(), known)
    else:
        predicted = true = masked_mean(batch.xyz.norm(dim=-1), known)
    predicted, true = (scale.clamp(min=SCALE_FLOOR)[:, None, None] for scale in (predicted, true))
    return Scales(predicted, true, known.sum(1, keepdim=True) >= MIN_POINTS)


def signed_log(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def point_error(prediction: Prediction, batch: QueryBatch, scales: Scales, config: LossConfig) -> Term:
    """Mean over the axes of the distance between normalised points, before confidence."""
    predicted, true = prediction.xyz / scales.predicted, batch.xyz / scales.true
    if config.normalisation == "paper":
        predicted, true = signed_log(predicted), signed_log(true)
    return (predicted - true).abs().mean(-1), batch.xyz_valid & scales.enough


def confidence_in_effect(prediction: Prediction, config: LossConfig, step: int) -> Float[Tensor, "B Q"]:
    """Confidence, blended from 1 over the first steps.

    c * e - 0.2 log c is smallest at c = 0.2 / e: the large errors of an untrained model would drive c, and with it the
    gradient of the 3D error, to a few percent, and there it stays.
    """
    share = min(1.0, step / config.confidence_warmup_steps) if config.confidence_warmup_steps else 1.0
    return (1 - share) + share * prediction.confidence


def uv_error(prediction: Prediction, batch: QueryBatch) -> Term:
    return (prediction.uv_tgt - batch.uv_tgt).abs().mean(-1), batch.uv_tgt_valid


def visibility_error(prediction: Prediction, batch: QueryBatch) -> Term:
    logit, target = prediction.visible_logit, batch.visible.float()
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none"), batch.visible_valid


def displacement_error(prediction: Prediction, batch: QueryBatch, scales: Scales, config: LossConfig) -> Term:
    """Mean over the axes. No log: most displacements are 0, and the rest are of all sizes."""
    if config.displacement_norm == "metric":
        return (prediction.displacement - batch.displacement).abs().mean(-1), batch.displacement_valid
    error = (prediction.displacement / scales.predicted - batch.displacement / scales.true).abs().mean(-1)
    return error, batch.displacement_valid & scales.enough


def normal_error(prediction: Prediction, batch: QueryBatch) -> Term:
    return 1 - (prediction.normal * batch.normal).sum(-1), batch.normal_valid


def loss_terms(prediction: Prediction, batch: QueryBatch, config: LossConfig, step: int) -> dict[str, Term]:
    """All terms, by the name of their weight in `LossConfig`."""
    scales = clip_scales(prediction, batch, config)
    error, known = point_error(prediction, batch, scales, config)
    confidence = confidence_in_effect(prediction, config, step)
    return {
        "l3d": (confidence * error, known),
        "lconf": (-confidence.log(), known),
        "l2d": uv_error(prediction, batch),
        "lvis": visibility_error(prediction, batch),
        "ldisp": displacement_error(prediction, batch, scales, config),
        "lnormal": normal_error(prediction, batch),
    }


def sum_over_workers(tensor: Tensor) -> Tensor:
    """The same sum on all of them; without torch.distributed, the tensor itself."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def per_dataset(per_clip: Float[Tensor, "B *rest"], batch: QueryBatch) -> Float[Tensor, "D *rest"]:
    """Sums over the clips of each dataset."""
    return per_clip.new_zeros(len(batch.datasets), *per_clip.shape[1:]).index_add(0, batch.dataset, per_clip)


def total_loss(
    terms: dict[str, Term], batch: QueryBatch, config: LossConfig
) -> tuple[Tensor, Float[Tensor, "terms D"], Float[Tensor, "terms D"]]:
    """(loss of this worker, sums of this worker, counts of all workers); the latter two per term and dataset.

    A term is sum / count with both taken over all workers. Each worker knows its own part of the sum, and
    DistributedDataParallel averages gradients, so the part is multiplied by the number of workers: what comes out is
    the gradient of the global average. A term without any valid query still touches its head, with weight 0.
    """
    values = {name: torch.where(mask, value, 0).sum(1) for name, (value, mask) in terms.items()}
    counts = torch.stack([per_dataset(terms[name][1].sum(1).float(), batch) for name in TERMS])
    counts = sum_over_workers(counts)
    world = dist.get_world_size() if dist.is_initialized() else 1
    loss = sum(
        getattr(config, name) * world * values[name].sum() / count.clamp(min=1)
        for name, count in zip(TERMS, counts.sum(1), strict=True)
    )
    sums = torch.stack([per_dataset(values[name].detach(), batch) for name in TERMS])
    return loss, sums, counts


@torch.no_grad()
def monitors(prediction: Prediction, batch: QueryBatch, config: LossConfig) -> Float[Tensor, "monitors"]:
    """Sums over the clips of this worker, in the order of `MONITORS`; clips with too few points only count as dropped.

    Spread and depth are compared within each clip, after normalisation: a model that answers the same everywhere has
    no spread, however well it has learnt the mean.
    """
    scales = clip_scales(prediction, batch, config)
    used, known = scales.enough[:, 0], batch.xyz_valid
    predicted, true = prediction.xyz / scales.predicted, batch.xyz / scales.true

    def centred(points: Float[Tensor, "B Q 3"]) -> Float[Tensor, "B Q 3"]:
        mean = torch.stack([masked_mean(axis, known) for axis in points.unbind(-1)], dim=-1)
        return points - mean[:, None]

    predicted, true = centred(predicted), centred(true)
    predicted_z, true_z = (masked_mean(x[..., 2].square(), known).sqrt() for x in (predicted, true))
    covariance = masked_mean(predicted[..., 2] * true[..., 2], known)
    per_clip = {
        "confidence": masked_mean(prediction.confidence, known),
        "spread": masked_mean(predicted.square().sum(-1), known).sqrt(),
        "spread_true": masked_mean(true.square().sum(-1), known).sqrt(),
        "z_std": predicted_z,
        "z_std_true": true_z,
        "z_correlation": covariance / (predicted_z * true_z).clamp(min=1e-12),
        "clips": torch.ones_like(predicted_z),
    }
    sums = [torch.where(used, per_clip[name], 0).sum() for name in MONITORS[:-1]]
    return torch.stack([*sums, (~used).sum().float()])


MONITORS = ("confidence", "spread", "spread_true", "z_std", "z_std_true", "z_correlation", "clips", "dropped")
