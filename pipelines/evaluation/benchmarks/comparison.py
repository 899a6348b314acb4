"""Evaluations of one benchmark side by side: a leaderboard, and for each how sure it is to differ from the first.

Clips are compared in pairs, each with itself: d = score - score of the first is averaged over the clips of a subset,
then over subsets. The interval is a bootstrap's (Efron 1979): clips are drawn again within each subset,
`DRAWS` times, seed 0, and 95 % of the means lie in it. Where it does not hold 0, the difference is not one of clips.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet
from jaxtyping import Float

from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.report import CLIPS, METRICS
from pipelines.evaluation.benchmarks.tables import Table, ours_name
from pipelines.whole import read_file

DRAWS, AT_ONCE = 10_000, 500
SHARE = 0.95


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` has written."""

    uri: str
    metrics: dict[str, Any]
    clips: dict[tuple[str, str], dict[str, Any]]
    """(subset, clip) -> its row."""

    @classmethod
    def read(cls, uri: str) -> "Evaluation":
        """ValueError naming the folder if there is none, or it is damaged."""
        metrics, rows = read_file(f"{uri}/{METRICS}"), read_file(f"{uri}/{CLIPS}")
        if metrics is None or rows is None:
            raise ValueError(f"{uri} holds no evaluation of a benchmark ({METRICS} or {CLIPS} is missing)")
        try:
            table = pyarrow.parquet.read_table(io.BytesIO(rows)).to_pylist()
            found = json.loads(metrics)
            return cls(uri, found, {(row["subset"], row["clip"]): row for row in table})
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"{uri} is damaged ({error}): evaluate again into another --out") from None


def compare(evaluations: list[Evaluation], score: str | None) -> tuple[Table, list[dict[str, Any]]]:
    """The leaderboard, best first, and its rows as plain data. `score`: the benchmark's headline by default.

    ValueError for evaluations of different benchmarks, or of clips with other content.
    """
    keys = {each.metrics["benchmark"] for each in evaluations}
    if len(keys) > 1:
        raise ValueError(f"evaluations of {', '.join(sorted(keys))} have nothing in common: compare those of one")
    bench = load_benchmark(keys.pop())
    score = score or bench.headline
    first, rows = evaluations[0], []
    for each in evaluations:
        pairs = _pairs(first, each, score)
        mean, low, high = difference(pairs)
        rows.append(
            {
                "name": ours_name(each.metrics),
                "uri": each.uri,
                "of": score,
                "score": float(np.mean([theirs.mean() for _, theirs in pairs])),
                "difference": mean,
                "interval": [low, high],
                "clips": sum(len(theirs) for _, theirs in pairs),
                "known_intrinsics": each.metrics["known_intrinsics"],
            }
        )
    rows.sort(key=lambda row: row["score"], reverse=bench.higher_is_better)
    cells = [_cells(row, row["uri"] == first.uri) for row in rows]
    headings = ["model", score, f"less {ours_name(first.metrics)}, {SHARE:.0%}", "clips of both", "intrinsics"]
    note = f"Differences per clip, {DRAWS:,} bootstrap draws of the clips within each subset."
    return Table(first.metrics["title"], note, headings, cells), rows


def _cells(row: dict[str, Any], is_first: bool) -> list[str]:
    low, high = row["interval"]
    differs = "-" if is_first else f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    intrinsics = "given" if row["known_intrinsics"] else "predicted"
    return [row["name"], f"{row['score']:.4f}", differs, str(row["clips"]), intrinsics]


Pairs = list[tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]]
"""Of each subset: the scores of the first and of the other, of the same clips."""


def _pairs(first: Evaluation, other: Evaluation, score: str) -> Pairs:
    subsets: dict[str, list[tuple[float, float]]] = {}
    for name, row in first.clips.items():
        theirs = other.clips.get(name)
        if theirs is None or row.get(score) is None or theirs.get(score) is None:
            continue
        if row["digest"] != theirs["digest"]:
            raise ValueError(
                f"{'/'.join(name)} of {first.uri} and of {other.uri} differ in content: evaluate one again"
            )
        subsets.setdefault(name[0], []).append((row[score], theirs[score]))
    if not subsets:
        raise ValueError(f"{first.uri} and {other.uri} have no clip in common that has the score {score}")
    return [tuple(np.array(values, np.float64).T) for values in subsets.values()]


def difference(pairs: Pairs) -> tuple[float, float, float]:
    """(mean difference, and the ends of its interval)."""
    rng, means = np.random.default_rng(0), np.zeros(DRAWS)
    for ours, theirs in pairs:
        d, count = theirs - ours, len(ours)
        for begin in range(0, DRAWS, AT_ONCE):
            drawn = rng.multinomial(count, np.full(count, 1 / count), AT_ONCE)
            means[begin : begin + AT_ONCE] += drawn @ d / count / len(pairs)
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(np.mean([np.mean(theirs - ours) for ours, theirs in pairs])), float(low), float(high)
