"""Benchmarks of analytic scenes, answered by the oracle through the same recipes and windows as by a model."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.benchmark import ClipName, Prediction, Scores
from pipelines.results.reconstruct import reconstruct
from pipelines.synthesize.scene import Scene
from tests.oracle import Faults, Oracle


@dataclass
class Asked:
    """A clip of a benchmark, and what the oracle said of it."""

    key: str
    clip: ClipName
    scene: Scene

    def __post_init__(self) -> None:
        self.benchmark = load_benchmark(self.key)
        self.truth = self.benchmark.open(self.clip)

    def answers(self, faults: Faults | None = None, clip_frames: int = 48, step: int = 1, **asked: bool) -> Prediction:
        oracle = Oracle(self.scene, faults or Faults(), clip_frames=clip_frames, step=step)
        frames = oracle.video.numpy()[: len(self.truth)]
        video = replace(self.truth.video("clip", 8), clip=frames)
        asked = self.benchmark.asked(self.truth, **{"known_intrinsics": False} | asked)
        results, _ = reconstruct(oracle, video, asked)
        return self.benchmark.prediction(self.truth, results)

    def scores(self, prediction: Prediction) -> Scores:
        return self.benchmark.scores(self.truth, prediction)


def changed(prediction: Prediction, **arrays: np.ndarray) -> Prediction:
    return prediction | arrays


def only_clip(key: str, folder: Path) -> ClipName:
    (clip,) = load_benchmark(key).find([str(folder)]).clips
    return clip
