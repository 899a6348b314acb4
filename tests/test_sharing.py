"""The optimiser shared out over workers, steps left out, float16, and no wait for the device within a step."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from saved_state import save
from test_losses import TINY, half_of, random_batch, train_config
from torch.utils._python_dispatch import TorchDispatchMode

from model import D4RT
from train.config import TrainConfig
from train.errors import TrainingDiverged
from train.parallel import FIRST_SCALE, LossScale, beside_others
from train.sharing import Shares
from train.state import OPTIMISERS, TrainState
from train.step import take_step, train_step

STEPS = 3


def config_of(optimiser: str, **changes) -> TrainConfig:
    config = train_config()
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, optimiser=optimiser), **changes)


def fresh(config: TrainConfig) -> TrainState:
    torch.manual_seed(0)
    return TrainState.create(D4RT(config.model), config.optim, shard=config.shard, precision=config.precision)


def in_one_piece(state: TrainState) -> dict[str, torch.Tensor]:
    """Weights, and all that the optimisers keep of each, by name."""
    names = {id(x): name for name, x in state.model.named_parameters()}
    kept = {name: x.detach().clone() for name, x in state.model.named_parameters()}
    for optimiser in state.optimisers:
        for parameter, means in optimiser.state.items():
            kept |= {f"{names[id(parameter)]}/{key}": value.clone() for key, value in means.items()}
    return kept


# ---- two workers ----


def run(config: TrainConfig, rank: int, *, alone: bool, folder: Path, begin: Path | None = None) -> tuple:
    """(losses of some steps, all that is kept, shares of matrices); the checkpoint of worker 0 lies in `folder`."""
    state = fresh(config)
    if alone:  # every worker moves everything
        state.shares = Shares([])
    if begin:
        state.restore(begin)
    state.network = beside_others(state.model)
    found = [train_step(state, half_of(random_batch(seed), rank), config)["loss"] for seed in range(STEPS)]
    progress = state.progress()
    if rank == 0:
        folder.mkdir()
        save(state, folder, progress)
    dist.barrier()
    return found, in_one_piece(state), [len(share) for share in state.shares.dealt]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for optimiser in ("adamw", "muon"):
        for name, shard, alone in (("plain", False, True), ("muon shared", False, False), ("all shared", True, False)):
            place = Path(folder, f"{optimiser} {name}")
            config = config_of(optimiser, shard=shard)
            found[optimiser, name] = run(config, rank, alone=alone, folder=place)
            again = Path(folder, f"{optimiser} {name} again")
            found[optimiser, f"{name} again"] = run(config, rank, alone=alone, folder=again, begin=place)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("again", ["", " again"])
@pytest.mark.parametrize("name", ["muon shared", "all shared"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_shared_out_it_learns_what_distributed_data_parallel_does(optimiser, name, again, two_workers):
    """Losses and weights, also of a run that goes on from a checkpoint; each mean is with one worker only."""
    _, found = two_workers
    shared = [worker[optimiser, name + again] for worker in found]
    plain = [worker[optimiser, f"plain{again}"] for worker in found]
    seen: dict[str, int] = {}
    for (losses, kept, _), (expected_losses, expected, _) in zip(shared, plain, strict=True):
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        assert losses[0] != losses[-1]
        for key, tensor in kept.items():
            seen[key] = seen.get(key, 0) + 1
            torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-7, msg=key)
    assert seen.keys() == plain[0][1].keys()  # nothing is with nobody
    matrices = {key for key, count in seen.items() if count == 1}
    assert bool(matrices) == (optimiser == "muon" or name == "all shared")
    assert all("/" in key for key in matrices)  # weights are with all
    if matrices:
        first, second = shared[0][2]
        assert first and second


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_checkpoint_is_the_same_whoever_keeps_what(optimiser, two_workers):
    folder, _ = two_workers
    plain, *others = (
        torch.load(folder / f"{optimiser} {name}" / OPTIMISERS, weights_only=True)
        for name in ("plain", "muon shared", "all shared")
    )
    for other in others:
        assert other.keys() == plain.keys() and other["step"] == STEPS
        for ours, theirs in zip(other["optimisers"], plain["optimisers"], strict=True):
            assert ours["param_groups"] == theirs["param_groups"] and ours["state"].keys() == theirs["state"].keys()
            for number, means in theirs["state"].items():
                assert ours["state"][number].keys() == means.keys()
                for name, tensor in means.items():
                    torch.testing.assert_close(ours["state"][number][name], tensor, rtol=1e-5, atol=1e-7)


# ---- what is not finite ----


def broken_batch(seed: int, clip: int) -> object:
    batch = random_batch(seed)
    batch.xyz[clip, 0], batch.xyz_valid[clip, 0] = math.inf, True
    return batch


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_step_that_is_left_out_changes_nothing_and_names_its_clip(optimiser):
    config = config_of(optimiser, max_skipped=1)
    state = fresh(config)
    train_step(state, random_batch(0), config)
    before = in_one_piece(state)
    assert train_step(state, broken_batch(1, clip=2), config)["skipped_steps"] == 1
    after = in_one_piece(state)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert len(state.skipped) == 1 and "not finite at step 1" in state.skipped[0]
    assert "(clip 2 of the step)" in state.skipped[0]
    assert math.isfinite(train_step(state, random_batch(2), config)["loss"])
    assert any(not torch.equal(in_one_piece(state)[name], tensor) for name, tensor in before.items())
    with pytest.raises(TrainingDiverged, match=r"not finite at step 3.*\(clip 0 of the step\); look at these data"):
        train_step(state, broken_batch(3, clip=0), config)


def test_what_was_left_out_stays_spent_when_a_run_goes_on(tmp_path):
    config = config_of("muon", max_skipped=1)
    first, again = fresh(config), fresh(config)
    train_step(first, random_batch(0), config)
    train_step(first, broken_batch(1, clip=1), config)
    save(first, tmp_path)
    again.restore(tmp_path)
    with pytest.raises(TrainingDiverged, match="not finite at step 2"):
        train_step(again, broken_batch(2, clip=1), config)


def test_steps_are_read_later_than_they_are_taken():
    """The metrics of a step are those it had, whatever was learnt since."""
    config = config_of("muon")
    waiting, at_once = fresh(config), fresh(config)
    expected = [train_step(at_once, random_batch(seed), config) for seed in range(3)]
    taken = [take_step(waiting, random_batch(seed), config) for seed in range(3)]
    assert [step.metrics(waiting, config) for step in taken] == expected


# ---- float16 ----


def test_float16_learns_as_float32_does():
    config = config_of("adamw", precision="float16")
    half, full = fresh(config), fresh(config_of("adamw"))
    batch = random_batch()
    found = [train_step(half, batch, config) for _ in range(10)]
    expected = [train_step(full, batch, config_of("adamw")) for _ in range(10)]
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=2e-3)
    assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=2e-2)  # after the scale is undone
    assert found[-1]["loss"] < found[0]["loss"] and found[0]["loss_scale"] == FIRST_SCALE


def test_a_scale_that_overflows_is_halved_and_costs_no_budget(tmp_path):
    config = config_of("adamw", precision="float16")
    state, again = fresh(config), fresh(config)
    state.loss_scale.scale = torch.tensor(2.0**40)
    before = in_one_piece(state)
    assert train_step(state, random_batch(), config)["overflowed_steps"] == 1
    assert state.loss_scale.scale == 2.0**39 and not state.skipped
    assert all(torch.equal(in_one_piece(state)[name], tensor) for name, tensor in before.items())
    save(state, tmp_path)
    again.restore(tmp_path)
    assert again.loss_scale.scale == 2.0**39


def test_the_scale_moves_as_that_of_torch():
    """`torch.amp.GradScaler`'s rule, by its own kernel."""
    ours, theirs, tracker = (
        LossScale(torch.device("cpu")),
        torch.tensor(FIRST_SCALE),
        torch.tensor(0, dtype=torch.int32),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(9_000):
        broken = (torch.rand((), generator=generator) < 3e-4).float()
        ours.update(broken)
        torch._amp_update_scale_(theirs, tracker, broken, 2.0, 0.5, 2_000)
        assert ours.scale == theirs


# ---- waits ----


class Waits(TorchDispatchMode):
    """Counts the operations for which a host must know numbers of the device: a number by itself, sizes that follow
    from numbers. What is copied as a whole goes unseen on a CPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_step_needs_no_number_of_its_own(optimiser):
    config = config_of(optimiser, accumulate=2)
    state, batch = fresh(config), random_batch()
    with Waits() as checked:
        state.model(batch.video, batch.aspect, batch.queries)
    with Waits() as within:
        take_step(state, batch, config)
    assert checked.count and not within.count


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_step_does_not_wait_for_the_gpu(optimiser, precision, accumulate):
    config = config_of(optimiser, precision=precision, accumulate=accumulate)
    state = TrainState.create(D4RT(TINY).cuda(), config.optim, precision=precision)
    batches = [random_batch(seed).to("cuda") for seed in range(3)]
    train_step(state, batches[0], config)
    try:
        torch.cuda.set_sync_debug_mode("error")
        taken = [take_step(state, batch, config) for batch in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(step.metrics(state, config)["grad_norm"]) for step in taken)


FIRST = """
from test_sharing import TINY, config_of, random_batch
from train.parallel import prepare
from train.state import TrainState
from train.step import train_step
from model import D4RT

config = config_of("adamw", precision="bfloat16", recompute=True)
state = TrainState.create(prepare(D4RT(TINY).cuda(), config), config.optim, precision=config.precision)
print([train_step(state, random_batch().to("cuda"), config)["loss"] for _ in range(2)])
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_first_layers_that_a_process_computes_again_get_the_same_kernel():
    """PyTorch makes up its mind about kernels of attention at the first one of a process."""
    subprocess.run([sys.executable, "-c", FIRST], cwd=Path(__file__).parent, check=True)
