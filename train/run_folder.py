"""A run's folder, OUT/NAME, and how a checkpoint gets into it whole or not at all.

    run.json                        config, MLflow run, digests of the stores; and, once the run is finished, its
                                    model's name in the registry
    commands/                       who trains it (`train/lease.py`)
    step_0000200/                   a checkpoint; of the second command on this run: step_0000200-2
      model/, optimisers.pt, ...    what `TrainState.writers` write
      position.json                 `Position`; written last: a folder without it is no checkpoint
    checkpoint_manager_snapshot.json    Ray Train's own list of checkpoints

The newest folder with a position.json is where a run goes on, whether or not Ray Train got to know of it: it hears of
a checkpoint up to two seconds after it is there, and its list may be cut short when the disk is full.
"""

import json
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from io import IOBase
from pathlib import Path
from typing import Annotated, Any

import fsspec
import pyarrow.fs
from annotated_types import Ge
from pyarrow.fs import FileSelector, FileSystem
from ray.train import Checkpoint

from pipelines import documents
from pipelines.partial import scratch_folder
from pipelines.raw.place import is_local, lasting, open_place, reachable
from pipelines.whole import read_file, require_writable, written
from train.config import TrainConfig
from train.errors import CheckpointFailed, NotShared
from train.lease import Lease
from train.state import held_bytes

RECORD, POSITION, SNAPSHOT = "run.json", "position.json", "checkpoint_manager_snapshot.json"
CHECKPOINT = re.compile(r"step_\d+(-\d+)?")
Count = Annotated[int, Ge(0)]
OUTAGE_SECONDS, ASK_AGAIN_SECONDS = 300.0, 10.0  # of a place that is away
UNSEEN_SECONDS = 60.0  # for so long another node may not see a file that is new on a shared disk


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run has got, besides its weights."""

    step: Count = 0
    """Steps done."""
    clips: Count = 0
    """Clips used: the one that comes next is number `clips` of the run's plan, whatever the number of workers."""
    workers: Count = 0
    clips_per_worker: Count = 0
    unsent: list[dict[str, Any]] = field(default_factory=list)
    """Points of the curves that MLflow has not got yet, as `curves.MetricLog` keeps them."""

    def write(self, file: IOBase) -> None:
        file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Position":
        """Of the checkpoint in a folder or at an s3:// URI. ValueError if it is damaged."""
        file = f"{folder}/{POSITION}"
        remedy = "delete this checkpoint, and the run goes on from the one before"
        return documents.parse(read_file(file), cls, file, remedy, others="forbid")


@dataclass(frozen=True)
class Reported:
    """A checkpoint that Ray Train knows of."""

    checkpoint_dir_name: str


@dataclass(frozen=True)
class Snapshot:
    """Of Ray Train's list of checkpoints, what is looked at here."""

    checkpoint_results: list[Reported]


def check_room(config: TrainConfig) -> str:
    """How much room there is for checkpoints, in words. ValueError if it is too little, or `out` cannot be written."""
    lasting(config.out, "out:")
    require_writable(config.out, "out:")
    size = held_bytes(config)["checkpoint"]
    fs, out = open_place(config.out)
    if not is_local(fs):
        return f"{config.out} can be written; a checkpoint takes {size / 1e9:.2f} GB"

    place = next(path for path in (Path(out), *Path(out).parents) if path.exists())
    with reachable(f"out: {place}"):
        kept = len(step_folders(*open_folder(f"{config.out}/{config.name}")))
    needed, free = size * max(1, config.keep_checkpoints + 1 - kept), shutil.disk_usage(place).free
    text = f"{place} has {free / 1e9:.2f} GB free, checkpoints take {needed / 1e9:.2f} GB"
    if free < needed:
        raise ValueError(f"out: {text}: make room, lower keep_checkpoints, or choose another place")
    return text


def open_folder(uri: str) -> tuple[FileSystem, str]:
    """The file system and path of a folder or s3:// URI, as Ray Train and pyarrow take them.

    S3 is asked again for about a minute: what Ray's controller cannot write there ends the run, without a restart.
    """
    fs, path = open_place(uri)
    if is_local(fs):
        return pyarrow.fs.LocalFileSystem(), path
    patient = {"retries": {"mode": "standard", "max_attempts": 12}}
    fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=patient)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def checkpoint_name(step: int, command: int) -> str:
    """Of the folder that the command of that number writes at that step."""
    return f"step_{step:07d}" + ("" if command == 1 else f"-{command}")


def step_of(name: str) -> int:
    """Of a checkpoint's folder."""
    return _step_and_command(name)[0]


