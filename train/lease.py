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
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from pipelines import documents
from pipelines.log import say
from pipelines.whole import create_if_absent, listed, read_file, sweep_left, write_file

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # of an owner that is taken for dead
ENDED = b"ended"
COMMAND = re.compile(r"(\d+)\.json")


@dataclass(frozen=True)
class Owner:
    """A command that began to train a run, as it says itself."""

    host: str
    pid: Annotated[int, Interval(gt=0, lt=2**31)]
    since: str
    """For people: its clock may be set at any time."""
    world: str | None
    """Where its pid means a process: this boot of a kernel, and the pid namespace in it. Containers share a name of
    the host now and then, but not this. None where the system does not say."""
    start: int | None
    """When the process began, in ticks since that boot: numbers of processes are used again."""

    @classmethod
    def this_process(cls) -> "Owner":
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        pid, world = os.getpid(), _world()
        return cls(socket.gethostname(), pid, since, world, _start(pid) if world else None)

    def is_gone(self) -> bool:
        """Whether it certainly runs no more; False also where that cannot be told from here."""
        if self.world is None or self.world != _world():
            return False
        start = _start(self.pid)
        return start is not None and start != self.start


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
    for folder in (run, f"{run}/commands"):
        sweep_left(folder)
    if not create_if_absent(_place(run, lease.number, "json"), json.dumps(asdict(Owner.this_process())).encode()):
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
    names = [COMMAND.fullmatch(name) for name in listed(f"{run}/commands")]
    last = max((int(match[1]) for match in names if match), default=0)
    if last:
        remedy = "delete it if nobody trains this run any more, or choose another --name"
        owner = documents.read(_place(run, last, "json"), Owner, remedy)
        if owner is not None and _is_alive(run, last, owner):
            raise ValueError(
                f"{run} is being trained by process {owner.pid} on {owner.host}, since {owner.since}: let it finish or "
                "stop it, or choose another --name"
            )
    return last


def _place(run: str, number: int, kind: str) -> str:
    return f"{run}/commands/{number:04d}.{kind}"


def _is_alive(run: str, number: int, owner: Owner) -> bool:
    """Whether the owner gives signs of life. Only its own clock moves them, so no clocks need to agree."""
    sign = read_file(_place(run, number, "alive"))
    if sign == ENDED or owner.is_gone():
        return False
    say(f"{run} was begun by process {owner.pid} on {owner.host}: looking whether it is alive")
    end = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENT_SECONDS / 10))
        now = read_file(_place(run, number, "alive"))
        if now != sign:
            return now != ENDED
    return False


def _world() -> str | None:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start(pid: int) -> int | None:
    """0 if there is no such process, or only its exit code is left; None if there is one that says nothing."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *numbers = stat.rpartition(")")[2].split()  # its name, before that, may hold anything
    return 0 if state in "ZX" else int(numbers[18])  # field 22 of proc_pid_stat(5)
