"""`python -m pipelines compare A B ... --out OUT`: evaluations of one benchmark side by side, without the model.

Each is a folder that `evaluate BENCHMARK` has written. `pipelines/evaluation/benchmarks/comparison.py` says how sure a
difference is. OUT gets leaderboard.md, leaderboard.json and index.html.
"""

import html
import json
from typing import Annotated, Any

import tyro

from pipelines.raw.place import absolute, lasting
from pipelines.whole import require_new, require_writable, write_file

# PyArrow takes a second to import and is not needed to print help or refuse a typing error: see below.


def compare(
    evaluations: Annotated[list[str], tyro.conf.Positional], *, out: str, score: str | None = None
) -> list[dict[str, Any]]:
    """Compare evaluations of one benchmark, clip by clip. Returns the rows of the leaderboard, best first.

    Args:
        evaluations: Folders or s3:// URIs that `evaluate BENCHMARK` has written; all are compared with the first.
        out: Folder or s3:// URI to write, which must be new.
        score: A column of clips.parquet; by default the benchmark's own, which its metrics.json calls headline.
    """
    if len(evaluations) < 2:
        raise ValueError("name two evaluations or more: folders that `evaluate BENCHMARK` has written")
    out = lasting(out, "--out")
    require_new(out)
    require_writable(out, "--out")
    return write_leaderboard([absolute(uri) for uri in evaluations], out, score)


def write_leaderboard(uris: list[str], out: str, score: str | None = None) -> list[dict[str, Any]]:
    """Its three files, in place of those that were there. Gives its rows, best first."""
    from pipelines.evaluation.benchmarks import comparison
    from pipelines.evaluation.benchmarks.tables import STYLE

    table, rows = comparison.compare([comparison.Evaluation.read(uri) for uri in uris], score)
    names = [(html.escape(row["uri"]), html.escape(row["name"])) for row in rows]
    links = "".join(f'<li><a href="{uri}/index.html">{name}</a></li>' for uri, name in names)
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Leaderboard</title><style>{STYLE}</style>'
    write_file(f"{out}/index.html", f"{page}{table.html()}<ul>{links}</ul></html>\n".encode())
    write_file(f"{out}/leaderboard.md", (table.markdown() + "\n").encode())
    write_file(f"{out}/leaderboard.json", (json.dumps(rows, indent=1) + "\n").encode())
    print(f"{table.markdown()}\n{out}: leaderboard.md, leaderboard.json, index.html", flush=True)
    return rows
