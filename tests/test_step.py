"""One optimiser step in parts, with averaged weights, with parts at rest, and with only some labels known."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from saved_state import save
from test_losses import NO_WARMUP, TINY, half_of, random_batch, train_config, uneven_batch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from model import D4RT, checkpoints
from train.config import OptimConfig, TrainConfig
from train.optim import Muon, parameter_groups
from train.query_batch import QueryBatch
from train.state import MODEL, OPTIMISERS, TrainState
from train.step import train_step

LABELS = ("xyz", "uv_tgt", "visible", "displacement", "normal")
HEAD_ROWS = {"xyz": (0, 3), "uv_tgt": (3, 5), "visible": (5, 6), "displacement": (6, 9), "normal": (9, 12)}


def with_optim(**changes) -> TrainConfig:
    config = train_config()
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **changes))


def fresh(config: TrainConfig, seed=0) -> TrainState:
    torch.manual_seed(seed)
    return TrainState.create(D4RT(config.model), config.optim)


def weights(model: D4RT) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


@pytest.fixture(scope="module")
def in_two_workers(tmp_path_factory) -> dict[str, tuple[object, object]]:
    """What each function of `WORK` gives, by its name, in two processes joined by gloo; worker 1 is this one."""
    folder = tmp_path_factory.mktemp("workers")
    other = torch.multiprocessing.spawn(save_work, args=(str(folder),), nprocs=1, join=False)
    mine = all_work(1, str(folder))
    other.join()
    theirs = torch.load(folder / "other.pt", weights_only=True)
    return {name: (theirs[name], mine[name]) for name in mine}


def all_work(rank: int, folder: str) -> dict[str, object]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        return {work.__name__: work(rank) for work in WORK}
    finally:
        dist.destroy_process_group()


def save_work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.save(all_work(rank, folder), f"{folder}/other.pt")


# --- accumulation ----------------------------------------------------------------------------------------------------


def step_in_parts(batch: QueryBatch, accumulate: int, parallel: bool) -> tuple[dict, dict]:
    """(metrics, gradients) of one step; dynamic points reweighted, so that each clip has a threshold of its own."""
    rules = {"kubric": "median", "scannet": "relative_mean"}
    config = dataclasses.replace(
        train_config(),
        data=dataclasses.replace(train_config().data, clips_per_worker=4),
        loss=dataclasses.replace(NO_WARMUP, ldepth=0.1, dynamic_reweight=rules),
        accumulate=accumulate,
    )
    state = fresh(config)
    if parallel:
        state.network = DistributedDataParallel(state.model)
    metrics = train_step(state, batch, config)
    return metrics, {name: p.grad.clone() for name, p in state.model.named_parameters()}


def assert_same_step(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_step_in_parts_is_the_step_at_once(accumulate):
    """The masks of the four clips know from all of their queries to none."""
    whole = step_in_parts(uneven_batch(), 1, parallel=False)
    assert whole[0]["dropped_clips"] == 1
    assert_same_step(step_in_parts(uneven_batch(), accumulate, parallel=False), whole)


def half_step(rank: int) -> tuple[dict, dict]:
    return step_in_parts(half_of(uneven_batch(), rank), 2, parallel=True)


def test_two_workers_in_two_parts_each_are_one_at_once(in_two_workers):
    whole = step_in_parts(uneven_batch(), 1, parallel=False)
    for found in in_two_workers["half_step"]:
        assert_same_step(found, whole)


def exchanges(rank: int) -> list[int]:
    """How often workers exchange a bucket of gradients in a step: at once, and in two parts."""
    counts = []
    for accumulate in (1, 2):
        config, calls = dataclasses.replace(train_config(), accumulate=accumulate), []

        def count(group, bucket, calls=calls):
            calls.append(bucket.index())
            return allreduce_hook(group, bucket)

        state = fresh(config)
        state.network = DistributedDataParallel(state.model)
        state.network.register_comm_hook(None, count)
        train_step(state, half_of(uneven_batch(), rank), config)
        counts.append(len(calls))
    return counts


def test_workers_exchange_gradients_once_per_step(in_two_workers):
    for at_once, in_parts in in_two_workers["exchanges"]:
        assert at_once == in_parts > 0


def test_parts_are_counted_as_one_step():
    config = dataclasses.replace(train_config(), accumulate=2, steps=3)
    state, batch = fresh(config), random_batch()
    rates = [train_step(state, batch, config)["lr"] for _ in range(3)]
    assert state.step == 3
    assert rates[0] == config.optim.lr and rates[2] == pytest.approx(config.optim.final_lr)
    assert {int(s["step"]) for s in state.optimisers[0].state.values()} == {3}


def test_parts_must_be_of_equal_size():
    with pytest.raises(ValueError, match=r"--data.clips-per-worker \(2\) must be a multiple of --accumulate \(3\)"):
        dataclasses.replace(train_config(), accumulate=3)


# --- averaged weights ------------------------------------------------------------------------------------------------


def test_averaged_weights_are_a_running_mean_that_starts_soon():
    config = with_optim(ema=0.25)
    state = fresh(config)
    expected = {name: tensor.double() for name, tensor in weights(state.model).items()}
    for n in range(1, 5):
        train_step(state, random_batch(n), config)
        share = [2 / 11, 0.25, 0.25, 0.25][n - 1]  # (1 + n) / (10 + n), at most what is asked for
        for name, now in weights(state.model).items():
            expected[name] = share * expected[name] + (1 - share) * now.double()
    for name, tensor in weights(state.averaged).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)
    assert state.result is state.averaged
    assert any((state.averaged.state_dict()[name] != tensor).any() for name, tensor in weights(state.model).items())


def test_averaging_changes_nothing_of_what_is_learnt():
    plain, averaging = (fresh(with_optim(ema=share)) for share in (0.0, 0.9))
    for state, share in ((plain, 0.0), (averaging, 0.9)):
        for seed in range(2):
            train_step(state, random_batch(seed), with_optim(ema=share))
    assert plain.result is plain.model
    for name, tensor in weights(plain.model).items():
        assert torch.equal(tensor, weights(averaging.model)[name])


def test_averaged_weights_are_the_saved_model_and_go_on_bit_for_bit(tmp_path):
    config = with_optim(ema=0.9)
    straight, begun, resumed = (fresh(config, seed) for seed in (0, 0, 1))
    for seed in range(4):
        train_step(straight, random_batch(seed), config)
    for seed in range(2):
        train_step(begun, random_batch(seed), config)
    save(begun, tmp_path)
    saved = weights(checkpoints.load(tmp_path / MODEL))
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights(begun.averaged).items())
    resumed.restore(tmp_path)
    for seed in range(2, 4):
        train_step(resumed, random_batch(seed), config)
    for a, b in ((straight.model, resumed.model), (straight.averaged, resumed.averaged)):
        assert all(torch.equal(weights(b)[name], tensor) for name, tensor in weights(a).items())


# --- what learns, and how fast ---------------------------------------------------------------------------------------


def in_encoder(name: str) -> bool:
    return name.startswith(("encoder.", "aspect_proj."))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_frozen_part_rests_and_the_other_learns(part):
    config = with_optim(freeze=(part,), weight_decay=0.5)
    state = fresh(config)
    before = weights(state.model)
    for seed in range(2):
        metrics = train_step(state, random_batch(seed), config)
    assert math.isfinite(metrics["grad_norm"])
    for name, tensor in weights(state.model).items():
        rests = in_encoder(name) == (part == "encoder")
        assert torch.equal(tensor, before[name]) == rests, name
        assert (state.model.get_parameter(name).grad is None) == rests, name


def test_the_learning_part_gets_the_gradient_it_gets_without_freezing():
    states = {freeze: fresh(with_optim(freeze=freeze)) for freeze in ((), ("encoder",), ("decoder",))}
    for state in states.values():
        train_step(state, random_batch(), with_optim(clip_norm=1e6))
    for freeze in (("encoder",), ("decoder",)):
        for name, parameter in states[freeze].model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, states[()].model.get_parameter(name).grad, msg=name)


def test_a_frozen_encoder_keeps_nothing_for_a_backward_pass_and_drops_nothing():
    model = D4RT(TINY).train()
    model.set_dropout(0.5)
    TrainState.create(model, OptimConfig(freeze=("encoder",)))
    batch, tokens = random_batch(), []
    model.encoder.register_forward_hook(lambda *call: tokens.append(call[2]))
    for _ in range(2):
        memory = model.encode(batch.video, batch.aspect)
    assert not tokens[0].requires_grad
    assert torch.equal(tokens[0], tokens[1])
    assert memory.tokens.requires_grad == (TINY.encoder_width != TINY.decoder_width)
    assert memory.keys_values[0][0].requires_grad
    answers = [model.decode(memory, batch.queries).xyz for _ in range(2)]
    assert not torch.equal(*answers)  # the decoder still has its dropout


def test_the_encoder_may_learn_more_slowly():
    config = with_optim(lr=1e-3, final_lr=1e-4, encoder_lr=1e-4, warmup_steps=4)
    state = fresh(config)
    for step in range(3):
        rate = train_step(state, random_batch(step), config)["lr"]
        assert rate == pytest.approx(1e-3 * (step + 1) / 4)
        for group in (group for optimiser in state.optimisers for group in optimiser.param_groups):
            names = {name for name, p in state.model.named_parameters() if any(p is q for q in group["params"])}
            (encoder,) = {in_encoder(name) for name in names}
            assert group["lr"] == pytest.approx(rate * (0.1 if encoder else 1))


def test_decay_all_decays_all():
    model = D4RT(TINY)
    (group,) = parameter_groups(model, OptimConfig(decay_all=True))
    assert len(group["params"]) == len(list(model.parameters())) and group["weight_decay"] == 0.03


def test_muon_moves_matrices_inside_layers_in_all_directions_alike():
    """The first move is -0.2 lr sqrt(max(rows, columns)) U V^T of the gradient U S V^T, give or take the iteration's
    error (singular values from 0.7 to 1.2); whatever is no such matrix moves as with AdamW."""
    batch = random_batch()
    with_muon, with_adamw = (with_optim(optimiser=name, weight_decay=0.0, warmup_steps=0) for name in ("muon", "adamw"))
    before, adamw = weights(fresh(with_muon).model), fresh(with_adamw)
    train_step(adamw, batch, with_adamw)
    state = fresh(with_muon)
    rate = train_step(state, batch, with_muon)["lr"]
    seen = set()
    for name, weight in state.model.named_parameters():
        inside = weight.ndim == 2 and name.startswith(("encoder.blocks.", "decoder.blocks."))
        seen.add(inside)
        if not inside:
            assert torch.equal(weight, adamw.model.get_parameter(name)), name
            continue
        move = (weight.detach() - before[name]).double() / (0.2 * rate * max(weight.shape) ** 0.5)
        u, s, v = torch.linalg.svd(weight.grad.double(), full_matrices=False)
        along = -torch.diagonal(u.T @ move @ v.T)[s > 0.05 * s[0]]
        assert along.min() > 0.5 and along.max() < 1.3, name
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("shape", "split", "size"),
    [((96, 384), "rows", 96), ((384, 192), "rows", 64), ((192, 384), "columns", 64), ((288, 160), "rows", 32)],
)
def test_each_block_of_a_matrix_moves_as_pytorchs_muon_moves_it(shape, split, size):
    """Over several steps; a matrix that is narrow is one block."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(shape, generator=generator))
    dim = 0 if split == "rows" else 1
    alone = [torch.nn.Parameter(part.detach().clone()) for part in whole.split(size, dim)]
    ours = Muon([{"params": [whole], "lr": 0.1, "weight_decay": 0.1, "muon": split}], {})
    theirs = torch.optim.Muon(alone, lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    before = whole.detach().clone()
    for _ in range(3):
        whole.grad = torch.randn(shape, generator=generator)
        for part, gradient in zip(alone, whole.grad.split(size, dim), strict=True):
            part.grad = gradient.clone()
        ours.step()
        theirs.step()
    moved = torch.cat(alone, dim).detach() - before
    assert (whole.detach() - before - moved).norm() < 0.03 * moved.norm()  # both are in bfloat16


def test_a_run_with_muon_goes_on_bit_for_bit(tmp_path):
    config = with_optim(optimiser="muon", freeze=("encoder",))
    straight, first, again = (fresh(config) for _ in range(3))
    for step in range(4):
        train_step(straight, random_batch(step), config)
    for step in range(2):
        train_step(first, random_batch(step), config)
    save(first, tmp_path)
    again.restore(tmp_path)
    for step in range(2, 4):
        train_step(again, random_batch(step), config)
    assert all(torch.equal(x, again.model.get_parameter(name)) for name, x in straight.model.named_parameters())


def test_a_run_of_code_that_divided_its_weights_otherwise_does_not_go_on(tmp_path):
    state = fresh(with_optim(optimiser="muon"))
    train_step(state, random_batch(), with_optim(optimiser="muon"))
    save(state, tmp_path)
    saved = torch.load(tmp_path / OPTIMISERS)
    first, second = saved["optimisers"][1]["param_groups"]
    first["params"] = sorted(first["params"] + second["params"])  # as Muon of whole matrices had them
    saved["optimisers"][1]["param_groups"] = [first]
    torch.save(saved, tmp_path / OPTIMISERS)
    with pytest.raises(ValueError, match=r"another version of this code.*--init"):
        state.restore(tmp_path)


# --- some labels only ------------------------------------------------------------------------------------------------


def labelled(batch: QueryBatch, *known: str) -> QueryBatch:
    """The batch, of which only these labels are known."""
    for name in LABELS:
        if name not in known:
            getattr(batch, f"{name}_valid")[:] = False
            getattr(batch, name)[:] = 0
    return batch


def moved_heads(batches: list[QueryBatch], parallel: bool) -> tuple[list[str], bool]:
    """(which rows of the heads two steps move, whether the encoder moved); confidence is the last row."""
    config = with_optim(weight_decay=0.0)
    config = dataclasses.replace(config, loss=dataclasses.replace(NO_WARMUP, displacement_norm="metric"))
    state = fresh(config)
    if parallel:
        state.network = DistributedDataParallel(state.model)
    before = weights(state.model)
    for batch in batches:
        train_step(state, batch, config)
    after = weights(state.model)
    changed = (after["heads.weight"] != before["heads.weight"]).any(1) | (after["heads.bias"] != before["heads.bias"])
    rows = HEAD_ROWS | {"confidence": (12, 13)}
    encoder = "encoder.blocks.0.attn.qkv.weight"
    return [name for name, span in rows.items() if changed[slice(*span)].any()], bool(
        (after[encoder] != before[encoder]).any()
    )


@pytest.mark.parametrize("label", LABELS)
def test_a_single_label_moves_its_own_head_and_the_trunk(label):
    heads, encoder = moved_heads([labelled(random_batch(seed), label) for seed in range(2)], parallel=False)
    assert encoder
    assert heads == (["xyz", "confidence"] if label == "xyz" else [label])


def one_label_per_worker(rank: int) -> tuple[list[str], bool]:
    label = ("xyz", "uv_tgt")[rank]
    return moved_heads([labelled(half_of(random_batch(seed), rank), label) for seed in range(2)], parallel=True)


def only_points_on_both(rank: int) -> tuple[list[str], bool]:
    return moved_heads([labelled(half_of(random_batch(seed), rank), "xyz") for seed in range(2)], parallel=True)


@pytest.mark.parametrize(
    ("work", "expected"),
    [("one_label_per_worker", ["xyz", "uv_tgt", "confidence"]), ("only_points_on_both", ["xyz", "confidence"])],
)
def test_workers_with_some_labels_only_learn_those(work, expected, in_two_workers):
    for heads, encoder in in_two_workers[work]:
        assert encoder
        assert heads == expected


def frozen_step(rank: int) -> list[str]:
    """Names of what two steps moved, with the encoder frozen."""
    config = dataclasses.replace(with_optim(freeze=("encoder",)), accumulate=2)
    state = fresh(config)
    state.network = DistributedDataParallel(state.model)
    before = weights(state.model)
    for seed in range(2):
        train_step(state, labelled(half_of(random_batch(seed), rank), "xyz"), config)
    return [name for name, tensor in weights(state.model).items() if not torch.equal(tensor, before[name])]


def test_workers_with_a_frozen_encoder_go_on_together(in_two_workers):
    for moved in in_two_workers["frozen_step"]:
        assert moved and not any(in_encoder(name) for name in moved)


def test_without_3d_labels_there_is_no_ratio_to_report():
    metrics = train_step(fresh(train_config()), labelled(random_batch(), "uv_tgt"), train_config())
    assert metrics["dropped_clips"] == 4 and np.isfinite(metrics["loss"])
    assert not {"z_ratio", "spread_ratio", "z_correlation", "confidence"} & metrics.keys()


WORK = (half_step, exchanges, one_label_per_worker, only_points_on_both, frozen_step)
