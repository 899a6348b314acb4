"""Who bears the alias: a new version must beat the present champion on the same clips.

| the present champion                                       | the alias                                          |
|------------------------------------------------------------|----------------------------------------------------|
| there is none                                              | goes to the new version                            |
| has a larger median relative error, over all points        | goes to the new version                            |
| is as good or better                                       | stays                                              |
| cannot be scored on these clips: its frames have another   | stays: nothing shows that the new version is       |
| size, its clips are shorter, its files are gone            | better. `python -m train register` moves it        |

The champion's score is what its version's tags say, if it was taken on the same data (`HeldOut.digest`), else it is
taken now. Both scores stay with the new version as tags, and in full in the artifact champion.json of its run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from model.confidence import Calibration
from pipelines.cluster import model_resources
from pipelines.log import say
from train import tracking, versions
from train.config import TrainConfig
from train.errors import RunFailed
from train.state import MODEL
from train.validation import HeldOut, Validation, percent, score_registered

SILENT_SECONDS = 10  # after which it is said what is waited for
DATA, ERROR = "validation_data", "validation_error"  # tags of a version


@dataclass(frozen=True)
class Outcome:
    won: bool
    """The alias moves."""
    line: str
    """For the terminal."""
    tags: dict[str, str]
    """For the new version."""
    record: dict[str, Any]
    """For champion.json."""


def register(config: TrainConfig, run_id: str, checkpoint: str, validation: Validation | None) -> str:
    """Register a run's last checkpoint, a folder or s3:// URI, and return its URI; the alias moves as the table says,
    or if there is no validation, always. With validation, its confidences are calibrated on the clips of it.

    Raises RunFailed if the checkpoint was not scored: nothing is registered unseen.
    """
    alias, tags, calibration = config.alias, {versions.STEPS: str(config.steps)}, None
    if validation:
        outcome = judge(config, validation, checkpoint.rpartition("/")[2])
        alias, tags = config.alias if outcome.won else None, tags | outcome.tags
        found = outcome.record["scores"]["all"]["confidence"]["calibration"]
        calibration = found and Calibration.from_json(found)
    elif before := versions.bearer(config.register_as, config.alias):
        say(unscored(config, *before), run=config.name)
    version = versions.register(f"{checkpoint}/{MODEL}", config.register_as, alias, run_id, tags, calibration)
    return f"models:/{config.register_as}/{version}"


def unscored(config: TrainConfig, version: str, tags: dict[str, str]) -> str:
    """What is to be said when the alias moves away from a version, though nobody compared the two."""
    steps = f"trained for {int(tags[versions.STEPS]):,} steps" if versions.STEPS in tags else "of unknown training"
    return (
        f"warning: {config.alias} moves unscored from version {version}, {steps}, to a new one of {config.steps:,} "
        "steps; with --validation.stores it moves only if the new one is better"
    )


def judge(config: TrainConfig, validation: Validation, checkpoint: str) -> Outcome:
    """The last checkpoint of a run against the champion, which is scored if need be."""
    scores = validation.scores(checkpoint)
    if scores is None:
        again = f"the same command with --name {config.name} scores it"
        raise RunFailed(f"run {config.name}: {checkpoint} has no scores: {again}")
    validation.send_all()

    def score(model: str) -> dict[str, Any]:
        task = ray.remote(score_registered).options(**model_resources())
        answer = task.remote(validation.held_out, model, validation.tracking_uri)
        if not ray.wait([answer], timeout=SILENT_SECONDS)[0]:
            say(f"scoring {model}, the champion, on the same clips; if all GPUs are busy, it waits for one")
        return ray.get(answer)

    outcome = contest(config.register_as, config.alias, validation.held_out, scores, score)
    tracking.log_json(validation.run_id, outcome.record, "champion.json")
    validation.progress.add.remote(outcome.line)
    return outcome


def contest(
    name: str, alias: str, held_out: HeldOut, scores: dict[str, Any], score: Callable[[str], dict[str, Any]]
) -> Outcome:
    """A new version with these `scores` against the version of registered model `name` that bears the alias.

    `score` gives the scores of a model by its URI. Whatever it raises makes a champion that cannot be scored.
    """
    error = error_of(scores["all"])
    tags = {DATA: held_out.digest, ERROR: repr(error)}
    record = {"alias": alias, "data": held_out.digest, "clips": len(held_out.clips), "scores": scores}
    new = f"{percent(error)} median relative error on {len(held_out.clips)} clips (data {held_out.digest})"
    champion = versions.bearer(name, alias)
    if champion is None:
        return Outcome(
            True, f"{alias}: {new}, and no version before it", tags, record | {"champion": None, "won": True}
        )

    version, known = champion
    tags["champion_before"] = record["champion"] = version
    try:
        if known.get(DATA) == held_out.digest:
            before = float(known[ERROR])
        else:
            record["champion_scores"] = score(f"models:/{name}/{version}")
            before = error_of(record["champion_scores"]["all"])
    except Exception as reason:
        why = str(getattr(reason, "cause", None) or reason)  # Ray wraps what a task raised
        line = (
            f"{alias}: stays with version {version}, which cannot be scored on the same clips ({why}); new: {new}; "
            "`python -m train register` moves it by hand"
        )
        return Outcome(False, line, tags | {"champion_won": "False"}, record | {"reason": why, "won": False})

    won = error < before
    verdict = "beats" if won else "does not beat"
    line = f"{alias}: {new} {verdict} {percent(before)} of version {version}" + ("" if won else ", which stays")
    tags |= {"champion_before_error": repr(before), "champion_won": str(won)}
    return Outcome(won, line, tags, record | {"champion_error": before, "won": won})


def error_of(scores: dict[str, Any]) -> float:
    """The score that decides; the smaller the better."""
    error = scores["median_relative_error"]["all"]
    return math.inf if error is None else error
