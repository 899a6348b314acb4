"""What does a GPU make of it: how fast, in how much memory, with which kernels, and do its numbers agree with a CPU's?

    python -m benchmarks.gpu [--preset base --preset giant] [--out FILE]        on a GPU machine, under 8 minutes
    python -m benchmarks.gpu --device cpu --preset tiny                         whether this benchmark works

Weights and clips are random; `base` and `giant` see 48 frames of 256x256, a train step has 2048 queries of each clip.
Rates are FLOP of matrix products, counted from the config (a train step as three forward passes, whatever it computes
again), and their share of what one large matrix product reaches in the precision of training. A train step reads the
metrics of the one before, as the training worker does. Where Ray is installed, `python -m train base` trains from a
store of JPEG clips: its rate beside that of the bare step, and how long it waits for clips.

For orientation, by hand on one H100 (80 GB, 16 cores, matrix product 770 TFLOP/s), with what is wanted:

|                                     | `giant`                 | `base`                | target                    |
|-------------------------------------|-------------------------|-----------------------|---------------------------|
| encode                              | 38.7 ms, 0.58 of matmul | 6.4 ms, 0.38          | `giant` 0.65              |
| decode 65,536 queries               | 796,000 queries/s       | 1,498,000 queries/s   | `giant` 1,000,000         |
| decode 2,048 queries                | 432,000 queries/s       | 294,000 queries/s     |                           |
| dense 64x64                         | 244 ms                  | 133 ms                |                           |
| train step, 1 clip                  | 196 ms, 0.36, 31.1 GB   | 57.8 ms, 0.16, 7.3 GB | `giant` 0.50              |
| train step, 8 clips                 |                         |                       | `base` 0.40               |
| train step, 1 clip, recompute       | 258 ms, 19.5 GB         | 109 ms, 5.1 GB        |                           |
| xyz, bfloat16 against float32       | 2.8e-3                  | 2.0e-3                |                           |
| command, of bare step; data wait    | 0.73 to 0.84, 1 clip    | starved, 4 clips      | 0.95; below 0.02          |
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks import gpu_task
from benchmarks.figures import keep, parser_of
from benchmarks.model_task import Task
from train.config import PRESETS, TrainConfig
from train.memory import memory_of, step_bytes
from train.parallel import DTYPES

ANSWERS = (
    Task("encode", "encode"),
    Task("decode 2,048", "decode", queries=2_048),
    Task("decode 65,536", "decode", queries=65_536),
    Task("dense 64x64", "dense", side=64),
)
CLIPS = (1, 8)  # a step; where it fits
COMMAND, COMMAND_STEPS, COMMAND_FRAMES = "base", 60, 48
COMMAND_CLIPS = PRESETS[COMMAND][1].data.clips_per_worker


def train_cases(preset: str, device: torch.device) -> dict[str, TrainConfig]:
    """One worker's steps, by name. Compilation on GPUs only: for a CPU it takes minutes."""
    modes = {"": {}, ", recompute": {"recompute": True}}
    if device.type == "cuda":
        modes[", compile"] = {"compile": True}
    config = replace(PRESETS[preset][1], workers=1, precision="bfloat16" if device.type == "cuda" else "float32")
    return {
        f"train, {count} clip{'s' if count > 1 else ''}{mode}": replace(
            config, accumulate=1, data=replace(config.data, clips_per_worker=count), **switches
        )
        for count in CLIPS
        for mode, switches in modes.items()
    }


