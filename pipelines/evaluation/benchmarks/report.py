"""The report of a benchmark.

| file                | holds                                                                                        |
|---------------------|----------------------------------------------------------------------------------------------|
| metrics.json        | all scores by subset and variant, with the rules by which they were made                     |
| clips.parquet       | a row per clip: subset, clip, status, digest of images and truth, and all its scores         |
| table.md            | ours beside the published numbers, then every variant side by side                           |
| index.html          | the same tables, what is missing, and the pictures                                           |
| best, median, worst | .png of those clips, by the headline score                                                   |
| predictions/        | what the model said (`predictions.py`), from which all of it can be made again               |
"""

import hashlib
import io
import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from pipelines.evaluation.benchmarks.benchmark import Benchmark, ClipName, Found, Scores
from pipelines.evaluation.benchmarks.predictions import read_prediction
from pipelines.evaluation.benchmarks.tables import missing_of, page_of, tables_of
from pipelines.problems import counted
from pipelines.whole import json_value, write_file

METRICS, CLIPS, TABLE, PAGE = "metrics.json", "clips.parquet", "table.md", "index.html"
PICTURES = ("best", "median", "worst")
FILES = (METRICS, CLIPS, TABLE, PAGE, *(f"{name}.png" for name in PICTURES))


def write_report(
    bench: Benchmark,
    found: Found,
    scored: dict[ClipName, Scores],
    failed: dict[str, str],
    about: dict[str, Any],
    predictions: str,
    out: str,
) -> dict[str, Any]:
    """All files of the table above but predictions, metrics.json as the last. Gives its content."""
    metrics = summarise(bench, found, scored, failed) | about
    pictures = write_pictures(bench, scored, predictions, out)
    tables = tables_of(bench, metrics)
    rows = clip_rows(found, scored, failed)
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), content)
    write_file(f"{out}/{CLIPS}", content.getvalue())
    text = "\n\n".join(table.markdown() for table in tables) + "\n"
    if gone := missing_of(metrics):
        text += "\n".join([f"\n## Missing: {counted(len(gone), 'clip')}\n", *(f"- {line}" for line in gone), ""])
    write_file(f"{out}/{TABLE}", text.encode())
    write_file(f"{out}/{PAGE}", page_of(metrics, tables, pictures).encode())
    write_file(f"{out}/{METRICS}", (json.dumps(json_value(metrics), indent=1, allow_nan=False) + "\n").encode())
    print(f"{text}\n{out}: {METRICS}, {CLIPS}, {TABLE}, {PAGE}, {counted(len(pictures), 'picture')}", flush=True)
    return metrics


def summarise(bench: Benchmark, found: Found, scored: dict[ClipName, Scores], failed: dict[str, str]) -> dict[str, Any]:
    """What metrics.json says of the scores; clips without a prediction are listed."""
    subsets: dict[str, list[Scores]] = {}
    for clip in found.clips:
        row = scored.get(clip, bench.missed())
        if row:
            subsets.setdefault(clip.subset, []).append(row)
    scores = {subset: bench.summary(rows) for subset, rows in sorted(subsets.items())}
    failing = Counter(clip.subset for clip in found.clips if clip not in scored)

    def left_out(subset: str) -> str:
        return f", {failing[subset]} of them without an answer" if failing[subset] else ""

    digest = hashlib.blake2b(digest_size=16)
    for clip, row in sorted(scored.items()):
        digest.update(f"{clip} {row['digest']}\n".encode())
    return {
        "schema": 1,
        "title": f"{bench.title}: {found.title}",
        "rules": bench.rules,
        "data": {"digest": digest.hexdigest(), "places": sorted({clip.data for clip in found.clips})},
        "clips": {"found": len(found.clips), "scored": len(scored), "failed": dict(sorted(failed.items()))},
        "subsets": {subset: told + left_out(subset) for subset, told in found.subsets.items()},
        "missing": list(found.missing),
        "headline": bench.headline,
        "scores": scores,
        "overall": bench.overall(scores),
    }


def clip_rows(found: Found, scored: dict[ClipName, Scores], failed: dict[str, str]) -> list[Scores]:
    """One per clip; all have the same columns."""
    columns = dict.fromkeys(column for row in scored.values() for column in row)
    rows = []
    for clip in found.clips:
        name = {"subset": clip.subset, "clip": clip.name, "status": failed.get(str(clip), "scored")}
        rows.append(name | dict.fromkeys(columns) | scored.get(clip, {}))
    return rows


def write_pictures(bench: Benchmark, scored: dict[ClipName, Scores], predictions: str, out: str) -> dict[str, str]:
    """Of the best, the median and the worst clip by the headline score: file -> what it shows."""
    known = [(row[bench.headline], clip) for clip, row in scored.items() if row.get(bench.headline) is not None]
    ranked = sorted(known, reverse=bench.higher_is_better)
    if not ranked:
        return {}
    pictures = {}
    for name, place in zip(PICTURES, (0, len(ranked) // 2, len(ranked) - 1), strict=True):
        value, clip = ranked[place]
        title = f"{name}: {clip}, {bench.headline} {value:.4g}"
        prediction, _ = read_prediction(predictions, clip)
        png = io.BytesIO()
        Image.fromarray(bench.picture(bench.open(clip), prediction, title)).save(png, "png")
        write_file(f"{out}/{name}.png", png.getvalue())
        pictures[f"{name}.png"] = title
    return pictures
