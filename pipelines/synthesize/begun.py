"""A raw folder while scenes are written to it: it says so, so that the same command goes on after an interruption.

When it is finished it is what a user would have downloaded, and says nothing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines import documents
from pipelines.log import say
from pipelines.raw.folder import UNFINISHED
from pipelines.whole import require_writable, write_file

LOCK = ".synthesize.lock"


@contextmanager
def begun(out: str, request: dict[str, Any]) -> Iterator[None]:
    """Let the block write to the local folder `out` what was asked. ValueError if there is anything but half of that,
    or another command at work."""
    require_writable(out, "--out")
    folder, lock = Path(out), Path(out, LOCK)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            try:
                _take(folder, request)
                yield
                (folder / UNFINISHED).unlink()
            finally:
                lock.unlink(missing_ok=True)
    except Timeout:
        raise ValueError(f"another synthesize writes to {out!r} now: let it finish, or choose another --out") from None


def _take(folder: Path, request: dict[str, Any]) -> None:
    """Mark the folder, or say that it goes on."""
    remedy = "choose a new folder, or remove it first"
    if not {path.name for path in folder.iterdir()} - {LOCK}:
        write_file(str(folder / UNFINISHED), json.dumps(request).encode())
        return
    there = documents.read(str(folder / UNFINISHED), dict, remedy)
    if there is None:
        raise ValueError(f"--out {str(folder)!r} exists and is not an empty folder: {remedy}")
    if differ := [key for key in request if there.get(key) != request[key]]:
        differences = "; ".join(f"{key} was {there.get(key)}, now {request[key]}" for key in differ)
        raise ValueError(
            f"--out {str(folder)!r} holds half of other scenes ({differences}): the command that began them goes on "
            f"with them, else {remedy}"
        )
    say(f"going on with {folder}, where a command was interrupted")
