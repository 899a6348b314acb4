"""Tables as a paper has them: ours beside what others published, from `catalogs/benchmarks/BENCHMARK.yaml`.

A file is a list of tables:

    - title: what it shows
      source: where the rows are from; a row may name its own
      columns: {heading: SUBSET.VARIANT.METRIC}     `overall` is the mean over subsets
      factor: 100                                   by which ours are multiplied; 1 if left out
      digits: 3
      requires: {known_intrinsics: true}            of ours: else they are in no row
      rows: [[method, number, ...], ...]            null: not published
"""

import html
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.catalog import FOLDER
from pipelines.evaluation.benchmarks.benchmark import Benchmark, Scores
from pipelines.problems import counted
from pipelines.results.files import model_in_words

NOT_RUN, NOTHING = "not run", "none"
"""None: there was nothing to count, or all of it was spoiled by what is not finite."""


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    headings: list[str]
    rows: list[list[str]]
    ours: str = ""
    """The first cell of a row that stands out."""

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", f"{self.note}", ""] if self.note else [f"## {self.title}", ""]
        lines += [_line(self.headings), _line(["---", *["---:"] * (len(self.headings) - 1)])]
        named = [[f"**{name}**" if name == self.ours else name, *cells] for name, *cells in self.rows]
        return "\n".join([*lines, *map(_line, named)])

    def html(self) -> str:
        cells = "".join(f"<th>{html.escape(heading)}</th>" for heading in self.headings)
        rows = []
        for row in self.rows:
            kind = ' class="ours"' if row[0] == self.ours else ""
            rows.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<h2>{html.escape(self.title)}</h2>{note}<table><tr>{cells}</tr>{''.join(rows)}</table>"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def tables_of(bench: Benchmark, metrics: dict[str, Any]) -> list[Table]:
    """Those with published rows, if a subset of theirs is here, then every variant of ours."""
    of_others = [each for each in published_tables(bench.key) if _has_ours(each, metrics)]
    return [*(published(each, metrics) for each in of_others), *variants(bench, metrics)]


def _has_ours(given: dict[str, Any], metrics: dict[str, Any]) -> bool:
    return any(score_at(metrics, path) != NOT_RUN for path in given["columns"].values())


def published_tables(key: str) -> list[dict[str, Any]]:
    path = FOLDER / f"benchmarks/{key}.yaml"
    return yaml.safe_load(path.read_text()) if path.exists() else []


def published(given: dict[str, Any], metrics: dict[str, Any]) -> Table:
    """One table of the file, with ours as the last row."""
    factor, digits, columns = given.get("factor", 1), given.get("digits", 3), given["columns"]
    fits = all(metrics.get(name) == value for name, value in given.get("requires", {}).items())
    rows = [[name, *(_cell(value, digits) for value in values)] for name, *values in given["rows"]]
    ours = [score_at(metrics, path) if fits else NOT_RUN for path in columns.values()]
    cells = [_cell(factor * x if isinstance(x, float) else x, digits) for x in ours]
    rows.append([ours_name(metrics), *cells])
    title = f"{given['title']} ({metrics['title']})"
    note = f"Published rows: {given['source']}."
    return Table(title, note, ["method", *columns], rows, ours=ours_name(metrics))


def variants(bench: Benchmark, metrics: dict[str, Any]) -> list[Table]:
    """Of each subset: a row for every alignment or protocol, a column for every metric. Variants that have metrics of
    their own are in a table of their own."""
    tables = []
    groups = dict(metrics["scores"]) | ({"overall": metrics["overall"]} if metrics["overall"] else {})
    for subset, scores in groups.items():
        of_metrics: dict[tuple[str, ...], list[str]] = {}
        first = bench.headline.rpartition(".")[0]
        for name in dict.fromkeys([first, *(key.rpartition(".")[0] for key in scores if _is_shown(bench, key))]):
            there = tuple(metric for metric in bench.shown if f"{name}.{metric}" in scores)
            if not there:
                continue
            fitting = (shown for shown in reversed(of_metrics) if set(there) <= set(shown))
            of_metrics.setdefault(next(fitting, there), []).append(name)
        told = metrics["subsets"].get(subset, "mean over subsets")
        for shown, names in of_metrics.items():
            rows = [[name, *(_with_count(scores, f"{name}.{metric}") for metric in shown)] for name in names]
            title = f"{bench.title}, {subset} ({told}): every variant of {ours_name(metrics)}"
            partial = any(f"{name}.{metric}#" in scores for name in names for metric in shown)
            note = "In brackets: how many clips have the score, where not all do." if partial else ""
            tables.append(Table(title, note, ["variant", *(bench.shown[metric] for metric in shown)], rows))
    return tables


def _with_count(scores: Scores, key: str) -> str:
    if key not in scores:
        return "-"
    count = scores.get(f"{key}#")
    return _cell(scores[key], 4) + (f" ({count})" if count else "")


def _is_shown(bench: Benchmark, key: str) -> bool:
    return key.rpartition(".")[2] in bench.shown and "." in key


def score_at(metrics: dict[str, Any], path: str) -> float | str | None:
    """SUBSET.VARIANT.METRIC; `NOT_RUN` where there is no such score."""
    subset, _, score = path.partition(".")
    scores: Scores | None = metrics["overall"] if subset == "overall" else metrics["scores"].get(subset)
    return (scores or {}).get(score, NOT_RUN)


def missing_of(metrics: dict[str, Any]) -> list[str]:
    """What is not among the scores, or is zero in them, with why."""
    return [*metrics["missing"], *(f"{name}: {reason}" for name, reason in metrics["clips"]["failed"].items())]


def ours_name(metrics: dict[str, Any]) -> str:
    """The model, or where predictions are from."""
    model = metrics.get("model")
    return model["version"] if model else str(metrics.get("predictions", "ours"))


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}" if isinstance(value, int | float) else str(value)


STYLE = (
    "body{font:15px/1.5 system-ui;margin:2em auto;max-width:75em;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child"
    "{text-align:left}.facts td{text-align:left}.ours{font-weight:bold}img{max-width:100%}"
)


def page_of(metrics: dict[str, Any], tables: list[Table], pictures: dict[str, str]) -> str:
    """A page without scripts, which needs nothing but the pictures beside it."""
    facts = {
        "rules": metrics["rules"],
        "windows": metrics.get("window_rule", "those of the predictions"),
        "resolution": metrics.get("resolution", "that of the predictions"),
        "intrinsics": "given" if metrics["known_intrinsics"] else "predicted",
        "data": metrics["data"]["digest"],
        "model": model_in_words(metrics["model"]) if metrics.get("model") else "none: stored predictions",
        "code": f"{metrics['code']['version']}, {metrics['code']['digest']}",
        "clips": f"{metrics['clips']['scored']} scored of {metrics['clips']['found']} found",
    }
    told = "".join(f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items())
    gone = missing_of(metrics)
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in gone)
    missing = f"<h2>Missing: {counted(len(gone), 'clip')}</h2><ul>{lines}</ul>" if gone else ""
    shown = "".join(f'<h3>{html.escape(text)}</h3><img src="{name}" alt="">' for name, text in pictures.items())
    title = html.escape(metrics["title"])
    all_tables = "".join(table.html() for table in tables)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f'<h1>{title}</h1><table class="facts">{told}</table>{all_tables}{missing}{shown}</html>\n'
    )
