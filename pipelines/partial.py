"""What a process writes and is not whole yet, beside the place where it will be; and what one that was killed left.

Whoever writes it holds a lock on it, which ends with the process however that ends. So what bears such a name and is
held by nobody will never be whole, and is deleted by whoever next writes there.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import IOBase
from pathlib import Path

from pipelines.raw.place import reachable, room_in

PARTIAL = re.compile(r".*\.[0-9a-f]{32}\.partial")
NEW_SECONDS = 5  # longer than it takes from making one to holding it


@contextmanager
def partial_file(path: str) -> Iterator[IOBase]:
    """A local file beside `path` to write to; what is left of it is deleted when the block ends."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        with open(partial, "wb") as file:
            _hold(file.fileno())
            yield file
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)


@contextmanager
def partial_folder(path: str) -> Iterator[Path]:
    """A local folder beside `path` to fill; what is left of it is deleted when the block ends."""
    parent = Path(path).parent
    with reachable(str(parent)):
        parent.mkdir(parents=True, exist_ok=True)
        sweep(str(parent))
        folder = parent / f".{uuid.uuid4().hex}.partial"  # of no length of its own: `name` may be as long as it can be
        folder.mkdir()
    with _held(folder), room_in(str(parent)):
        yield folder


@contextmanager
def scratch_folder(key: str | None = None) -> Iterator[Path]:
    """A local folder for files on their way, gone when the block ends. ValueError, naming TMPDIR, where there is no
    room for it. With a `key` (32 hexadecimal digits), other processes find it by `scratch_path`."""
    place = "the folder for temporary files (TMPDIR)"
    with reachable(place):
        folder = scratch_path(key or uuid.uuid4().hex)
        sweep(str(folder.parent))
        folder.mkdir(mode=0o700)
    with _held(folder), room_in(f"{folder}, in {place}"):
        yield folder


def scratch_path(key: str) -> Path:
    return Path(tempfile.gettempdir(), f"d4rt.{key}.partial")


@contextmanager
def temporary_files_together() -> Iterator[Path]:
    """A scratch folder in which all temporary files of this process lie while the block runs, those of libraries
    included: they would stay when it is killed."""
    with scratch_folder() as folder:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before


def sweep(folder: str) -> None:
    """Delete what processes that were killed left in a local folder, as far as it is there and may be listed."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(folder)
    for name in filter(PARTIAL.fullmatch, names):
        with suppress(OSError):  # another one deletes it, or it belongs to somebody else
            _delete_if_left(os.path.join(folder, name))


def _delete_if_left(path: str) -> None:
    if time.time() - os.lstat(path).st_mtime < NEW_SECONDS:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError, an OSError, if somebody holds it
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    finally:
        os.close(descriptor)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a new folder while the block runs, and delete it afterwards."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _hold(descriptor)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _hold(descriptor: int) -> None:
    with suppress(OSError):  # a file system without locks, on which none is swept either
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
