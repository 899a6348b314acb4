"""What a step is reckoned to need, against what one H100 measured; and what is said when it does not fit."""

from dataclasses import replace

import pytest
import torch

from train.config import PRESETS, TrainConfig
from train.errors import OutOfMemory
from train.memory import GPU_RESERVE, explained, require_fit, step_bytes
from train.parallel import usage

H100 = {("giant", False): 31.1, ("giant", True): 19.5, ("base", False): 7.3, ("base", True): 5.1}
"""GB at most in use: one worker, one clip of 48 frames of 256x256 a step, 2048 queries, bfloat16; with `recompute`."""


def one_clip(preset: str, recompute: bool) -> TrainConfig:
    config = PRESETS[preset][1]
    data = replace(config.data, clips_per_worker=1)
    return replace(config, workers=1, accumulate=1, recompute=recompute, data=data)


@pytest.mark.parametrize("recompute", [False, True])
def test_giant_needs_what_an_h100_measured(recompute):
    assert step_bytes(one_clip("giant", recompute), 48) / 1e9 == pytest.approx(H100["giant", recompute], rel=0.15)


@pytest.mark.parametrize("preset", ["base", "giant"])
def test_recomputation_saves_what_an_h100_measured(preset):
    """Of `base` only this: besides, 2.5 GB were in use there, with and without, that are no part of a step."""
    saved = step_bytes(one_clip(preset, False), 48) - step_bytes(one_clip(preset, True), 48)
    assert saved / 1e9 == pytest.approx(H100[preset, False] - H100[preset, True], rel=0.15)


@pytest.mark.parametrize("preset", ["base", "large", "huge", "giant", "opend4rt-refine"])
def test_presets_fit_a_gpu_of_80_gb_as_they_are(preset):
    config = PRESETS[preset][1]
    assert config.workers == 8
    require_fit(config, 48, 80e9 - GPU_RESERVE, "a GPU")


def test_a_step_of_the_paper_has_64_clips_whatever_fits():
    for preset in ("base", "large", "huge", "giant"):
        config = PRESETS[preset][1]
        assert config.workers * config.data.clips_per_worker == 64


def test_sharing_out_the_optimiser_saves_its_running_means():
    """All but an eighth of eight bytes per parameter of `giant`, 1,162 million."""
    config = PRESETS["giant"][1]
    saved = step_bytes(config, 48) - step_bytes(replace(config, shard=True), 48)
    assert saved == pytest.approx(7 / 8 * 8 * 1_162_494_733, rel=0.01)


def test_what_does_not_fit_is_refused_with_what_helps():
    config = replace(PRESETS["giant"][1], accumulate=1)
    with pytest.raises(
        ValueError, match=r"a step takes each worker about 1\d\d\.\d\d GB .*a GPU has 77\.0 GB: raise --acc"
    ):
        require_fit(config, 48, 77e9, "a GPU")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_change(error):
    words = r"out of memory at step 7 .*raise --accumulate.* --recompute, or --shard"
    with pytest.raises(OutOfMemory, match=words), explained(PRESETS["giant"][1], 7):
        raise error
    with pytest.raises(RuntimeError, match="something else"), explained(PRESETS["giant"][1], 7):
        raise RuntimeError("something else")


def test_curves_say_what_the_device_does():
    """A step is three forward passes of matrix products, however many parts it has and whatever is computed again."""
    config = replace(PRESETS["base"][1], accumulate=2, recompute=True)
    forward = config.model.flops_encode(48) + config.model.flops_decode(config.data.queries, 48)
    found = usage(config, 48, seconds_per_step=2.0, device=torch.device("cpu"))
    assert found["tflops_per_worker"] == pytest.approx(3 * 8 * forward / 2e12)
    assert 0.05 < found["peak_memory_gb"] < 1000
