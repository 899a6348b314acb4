"""One point asked in several ways: exact answers agree with themselves; independent noise has a ratio of sqrt 2."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.evaluation.clip_consistency import AXES, Consistency, measure_consistency
from pipelines.geometry import inverse, transform
from pipelines.store.reader import ClipStore
from tests.plane_store import write_plane_store


class Answers:
    """Knows the clip: every query's point, from the stored one that has its pixel, or its pixel at the target."""

    device, config = torch.device("cpu"), None

    def __init__(self, clip, noise: float = 0.0, bias: float = 0.0, unit=lambda video: 1.0) -> None:
        self.unit = unit
        self.clip, self.noise, self.bias = clip, noise, bias
        truth = clip.all_queries()
        self.world_from_cam = clip.world_from_cam.astype(np.float64)
        points = transform(self.world_from_cam[truth["t_cam"]], truth["xyz"].astype(np.float64))
        keys = [*zip(truth["t_src"].tolist(), truth["uv_norm"].tolist(), strict=True)]
        keys += [*zip(truth["t_tgt"].tolist(), truth["uv_tgt"].tolist(), strict=True)]
        self.points = {(t, *uv): point for (t, uv), point in zip(keys, [*points, *points], strict=True)}
        self.rng = np.random.default_rng(0)

    def encode(self, video, aspect):
        """Remembers which frames these are."""
        frames = [int((self.clip.video == frame).all(axis=(1, 2, 3)).argmax()) for frame in video[0].numpy()]
        return SimpleNamespace(video=video, first=frames[0], unit=self.unit(video))

    def decode(self, memory, queries):
        times = (queries.t_src[0] + memory.first).tolist()
        world = [self.points[t, *uv] for t, uv in zip(times, queries.uv_norm[0].tolist(), strict=True)]
        xyz = transform(inverse(self.world_from_cam)[queries.t_cam[0].numpy() + memory.first], np.array(world))
        xyz = memory.unit * xyz * (1 + self.bias) + self.noise * self.rng.standard_normal(xyz.shape)
        return SimpleNamespace(xyz=torch.tensor(xyz, dtype=torch.float32)[None])

    decode_times = decode


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return ClipStore(write_plane_store(tmp_path_factory.mktemp("planes") / "s", clips=1, queries=512, video="zstd"))[0]


def test_exact_answers_agree_in_any_unit(clip) -> None:
    for bias in (0.0, 1.0):
        found = measure_consistency(Answers(clip, bias=bias), clip).scores()
        for axis in AXES:
            assert found[axis]["groups"] > 10
            assert found[axis]["spread"] < 1e-4
            assert found[axis]["epe"] < 1e-3
            assert found[axis]["members_lost"] == 0


def test_independent_noise_has_the_ratio_that_theory_says(clip) -> None:
    total = Consistency()
    for _ in range(5):
        total.merge(measure_consistency(Answers(clip, noise=0.01), clip))
    found = total.scores()
    for axis in AXES:
        assert found[axis]["ratio"] == pytest.approx(np.sqrt(2), rel=0.06)
        assert found[axis]["epe"] == pytest.approx(0.01 * np.sqrt(8 / np.pi), rel=0.1)


def test_a_unit_for_each_window_and_an_answer_for_each_batch_are_told_apart(clip) -> None:
    frames = len(clip.video)
    by_window = Answers(clip, unit=lambda video: 1.0 if video.shape[1] == frames else 1.3)
    found = measure_consistency(by_window, clip).scores()
    assert found["window"]["ratio"] > 0.5
    assert found["window_scaled"]["spread"] < 1e-3
    assert found["batch"]["spread"] < 1e-3

    by_batch = Answers(clip, unit=lambda video: 1.0 if len(video) == 1 else 1.1)
    found = measure_consistency(by_batch, clip).scores()
    assert found["batch"]["ratio"] > 0.5
    assert found["window"]["spread"] < 1e-3
