"""How fast is the model on this machine, compared with a plain matrix product?

    python -m benchmarks.model [--out FILE] [--preset base] [--frames 16] [--queries 2048]

One thread, float32, CPU seconds of this process (other work on the machine does not count as ours). Each figure is the
best of a few runs; the matrix product is measured before and after every one of them, and its median is the limit.
FLOPs are counted in closed form from the config, attention included; a training step counts as three forward passes.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.timing import cpu_seconds
from model import D4RT, ModelConfig, Queries

MATMUL_SIDE = 2048
DECODE_QUERIES = (512, 4096)
PATCH_QUERIES = 2048


def matmul_gflops() -> float:
    a, b = torch.randn(2, MATMUL_SIDE, MATMUL_SIDE)
    return 2 * MATMUL_SIDE**3 / cpu_seconds(lambda: a @ b, runs=3) / 1e9


def random_queries(num_queries: int, num_frames: int) -> Queries:
    times = torch.randint(0, num_frames, (3, 1, num_queries))
    return Queries(torch.rand(1, num_queries, 2), *times)


def measure(config: ModelConfig, num_frames: int, num_queries: int, runs: int) -> dict:
    """Every figure by name: CPU seconds and, where FLOPs are counted, GFLOP/s and its ratio to the matrix product."""
    torch.manual_seed(0)
    model = D4RT(config)
    size = config.image_size
    video = torch.randint(0, 256, (1, num_frames, size, size, 3), dtype=torch.uint8)
    aspect = torch.ones(1)
    queries = random_queries(num_queries, num_frames)
    patch_queries = random_queries(PATCH_QUERIES, num_frames)
    with torch.inference_mode():
        memory = model.encode(video, aspect)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def train_step() -> None:
        prediction = model(video, aspect, queries)
        sum(x.sum() for x in vars(prediction).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    encode_flops = config.flops_encode(num_frames)
    tasks: dict[str, tuple[Callable[[], object], int | None]] = {
        "encode": (torch.inference_mode()(lambda: model.encode(video, aspect)), encode_flops),
        "train step": (train_step, 3 * (encode_flops + config.flops_decode(num_queries, num_frames))),
        f"patch embedding, {PATCH_QUERIES} queries": (
            torch.inference_mode()(
                lambda: model.query_embedder.embed_patches(video, patch_queries.uv_norm, patch_queries.t_src)
            ),
            None,
        ),
    }
    for count in DECODE_QUERIES:
        asked = random_queries(count, num_frames)
        decode = torch.inference_mode()(lambda asked=asked: model.decode(memory, asked))
        tasks[f"decode, {count} queries"] = (decode, config.flops_decode(count, num_frames))

    limits, seconds = [matmul_gflops()], {}
    for name, (function, _) in tasks.items():
        seconds[name] = cpu_seconds(function, runs)
        limits.append(matmul_gflops())
    limit = statistics.median(limits)
    figures = {}
    for name, (_, flops) in tasks.items():
        figures[name] = {"cpu_seconds": seconds[name]}
        if flops:
            gflops = flops / seconds[name] / 1e9
            figures[name] |= {"gflop": flops / 1e9, "gflops": gflops, "ratio_to_matmul": gflops / limit}
    return {"matmul_gflops": limit, "matmul_gflops_each": limits, "figures": figures}


def table(report: dict) -> str:
    lines = [f"matrix product {MATMUL_SIDE}^3: {report['matmul_gflops']:.1f} GFLOP/s (median), float32, one thread", ""]
    lines.append(f"{'':32} {'CPU s':>8} {'GFLOP':>8} {'GFLOP/s':>8} {'ratio':>6}")
    for name, figure in report["figures"].items():
        line = f"{name:32} {figure['cpu_seconds']:8.4f}"
        if "gflops" in figure:
            line += f" {figure['gflop']:8.1f} {figure['gflops']:8.1f} {figure['ratio_to_matmul']:6.2f}"
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    parser.add_argument("--preset", default="base", help="model size (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="frames of the clip (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=2048, help="queries of a train step (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs per figure, of which the best counts")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = ModelConfig.preset(arguments.preset)
    config = replace(config, clip_frames=max(config.clip_frames, arguments.frames))
    report = measure(config, arguments.frames, arguments.queries, arguments.runs)
    report |= {"preset": arguments.preset, "frames": arguments.frames, "queries": arguments.queries}
    print(table(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
