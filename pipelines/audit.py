"""`python -m pipelines audit DATASET --raw RAW`: is every declared convention the one that fits the data?

A Ray Data job over the sequences of a raw dataset. `convert` asks the same of every sequence before it is converted.
"""

import io
import json
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import ray.data
from matplotlib.figure import Figure
from tqdm import tqdm

from pipelines.cluster import connect
from pipelines.datasets import DATASETS, DatasetKey, open_sequence
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Sequence
from pipelines.truth.reprojection import DECLARED, Reprojection
from pipelines.truth.verdict import Verdict, verdict_of
from pipelines.whole import json_value, result_folder

SUMMARY = "audit.json"


def audit_sequence(row: dict[str, Any], *, dataset: str, raw: str) -> dict[str, Any]:
    """{"sequence"} to its verdict as JSON and a picture as PNG; one that cannot be read gets a reason only."""
    name = row["sequence"]
    try:
        sequence = open_sequence(dataset, raw, name)
        measured = Reprojection(sequence)
        verdict = verdict_of(measured, sequence.image_size[1])
        picture = io.BytesIO()
        audit_figure(sequence, measured, verdict).savefig(picture, dpi=90)
    except Exception as error:  # whatever it is, it is this sequence's verdict
        return row | {"verdict": "", "reason": str(error) or type(error).__name__, "picture": b""}
    return row | {"verdict": json.dumps(asdict(verdict)), "reason": verdict.reason, "picture": picture.getvalue()}


def audit(
    dataset: DatasetKey,
    /,
    *,
    raw: str,
    out: str = "audit",
    sequences: int = 100,
) -> None:
    """Check that poses, intrinsics and depth of a raw dataset agree as they are read, and name the mistake if not.

    Exits with an error if a sequence is a misfit.

    Args:
        dataset: Whose official layout the raw folder has.
        raw: Folder or s3:// URI of the raw files.
        out: New folder for audit.json and a picture per sequence.
        sequences: At most so many, spread over the dataset.
    """
    names = DATASETS[dataset].find(RawFolder(raw))
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(sequences, len(names))).astype(int))]
    connect()
    with result_folder(out, last=SUMMARY) as folder:
        rows = ray.data.from_items([{"sequence": name} for name in chosen], override_num_blocks=min(len(chosen), 256))
        results = rows.map(partial(audit_sequence, dataset=dataset, raw=raw))
        report: dict[str, dict[str, Any]] = {}
        for row in tqdm(results.iter_rows(), total=len(chosen), desc=f"audit {dataset}", unit="sequence"):
            if not row["verdict"]:
                report[row["sequence"]] = {"outcome": "failed", "reason": row["reason"]}
                continue
            report[row["sequence"]] = json.loads(row["verdict"])
            (folder / f"{row['sequence'].replace('/', '__')}.png").write_bytes(row["picture"])
        report = dict(sorted(report.items()))
        document = {"schema": 1, "dataset": dataset, "sequences": json_value(report)}
        (folder / SUMMARY).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(table(report))
    print(f"{out}: {SUMMARY} and a picture of each sequence")
    if wrong := [name for name, row in report.items() if row["outcome"] in ("misfit", "failed")]:
        raise ValueError(
            f"{len(wrong)} of {len(report)} sequences do not fit or cannot be read, like {wrong[0]}: "
            f"{report[wrong[0]]['reason']}. Download them again, or leave them out (`excluded` in the catalog)"
        )


def table(report: dict[str, dict[str, Any]]) -> str:
    """One line per sequence, then how many of each outcome."""
    lines = [f"{'sequence':40} {'outcome':12} {'error':>9} {'parallax':>9} {'seen through':>13}  reason"]
    for name, row in report.items():
        if row["outcome"] == "failed":
            lines.append(f"{name:40} {'failed':12} {'':9} {'':9} {'':13}  {row['reason']}")
        else:
            figures = f"{row['error']:9.2g} {row['parallax']:6.1f} px {100 * row['seen_through']:11.1f} %"
            lines.append(f"{name:40} {row['outcome']:12} {figures}  {row['reason']}")
    counts = Counter(row["outcome"] for row in report.values())
    return "\n".join([*lines, ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())])


def audit_figure(sequence: Sequence, measured: Reprojection, verdict: Verdict) -> Figure:
    """Two frames, the points of the first in the second coloured by their error, and the error of every reading."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    left, right = top.subplots(1, 2)
    for axes in (left, right):
        axes.set_axis_off()
    if (example := measured.example()) is not None:
        source, target, uv, error = example
        left.imshow(sequence.image(source), extent=_extent(sequence))
        left.set_title(f"frame {sequence.frame_numbers[source]}")
        right.imshow(sequence.image(target), extent=_extent(sequence))
        dots = right.scatter(*uv.T, c=100 * np.abs(error), s=5, cmap="turbo", vmin=0, vmax=5)
        right.set_title(f"its points in frame {sequence.frame_numbers[target]}: error of depth in %")
        top.colorbar(dots, ax=right, shrink=0.8)
    names = sorted(verdict.errors, key=verdict.errors.get)
    axes = bottom.subplots()
    values = np.array([verdict.errors[name] for name in names])
    finite = np.where(np.isfinite(values), values, np.nan)
    colours = ["tab:green" if name == DECLARED.name else "tab:grey" for name in names]
    axes.barh(names, finite, color=colours)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="median error of depth (no bar: no overlap)")
    axes.tick_params(labelsize=7)
    figure.suptitle(f"{sequence.name}: {verdict.outcome}. {verdict.reason}", fontsize=10)
    return figure


def _extent(sequence: Sequence) -> tuple[int, int, int, int]:
    height, width = sequence.image_size
    return 0, width, height, 0
