"""The loss terms (paper 2.3, App. A): one function each, and one place that masks, averages and weighs them.

    l3d      |phi(p / s_p) - phi(g / s_g)|, phi(x) = sign(x) log(1 + |x|); s a clip's own mean |z|
    lconf    |log error - log of the error that the confidence stands for|: ours; or, with `confidence` paper,
             l3d is multiplied by the confidence, and lconf is -log confidence
    l2d      |uv - uv_true|              lvis     binary cross-entropy
    ldisp    |d / s_p - d_true / s_g|    lnormal  1 - cosine
    ldepth   |log(z / s_p) - log(z_true / s_g)|: ours, without weight unless asked for

A term function returns a value per query, (B, Q); `term_masks` says which of them count, from the truth alone.
Everything is float32. Values are averaged over all valid queries of the whole step, on all workers and in all parts of
an accumulated step, never over means of parts: those are wrong as soon as masks differ. But for ldepth nothing is
masked by z: seen from a fixed camera a point may well be behind it.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from model import Prediction
from train.config import MIN_POINTS
from train.query_batch import QueryBatch
from train.recipe import TERMS, LossConfig
from train.reweight import moving, moving_weight

SCALE_FLOOR = 1e-4
ERROR_FLOOR = 1e-4  # relative: smaller ones are not told apart
DEPTH_FLOOR = 0.01  # of a clip's scale: what is nearer, or predicted behind the camera, counts as being there

Term = tuple[Float[Tensor, "B Q"], Bool[Tensor, "B Q"]]
"""A value per query, and which of them count."""


@dataclass(frozen=True)
class Scales:
    """By what lengths are divided, per clip."""

    predicted: Float[Tensor, "B 1 1"]
    """Gradient flows through it: stretching a prediction as a whole changes nothing."""
    true: Float[Tensor, "B 1 1"]


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
    return Scales(*(scale.clamp(min=SCALE_FLOOR)[:, None, None] for scale in (predicted, true)))


def has_scale(batch: QueryBatch) -> Bool[Tensor, "B 1"]:
    """Clips with at least `MIN_POINTS` known points; in the others no length is compared."""
    return batch.xyz_valid.sum(1, keepdim=True) >= MIN_POINTS


def signed_log(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def point_error(prediction: Prediction, batch: QueryBatch, scales: Scales, config: LossConfig) -> Float[Tensor, "B Q"]:
    """Mean over the axes of the distance between normalised points, before confidence."""
    predicted, true = prediction.xyz / scales.predicted, batch.xyz / scales.true
    if config.normalisation == "paper":
        predicted, true = signed_log(predicted), signed_log(true)
    return (predicted - true).abs().mean(-1)


def depth_error(prediction: Prediction, batch: QueryBatch, scales: Scales) -> Float[Tensor, "B Q"]:
    """In the camera of t_cam. A predicted depth below the floor gets no gradient of its own: l3d brings it back."""
    sides = ((prediction.xyz, scales.predicted), (batch.xyz, scales.true))
    predicted, true = ((xyz / scale)[..., 2].clamp(min=DEPTH_FLOOR).log() for xyz, scale in sides)
    return (predicted - true).abs()


def confidence_in_effect(prediction: Prediction, config: LossConfig, step: int) -> tuple[Tensor, Tensor]:
    """(confidence, its logarithm), both (B, Q), blended from 1 over the first steps.

    c * e - 0.2 log c is smallest at c = 0.2 / e: the large errors of an untrained model would drive c, and with it the
    gradient of the 3D error, to a few percent, and there it stays.

    Neither is cut off, and each side of 0 has the form whose gradient float32 can hold: a confidence may always change.
    """
    logit, share = prediction.confidence_logit, 1.0
    if step < config.confidence_warmup_steps:
        share = step / config.confidence_warmup_steps
    confidence = torch.where(logit > 0, 1 - (-logit).sigmoid(), logit.sigmoid())
    blended = (1 - share) + share * confidence
    return blended, F.logsigmoid(logit) if share == 1 else blended.log()


def relative_error(prediction: Prediction, batch: QueryBatch) -> Float[Tensor, "B Q"]:
    """Distance between point and truth by the truth's distance, as `evaluate clips` measures it; without gradient."""
    known = batch.xyz_valid[..., None]
    said, asked = (xyz.norm(dim=-1, keepdim=True) for xyz in (prediction.xyz.detach(), batch.xyz))
    middle_said, middle_asked = (
        length.masked_fill(~known, torch.nan).nanmedian(1, keepdim=True).values for length in (said, asked)
    )
    scale = middle_asked / middle_said.clamp(min=SCALE_FLOOR)
    off = (scale * prediction.xyz.detach() - batch.xyz).norm(dim=-1)
    return off / asked[..., 0].clamp(min=SCALE_FLOOR)


def doubt_error(prediction: Prediction, batch: QueryBatch) -> Float[Tensor, "B Q"]:
    """How far the error that a confidence stands for is from the true one, as a ratio, in logarithms.

    The absolute value is smallest, on average, where as many errors are larger as are smaller: at their median. Unlike
    a likelihood of the errors themselves it is not ruled by a few that are large, and its gradient is at most 1.
    """
    true = relative_error(prediction, batch).clamp(min=ERROR_FLOOR).nan_to_num(1.0).log()
    return (prediction.log_error - true).abs()


