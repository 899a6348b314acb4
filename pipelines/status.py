"""`python -m pipelines status PLACE`: what is done of a clip store, a training run or a folder of results.

It only lists and reads small files, so it may be asked at any time, also of what is being written.
"""

import json
from typing import Any

from pipelines.store.layout import SCHEMA, StoreSettings
from pipelines.whole import listed, read_file

RESULT, RECORD, POSITION = "result.json", "run.json", "position.json"


def status(place: str, /) -> None:
    """Say what is done of a clip store, a training run, or a folder of results, and what failed.

    Args:
        place: Folder or s3:// URI: what `convert --store`, `infer --out` or `train` (OUT/NAME) writes.
    """
    place = place.rstrip("/")
    names = listed(place)
    if not names:
        raise ValueError(f"nothing at {place}: check its name")
    if "groups" in names or "store.json" in names or "settings.json" in names:
        lines = store_status(place, names)
    elif RECORD in names:
        lines = run_status(place, names)
    else:
        lines = results_status(place, names)
    print("\n".join(lines))


def store_status(store: str, names: list[str]) -> list[str]:
    settings = _json(store, "settings.json") if "settings.json" in names else {}
    told = ", ".join(f"{key} {settings[key]}" for key in StoreSettings.__dataclass_fields__ if key in settings)
    groups = {name: len(listed(f"{store}/groups/{name}")) for name in listed(f"{store}/groups")}
    lines = [
        f"{store}: clip store of {told}" if settings else f"{store}: clip store",
        f"published  {sum(groups.values())} groups of {len(groups)} sequences",
    ]
    if "store.json" not in names:
        return [*lines, "finished   no: run convert with the same settings to go on"]

    info = _json(store, "store.json")
    if info.get("schema") != SCHEMA:
        return [*lines, f"finished   with schema {info.get('schema')}, this code reads {SCHEMA}: convert it again"]
    counts = ", ".join(f"{count} {name}" for name, count in info["counts"].items())
    lines.append(f"finished   {counts}; digest {info['digest']}")
    return lines + [
        f"{kind:10} {name}: {reason}" for kind in ("failed", "skipped") for name, reason in sorted(info[kind].items())
    ]


def run_status(run: str, names: list[str]) -> list[str]:
    record = _json(run, RECORD)
    whole = [name for name in names if name.startswith("step_") and POSITION in listed(f"{run}/{name}")]
    steps = record["config"]["steps"]
    done = max((_json(f"{run}/{name}", POSITION)["step"] for name in whole), default=0)
    model = record.get("model")
    return [
        f"{run}: training run, MLflow run {record['run_id']}",
        f"trained    {done} of {steps} steps, by its last checkpoint",
        *_holder(run),
        f"finished   {model}" if model else "finished   no: the same command with its --name goes on",
    ]


def _holder(run: str) -> list[str]:
    """Who trains it, as `train/lease.py` keeps it; nothing if nobody has begun."""
    commands = [name.removesuffix(".json") for name in listed(f"{run}/commands") if name.endswith(".json")]
    if not commands:
        return []
    last = max(commands, key=int)
    owner = _json(f"{run}/commands", f"{last}.json")
    who = f"process {owner.get('pid')} on {owner.get('host')}, begun {owner.get('since')}"
    if read_file(f"{run}/commands/{last}.alive") == b"ended":
        return [f"held by    nobody; last by {who}"]
    return [f"held by    {who}, which trains it, or was killed: the same command would tell"]


def results_status(folder: str, names: list[str]) -> list[str]:
    done = [name for name in names if RESULT in listed(f"{folder}/{name}")]
    if not done:
        raise ValueError(f"{folder} holds no clip store, training run or results: check its name")
    open_ones = sorted(set(names) - set(done))
    lines = [f"{folder}: results of {len(done)} videos"]
    lines += [f"done       {name}" for name in done]
    return lines + [f"not done   {name}" for name in open_ones if not name.startswith(".")]


def _json(place: str, name: str) -> dict[str, Any]:
    content = read_file(f"{place}/{name}")
    try:
        return dict(json.loads(content or b""))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}/{name} is damaged ({error})") from None
