"""Losses against closed forms worked out here in float64, and their average over workers against one process."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from saved_state import save
from torch.nn.parallel import DistributedDataParallel

from model import D4RT, ModelConfig, Prediction
from train import losses
from train.config import DataConfig, LossConfig, OptimConfig, TrainConfig
from train.errors import TrainingDiverged
from train.optim import learning_rate, parameter_groups
from train.query_batch import QueryBatch
from train.state import TrainState
from train.step import train_step

B, Q, T, S = 4, 32, 4, 16
TINY = dataclasses.replace(ModelConfig.preset("tiny"), image_size=S, encoder_layers=2, decoder_layers=1)
NO_WARMUP = LossConfig(confidence_warmup_steps=0)


def random_batch(seed=0, clips=B, queries=Q) -> QueryBatch:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(clips, queries, *shape, generator=g)

    def times():
        return torch.randint(0, T, (clips, queries), generator=g)

    def coin(p):
        return torch.rand(clips, queries, generator=g) < p

    valid = {f"{name}_valid": coin(0.8) for name in ("xyz", "uv_tgt", "visible", "displacement", "normal")}
    targets = {
        "xyz": normal(3) + torch.tensor([0, 0, 4.0]),
        "uv_tgt": torch.rand(clips, queries, 2, generator=g),
        "visible": coin(0.5),
        "displacement": normal(3),
        "normal": torch.nn.functional.normalize(normal(3), dim=-1),
    }
    for name, target in targets.items():
        target[~valid[f"{name}_valid"]] = 0
    return QueryBatch(
        video=torch.randint(0, 256, (clips, T, S, S, 3), generator=g, dtype=torch.uint8),
        aspect=torch.ones(clips),
        uv_norm=torch.rand(clips, queries, 2, generator=g),
        t_src=times(),
        t_tgt=times(),
        t_cam=times(),
        edge=coin(0.3),
        dynamic=coin(0.3),
        dataset=torch.arange(clips) % 2,
        datasets=("kubric", "scannet"),
        **targets,
        **valid,
    )


def random_prediction(seed=1, clips=B, queries=Q) -> Prediction:
    g = torch.Generator().manual_seed(seed)
    channels = torch.randn(clips, queries, 13, generator=g) + torch.tensor([0, 0, 2.0] + [0] * 10)
    return Prediction.from_channels(channels)


def numbers(tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def scaled(prediction: Prediction, factor: float) -> Prediction:
    return dataclasses.replace(prediction, xyz=prediction.xyz * factor, displacement=prediction.displacement * factor)


def loss_of(prediction: Prediction, batch: QueryBatch, config: LossConfig, step=0) -> torch.Tensor:
    terms = losses.loss_terms(prediction, batch, config, step)
    return losses.total_loss(terms, batch, losses.valid_counts(batch, config), config)[0]


# --- the terms -------------------------------------------------------------------------------------------------------


def test_point_error_is_the_papers_formula():
    config = NO_WARMUP
    batch, prediction = random_batch(), random_prediction()
    batch.xyz_valid[:] = True
    error = losses.point_error(prediction, batch, losses.clip_scales(prediction, batch, config), config)
    p, g = numbers(prediction.xyz), numbers(batch.xyz)
    p = p / np.abs(p[..., 2]).mean(1)[:, None, None]
    g = g / np.abs(g[..., 2]).mean(1)[:, None, None]
    expected = np.abs(np.sign(p) * np.log(1 + np.abs(p)) - np.sign(g) * np.log(1 + np.abs(g))).mean(-1)
    np.testing.assert_allclose(numbers(error), expected, rtol=1e-5)


def test_scale_counts_valid_queries_only():
    batch, prediction = random_batch(), random_prediction()
    known = numbers(batch.xyz_valid).astype(bool)
    scales = losses.clip_scales(prediction, batch, NO_WARMUP)
    for i in range(B):
        np.testing.assert_allclose(scales.true[i, 0, 0], np.abs(numbers(batch.xyz)[i, known[i], 2]).mean(), rtol=1e-6)
        np.testing.assert_allclose(
            scales.predicted[i, 0, 0].item(), np.abs(numbers(prediction.xyz)[i, known[i], 2]).mean(), rtol=1e-6
        )


@pytest.mark.parametrize("factor", [1e-2, 7.0])
def test_paper_normalisation_ignores_the_scale_of_a_prediction(factor):
    batch, prediction = random_batch(), random_prediction()
    before = losses.loss_terms(prediction, batch, NO_WARMUP, 0)
    after = losses.loss_terms(scaled(prediction, factor), batch, NO_WARMUP, 0)
    for name in losses.TERMS:
        torch.testing.assert_close(before[name][0], after[name][0], rtol=1e-4, atol=1e-5)


def test_gradient_flows_through_the_scale():
    """A loss that ignores scale has a gradient without a component along the prediction (Euler)."""
    batch, prediction = random_batch(), random_prediction()
    xyz = prediction.xyz.requires_grad_()
    error = losses.point_error(prediction, batch, losses.clip_scales(prediction, batch, NO_WARMUP), NO_WARMUP)
    (gradient,) = torch.autograd.grad(error[batch.xyz_valid].sum(), xyz)
    assert abs((gradient * xyz).sum().item()) < 1e-4 * (gradient * xyz).abs().sum().item()


def test_joint_normalisation_learns_the_scale():
    config = dataclasses.replace(NO_WARMUP, normalisation="joint")
    batch = random_batch()
    perfect = dataclasses.replace(random_prediction(), xyz=batch.xyz.clone())

    def error(prediction):
        values = losses.point_error(prediction, batch, losses.clip_scales(prediction, batch, config), config)
        return values[batch.xyz_valid].mean().item()

    assert error(perfect) == 0
    distance = numbers(batch.xyz.norm(dim=-1))
    known = numbers(batch.xyz_valid).astype(bool)
    expected = [  # doubled: off by the truth itself, over its mean distance
        np.abs(numbers(batch.xyz)[i, known[i]]).mean(-1) / distance[i, known[i]].mean() for i in range(B)
    ]
    np.testing.assert_allclose(error(scaled(perfect, 2.0)), np.concatenate(expected).mean(), rtol=1e-5)


def test_points_behind_the_camera_count():
    batch, prediction = random_batch(), random_prediction()
    batch.xyz[:, 0, 2] = -3
    batch.xyz_valid[:, 0] = True
    assert losses.loss_terms(prediction, batch, NO_WARMUP, 0)["l3d"][1][:, 0].all()


def test_confidence_fades_in():
    batch, prediction = random_batch(), random_prediction()
    config = LossConfig(confidence="paper", confidence_warmup_steps=10)
    error = losses.point_error(prediction, batch, losses.clip_scales(prediction, batch, config), config)
    c = 1 / (1 + np.exp(-numbers(prediction.confidence_logit)))
    for step, share in ((0, 0.0), (4, 0.4), (10, 1.0), (99, 1.0)):
        terms = losses.loss_terms(prediction, batch, config, step)
        in_effect = 1 - share + share * c
        np.testing.assert_allclose(numbers(terms["l3d"][0]), in_effect * numbers(error), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(numbers(terms["lconf"][0]), -np.log(in_effect), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("logit", [-60.0, -12.0, -3.0, 0.0, 3.0, 9.5, 14.0, 25.0])
def test_confidence_can_always_change(logit):
    """Values and gradients of c e - 0.2 log c are those of the closed form in float64, however sure or unsure it is."""
    batch, config = random_batch(), dataclasses.replace(NO_WARMUP, confidence="paper")
    prediction = dataclasses.replace(random_prediction(), confidence_logit=torch.full((B, Q), logit).requires_grad_())
    error = numbers(losses.point_error(prediction, batch, losses.clip_scales(prediction, batch, config), config))
    terms = losses.loss_terms(prediction, batch, config, 0)
    for name, factor, expected in (
        ("l3d", error, error / (1 + np.exp(-logit)) / (1 + np.exp(logit))),  # c (1 - c)
        ("lconf", 1.0, np.full((B, Q), -1 / (1 + np.exp(logit)))),  # -(1 - c)
    ):
        (gradient,) = torch.autograd.grad(terms[name][0].sum(), prediction.confidence_logit, retain_graph=True)
        np.testing.assert_allclose(numbers(gradient), expected, rtol=1e-5)
        value = 1 / (1 + np.exp(-logit)) if name == "l3d" else np.log1p(np.exp(-logit))
        np.testing.assert_allclose(numbers(terms[name][0]), factor * value, rtol=1e-5)


def test_the_other_terms():
    batch, prediction = random_batch(), random_prediction()
    terms = losses.loss_terms(prediction, batch, NO_WARMUP, 0)
    scales = losses.clip_scales(prediction, batch, NO_WARMUP)
    logit, seen = numbers(prediction.visible_logit), numbers(batch.visible)
    p = 1 / (1 + np.exp(-logit))
    cosine = (numbers(prediction.normal) * numbers(batch.normal)).sum(-1)
    d = numbers(prediction.displacement) / numbers(scales.predicted)
    expected = {
        "l2d": np.abs(numbers(prediction.uv_tgt) - numbers(batch.uv_tgt)).mean(-1),
        "lvis": -(seen * np.log(p) + (1 - seen) * np.log(1 - p)),
        "ldisp": np.abs(d - numbers(batch.displacement) / numbers(scales.true)).mean(-1),
        "lnormal": 1 - cosine,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(numbers(terms[name][0]), values, rtol=1e-4, atol=1e-6, err_msg=name)
    for name, mask in (("l2d", "uv_tgt"), ("lvis", "visible"), ("ldisp", "displacement"), ("lnormal", "normal")):
        assert torch.equal(terms[name][1], getattr(batch, f"{mask}_valid")), name


def test_metric_displacement_is_not_scaled():
    config = dataclasses.replace(NO_WARMUP, displacement_norm="metric")
    batch, prediction = random_batch(), random_prediction()
    values, _ = losses.loss_terms(prediction, batch, config, 0)["ldisp"]
    torch.testing.assert_close(values, (prediction.displacement - batch.displacement).abs().mean(-1))


def test_depth_error_compares_logarithms_after_scaling_where_the_true_point_is_in_front():
    config = dataclasses.replace(NO_WARMUP, ldepth=0.3)
    batch, prediction = random_batch(), random_prediction()
    batch.xyz_valid[:], batch.xyz[:, 0, 2], prediction.xyz[:, 1, 2] = True, -3, -3
    prediction.xyz.requires_grad_()
    values, mask = losses.loss_terms(prediction, batch, config, 0)["ldepth"]
    p, g = numbers(prediction.xyz)[..., 2], numbers(batch.xyz)[..., 2]
    p, g = (z / np.abs(z).mean(1, keepdims=True) for z in (p, g))
    np.testing.assert_array_equal(numbers(mask).astype(bool), g > 0)
    expected = np.abs(np.log(np.maximum(p, 0.01)) - np.log(np.maximum(g, 0.01)))
    np.testing.assert_allclose(numbers(values)[g > 0], expected[g > 0], rtol=1e-4, atol=1e-6)
    assert not mask[:, 0].any() and mask[:, 1].any()
    with_it, without = loss_of(prediction, batch, config), loss_of(prediction, batch, NO_WARMUP)
    assert (with_it - without).item() == pytest.approx(0.3 * expected[g > 0].mean(), rel=1e-4)
    with_it.backward()
    assert prediction.xyz.grad.isfinite().all()


# --- masks and averages ----------------------------------------------------------------------------------------------


def test_total_is_the_weighted_sum_of_masked_means():
    batch, prediction = random_batch(), random_prediction()
    terms = losses.loss_terms(prediction, batch, NO_WARMUP, 0)
    counts = losses.valid_counts(batch, NO_WARMUP)
    loss, _ = losses.total_loss(terms, batch, counts, NO_WARMUP)
    expected = sum(
        getattr(NO_WARMUP, name) * numbers(value)[numbers(mask).astype(bool)].mean()
        for name, (value, mask) in terms.items()
    )
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)
    by_dataset = [[terms[name][1][batch.dataset == d].sum().item() for d in (0, 1)] for name in losses.TERMS]
    assert counts.tolist() == by_dataset


def test_masked_queries_change_nothing():
    batch, prediction = random_batch(), random_prediction()
    before = loss_of(prediction, batch, NO_WARMUP)
    for name in ("xyz", "uv_tgt", "displacement", "normal"):
        getattr(prediction, name)[~getattr(batch, f"{name}_valid")] = 1e6
    prediction.visible_logit[~batch.visible_valid] = 1e6
    after = loss_of(prediction, batch, NO_WARMUP)
    torch.testing.assert_close(before, after)


def test_a_clip_with_too_few_points_has_no_3d_terms():
    batch, prediction = random_batch(), random_prediction()
    batch.xyz_valid[0] = torch.arange(Q) < 15
    batch.xyz_valid[1] = torch.arange(Q) < 16
    terms = losses.loss_terms(prediction, batch, NO_WARMUP, 0)
    for name in ("l3d", "lconf", "ldisp"):
        assert not terms[name][1][0].any()
        assert terms[name][1][1].any()
    assert terms["lnormal"][1][0].any()
    watched = dict(zip(losses.MONITORS, losses.monitors(prediction, batch, NO_WARMUP).tolist(), strict=True))
    assert (watched["dropped"], watched["clips"]) == (1, B - 1)


def test_without_any_label_every_head_still_gets_a_gradient():
    """DistributedDataParallel waits for ever for a parameter without one."""
    batch, model = random_batch(), D4RT(TINY)
    for name in ("xyz", "uv_tgt", "visible", "displacement", "normal"):
        getattr(batch, f"{name}_valid")[:] = False
    prediction = model(batch.video, batch.aspect, batch.queries)
    loss = loss_of(prediction, batch, LossConfig())
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_monitors_see_a_collapse():
    batch = random_batch()
    batch.xyz_valid[:] = True
    perfect = dataclasses.replace(random_prediction(), xyz=batch.xyz * 5)
    centre = batch.xyz.mean(1, keepdim=True)
    collapsed = dataclasses.replace(perfect, xyz=centre + 0.1 * (batch.xyz - centre))
    for prediction, ratio in ((perfect, 1.0), (collapsed, 0.1)):
        sums = dict(zip(losses.MONITORS, losses.monitors(prediction, batch, NO_WARMUP).tolist(), strict=True))
        assert sums["z_std"] / sums["z_std_true"] == pytest.approx(ratio, rel=0.1)
        assert sums["spread"] / sums["spread_true"] == pytest.approx(ratio, rel=0.1)
        assert sums["z_correlation"] / sums["clips"] == pytest.approx(1, abs=1e-4)


# --- over workers ----------------------------------------------------------------------------------------------------


def uneven_batch() -> QueryBatch:
    """Four clips whose masks differ so much that a mean of per-worker means would be far off."""
    batch = random_batch()
    for i, share in enumerate((1.0, 0.9, 0.55, 0.0)):
        for name in ("xyz", "uv_tgt", "visible", "displacement", "normal"):
            getattr(batch, f"{name}_valid")[i] = torch.arange(Q) < share * Q
    return batch


def half_of(batch: QueryBatch, rank: int) -> QueryBatch:
    tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "datasets"}
    return QueryBatch(**{name: x[2 * rank : 2 * rank + 2] for name, x in tensors.items()}, datasets=batch.datasets)


def train_config() -> TrainConfig:
    return TrainConfig(
        model=TINY,
        data=DataConfig(queries=Q, clips_per_worker=2),
        loss=NO_WARMUP,
        optim=OptimConfig(warmup_steps=1),
        steps=10,
        precision="float32",
    )


def step_once(batch: QueryBatch, parallel: bool) -> tuple[dict, list]:
    torch.manual_seed(0)
    config = train_config()
    state = TrainState.create(D4RT(TINY), config.optim)
    if parallel:
        state.network = DistributedDataParallel(state.model)
    metrics = train_step(state, batch, config)
    return metrics, [p.grad for p in state.model.parameters()]


def one_of_two_workers(rank: int, folder: str) -> tuple[dict, list]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        return step_once(half_of(uneven_batch(), rank), parallel=True)
    finally:
        dist.destroy_process_group()


def test_two_workers_equal_one_process_with_the_whole_batch(tmp_path):
    other = torch.multiprocessing.spawn(one_of_two_workers_saves, args=(str(tmp_path),), nprocs=1, join=False)
    mine = one_of_two_workers(1, str(tmp_path))
    other.join()
    metrics, gradients = step_once(uneven_batch(), parallel=False)
    for their_metrics, their_gradients in (mine, torch.load(tmp_path / "other.pt", weights_only=True)):
        assert their_metrics == pytest.approx(metrics, rel=1e-4)
        for ours, theirs in zip(gradients, their_gradients, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-6)


def one_of_two_workers_saves(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.save(one_of_two_workers(rank, folder), f"{folder}/other.pt")


# --- the step --------------------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_falls():
    config = OptimConfig(lr=1.0, final_lr=0.1, warmup_steps=4)
    rates = [learning_rate(step, config, 13) for step in range(13)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.55)  # half way down the cosine
    assert rates[12] == pytest.approx(0.1)


def test_no_decay_on_biases_norms_and_tables():
    model = D4RT(TINY)
    decayed, free = parameter_groups(model, OptimConfig())
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") and "embedder.t_" not in names[id(p)] for p in decayed["params"])
    assert {names[id(p)] for p in free["params"]} >= {
        f"query_embedder.t_{x}_embed.weight" for x in ("src", "tgt", "cam")
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.03, 0.0)


def test_divergence_names_term_step_and_dataset():
    batch, config = random_batch(), train_config()
    batch.xyz[1, batch.xyz_valid[1]] = float("inf")
    state = TrainState.create(D4RT(TINY), config.optim)
    state.step = 3
    weights = [p.clone() for p in state.model.parameters()]
    with pytest.raises(TrainingDiverged, match=r"step 3: l3d \(scannet\)"):
        train_step(state, batch, config)
    assert all(torch.equal(a, b) for a, b in zip(weights, state.model.parameters(), strict=True))


class Broken(torch.nn.Module):
    """A network that gives no number for one query, which the loss leaves out."""

    def __init__(self, model, clip, query):
        super().__init__()
        self.model, self.clip, self.query = model, clip, query

    def forward(self, *inputs, **switches):
        prediction = self.model(*inputs, **switches)
        displacement = prediction.displacement.clone()
        displacement[self.clip, self.query] *= float("nan")
        return dataclasses.replace(prediction, displacement=displacement)


def test_a_gradient_that_is_no_number_names_term_step_and_dataset_though_the_loss_is_fine():
    batch, config = random_batch(), train_config()
    state = TrainState.create(D4RT(TINY), config.optim)
    query = int((~batch.displacement_valid[3]).nonzero()[0])
    state.network, state.step = Broken(state.model, 3, query), 5
    weights = [p.clone() for p in state.model.parameters()]
    with pytest.raises(TrainingDiverged, match=r"gradient is not finite at step 5 .*: in ldisp \(scannet\) \(clip 3 "):
        train_step(state, batch, config)
    assert all(torch.equal(a, b) for a, b in zip(weights, state.model.parameters(), strict=True))
    with torch.no_grad():
        state.model.heads.weight[0] = 1e38  # finite answers, whose gradient overflows further down
    state.network = state.model
    with pytest.raises(TrainingDiverged, match=r"not finite at step 6"):
        train_step(state, batch, config)


def test_bfloat16_trains_too():
    config = dataclasses.replace(train_config(), precision="bfloat16")
    state = TrainState.create(D4RT(TINY), config.optim)
    first, *_, last = [train_step(state, random_batch(), config)["loss"] for _ in range(10)]
    assert last < first


def test_saved_and_restored_state_goes_on_bit_for_bit(tmp_path):
    config = train_config()

    def fresh(seed):
        torch.manual_seed(seed)
        return TrainState.create(D4RT(TINY), config.optim)

    straight = fresh(0)
    for seed in range(4):
        train_step(straight, random_batch(seed), config)
    begun, resumed = fresh(0), fresh(1)
    for seed in range(2):
        train_step(begun, random_batch(seed), config)
    save(begun, tmp_path)
    resumed.restore(tmp_path)
    for seed in range(2, 4):
        train_step(resumed, random_batch(seed), config)
    assert resumed.step == straight.step
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