def _step_and_command(name: str) -> tuple[int, int]:
    step, _, command = name.removeprefix("step_").partition("-")
    return int(step), int(command or 1)


def step_folders(fs: FileSystem, run: str) -> list[str]:
    """Paths of all checkpoints of a run, whole or not, the oldest first."""
    found = fs.get_file_info(FileSelector(run, allow_not_found=True))
    steps = [info for info in found if CHECKPOINT.fullmatch(info.base_name) and not info.is_file]
    return [info.path for info in sorted(steps, key=lambda info: _step_and_command(info.base_name))]


def newest(fs: FileSystem, run: str) -> str | None:
    """Path of the newest whole checkpoint."""
    whole = (path for path in reversed(step_folders(fs, run)) if fs.get_file_info(f"{path}/{POSITION}").is_file)
    return next(whole, None)


def has_checkpoint(config: TrainConfig) -> bool:
    """Whether the run of this name can go on from a whole one."""
    place = f"{config.out}/{config.name}"
    with reachable(f"out: {place}"):
        return newest(*open_folder(place)) is not None


def store(files: dict[str, Callable[[IOBase], None]], place: str, lease: Lease) -> None:
    """Write the files of a checkpoint to `place`, in their order. CheckpointFailed, naming the place, if that fails;
    ValueError if the run belongs to another command by now."""
    for name, write in files.items():
        lease.require_held()
        try:
            with written(f"{place}/{name}") as file:
                write(file)
        except (OSError, RuntimeError, ValueError) as error:
            said = error.__context__ if isinstance(error.__context__, OSError) else error  # else torch.save's own words
            raise CheckpointFailed(place, said) from error


@contextmanager
def downloaded(checkpoint: Checkpoint, key: str) -> Iterator[Path]:
    """A scratch folder of that key with the files of a checkpoint. ValueError if there is no room for them."""
    require_room_for(checkpoint.filesystem, checkpoint.path)
    with scratch_folder(key) as folder:
        checkpoint.to_directory(folder)
        yield folder


def require_room_for(fs: FileSystem, path: str) -> None:
    """ValueError if a checkpoint cannot be downloaded for lack of room in the folder for temporary files."""
    size = sum(info.size for info in fs.get_file_info(FileSelector(path, recursive=True)) if info.is_file)
    place = tempfile.gettempdir()
    if (free := shutil.disk_usage(place).free) < size:
        raise ValueError(
            f"checkpoint {path} takes {size / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB free: make room there, or "
            "let TMPDIR name another folder"
        )


def sweep(fs: FileSystem, run: str, kept: set[str]) -> None:
    """Delete the checkpoints that nobody will: halves, and those that Ray Train does not know of."""
    for path in step_folders(fs, run):
        if path not in kept:
            with suppress(FileNotFoundError):  # S3 may list a folder in which there are no files
                fs.delete_dir(path)


def wait_for(files: Iterable[str], say: Callable[[str], object]) -> None:
    """Until each of these files, which the command has seen, is seen from here too: an outage of S3 costs a restart,
    and not one after the other.

    ValueError, in the words of the place, if that does not answer for `OUTAGE_SECONDS`; NotShared if it does, and for
    `UNSEEN_SECONDS` says that a file is not there, as a folder of the same name on a node's own disk does.
    """
    start = time.monotonic()
    for file in files:
        while True:
            try:
                if read_file(file) is not None:
                    break
                reason = NotShared(
                    f"{file} is not there on node {socket.gethostname()}, and was where the command runs: runs and "
                    "stores must be on s3://, or on a disk that all nodes share"
                )
                seconds = UNSEEN_SECONDS
            except ValueError as error:
                reason, seconds = error, OUTAGE_SECONDS
            if time.monotonic() > start + seconds:
                raise reason
            say(f"waiting up to {seconds / 60:.0f} min: {reason}")
            time.sleep(ASK_AGAIN_SECONDS)


def mend(fs: FileSystem, run: str) -> None:
    """Delete Ray Train's list of checkpoints if it is cut short or names one that is gone: Ray would not start."""
    snapshot = f"{run}/{SNAPSHOT}"
    if not fs.get_file_info(snapshot).is_file:
        return
    with fs.open_input_stream(snapshot) as file:
        content = file.read()
    try:
        known = documents.parse(content, Snapshot, snapshot, "delete it", others="ignore")
    except ValueError:
        known = None
    folders = set(step_folders(fs, run))
    if known is None or not {f"{run}/{result.checkpoint_dir_name}" for result in known.checkpoint_results} <= folders:
        fs.delete_file(snapshot)
