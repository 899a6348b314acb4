"""How fast is the model, compared with a plain matrix product and with the way open implementations compute it?

    python -m benchmarks.model [--out FILE] [--size base --size small]

Our model and `plain_d4rt.py` get the same weights (OpenD4RT's profile), video and queries, must give the same numbers,
and are timed: float32, one thread, CPU seconds, so other work on the machine does not count as ours. Each task runs in
a fresh process (`model_task.py`). Its peak memory is the largest resident set while it ran: the task's own, the
weights, the video, what encoding left, and what importing Python packages took (`imported_gb`; mostly torch's files).

A matrix product is measured before and after every task, and its median is the limit. FLOPs are counted in closed form
from the config, attention included; a train step counts as three forward passes. Both sides are credited with the FLOPs
that ours needs: it projects keys and values once, in `encode`, the plain forward for every chunk of 512 queries; dense
tracks count as if asked one by one. Where there are too many queries for the plain forward it answers the first of
them, and its time is scaled up. Of a machine faster than the one below, fewer seconds are asked.

For orientation, the best open implementation on another machine, in CPU seconds on one core at 87 GFLOP/s:

| size  | encode | decode 2048: whole, in chunks of 512 | dense 64x64x16 | train step: without, with dropout 0.1 |
|-------|--------|--------------------------------------|----------------|---------------------------------------|
| base  | 8.1    | 6.5, 8.7 (2.7 GB)                    |                | 33, 75 (4.1, 13.6 GB)                 |
| small |        | 0.49, 0.78                           | 20             | 1.24                                  |
"""

import math
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import keep, parser_of
from benchmarks.model_task import Task, measure
from benchmarks.plain_d4rt import random_state
from model import ModelConfig
from model.config import OPEND4RT, sizes
from pipelines.log import shown

SIZES = {
    "base": ModelConfig(**ModelConfig.preset("base").to_dict() | OPEND4RT | {"clip_frames": 16}),
    "small": ModelConfig(
        **sizes("encoder", 192, 6, 3, 768),
        **sizes("decoder", 192, 4, 3, 768),
        **OPEND4RT,
        image_size=128,
        clip_frames=16,
    ),
}
SIDES = ("ours", "plain")
TASKS = (
    Task("encode", "encode"),
    Task("decode 512", "decode", queries=512),
    Task("decode 2048 in chunks of 512", "decode", queries=2048, chunk=512),
    Task("decode 4096", "decode", queries=4096),
    Task("decode 65536", "decode", queries=65_536),
    Task("dense tracks", "dense", side=64),
    Task("train step", "train", queries=2048),
    Task("train step, dropout 0.1", "train", queries=2048, dropout=0.1),
)
LONGEST_PLAIN = 0.7e12  # FLOP of decoding that the plain forward is made to do; beyond, it answers a part
TOLERANCE = 1e-4
"""Largest difference between the two in float32, relative to the largest number of the same name."""

REFERENCE_GFLOPS = 87.0  # of the machine for which seconds are set; they are scaled to the one at hand
TARGETS = {
    "base": {
        "encode": {"ratio_to_matmul": 0.82},
        "decode 512": {"ratio_to_matmul": 0.75, "peak_gb": 1.3},
        "decode 2048 in chunks of 512": {"ratio_to_matmul": 0.75, "peak_gb": 1.3},
        "decode 4096": {"ratio_to_matmul": 0.75, "peak_gb": 1.3},
        "decode 65536": {"ratio_to_matmul": 0.75, "peak_gb": 1.3},
        "train step": {"ratio_to_matmul": 0.8},
    },
    "small": {
        "decode 2048 in chunks of 512": {"cpu_seconds": 0.25},
        "dense tracks": {"cpu_seconds": 6.5},
        "train step": {"cpu_seconds": 0.85},
    },
}


