"""A model asked about the clips of a benchmark, in an actor; predictions are kept, so the job can go on later."""

from contextlib import suppress
from typing import Any

import torch

from model.precision import half_on_gpu
from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.benchmark import ClipName
from pipelines.evaluation.benchmarks.predictions import read_prediction, write_prediction
from pipelines.models import load_model
from pipelines.results.reconstruct import reconstruct


class Ask:
    """For an actor, which keeps the model: {"clip": ClipName} to its prediction, at `out`."""

    def __init__(self, model: str, registry: str, key: str, out: str, request: dict[str, Any]) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(model, self.device, registry=registry)
        self.benchmark, self.out, self.request = load_benchmark(key), out, request

    def __call__(self, row: dict[str, Any]) -> None:
        clip: ClipName = row["clip"]
        truth = self.benchmark.open(clip)
        request = self.request | {"clip": truth.digest}
        with suppress(ValueError):  # of a damaged one, which is made again
            there = read_prediction(self.out, clip)
            if there is not None and there[1].get("request") == request:
                return
        with half_on_gpu(self.device):
            prediction, windows = answers(self.benchmark, self.model, truth, clip, self.request)
        write_prediction(self.out, clip, prediction, {"request": request, "windows": windows})


def answers(bench, model, truth, clip: ClipName, request: dict[str, Any]):
    """(prediction, how the windows were joined), through the recipes and windows of `infer`."""
    video = truth.video(str(clip), model.config.image_size)
    asked = bench.asked(truth, known_intrinsics=request["known_intrinsics"])
    results, report = reconstruct(model, video, asked, length=request["window"], common=request["common"])
    return bench.prediction(truth, results), report["windows"]
