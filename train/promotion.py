"""`python -m train promote`: an alias of a registered model goes to another version, by hand and with a reason, or to
the first of a leaderboard.

Training moves `champion` by itself, by scores (`train/champion.py`). What a person decides is a tag of the version,
`promoted/ALIAS`, that stays when the alias goes on.
"""

import getpass
import time
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException

from pipelines import documents
from pipelines.models import model_versions
from pipelines.raw.place import absolute
from pipelines.refusal import not_known
from train import tracking, versions


@dataclass(frozen=True)
class Ranked:
    """A row of a leaderboard, best first, as far as it matters here."""

    name: str
    """models:/NAME/VERSION, or another name."""
    uri: str
    """Of the evaluation."""
    of: str
    """The name of the score."""
    score: float
    clips: int


def move_alias(name: str, version: int, alias: str, because: str) -> str:
    """Move it, and say so in words. ValueError if there is no such version, or it bears the alias already."""
    model_versions(f"models:/{name}/*")  # where there is no registry, none is made
    tracking.connect()
    client, number, uri = mlflow.MlflowClient(), str(version), f"models:/{name}/{version}"
    try:
        client.get_model_version(name, number)
    except MlflowException as error:
        raise not_known(uri, mlflow.get_tracking_uri(), error) from None
    before, _ = versions.bearer(name, alias) or (None, {})
    if before == number:
        raise ValueError(f"{uri} is {alias} already: nothing to move")
    from_where = f"from version {before}" if before else "which no version had"
    told = f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, by {getpass.getuser()}, {from_where}: {because}"

    def promote() -> None:
        client.set_model_version_tag(name, number, f"promoted/{alias}", told)
        client.set_registered_model_alias(name, alias, number)

    tracking.before_work(promote, to=f"promote {uri}")
    return f"{alias} of {name} is version {number} now, {from_where}: {because}"


def first_of(board: str, name: str, alias: str) -> tuple[int, str]:
    """(number, why) of the version that is first on a leaderboard, of `compare` or of `evaluate` of all versions.

    ValueError if none of `name` is on it, and where it is not sure that the first is better than the one that bears the
    alias: that must be on the leaderboard too, and the interval of their difference, on the same clips, without 0.
    """
    from pipelines.evaluation.benchmarks.comparison import Evaluation, compare

    board = absolute(board)
    rows = documents.read(f"{board}/leaderboard.json", list[Ranked], "compare the evaluations again", others="ignore")
    if rows is None:
        raise ValueError(f"--by {board} has no leaderboard.json: give the OUT of `python -m pipelines compare`")
    prefix = f"models:/{name}/"
    ranked = {row.name.removeprefix(prefix): row for row in rows if row.name.startswith(prefix)}
    if not ranked:
        raise ValueError(f"{board} has no versions of {name} on its leaderboard: compare evaluations of them")
    number, best = next(iter(ranked.items()))
    why = f"first of {len(rows)} by {best.of} ({best.score:.4g}) on {best.clips} clips, {best.uri}"
    tracking.connect()
    before, _ = versions.bearer(name, alias) or (None, {})
    if before is None or before == number:
        return int(number), why
    if before not in ranked:
        raise ValueError(f"models:/{name}/{before}, which is {alias}, is not on {board}: evaluate it too")
    _, pair = compare([Evaluation.read(ranked[each].uri) for each in (before, number)], best.of)
    ((low, high),) = [row["interval"] for row in pair if row["uri"] == best.uri]
    if low <= 0 <= high:
        raise ValueError(
            f"models:/{name}/{number} is first on {board}, but its difference to {before}, which is {alias}, may be "
            f"0 ({low:+.4g} to {high:+.4g}): {alias} stays; more clips would tell"
        )
    return int(number), f"{why}; less version {before}: {low:+.4g} to {high:+.4g}"
