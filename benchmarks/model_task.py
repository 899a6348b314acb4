"""One task of the model benchmark, done by our model or by the plain forward, and measured in the process it is in.

Both get the same weights, video and queries, and answer in the same form: the memory for `encode`, the fields of
`Prediction` for `decode` and `dense`, gradients for `train`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_d4rt import PlainD4RT, from_opend4rt, to_opend4rt
from benchmarks.timing import cpu_seconds
from model import D4RT, ModelConfig, Queries, opend4rt

MATMUL_SIDE = 2048
PLAIN_CHUNK = 512
RUNS, ENOUGH = 3, 10.0  # the best of so many runs; none begins after so many CPU seconds
Answers = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    name: str
    kind: Literal["encode", "decode", "dense", "train"]
    queries: int = 0
    chunk: int | None = None
    """How many queries ours decodes at a time; None leaves it to the model."""
    side: int = 0
    """`dense` asks where side x side points of the first frame are at all times, in the first camera."""
    dropout: float = 0.0

    def num_queries(self, config: ModelConfig) -> int:
        return self.side**2 * config.clip_frames if self.kind == "dense" else self.queries

    def flops(self, config: ModelConfig) -> int:
        """What ours needs, as if `dense` asked its queries one by one."""
        encode = config.flops_encode(config.clip_frames)
        decode = config.flops_decode(self.num_queries(config), config.clip_frames)
        return {"encode": encode, "train": 3 * (encode + decode)}.get(self.kind, decode)

    def draw(self, config: ModelConfig) -> tuple[Tensor, Tensor, Queries]:
        """The same video, aspect and queries in every process."""
        generator = torch.Generator().manual_seed(0)
        size, frames, count = config.image_size, config.clip_frames, self.num_queries(config)
        video = torch.randint(0, 256, (1, frames, size, size, 3), dtype=torch.uint8, generator=generator)
        if self.kind == "dense":
            along = (torch.arange(self.side) + 0.5) / self.side
            points = torch.cartesian_prod(along, along).flip(-1)[None]  # (1, P, 2), row by row
            first = torch.zeros(1, count, dtype=torch.int64)
            times = torch.arange(frames).repeat(1, self.side**2)
            queries = Queries(points.repeat_interleave(frames, 1), first, times, first)
        else:
            times = torch.randint(0, frames, (3, 1, count), generator=generator)
            queries = Queries(torch.rand(1, count, 2, generator=generator), *times)
        return video, torch.tensor([16 / 9]), queries


def measure(task: Task, side: Literal["ours", "plain"], config: ModelConfig, weights: Path, part: int) -> dict:
    """CPU seconds, peak memory and answers. Only the first 1/part of the queries is asked, and the time multiplied."""
    torch.set_num_threads(1)
    imported = resident_bytes("VmRSS")
    video, aspect, queries = task.draw(config)
    prepare = prepare_ours if side == "ours" else prepare_plain
    function = prepare(task, config, torch.load(weights), video, aspect, queries.span(0, len(queries) // part))
    answers: Answers = {}
    before = matmul_gflops()
    reset_peak()
    with torch.set_grad_enabled(task.kind == "train"):
        seconds = cpu_seconds(lambda: answers.update(function()), RUNS, ENOUGH)
    peak = resident_bytes("VmHWM")
    return {
        "cpu_seconds": part * seconds,
        "peak_gb": peak / 1e9,
        "imported_gb": imported / 1e9,
        "part": part,
        "matmul_gflops": [before, matmul_gflops()],
        "answers": {name: answer.numpy() for name, answer in answers.items()},
    }


def prepare_ours(
    task: Task, config: ModelConfig, weights: Answers, video: Tensor, aspect: Tensor, queries: Queries
) -> Callable[[], Answers]:
    with torch.device("meta"):
        model = D4RT(config)
    model.load_state_dict(opend4rt.from_opend4rt(weights), assign=True)
    model.set_dropout(task.dropout)
    if task.kind == "train":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0, fused=True)
        named = dict(model.named_parameters())

        def train() -> Answers:
            optimizer.zero_grad()
            loss(vars(model(video, aspect, queries))).backward()
            optimizer.step()
            return vectors(opend4rt.to_opend4rt({name: parameter.grad for name, parameter in named.items()}))

        return train
    return answering(task, model, video, aspect, queries)


def answering(task: Task, model: D4RT, video: Tensor, aspect: Tensor, queries: Queries) -> Callable[[], Answers]:
    """`encode`, `decode` or `dense` by our model, on its device; the last two encode the clip now."""
    if task.kind == "encode":
        return lambda: {"memory": model.encode(video, aspect).tokens}
    with torch.no_grad():
        memory = model.encode(video, aspect)
    if task.kind == "decode":
        return lambda: vars(model.decode(memory, queries, chunk_size=task.chunk))
    first = slice(None, None, model.config.clip_frames)  # question about each point
    uv, t_src = queries.uv_norm[:, first], queries.t_src[:, first]
    t_tgt, t_cam = (times[:, : model.config.clip_frames] for times in (queries.t_tgt, queries.t_cam))
    return lambda: vars(model.decode_times(memory, uv, t_src, t_tgt, t_cam))


def prepare_plain(
    task: Task, config: ModelConfig, weights: Answers, video: Tensor, aspect: Tensor, queries: Queries
) -> Callable[[], Answers]:
    fused = task.kind == "train"  # nn.MultiheadAttention has the fused kernel too, where gradients are wanted
    plain = PlainD4RT(weights, config.encoder_heads, config.decoder_heads, task.dropout, fused)
    height, width = video.shape[2:4]
    pixels = video.permute(0, 1, 4, 2, 3) / 255
    uv = to_opend4rt(queries.uv_norm, width, height)
    times = (queries.t_src, queries.t_tgt, queries.t_cam)

    def decode(memory: Tensor, chunk: int | None) -> Answers:
        """As fields of `Prediction`."""
        raw = plain.decode(memory, pixels, uv, times, chunk)
        return {
            "xyz": raw["xyz"],
            "uv_tgt": from_opend4rt(raw["uv"], width, height),
            "visible_logit": raw["visibility"].squeeze(-1),
            "displacement": raw["displacement"],
            "normal": F.normalize(raw["normal"], dim=-1),
            "confidence_logit": raw["confidence"].squeeze(-1),
        }

    if task.kind == "train":
        optimizer = torch.optim.AdamW([weight.requires_grad_() for weight in weights.values()], lr=0, fused=True)

        def train() -> Answers:
            optimizer.zero_grad()
            loss(decode(plain.encode(pixels, aspect), None)).backward()
            optimizer.step()
            return vectors({name: weight.grad for name, weight in weights.items()})

        return train
    if task.kind == "encode":
        return lambda: {"memory": plain.encode(pixels, aspect)}
    with torch.no_grad():
        memory = plain.encode(pixels, aspect)
    return lambda: decode(memory, PLAIN_CHUNK)


def loss(answers: Answers) -> Tensor:
    """Any number that every answer has a part in, normals of unit length too."""
    return sum((answer - 1).square().mean() for answer in answers.values())


def vectors(gradients: Answers) -> Answers:
    """Of biases and norms: they lie in every layer, and are small enough to be sent about."""
    return {name: gradient for name, gradient in gradients.items() if gradient.ndim == 1}


def matmul_gflops() -> float:
    a, b = torch.randn(2, MATMUL_SIDE, MATMUL_SIDE)
    return 2 * MATMUL_SIDE**3 / cpu_seconds(lambda: a @ b, runs=3) / 1e9


def reset_peak() -> None:
    """Let the peak of this process begin at what it holds now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(kind: Literal["VmRSS", "VmHWM", "RssAnon"]) -> int:
    """What this process holds in memory now, the most it held since `reset_peak`, or what it holds that is no file."""
    return 1024 * int(re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
