"""`python -m pipelines status PLACE`: what is done of a clip store, a training run or a folder of results.

It only lists and reads small files, so it may be asked at any time, also of what is being written. What is damaged is
named, and the command ends with 2.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from pipelines import documents
from pipelines.partial import PARTIAL
from pipelines.problems import alike, counted
from pipelines.results.files import ADAPTED, RESULT, WINDOW_FILE, WINDOWS, read_answer
from pipelines.results.reading import read_result
from pipelines.store import marks
from pipelines.store.layout import StoreSettings
from pipelines.store.reader import ClipStore
from pipelines.store.wholeness import require_whole
from pipelines.whole import listed, read_file, require_folder

RECORD, POSITION = "run.json", "position.json"
COMMAND = re.compile(r"\d+\.json")
LAST = {RESULT: RESULT, "config.json": ADAPTED}  # the file that comes last, and the one that says what is there
DONE, DAMAGED, UNDONE = (f"{kind:10} " for kind in ("done", "damaged", "not done"))
CHECKPOINT = re.compile(r"step_\d+(-\d+)?")


@dataclass(frozen=True)
class Steps:
    """Of a run's config, how many there will be."""

    steps: int


@dataclass(frozen=True)
class Run:
    """Of run.json, what is said here."""

    config: Steps
    run_id: str
    model: str | None = None


@dataclass(frozen=True)
class Owner:
    """Of a command's file, what is said here."""

    pid: int
    host: str
    since: str


@dataclass(frozen=True)
class Place:
    """Of position.json, how far a checkpoint is."""

    step: Annotated[int, Ge(0)]


def status(place: str, /) -> None:
    """Say what is done of a clip store, a training run, or a folder of results, and what failed.

    Args:
        place: Folder or s3:// URI: what `convert --store`, `infer --out` or `train` (OUT/NAME) writes.
    """
    place = place.rstrip("/") or place
    require_folder(place, "PLACE")
    names = listed(place)
    if not names:
        raise ValueError(f"nothing at {place}: there is no such folder, or it is empty; check its name")
    if "groups" in names or "store.json" in names or "settings.json" in names:
        lines = store_status(place, names)
    elif RECORD in names:
        lines = run_status(place, names)
    else:
        lines = results_status(place, names)
    print("\n".join(lines))
    if any(line.startswith(DAMAGED) for line in lines):
        raise ValueError(f"{place} is damaged: what to do stands above")


def store_status(store: str, names: list[str]) -> list[str]:
    settings = documents.read(f"{store}/settings.json", dict, "convert into another --store") or {}
    told = ", ".join(f"{key} {settings[key]}" for key in StoreSettings.__dataclass_fields__ if key in settings)
    groups = {name: len(marks.names(store, name)) for name in listed(f"{store}/groups")}
    lines = [
        f"{store}: clip store of {told}" if settings else f"{store}: clip store",
        f"published  {counted(sum(groups.values()), 'group')} of {counted(len(groups), 'sequence')}",
    ]
    if "store.json" not in names:
        return [*lines, "finished   no: run convert with the same settings to go on"]

    opened = ClipStore(store)
    counts = ", ".join(f"{count} {name}" for name, count in opened.info["counts"].items())
    lines.append(f"finished   {counts}; digest {opened.info['digest']}")
    lines += [f"{'failed':10} {name}: {reason}" for name, reason in sorted(opened.info["failed"].items())]
    lines += [f"{'skipped':10} {line}" for line in alike(opened.info["skipped"])]
    try:
        require_whole(store, opened.column("group"))
    except ValueError as error:
        lines.append(f"{DAMAGED}{error}")
    return lines


def run_status(run: str, names: list[str]) -> list[str]:
    record = documents.read(f"{run}/{RECORD}", Run, "the run cannot go on: begin another", others="ignore")
    done = 0
    for name in names:
        if CHECKPOINT.fullmatch(name):
            place = documents.read(f"{run}/{name}/{POSITION}", Place, "delete this checkpoint", others="ignore")
            done = max(done, place.step if place else 0)
    return [
        f"{run}: training run, MLflow run {record.run_id}",
        f"trained    {done} of {record.config.steps} steps, by its last checkpoint",
        *_holder(run),
        f"finished   {record.model}" if record.model else "finished   no: the same command with its --name goes on",
    ]


def _holder(run: str) -> list[str]:
    """Who trains it, as `train/lease.py` keeps it; nothing if nobody has begun."""
    commands = [name for name in listed(f"{run}/commands") if COMMAND.fullmatch(name)]
    if not commands:
        return []
    last = max(commands, key=lambda name: int(name.removesuffix(".json")))
    owner = documents.read(f"{run}/commands/{last}", Owner, "delete it if nobody trains this run", others="ignore")
    who = f"process {owner.pid} on {owner.host}, begun {owner.since}"
    if read_file(f"{run}/commands/{last.removesuffix('.json')}.alive") == b"ended":
        return [f"held by    nobody; last by {who}"]
    return [f"held by    {who}, which trains it, or was killed: the same command would tell"]


def results_status(folder: str, names: list[str]) -> list[str]:
    """Of all videos of a job, or of one alone."""
    if any(document in names for document in LAST.values()):
        return [f"{folder}: results of one video", *_video_status(folder, folder.rpartition("/")[2], names)]

    begun, videos = [], []
    for name in names:
        files = listed(f"{folder}/{name}")
        if name.startswith(".") and name.endswith(WINDOWS):
            count = counted(sum(WINDOW_FILE.fullmatch(file) is not None for file in files), "window")
            begun.append(f"begun      {count} of a video, kept in {name}: the same infer goes on behind them")
        elif PARTIAL.fullmatch(name):
            begun.append(f"half       {name}: a job writes it, or was killed; then the next one here deletes it")
        elif files:
            videos += _video_status(f"{folder}/{name}", name, files)
    done, damaged, undone = ([line for line in videos if line.startswith(kind)] for kind in (DONE, DAMAGED, UNDONE))
    if not done and not damaged and not begun:
        raise ValueError(f"{folder} holds no clip store, training run or results: check its name")
    return [f"{folder}: results of {counted(len(done), 'video')}", *done, *damaged, *begun, *undone]


def _video_status(uri: str, name: str, files: list[str]) -> list[str]:
    """A line about a folder of results; none about a hidden one that is none."""
    document = next((document for last, document in LAST.items() if last in files), None)
    if document not in files:
        return [] if name.startswith(".") else [f"{UNDONE}{name}"]
    try:
        read_result(uri) if document == RESULT else read_answer(uri, document)
    except ValueError as error:
        return [f"{DAMAGED}{name}: {error}"]
    return [f"{DONE}{name}"]
