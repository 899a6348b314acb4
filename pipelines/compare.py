"""`python -m pipelines compare A B ... --out OUT`: evaluations of one benchmark side by side, without the model.

Each is a folder that `evaluate BENCHMARK` has written. `pipelines/evaluation/benchmarks/comparison.py` says how sure a
difference is. OUT gets leaderboard.md, leaderboard.json and index.html.
"""

import html
import json
from typing import Annotated, Any

import tyro

from pipelines.raw.place import absolute, lasting
from pipelines.whole import require_new, require_writable, result_folder, write_file

PAGE, TABLE, ROWS = "index.html", "leaderboard.md", "leaderboard.json"

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
    out, uris = lasting(out, "--out"), [absolute(uri) for uri in evaluations]
    claim = json.dumps([uris, score]).encode()
    require_new(out, claim)
    require_writable(out, "--out")
    files, rows = leaderboard(uris, score)
    with result_folder(out, last=ROWS, claim=claim) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    tell(files, out)
    return rows


def write_leaderboard(uris: list[str], out: str) -> list[dict[str, Any]]:
    """Its files, in place of those that were there. Gives its rows, best first."""
    files, rows = leaderboard(uris, None)
    for name, content in files.items():
        write_file(f"{out}/{name}", content)
    tell(files, out)
    return rows


def tell(files: dict[str, bytes], out: str) -> None:
    """The table, and where it lies."""
    print(f"{files[TABLE].decode()}\n{out}: {', '.join(files)}", flush=True)


def leaderboard(uris: list[str], score: str | None) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """(its files, its rows, best first)."""
    from pipelines.evaluation.benchmarks import comparison
    from pipelines.evaluation.benchmarks.tables import STYLE

    table, rows = comparison.compare([comparison.Evaluation.read(uri) for uri in uris], score)
    names = [(html.escape(row["uri"]), html.escape(row["name"])) for row in rows]
    links = "".join(f'<li><a href="{uri}/index.html">{name}</a></li>' for uri, name in names)
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Leaderboard</title><style>{STYLE}</style>'
    files = {
        PAGE: f"{page}{table.html()}<ul>{links}</ul></html>\n",
        TABLE: table.markdown() + "\n",
        ROWS: json.dumps(rows, indent=1) + "\n",
    }
    return {name: content.encode() for name, content in files.items()}, rows
