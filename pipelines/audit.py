"""`python -m pipelines audit DATASET --raw RAW`: is every declared convention the one that fits the data?

A Ray Data job over the sequences of a raw dataset. `convert` asks the same of every sequence before it is converted.
"""

import io
import json
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any

from model.command_line import loading
from pipelines.datasets import DatasetKey, HeldOutKey, open_sequence, reader
from pipelines.raw.folder import RawFolder
from pipelines.raw.place import absolute, lasting
from pipelines.store.reader import evenly
from pipelines.truth.reprojection import Reprojection
from pipelines.truth.verdict import verdict_of
from pipelines.whole import json_value, require_new, require_writable, result_folder

# Ray and Matplotlib take a second to import and are not needed to print help or refuse a typing error: see below.

SUMMARY = "audit.json"


def audit_sequence(row: dict[str, Any], *, dataset: str, raw: str) -> dict[str, Any]:
    """{"sequence"} to its "verdict", as plain values, and a "picture" as PNG."""
    from pipelines.pictures.audit_sheet import audit_sheet

    sequence = open_sequence(dataset, raw, row["sequence"])
    measured = Reprojection(sequence)
    verdict = verdict_of(measured, sequence.image_size[1])

    picture = io.BytesIO()
    audit_sheet(sequence, measured, verdict).savefig(picture, dpi=90)
    return {"verdict": asdict(verdict), "picture": picture.getvalue()}


def audit(
    dataset: DatasetKey | HeldOutKey,
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
    if sequences < 1:
        raise ValueError(f"--sequences {sequences} must be at least 1")
    raw, out = absolute(raw), lasting(out, "--out")
    require_new(out)
    require_writable(out, "--out")
    names = reader(dataset).find(RawFolder(raw))
    rows = [{"sequence": names[i]} for i in evenly(len(names), sequences)]
    report: dict[str, dict[str, Any]] = {}

    loading("Ray")
    from pipelines import jobs

    with result_folder(out, last=SUMMARY) as folder:
        work = partial(audit_sequence, dataset=dataset, raw=raw)
        for outcome in jobs.run_tasks(work, rows, label=f"audit {dataset}", unit="sequence"):
            name = outcome.row["sequence"]
            if outcome.failed:
                report[name] = {"outcome": "failed", "reason": outcome.reason}
                continue
            report[name] = outcome.result["verdict"]
            (folder / f"{name.replace('/', '__')}.png").write_bytes(outcome.result["picture"])
        report = dict(sorted(report.items()))
        document = {"schema": 1, "dataset": dataset, "sequences": json_value(report)}
        (folder / SUMMARY).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(verdict_lines(report))
    print(f"{out}: {SUMMARY} and a picture of each sequence")
    if wrong := [name for name, row in report.items() if row["outcome"] in ("misfit", "failed")]:
        raise ValueError(
            f"{len(wrong)} of {len(report)} sequences do not fit or cannot be read, like {wrong[0]}: "
            f"{report[wrong[0]]['reason']}. Download them again, or leave them out (`excluded` in the catalog)"
        )


def verdict_lines(report: dict[str, dict[str, Any]]) -> str:
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
