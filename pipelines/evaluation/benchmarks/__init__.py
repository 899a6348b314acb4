"""The field's benchmarks, each a module of its name with one `BENCHMARK`; what they share is in `benchmark.py`."""

from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipelines.evaluation.benchmarks.benchmark import Benchmark

BenchmarkKey = Literal["tapvid3d", "worldtrack", "depth", "pose", "cloud", "hidden"]


def load_benchmark(key: BenchmarkKey) -> "Benchmark":
    """The one of that name."""
    return import_module(f"{__name__}.{key}").BENCHMARK
