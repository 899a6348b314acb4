"""Batches for one training worker, ready before they are asked for.

Processes that live as long as the worker (`train/clip_reader.py`) read, decode and augment clips straight into memory
that they share with it: a ring of batches, pinned where the worker has a GPU. The worker orders clips and hears that
they are there, a few bytes each way; no pixel passes through it. It runs no thread for this, which would take Python's
lock from the step.
"""

import mmap
import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import Pipe, connection

import numpy as np
import torch

from pipelines.store.reader import ClipStore
from train.clip_reader import Order, Task
from train.clips import batch_dtype, find_clip
from train.config import DataConfig
from train.mixture import MixturePlan
from train.query_batch import QueryBatch

AHEAD = 2  # batches that are ready or being read, at least; more where a step has fewer clips than there are readers
IN_USE = 2  # the batch of this step, and that of the step before, which a GPU may still be copying
TRIES = 3  # of a clip by readers that die of it


class Feed:
    """Starts reading processes at once; `batches` then gives what they read. A context manager, which ends them.

    `say` hears a line if a process died, and another one took its place.
    """

    def __init__(
        self,
        config: DataConfig,
        plan: MixturePlan,
        stores: list[ClipStore],
        *,
        readers: int,
        device: torch.device | str = "cpu",
        say: Callable[[str], object] = print,
    ) -> None:
        self.clips, self.device, self.say = config.clips_per_worker, torch.device(device), say
        self.datasets = tuple(sorted({store.settings.dataset for store in stores}))
        numbers = [self.datasets.index(store.settings.dataset) for store in stores]
        self.dataset_of_store = torch.tensor(numbers, device=device)

        self.ahead = max(AHEAD, -(-readers // self.clips))
        num_slots = self.ahead + IN_USE
        dtype = batch_dtype(self.clips, config.queries, stores[0].settings)
        self.plan = plan
        self.task = Task(num_queries=config.queries, augment=config.augment, dtype=dtype, slots=num_slots)
        self.memory = os.memfd_create("clips")  # of no file system: containers often have a small /dev/shm
        os.ftruncate(self.memory, num_slots * dtype.itemsize)
        self.mapped = np.frombuffer(mmap.mmap(self.memory, 0), np.uint8)
        self.slots = self.mapped.view(dtype)
        self.missing = [0] * num_slots  # clips that are not there yet
        self.copied: list[torch.cuda.Event | None] = [None] * num_slots  # to the device, when this has happened
        self.deaths: Counter[Order | None] = Counter()
        self.readers = [Reader(self.memory, self.task) for _ in range(readers)]
        if self.device.type == "cuda":
            code = int(torch.cuda.cudart().cudaHostRegister(self.mapped.ctypes.data, self.mapped.nbytes, 0))
            if code:
                raise RuntimeError(
                    f"CUDA cannot pin {self.mapped.nbytes / 1e6:.0f} MB of memory for clips (error {code}): is there a "
                    "limit (ulimit -l), or too little memory?"
                )

    def batches(self, *, steps: range, first_clip: int, rank: int, world: int) -> Iterator[QueryBatch]:
        """One batch per step for worker `rank` of `world`, on the device. On a CPU it is a view of memory that is
        written to again: valid until the batch after the next is asked for.

        `first_clip` is the run's clip with which `steps` begin, a pure function of the steps before and how many
        workers did them: a run of always the same number of workers has the same batches wherever `steps` begins, one
        whose number changes goes on with the clips that come next.

        ValueError if a clip is damaged; RuntimeError if processes die of one, or of none.
        """
        ordered = 0
        for number in range(len(steps)):
            self._listen(timeout=0.0)  # who has least to do?
            while ordered < min(number + self.ahead + 1, len(steps)):
                # A step deals `clips` clips to each worker in turn.
                self._order(ordered % len(self.slots), first_clip + (ordered * world + rank) * self.clips)
                ordered += 1
            slot = number % len(self.slots)
            while self.missing[slot]:
                self._listen()
            yield self._batch(slot)

    def ordered(self) -> int:
        """Clips that readers have been asked for and, as far as they have been listened to, have not delivered."""
        return sum(len(reader.orders) for reader in self.readers)

    def _order(self, slot: int, first: int) -> None:
        """The clips of a step, from number `first` of the run, each of the reader that has least to do."""
        if self.copied[slot]:  # long ago, as the step after it has begun
            self.copied[slot].synchronize()
        self.missing[slot] = self.clips
        for place in range(self.clips):
            planned = find_clip(self.plan, first + place)
            min(self.readers, key=lambda reader: len(reader.orders)).order((slot, place, planned))

    def _listen(self, timeout: float | None = None) -> None:
        """Wait until a reader says something, and take down all that has been said."""
        heard = connection.wait([reader.connection for reader in self.readers], timeout)
        for number, reader in enumerate(self.readers):
            try:
                while reader.connection in heard and reader.connection.poll():
                    if error := reader.connection.recv():
                        raise error
                    slot, _, _ = reader.orders.popleft()
                    self.missing[slot] -= 1
            except (EOFError, ConnectionError):
                self.readers[number] = self._replaced(reader)

    def _replaced(self, dead: "Reader") -> "Reader":
        """Another process for the same orders."""
        current = dead.orders[0] if dead.orders else None
        what = "nothing" if current is None else f"clip {current[2].index} of the run"
        words = f"a process that reads clips was ended ({dead.end()}) at {what}"
        self.deaths[current] += 1
        if self.deaths[current] == TRIES:
            raise RuntimeError(
                f"{words}, as were {TRIES - 1} before it: is there enough memory? What they said is in the log of "
                "this worker"
            )
        self.say(f"warning: {words}; another one goes on")
        reader = Reader(self.memory, self.task)
        for order in dead.orders:
            reader.order(order)
        return reader

    def _batch(self, slot: int) -> QueryBatch:
        columns = {}
        for name in self.task.dtype.names:
            column = torch.from_numpy(self.slots[slot][name])
            columns[name] = column.to(self.device, non_blocking=True)
        if self.device.type == "cuda":
            self.copied[slot] = torch.cuda.Event(blocking=True)
            self.copied[slot].record(torch.cuda.current_stream(self.device))
        columns["dataset"] = self.dataset_of_store[columns.pop("store")]
        return QueryBatch.from_columns(columns, self.datasets)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self.readers:
            reader.end()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self.mapped.ctypes.data)
        os.close(self.memory)


class Reader:
    """A process that reads clips, and the orders it has not answered yet."""

    def __init__(self, memory: int, task: Task) -> None:
        self.connection, theirs = Pipe()
        self.orders: deque[Order] = deque()
        descriptors = theirs.fileno(), memory
        with theirs:
            # With this process's own path and nothing of the folder it happens to be in.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "train.clip_reader", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self._send(task)

    def order(self, order: Order) -> None:
        self.orders.append(order)
        self._send(order)

    def _send(self, what: Task | Order) -> None:
        with suppress(OSError):  # it is dead: whoever listens to it will notice
            self.connection.send(what)

    def end(self) -> str:
        """End the process; why it had ended, if it had."""
        self.connection.close()
        self.process.kill()
        code = self.process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"
