"""run.json in a run's folder: what the run is, so that it goes on only as it was begun."""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from annotated_types import MinLen

from pipelines import documents
from pipelines.log import say
from pipelines.store.reader import ClipStore
from pipelines.whole import write_file
from train import tracking
from train.config import TrainConfig
from train.run_folder import RECORD
from train.start import pinned

# May differ when a run goes on: they change where and how often things happen, not what is learnt,
OPERATIONAL = (
    *("checkpoint_every", "log_every", "keep_checkpoints", "out", "register_as", "alias", "max_failures"),
    *("accumulate", "recompute", "compile", "shard", "device", "max_skipped", "validation.every"),
    # or, these, only how many clips a step sees; `train/worker.py` says so.
    *("workers", "min_workers", "data.clips_per_worker"),
)


@dataclass(frozen=True)
class Record:
    """run.json: what a run is, and what became of it."""

    config: dict[str, Any]
    run_id: str
    """Of MLflow."""
    stores: dict[str, Annotated[list[str], MinLen(1)]] = field(default_factory=dict)
    """URI of each store -> the digests it had: more than one if it changed while the run was interrupted."""
    model: str | None = None
    """Of the finished run, its name in the registry."""
    init: str | None = None
    """As it was given: `models:/d4rt@champion`, where `config` says which version that was."""

    def save(self, run: str) -> None:
        write_file(f"{run}/{RECORD}", json.dumps(asdict(self), indent=1).encode())


def recorded(config: TrainConfig) -> Record | None:
    """What is recorded of the run of this name; None if there is none."""
    return documents.read(f"{config.out}/{config.name}/{RECORD}", Record, "choose another --name")


def meant(config: TrainConfig, record: Record | None) -> TrainConfig:
    """With `init` as it stays what it is (`pinned`): of a run that was begun with the same words, what they meant then,
    since its own model may bear the alias by now."""
    if record is not None and record.init is not None and record.init == config.init:
        return replace(config, init=record.config.get("init"))
    return pinned(config)


def require_same(config: TrainConfig, record: Record, init: str | None) -> None:
    """ValueError if the recorded run was begun with another config. `init`: as it was given."""
    before, now = (tracking.flatten(entry) for entry in (record.config, json.loads(json.dumps(config.to_dict()))))
    changed = [key for key in now if now[key] != before.get(key) and key not in OPERATIONAL]
    if not changed:
        return
    before["init"], now["init"] = _meant(record.init, before.get("init")), _meant(init, now["init"])
    differences = "; ".join(f"{key}: {before.get(key)} there, {now[key]} asked" for key in changed)
    raise ValueError(
        f"run {config.name} in {config.out} was begun with another config ({differences}): "
        "use the same to go on with it, or choose another --name"
    )


def _meant(given: str | None, pinned: str | None) -> str | None:
    return pinned if given in (None, pinned) else f"{given} = {pinned}"


def claim(config: TrainConfig, stores: list[ClipStore], init: str | None) -> Record:
    """What is recorded of this run from now on: a new one, or, if a run of this name was interrupted, that one.

    Says which stores are no longer what they were. A finished run has its model. ValueError if the run was begun with
    another config. `init`: as it was given.
    """
    run = f"{config.out}/{config.name}"
    digests = {store.uri: store.info["digest"] for store in stores}
    record = recorded(config)
    if record is None:
        run_id = tracking.start_run(config.name, config.to_dict(), stores)
        begun_with = {uri: [digest] for uri, digest in digests.items()}
        record = Record(config.to_dict(), run_id, begun_with, init=init)
        record.save(run)
        return record
    require_same(config, record, init)
    if record.model is not None:
        return record
    tracking.check_run(record.run_id, config.name)
    known = {uri: list(before) for uri, before in record.stores.items()}
    for uri, digest in digests.items():
        if uri in known and known[uri][-1] != digest:
            say(
                f"warning: store {uri} has changed since the run began: it goes on with other clips than before",
                run=config.name,
                store=uri,
            )
        if digest not in known.setdefault(uri, []):
            known[uri].append(digest)
    record = replace(record, config=config.to_dict(), stores=known)
    record.save(run)
    return record