def uv_error(prediction: Prediction, batch: QueryBatch) -> Float[Tensor, "B Q"]:
    return (prediction.uv_tgt - batch.uv_tgt).abs().mean(-1)


def visibility_error(prediction: Prediction, batch: QueryBatch) -> Float[Tensor, "B Q"]:
    return F.binary_cross_entropy_with_logits(prediction.visible_logit, batch.visible.float(), reduction="none")


def displacement_error(
    prediction: Prediction, batch: QueryBatch, scales: Scales, config: LossConfig
) -> Float[Tensor, "B Q"]:
    """Mean over the axes. No log: most displacements are 0, and the rest are of all sizes."""
    predicted, true = prediction.displacement, batch.displacement
    if config.displacement_norm == "scaled":
        predicted, true = predicted / scales.predicted, true / scales.true
    return (predicted - true).abs().mean(-1)


def normal_error(prediction: Prediction, batch: QueryBatch) -> Float[Tensor, "B Q"]:
    return 1 - (prediction.normal * batch.normal).sum(-1)


def term_masks(batch: QueryBatch, config: LossConfig) -> dict[str, Bool[Tensor, "B Q"]]:
    """Which queries count, by the name of the term. Known before any prediction."""
    enough = has_scale(batch)
    known = batch.xyz_valid & enough
    return {
        "l3d": known,
        "lconf": known,
        "l2d": batch.uv_tgt_valid,
        "lvis": batch.visible_valid,
        "ldisp": batch.displacement_valid & (enough | (config.displacement_norm == "metric")),
        "lnormal": batch.normal_valid,
        "ldepth": known & (batch.xyz[..., 2] > 0),
    }


def loss_terms(prediction: Prediction, batch: QueryBatch, config: LossConfig, step: int) -> dict[str, Term]:
    """All terms, by the name of their weight in `LossConfig`."""
    scales, masks = clip_scales(prediction, batch, config), term_masks(batch, config)
    if config.confidence == "paper":
        weight, log_weight = confidence_in_effect(prediction, config, step)
        unsure = -log_weight
    else:
        weight, unsure = torch.ones_like(prediction.confidence), doubt_error(prediction, batch)
    if config.dynamic_reweight:
        moves = moving(batch, config.dynamic_reweight)
        weight = torch.where(moves, moving_weight(weight, masks["l3d"] & ~moves, config.max_weight), weight)
        if config.confidence == "paper":
            unsure = torch.where(moves, 0, unsure)
    values = {
        "l3d": weight * point_error(prediction, batch, scales, config),
        "lconf": unsure,
        "l2d": uv_error(prediction, batch),
        "lvis": visibility_error(prediction, batch),
        "ldisp": displacement_error(prediction, batch, scales, config),
        "lnormal": normal_error(prediction, batch),
        "ldepth": depth_error(prediction, batch, scales),
    }
    return {name: (values[name], masks[name]) for name in TERMS}


def sum_over_workers(tensor: Tensor) -> Tensor:
    """The same sum on all of them; without torch.distributed, the tensor itself."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def per_dataset(per_clip: Float[Tensor, "B *rest"], batch: QueryBatch) -> Float[Tensor, "D *rest"]:
    """Sums over the clips of each dataset."""
    return per_clip.new_zeros(len(batch.datasets), *per_clip.shape[1:]).index_add(0, batch.dataset, per_clip)


def valid_counts(batch: QueryBatch, config: LossConfig) -> Float[Tensor, "terms D"]:
    """How many queries of a step count, on all workers, per term and dataset."""
    masks = term_masks(batch, config)
    return sum_over_workers(torch.stack([per_dataset(masks[name].sum(1).float(), batch) for name in TERMS]))


def total_loss(
    terms: dict[str, Term], batch: QueryBatch, counts: Float[Tensor, "terms D"], config: LossConfig
) -> tuple[Tensor, Float[Tensor, "terms D"]]:
    """(loss of these clips, their sums per term and dataset), where `counts` are those of the whole step.

    A term is sum / count with both taken over the whole step. Each part of it knows its own part of the sum; gradients
    of parts are added up, but DistributedDataParallel averages those of workers, so the sum is multiplied by their
    number: what comes out is the gradient of the global average. A term without any valid query still touches its
    head, with weight 0.
    """
    values = {name: torch.where(mask, value, 0).sum(1) for name, (value, mask) in terms.items()}
    world = dist.get_world_size() if dist.is_initialized() else 1
    loss = sum(
        getattr(config, name) * world * values[name].sum() / count.clamp(min=1)
        for name, count in zip(TERMS, counts.sum(1), strict=True)
    )
    return loss, torch.stack([per_dataset(values[name].detach(), batch) for name in TERMS])


@torch.no_grad()
def monitors(prediction: Prediction, batch: QueryBatch, config: LossConfig) -> Float[Tensor, "monitors"]:
    """Sums over the clips of this worker, in the order of `MONITORS`; clips with too few points only count as dropped.

    Spread and depth are compared within each clip, after normalisation: a model that answers the same everywhere has
    no spread, however well it has learnt the mean.
    """
    scales = clip_scales(prediction, batch, config)
    used, known = has_scale(batch)[:, 0], batch.xyz_valid
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
