"""Where a version of a registered model comes from, and what may be done with it: tags that say so.

| tag             | says                                                                                     |
|-----------------|------------------------------------------------------------------------------------------|
| `data_digests`  | dataset and digest of each clip store it was trained on                                  |
| `licences`      | of each dataset, and what it allows, as its catalog had it when the store was made       |
| `allows`        | what the strictest of them allows: any use, non-commercial, research; or unknown         |
| `started_from`  | what `--init` named. A version or checkpoint of ours hands its data on; what encoders of |
|                 | VideoMAE and timm were trained on, and under which terms, stands at their source         |
| `git_commit`    | of the code it was trained with                                                          |

A run records all of this before its first step (`tracking.start_run`); a version made from a checkpoint by hand has
it if the checkpoint lies in the folder of its run, and otherwise says that nobody knows.
"""

import json
import re
from typing import Any, get_args

import mlflow
from mlflow.exceptions import MlflowException

from pipelines.catalog import Allows
from pipelines.models import model_version
from pipelines.whole import read_file

DATA, LICENCES, ALLOWS, STARTED_FROM, COMMIT = "data_digests", "licences", "allows", "started_from", "git_commit"
TAGS = (DATA, LICENCES, ALLOWS, STARTED_FROM, COMMIT)
UNKNOWN = "unknown"
STRICTNESS = (*get_args(Allows), UNKNOWN)
SEPARATOR = " | "
LONGEST = 5000  # letters that MLflow takes of a tag
REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")


def of_run(run_id: str) -> dict[str, str]:
    """The tags of what this run trained."""
    stores = mlflow.artifacts.load_dict(f"runs:/{run_id}/stores.json").values()
    init = mlflow.artifacts.load_dict(f"runs:/{run_id}/config.json").get("init")
    before = of_start(init)
    facts = [(store["settings"]["dataset"], store["digest"], store["catalog"]) for store in stores]
    tags = {
        DATA: _joined([f"{dataset} {digest}" for dataset, digest, _ in facts], before.get(DATA)),
        LICENCES: _joined([_licence(dataset, catalog) for dataset, _, catalog in facts], before.get(LICENCES)),
        ALLOWS: strictest([*(catalog.get("allows", UNKNOWN) for *_, catalog in facts), *_listed(before.get(ALLOWS))]),
        COMMIT: mlflow.get_run(run_id).data.tags.get(COMMIT, UNKNOWN),
    }
    return tags | ({STARTED_FROM: init} if init else {})


def of_start(init: str | None) -> dict[str, str]:
    """Of the weights that a run started from, what they hand on."""
    kind = (init or "").partition(":")[0]
    if init is None or kind in ("videomae", "timm"):
        return {}
    return {ALLOWS: UNKNOWN} if kind == "opend4rt" else of_checkpoint(init)


def of_version(uri: str) -> dict[str, str]:
    """The tags of `models:/NAME/VERSION`, handed on to what is made from it."""
    match = REGISTERED.fullmatch(uri)
    tags = mlflow.MlflowClient().get_model_version(match["name"], match["version"]).tags
    return {ALLOWS: UNKNOWN} | {name: tags[name] for name in TAGS if name in tags}


def of_checkpoint(checkpoint: str) -> dict[str, str]:
    """Of whatever names a model: a version's own, those of the run in whose folder it lies, or that nobody knows."""
    if checkpoint.startswith("models:/"):
        return of_version(model_version(checkpoint))
    step, _, inner = checkpoint.rstrip("/").rpartition("/")
    run = step.rpartition("/")[0] if inner == "model" else step
    record = read_file(f"{run}/run.json") if run else None
    try:
        return of_run(json.loads(record)["run_id"]) if record else {ALLOWS: UNKNOWN}
    except (MlflowException, ValueError, KeyError):  # of another server, or what is no run of ours
        return {ALLOWS: UNKNOWN}


def strictest(allowed: list[str]) -> str:
    """Of several terms, the one that fulfils all."""
    return max((each if each in STRICTNESS else UNKNOWN for each in allowed), key=STRICTNESS.index, default=UNKNOWN)


def _licence(dataset: str, catalog: dict[str, Any]) -> str:
    return f"{dataset}: {catalog.get('licence', UNKNOWN)} ({catalog.get('allows', UNKNOWN)})"


def _joined(new: list[str], before: str | None) -> str:
    """Each once, in order, as far as a tag goes; the run has them all in stores.json."""
    text = SEPARATOR.join(dict.fromkeys([*new, *_listed(before)]))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _listed(text: str | None) -> list[str]:
    return text.split(SEPARATOR) if text else []