def compare(config: ModelConfig, tasks: tuple[Task, ...], targets: dict[str, dict[str, float]]) -> dict:
    """Every task by name, ours and plain. Raises AssertionError where the two give other numbers."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights(config), file := Path(folder, "weights.pt"))
        for task in shown(tasks, len(tasks), "measure", "task"):
            ours, plain = (alone(task, side, config, file) for side in SIDES)
            difference = largest_difference(ours.pop("answers"), plain.pop("answers"))
            if task.dropout == 0:
                assert difference <= TOLERANCE, f"{task.name}: ours and plain differ by {difference:.1e}"
            figures[task.name] = {
                "gflop": task.flops(config) / 1e9,
                "ours": ours,
                "plain": plain,
                "times_faster": plain["cpu_seconds"] / ours["cpu_seconds"],
                "largest_difference": None if task.dropout else difference,
            }
    rates = [rate for figure in figures.values() for side in SIDES for rate in figure[side].pop("matmul_gflops")]
    limit = statistics.median(rates)
    for name, figure in figures.items():
        for side in SIDES:
            figure[side]["gflops"] = figure["gflop"] / figure[side]["cpu_seconds"]
            figure[side]["ratio_to_matmul"] = figure[side]["gflops"] / limit
        figure["targets"] = [judge(kind, bound, figure["ours"], limit) for kind, bound in targets.get(name, {}).items()]
    return {"matmul_gflops": limit, "matmul_gflops_each": rates, "config": config.to_dict(), "tasks": figures}


def weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Random ones under OpenD4RT's keys, float32."""
    state = random_state(
        width=config.encoder_width,
        layers=config.encoder_layers,
        hidden=config.encoder_hidden,
        decoder_width=config.decoder_width,
        decoder_layers=config.decoder_layers,
        decoder_hidden=config.decoder_hidden,
        clip_frames=config.clip_frames,
        patch_size=config.patch_size,
    )
    return {name: tensor.float() for name, tensor in state.items()}


def alone(task: Task, side: str, config: ModelConfig, weights: Path) -> dict:
    """`measure` in a process of its own, forked from one that has only imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.model_task"])
    decoding = task.kind in ("decode", "dense") and side == "plain"
    part = math.ceil(task.flops(config) / LONGEST_PLAIN) if decoding else 1
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(measure, task, side, config, weights, part).result()


def largest_difference(ours: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> float:
    """Relative to the largest number under the same name; where plain answered a part, the first queries count."""
    assert ours.keys() == plain.keys(), f"{sorted(ours.keys() ^ plain.keys())} is in only one of the two"
    differences = []
    for name, theirs in plain.items():
        mine = ours[name][:, : theirs.shape[1]] if theirs.ndim > 1 else ours[name]
        differences.append(np.abs(mine - theirs).max() / np.abs(theirs).max())
    return float(np.max(differences))  # NaN if there is one


def judge(kind: str, bound: float, ours: dict, limit: float) -> dict:
    """Seconds and memory are to stay below the target, the ratio above."""
    if kind == "cpu_seconds":
        bound *= REFERENCE_GFLOPS / limit
    met = ours[kind] >= bound if kind == "ratio_to_matmul" else ours[kind] <= bound
    return {"figure": kind, "target": bound, "met": met}


def table(name: str, report: dict) -> str:
    config = report["config"]
    lines = [
        f"{name}: {config['clip_frames']} frames of {config['image_size']}x{config['image_size']}, encoder "
        f"{config['encoder_layers']} layers of {config['encoder_width']}, decoder {config['decoder_layers']} of "
        f"{config['decoder_width']}; matrix product {report['matmul_gflops']:.1f} GFLOP/s (median)",
        f"{'':30} {'CPU seconds':>17} {'':>6} {'peak GB':>11} {'GFLOP/s':>13} {'of matmul':>11}",
        f"{'':30} {'ours':>8} {'plain':>8} {'faster':>6} {'ours':>5} {'plain':>5} {'ours':>6} {'plain':>6} "
        f"{'ours':>5} {'plain':>5}  targets",
    ]
    for task, figure in report["tasks"].items():
        ours, plain = figure["ours"], figure["plain"]
        line = f"{task:30} {ours['cpu_seconds']:8.3f} {plain['cpu_seconds']:8.3f} {figure['times_faster']:6.2f} "
        line += f"{ours['peak_gb']:5.2f} {plain['peak_gb']:5.2f} "
        line += f"{ours['gflops']:6.1f} {plain['gflops']:6.1f} "
        line += f"{ours['ratio_to_matmul']:5.2f} {plain['ratio_to_matmul']:5.2f}  "
        words = {"cpu_seconds": "s under", "peak_gb": "GB under", "ratio_to_matmul": "of matmul above"}
        line += "; ".join(
            f"{words[target['figure']]} {target['target']:.2f} {'met' if target['met'] else 'MISSED'}"
            for target in figure["targets"]
        )
        if plain["part"] > 1:
            line += f" (plain: 1/{plain['part']} timed, scaled)"
        lines.append(line.rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, action="append", help="one size only; may be repeated")
    arguments = parser.parse_args(argv)
    report = {}
    for name in arguments.size or SIZES:
        report[name] = compare(SIZES[name], TASKS, TARGETS[name])
        print(table(name, report[name]), end="\n\n", flush=True)
    keep(report, arguments.out)


if __name__ == "__main__":
    main()
