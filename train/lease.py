"""Who trains a run: one command at a time, by a number of its own.

    OUT/NAME/commands/0002.json     of the second command on this run, created by it if nobody else has: who it is
    OUT/NAME/commands/0002.alive    rewritten by it every few seconds; and once more when it ends

The newest number owns the run. A command that finds an owner alive is refused; one that ended, or gave no sign of life
for a minute, is followed by the next number. It may be a zombie: suspended, or cut off for a while. It does no harm
when it comes back: its workers ask whether it still owns the run before they write, and write its checkpoints into
folders that bear its number.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psutil

from pipelines.whole import create_if_absent, listed, read_file, write_file

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # of an owner that is taken for dead
ENDED = b"ended"


@dataclass(frozen=True)
class Lease:
    """A command's hold of a run."""

    run: str
    """URI of the run's folder, the same one everywhere."""
    number: int

    def require_held(self) -> None:
        """ValueError if another command owns the run now."""
        if read_file(_place(self.run, self.number + 1, "json")) is not None:
            raise ValueError(
                f"{self.run} is now trained by another command: this one gave no sign of life for a minute, and ends"
            )

    def give_sign(self, sign: bytes) -> None:
        write_file(_place(self.run, self.number, "alive"), sign)


@contextmanager
def owned(run: str) -> Iterator[Lease]:
    """Own the run of that folder while the block runs. ValueError, saying who does, if somebody else owns it."""
    lease = Lease(run, require_free(run) + 1)
    if not create_if_absent(_place(run, lease.number, "json"), json.dumps(_this_process()).encode()):
        raise ValueError(f"{run} has just been taken by another command: let it finish, or choose another --name")
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_SECONDS if count else 0):
            count += 1
            with suppress(ValueError):  # a place that does not answer now; what is to be written will tell
                lease.give_sign(str(count).encode())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()
        with suppress(ValueError):
            lease.give_sign(ENDED)


def require_free(run: str) -> int:
    """The number of the last command on a run, 0 if there was none. ValueError, saying who, if it is alive."""
    numbers = [int(name.partition(".")[0]) for name in listed(f"{run}/commands") if name.endswith(".json")]
    last = max(numbers, default=0)
    if last:
        owner = json.loads(read_file(_place(run, last, "json")))
        if _is_alive(run, last, owner):
            raise ValueError(
                f"{run} is being trained by process {owner['pid']} on {owner['host']}, since {owner['since']}: let it "
                "finish or stop it, or choose another --name"
            )
    return last


def _place(run: str, number: int, kind: str) -> str:
    return f"{run}/commands/{number:04d}.{kind}"


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    since = datetime.fromtimestamp(process.create_time()).astimezone().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": process.create_time(), "since": since}


def _is_alive(run: str, number: int, owner: dict[str, Any]) -> bool:
    """Whether the owner gives signs of life. Only its own clock moves them, so no clocks need to agree."""
    sign = read_file(_place(run, number, "alive"))
    if sign == ENDED or (owner["host"] == socket.gethostname() and not _is_running(owner)):
        return False
    print(f"{run} was begun by process {owner['pid']} on {owner['host']}: looking whether it is alive", flush=True)
    end = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENT_SECONDS / 10))
        now = read_file(_place(run, number, "alive"))
        if now != sign:
            return now != ENDED
    return False


def _is_running(owner: dict[str, Any]) -> bool:
    """Of a process of this machine. Numbers are used again, so the time it began counts too."""
    try:
        process = psutil.Process(owner["pid"])
        return process.create_time() == owner["began"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
