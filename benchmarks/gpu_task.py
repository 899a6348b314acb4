"""What the GPU benchmark measures of one model, on any device. On a CPU times are CPU seconds of one thread."""

import gc
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from benchmarks.model import largest_difference
from benchmarks.model_task import Task, answering
from benchmarks.timing import device_seconds
from model import D4RT, ModelConfig
from model.precision import KERNELS, half_on_gpu
from pipelines.query_table import VALID_BITS
from train.checkpoint import HostMemory
from train.config import TrainConfig
from train.memory import step_bytes
from train.parallel import prepare, usage
from train.query_batch import QueryBatch
from train.state import TrainState
from train.step import Taken, take_step, train_step

CPU = torch.device("cpu")
RUNS, ENOUGH = {"cuda": 10, "cpu": 2}, 1.0  # on a CPU none begins after so many seconds
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}
WATCHED_STEPS = 3  # in which waits are counted
SHORT_CLIP, FEW_QUERIES, AGREEING_STEPS = 8, 256, 20  # of what a CPU computes beside a GPU
WAIT = "called a synchronizing CUDA operation"  # how PyTorch's warning begins


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    return device_seconds(function, device, RUNS[device.type], ENOUGH)


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    side = MATMUL_SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)

    def ten() -> None:  # a single one is over before the clock of a GPU has risen
        for _ in range(10):
            a @ b

    return 10 * 2 * side**3 / seconds_of(ten, device) / 1e12


def free(device: torch.device) -> None:
    """Give back what earlier cases held, and let the peak begin anew."""
    gc.collect()
    if device.type == "cuda":
        torch.compiler.reset()  # or layers of the next model count as further shapes of this one's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def lively(config: ModelConfig, device: torch.device) -> D4RT:
    """A model whose layers all say something: fresh ones are near zero, and so would be what differs in them."""
    torch.manual_seed(0)
    with torch.device(device):
        model = D4RT(config).eval()
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
    return model.to(device)


def answer(tasks: tuple[Task, ...], config: ModelConfig, device: torch.device) -> dict[str, dict[str, float]]:
    """Of each task, as a trained model answers."""
    free(device)
    model, figures = lively(config, device), {}
    for task in tasks:
        with torch.inference_mode(), half_on_gpu(device):
            function = answering(task, model, *(x.to(device) for x in task.draw(config)))

        def once(function: Callable[[], object] = function) -> None:
            with (
                torch.inference_mode(),
                half_on_gpu(device),
            ):  # anew: else autocast keeps weights in 16 bits from before
                function()

        seconds = seconds_of(once, device)
        figures[task.name] = {"seconds": seconds, "tflops": task.flops(config) / seconds / 1e12}
        if count := task.num_queries(config):
            figures[task.name]["queries_per_second"] = count / seconds
    return figures