def train_from_store() -> dict[str, float]:
    """Clips per second of `python -m train base` with one worker, and the share of its time that it waits for clips."""
    from benchmarks.reading import write_store  # with readers of all formats
    from pipelines.synthesize.job import write_sequence

    with tempfile.TemporaryDirectory() as folder:
        raw = {"dataset": "tartanair", "root": f"{folder}/raw", "index": 0}
        write_sequence(raw, frames=COMMAND_FRAMES, size="official", seed=0)
        write_store(f"{folder}/raw", f"{folder}/store", COMMAND_FRAMES)
        command = [sys.executable, "-m", "benchmarks.training", "--run", COMMAND]
        shown = subprocess.run(
            [*command, f"{folder}/store", "1", str(COMMAND_STEPS), folder],
            env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    return json.loads(shown.splitlines()[-1])


class Cases:
    """Runs one after the other; one that fails is told, and does not cost the figures of the others."""

    def __init__(self) -> None:
        self.started, self.failed = time.perf_counter(), {}

    def run(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function gives, or None."""
        print(f"{time.perf_counter() - self.started:4.0f} s: {name}", file=sys.stderr, flush=True)
        try:
            return function(*arguments)
        except Exception as error:
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error}"
            return None


def measure_preset(preset: str, cases: Cases, limit: float, device: torch.device) -> dict[str, Any]:
    """`limit`: TFLOP/s of a matrix product."""
    steps = train_cases(preset, device)
    one = next(iter(steps.values()))
    answers = cases.run(f"{preset}, answers", gpu_task.answer, ANSWERS, one.model, device) or {}
    kernels = cases.run(f"{preset}, attention", gpu_task.attentions, one.model, device, DTYPES[one.precision]) or {}
    outputs = cases.run(f"{preset}, outputs", gpu_task.outputs, one.model, device)
    memory, where = memory_of(device, 1)
    trained, left_out = {}, []
    for name, config in steps.items():
        needed = step_bytes(config, config.model.clip_frames)
        if needed > memory:
            left_out.append(f"{name}: {needed / 1e9:.0f} GB; {where} has {memory / 1e9:.0f}")
        elif figures := cases.run(f"{preset}, {name}", gpu_task.train, config, device):
            trained[name] = figures
    for row in (*answers.values(), *trained.values(), *kernels.values()):
        row["of_matmul"] = row["tflops"] / limit
    checkpoint = cases.run(f"{preset}, checkpoint", gpu_task.save_and_go_on, one, device)
    return {
        "answers": answers,
        "attention": kernels,
        "outputs": outputs,
        "train": trained,
        "left_out": left_out,
        "checkpoint": checkpoint,
    }


def measure_command(cases: Cases, bare: dict[str, float] | None, device: torch.device) -> dict[str, float] | None:
    """`bare`: figures of the step that the command takes, if they are there."""
    gpu_task.free(device)  # the command is another process
    found = cases.run(f"python -m train {COMMAND}", train_from_store)
    if found and bare:
        found["of_bare_step"] = found["clips_per_second"] * bare["seconds"] / COMMAND_CLIPS
    return found


def measure(presets: list[str], device: torch.device) -> dict[str, Any]:
    cases, on_gpu = Cases(), device.type == "cuda"
    smallest = next(iter(train_cases(presets[0], device).values()))
    limit = gpu_task.matmul_tflops(device, DTYPES[smallest.precision])
    found = {preset: measure_preset(preset, cases, limit, device) for preset in presets}
    same_steps = cases.run(f"{presets[0]}, the same steps", gpu_task.same_steps, smallest, device)
    command = None
    if on_gpu and COMMAND in presets and find_spec("ray"):
        command = measure_command(cases, found[COMMAND]["train"].get(f"train, {COMMAND_CLIPS} clips"), device)
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "precision": smallest.precision,
        "matmul_tflops": limit,
        "presets": found,
        "same_steps": same_steps,
        "command": command,
        "failed": cases.failed,
        "seconds": time.perf_counter() - cases.started,
    }


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['device']}, {report['precision']}: matrix product {report['matmul_tflops']:.3g} TFLOP/s",
        f"{'':32} {'ms':>9} {'TFLOP/s':>8} {'of matmul':>9} {'queries/s':>10} {'peak GB':>8} {'reckoned':>8} "
        f"{'waits':>5}  attention",
    ]
    for preset, found in report["presets"].items():
        for name, row in (found["answers"] | found["train"]).items():
            line = (
                f"{preset + ', ' + name:32} {1e3 * row['seconds']:9.1f} {row['tflops']:8.3g} {row['of_matmul']:9.2f} "
            )
            line += f"{row['queries_per_second']:10,.0f}" if "queries_per_second" in row else f"{'':10}"
            if "peak_gb" in row:
                waits = row["waits_per_step"]
                line += f" {row['peak_gb']:8.2f} {row['reckoned_gb']:8.2f} {'-' if waits is None else waits:>5} "
                line += f" {', '.join(row['attention'])}"
            lines.append(line.rstrip())
    for preset, found in report["presets"].items():
        each = ", ".join(f"{name} {1e3 * row['seconds']:.1f} ms" for name, row in found["attention"].items())
        lines.append(f"{preset}, attention of a layer, forwards and backwards: {each}")
        for precision, differences in (found["outputs"] or {}).items():
            each = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
            lines.append(f"{preset}, from the CPU's answers in float32, {precision}: {each}")
        if checkpoint := found["checkpoint"]:
            times = [f"{name} {checkpoint[f'{name}_seconds']:.1f} s" for name in ("copying", "writing", "reading")]
            line = f"{preset}, checkpoint of {checkpoint['gb']:.2f} GB: {', '.join(times)}"
            lines.append(f"{line}; losses afterwards differ by {checkpoint['difference']:.1e}")
        lines += [f"{preset}, does not fit: {words}" for words in found["left_out"]]
    if steps := report["same_steps"]:
        each = ", ".join(f"{precision} {difference:.1e}" for precision, difference in steps["difference"].items())
        lines.append(f"{len(steps['losses'])} steps, losses from the CPU's in float32: {each}")
    if command := report["command"]:
        line = f"python -m train {COMMAND}: {command['clips_per_second']:.1f} clips/s"
        line += f", {command['of_bare_step']:.2f} of the bare step" if "of_bare_step" in command else ""
        lines.append(f"{line}; data wait {command['data_wait']:.1%}")
    lines += [f"FAILED: {name}: {words}" for name, words in report["failed"].items()]
    return "\n".join([*lines, f"in {report['seconds']:.0f} s"])


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--preset", choices=PRESETS, action="append", help="default: base and giant; may be repeated")
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --preset tiny tries out the benchmark")
    report = measure(arguments.preset or ["base", "giant"], torch.device(arguments.device))
    print(table(report))
    keep(report, arguments.out)
    if report["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
