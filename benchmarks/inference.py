"""How fast are the recipes, beside the textbook way of asking the same model?

    python -m benchmarks.inference [--out FILE]

The model is `tiny` with clips of 48 frames of 64 x 64, in OpenD4RT's profile, with random weights; it and
`plain_d4rt.py` have the same ones and must give the same numbers. All is timed in CPU seconds of one thread, float32,
so other work on the machine does not count.

| row       | ours                                                     | the textbook way                              |
|-----------|----------------------------------------------------------|-----------------------------------------------|
| queries   | `decode`, chunks chosen by free memory                   | the plain forward, 512 queries at a time      |
| tracks    | `recipes.tracks`: what belongs to a point is made once   | a query per point and frame, as above         |
| all       | `recipes.all_tracks`, the occupancy grid (paper Alg. 1)  | a track from every pixel of every frame       |
| cameras   | `recipes.cameras`: all frames in two calls, robust fit   | frame by frame, two calls and one Kabsch each |
| joining   | `joining.join`: a robust Sim(3), and the cameras moved   | one Umeyama on the 85 % most confident points |

Tracks at F frames per second: as many as are followed through all T frames in T / F seconds, the encoding included
(paper Tab. 3, there on an A100 with 1.2B parameters: 550, 1,570, 3,890 and 40,180 at 60, 24, 10 and 1).

Random weights see nothing, so for `all` what the model says of image position and visibility is replaced by what is
true in a scene, and the time this takes is left out: `balls` move before a camera that hardly does, `tour` is a camera
that turns by a third of a circle. The textbook way is reckoned from its queries per second.
"""

import os
import time
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import keep, parser_of
from benchmarks.model import largest_difference, weights
from benchmarks.model_task import Task, prepare_plain, reset_peak, resident_bytes
from benchmarks.plain_d4rt import PlainD4RT, to_opend4rt
from benchmarks.timing import cpu_seconds
from model import D4RT, ModelConfig, opend4rt, recipes
from model.config import OPEND4RT
from model.decoder import Prediction
from model.recipes.alignment import fit
from model.recipes.joining import WindowGeometry, chain, join, join_cameras, look
from pipelines.geometry import inverse, project, transform
from pipelines.synthesize.scene import Scene
from pipelines.synthesize.staged import hidden_balls, round_trip

FRAMES = 48
CONFIG = replace(ModelConfig.preset("tiny"), **OPEND4RT, clip_frames=FRAMES)
QUERIES, POINTS = 16_384, 512
FPS = (60, 24, 10, 1)
CELLS = (24, 32)  # height and width that all tracks pass through
GRID = 8  # points along each side, of the camera recipe
WINDOWS, COMMON = 6, 16
CONFIDENT = 0.85  # share of the points that OpenD4RT joins windows by
RUNS = 3
TOLERANCE = 1e-4  # between ours and plain, relative
SCENES = {"balls": hidden_balls, "tour": round_trip}
FEWEST = 5.0  # times fewer queries than one track per pixel


@dataclass(frozen=True)
class Subject:
    """One model in both forms, with one clip."""

    model: D4RT
    plain: PlainD4RT
    video: Tensor
    aspect: Tensor

    @classmethod
    def random(cls) -> "Subject":
        state = weights(CONFIG)
        with torch.device("meta"):
            model = D4RT(CONFIG)
        model.load_state_dict(opend4rt.from_opend4rt(state), assign=True)
        video, aspect, _ = Task("tracks", "encode").draw(CONFIG)
        return cls(model.eval(), PlainD4RT(state, CONFIG.encoder_heads, CONFIG.decoder_heads), video, aspect)

    @property
    def pixels(self) -> Tensor:
        return self.video.permute(0, 1, 4, 2, 3) / 255

    def ask_plainly(self, memory: Tensor, pixels: Tensor, uv: Tensor, *times: Tensor) -> Tensor:
        """xyz (1, Q, 3) of queries (1, Q, ...), 512 at a time."""
        size = CONFIG.image_size
        return self.plain.decode(memory, pixels, to_opend4rt(uv, size, size), times, 512)["xyz"]


def measure_queries(subject: Subject) -> dict:
    task = Task("decode", "decode", queries=QUERIES)
    video, aspect, queries = task.draw(CONFIG)
    memory = subject.model.encode(video, aspect)
    plainly = prepare_plain(task, CONFIG, subject.plain.weights, video, aspect, queries)
    ours = vars(subject.model.decode(memory, queries))
    difference = largest_difference(*({k: v.numpy() for k, v in side.items()} for side in (ours, plainly())))
    if difference > TOLERANCE:
        raise AssertionError(f"ours and plain differ by {difference:.1e}")
    seconds, plain_seconds = (
        cpu_seconds(function, RUNS) for function in (lambda: subject.model.decode(memory, queries), plainly)
    )
    return {"queries_per_second": QUERIES / seconds, "plain_queries_per_second": QUERIES / plain_seconds}


def measure_tracks(subject: Subject, rates: dict) -> dict:
    memory = subject.model.encode(subject.video, subject.aspect)
    points = torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(0))
    encode = cpu_seconds(lambda: subject.model.encode(subject.video, subject.aspect), RUNS)
    plain_encode = cpu_seconds(lambda: subject.plain.encode(subject.pixels, subject.aspect), RUNS)
    reset_peak()
    track = (
        cpu_seconds(lambda: recipes.tracks(subject.model, subject.video[0], points, 0, memory=memory), RUNS) / POINTS
    )
    peak = resident_bytes("VmHWM")
    plain_track = FRAMES / rates["plain_queries_per_second"]

    def held(fps: int, encoding: float, each: float) -> int:
        return max(0, int((FRAMES / fps - encoding) / each))

    return {
        "encode_seconds": encode,
        "plain_encode_seconds": plain_encode,
        "tracks_per_second": 1 / track,
        "plain_tracks_per_second": 1 / plain_track,
        "held": {str(fps): held(fps, encode, track) for fps in FPS},
        "plain_held": {str(fps): held(fps, plain_encode, plain_track) for fps in FPS},
        "peak_gb": peak / 1e9,
    }


@dataclass
class Seeing:
    """A model whose answers say where a scene's points are seen; `apart`: CPU seconds that this took."""

    model: D4RT
    scene: Scene
    apart: float = 0.0

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def decode_times(self, memory, uv_norm, t_src, t_tgt, t_cam, **options) -> Prediction:
        answers = self.model.decode_times(memory, uv_norm, t_src, t_tgt, t_cam, **options)
        began = time.process_time()
        scene, size = self.scene, [self.scene.width, self.scene.height]
        hits = scene.trace(uv_norm[0].double().numpy() * size, t_src[0].numpy())
        uv, visible = [], []
        for t in t_tgt[0].tolist():
            then = np.full(len(hits.surface), t)
            own = transform(inverse(scene.cameras.world_from_cam)[t], scene.position(hits, then))
            uv.append(project(own, scene.cameras.intrinsics[t]) / size)
            visible.append(scene.visible(hits, then))
        uv_tgt = torch.tensor(np.stack(uv, axis=1), dtype=torch.float32).flatten(0, 1)[None]
        logit = torch.tensor(np.stack(visible, axis=1)).flatten()[None].float() - 0.5
        self.apart += time.process_time() - began
        return replace(answers, uv_tgt=uv_tgt, visible_logit=logit)


def measure_all(subject: Subject, rates: dict, scene: Scene) -> dict:
    memory = subject.model.encode(subject.video, subject.aspect)
    seeing = Seeing(subject.model, scene)
    height, width = CELLS
    began = time.process_time()
    found = recipes.all_tracks(seeing, subject.video[0], height=height, width=width, memory=memory)
    seconds = time.process_time() - began - seeing.apart
    naive = FRAMES * FRAMES * height * width
    return {
        "cells": [FRAMES, height, width],
        "tracks": len(found.points),
        "visited": found.visited,
        "queries": found.queries,
        "naive_queries": naive,
        "fewer_queries": naive / found.queries,
        "target_fewer_queries": FEWEST,
        "cpu_seconds": seconds,
        "naive_cpu_seconds": naive / rates["plain_queries_per_second"],
    }


def measure_cameras(subject: Subject) -> dict:
    memory = subject.model.encode(subject.video, subject.aspect)
    plain_memory, pixels = subject.plain.encode(subject.pixels, subject.aspect), subject.pixels
    points = recipes.pixel_centres(GRID, GRID)[None]
    first = torch.zeros(1, GRID**2, dtype=torch.int64)

    def plainly() -> Tensor:
        poses = []
        for j in range(FRAMES):
            here, there = (
                subject.ask_plainly(plain_memory, pixels, points, first, first, torch.full_like(first, camera))[0]
                for camera in (0, j)
            )
            poses.append(torch.linalg.inv(fit(here, there, torch.ones(len(here)), scale=False)))
        return torch.stack(poses)

    options = {"grid": GRID, "reference": 0, "memory": memory}
    seconds = cpu_seconds(lambda: recipes.cameras(subject.model, subject.video[0], **options), RUNS)
    return {"poses_per_second": FRAMES / seconds, "plain_poses_per_second": FRAMES / cpu_seconds(plainly, RUNS)}


def measure_joining(subject: Subject) -> dict:
    """Of windows that differ by what is said of other frames; no matter how well they fit."""
    plan = recipes.WindowPlan(WINDOWS * (FRAMES - COMMON) + COMMON, FRAMES, COMMON)
    generator = torch.Generator().manual_seed(0)
    shape = (plan.num_frames, *subject.video.shape[2:])
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    geometry = [look(subject.model, video, plan, number, aspect=16 / 9) for number in range(len(plan))]

    def ours() -> None:
        seams = [join(*pair) for pair in pairwise(geometry)]
        join_cameras(plan, geometry, chain(seams))

    def umeyama(before: WindowGeometry, after: WindowGeometry) -> Tensor:
        confidence = before.next_confidence * after.landmark_confidence
        kept = confidence >= confidence.quantile(1 - CONFIDENT)
        return fit(after.landmarks[kept], before.next_landmarks[kept], confidence[kept], scale=True)

    def plainly() -> None:
        for pair in pairwise(geometry):
            umeyama(*pair)

    seconds, plain_seconds = cpu_seconds(ours, RUNS), cpu_seconds(plainly, RUNS)
    return {
        "milliseconds_per_window": 1e3 * seconds / len(plan),
        "plain_milliseconds_per_window": 1e3 * plain_seconds / len(plan),
        "landmarks": len(geometry[0].next_landmarks),
    }


@torch.inference_mode()
def measure() -> dict:
    torch.set_num_threads(1)
    subject = Subject.random()
    rates = measure_queries(subject)
    return {
        "config": CONFIG.to_dict(),
        "load": os.getloadavg()[0],
        "queries": rates,
        "tracks": measure_tracks(subject, rates),
        "all": {name: measure_all(subject, rates, scene(FRAMES)) for name, scene in SCENES.items()},
        "cameras": measure_cameras(subject),
        "joining": measure_joining(subject),
    }


def table(report: dict) -> str:
    queries, tracks = report["queries"], report["tracks"]
    cameras, joining = report["cameras"], report["joining"]
    dense = report["all"].items()
    rows = [
        ("queries/s", queries["queries_per_second"], queries["plain_queries_per_second"]),
        *((f"tracks at {fps} FPS", tracks["held"][str(fps)], tracks["plain_held"][str(fps)]) for fps in FPS),
        ("encode, ms", 1e3 * tracks["encode_seconds"], 1e3 * tracks["plain_encode_seconds"]),
        *((f"all pixels of {name}, queries", row["queries"], row["naive_queries"]) for name, row in dense),
        *((f"all pixels of {name}, s", row["cpu_seconds"], row["naive_cpu_seconds"]) for name, row in dense),
        ("poses/s", cameras["poses_per_second"], cameras["plain_poses_per_second"]),
        ("joining, ms per window", joining["milliseconds_per_window"], joining["plain_milliseconds_per_window"]),
    ]
    lines = [f"{'inference, CPU seconds of one thread':38} {'ours':>12} {'textbook':>12} {'ratio':>7}"]
    for name, ours, plain in rows:
        better = max(ours, plain) / max(min(ours, plain), 1e-9) if plain else float("inf")
        lines.append(f"{name:38} {ours:12,.1f} {plain:12,.1f} {better:7.2f}")
    fewer = min(row["fewer_queries"] for row in report["all"].values())
    met = "met" if fewer >= FEWEST else "MISSED"
    lines.append(f"{fewer:.1f} times fewer queries for all pixels at the least (target {FEWEST:g}: {met})")
    lines.append(
        f"peak memory of tracks {tracks['peak_gb']:.2f} GB, with all that Python imports; load {report['load']:.1f}"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    arguments = parser.parse_args(argv)
    report = measure()
    print(table(report))
    keep(report, arguments.out)


if __name__ == "__main__":
    main()