def attentions(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Attention of a layer over a whole clip, forwards and backwards, by each fused kernel that takes it. How PyTorch
    chooses among them differs between its versions."""
    free(device)
    heads, tokens = config.encoder_heads, config.video_tokens(config.clip_frames)
    shape = 1, heads, tokens, config.encoder_width // heads
    asked = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    figures = {}
    for kernel, name in KERNELS.items():
        with sdpa_kernel(kernel), suppress(RuntimeError):
            seconds = seconds_of(lambda: F.scaled_dot_product_attention(*asked).sum().backward(), device)
            figures[name] = {"seconds": seconds, "tflops": 12 * tokens**2 * config.encoder_width / seconds / 1e12}
    return figures


def outputs(config: ModelConfig, device: torch.device) -> dict[str, dict[str, float]]:
    """How far answers on the device are from a CPU's in float32, relative to the largest of each kind: in float32, and
    as a trained model answers."""
    free(device)
    model = lively(config, device)
    on_cpu = deepcopy(model).cpu()
    short = replace(config, clip_frames=min(SHORT_CLIP, config.clip_frames))
    drawn = Task("short", "decode", queries=FEW_QUERIES).draw(short)

    def answers(model: D4RT) -> dict[str, np.ndarray]:
        found = model(*(x.to(model.device) for x in drawn), checked=False)
        return {name: x.float().cpu().numpy() for name, x in vars(found).items()}

    with torch.inference_mode():
        expected, exact = answers(on_cpu), answers(model)
        with half_on_gpu(device):
            usual = answers(model)

    def differences(found: dict[str, np.ndarray]) -> dict[str, float]:
        return {name: largest_difference({name: found[name]}, {name: x}) for name, x in expected.items()}

    return {"float32": differences(exact), "as answered": differences(usual)}


def random_batch(config: TrainConfig) -> QueryBatch:
    """Clips of noise and answers of noise, all of them known: a step costs the same whatever they are."""
    generator = torch.Generator().manual_seed(0)
    clips, queries, frames = config.data.clips_per_worker, config.data.queries, config.model.clip_frames
    size = config.model.image_size

    def uniform(*shape: int) -> Tensor:
        return torch.rand(clips, queries, *shape, generator=generator)

    def times() -> Tensor:
        return torch.randint(0, frames, (clips, queries), generator=generator)

    return QueryBatch(
        video=torch.randint(0, 256, (clips, frames, size, size, 3), dtype=torch.uint8, generator=generator),
        aspect=torch.full((clips,), 16 / 9),
        uv_norm=uniform(2),
        t_src=times(),
        t_tgt=times(),
        t_cam=times(),
        xyz=uniform(3) + 1,
        uv_tgt=uniform(2),
        visible=uniform() < 0.5,
        displacement=uniform(3) - 0.5,
        normal=F.normalize(uniform(3) - 0.5, dim=-1),
        edge=uniform() < 0.3,
        dynamic=uniform() < 0.3,
        dataset=torch.zeros(clips, dtype=torch.int64),
        datasets=("noise",),
        **{f"{name}_valid": torch.ones(clips, queries, dtype=torch.bool) for name in VALID_BITS},
    )


def fresh_state(config: TrainConfig, device: torch.device, drawn_on: torch.device) -> TrainState:
    """The weights depend on where they are drawn."""
    torch.manual_seed(config.seed)
    with torch.device(drawn_on):
        model = D4RT(config.model)
    return TrainState.create(prepare(model.to(device), config), config.optim, precision=config.precision)


@dataclass
class Step:
    """Takes a step each time it is called, and reads the metrics of the one before, as a training worker does."""

    state: TrainState
    batch: QueryBatch
    config: TrainConfig
    before: Taken | None = None

    def __call__(self) -> None:
        now = take_step(self.state, self.batch, self.config)
        if self.before is not None:
            self.before.metrics(self.state, self.config)
        self.before = now


def train(config: TrainConfig, device: torch.device) -> dict[str, float | list[str] | None]:
    """One worker's step. On a CPU the peak is that of the whole process, and there is nothing to wait for."""
    free(device)
    frames = config.model.clip_frames
    step = Step(fresh_state(config, device, device), random_batch(config).to(device), config)
    seconds = seconds_of(step, device)
    used = usage(config, frames, seconds, device)
    return {
        "seconds": seconds,
        "tflops": used["tflops_per_worker"],
        "peak_gb": used["peak_memory_gb"],
        "reckoned_gb": step_bytes(config, frames) / 1e9,
        "waits_per_step": waits_per_step(step) if device.type == "cuda" else None,
        "attention": attention_kernels(step),
    }


def waits_per_step(step: Callable[[], object]) -> float:
    """How often the host waits for the device, other than for the metrics of the step before, which it waits for by an
    event: PyTorch does not count that."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(WATCHED_STEPS):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(str(warning.message).startswith(WAIT) for warning in heard) / WATCHED_STEPS


def attention_kernels(step: Step) -> list[str]:
    """Which of PyTorch's kernels of attention a step ran, forwards and backwards."""
    start = "aten::_scaled_dot_product_"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    return sorted({event.name.removeprefix(start) for event in profile.events() if event.name.startswith(start)})


def same_steps(config: TrainConfig, device: torch.device) -> dict[str, list[float] | dict[str, float]]:
    """The losses of a few steps that learn a short clip by heart, on a CPU in float32; and how far those on the device
    are from them, relative to the largest, in float32 and in the precision of training."""
    free(device)
    short = replace(
        config,
        model=replace(config.model, clip_frames=min(SHORT_CLIP, config.model.clip_frames)),
        data=replace(config.data, queries=FEW_QUERIES),
        optim=replace(config.optim, warmup_steps=0),
    )
    batch = random_batch(short)

    def losses(place: torch.device, precision: str) -> np.ndarray:
        run = replace(short, precision=precision)
        state = fresh_state(run, place, CPU)
        there = batch.to(place)
        return np.array([train_step(state, there, run)["loss"] for _ in range(AGREEING_STEPS)])

    expected = losses(CPU, "float32")
    found = {precision: losses(device, precision) for precision in dict.fromkeys(("float32", config.precision))}
    return {
        "losses": expected.tolist(),
        "difference": {name: float(np.abs(x - expected).max() / np.abs(expected).max()) for name, x in found.items()},
    }


def save_and_go_on(config: TrainConfig, device: torch.device) -> dict[str, float]:
    """Seconds and size of a checkpoint, and how far the losses of the steps after it are from those without a stop.

    Training waits while it is copied to memory of the host, the first time for that memory too, and not for the rest.
    """
    free(device)
    batch = random_batch(config).to(device)

    def losses(state: TrainState) -> np.ndarray:
        return np.array([train_step(state, batch, config)["loss"] for _ in range(WATCHED_STEPS)])

    with tempfile.TemporaryDirectory() as folder:
        state = fresh_state(config, device, device)
        losses(state)
        started = time.perf_counter()
        files = state.writers(state.progress(), HostMemory().copy)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        copying = time.perf_counter() - started
        for name, write in files.items():
            Path(folder, name).parent.mkdir(exist_ok=True)
            with Path(folder, name).open("wb") as file:
                write(file)
        writing = time.perf_counter() - started - copying
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        expected = losses(state)
        del state

        state = fresh_state(config, device, device)
        started = time.perf_counter()
        state.restore(Path(folder))
        reading = time.perf_counter() - started
        found = losses(state)
    return {
        "copying_seconds": copying,
        "writing_seconds": writing,
        "reading_seconds": reading,
        "gb": size / 1e9,
        "difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }
