"""A process that reads clips for a training worker, into memory that both share: `train/feed.py` starts it.

    python -m train.clip_reader CONNECTION MEMORY      two file descriptors

It hears a `Task`, then orders: (slot, place, clip). It answers each, in order, with None once the clip
lies there, or with the exception that kept it from that. It ends as soon as the worker does, whatever it is reading.
"""

import mmap
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue

import cv2
import numpy as np

from train.clips import Planned, read_clip

Order = tuple[int, int, Planned]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is wanted of every clip, and how clips lie in the memory: so many batches of `dtype`."""

    num_queries: int
    augment: bool
    dtype: np.dtype
    slots: int


def main(connection: Connection, memory: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which lets the worker finish
    cv2.setNumThreads(1)
    orders: SimpleQueue[Order] = SimpleQueue()
    task: Task = connection.recv()
    slots = np.ndarray(task.slots, task.dtype, mmap.mmap(memory, 0))

    def listen() -> None:
        try:
            while True:
                orders.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        slot, place, planned = orders.get()
        connection.send(read_into(slots[slot], place, planned, task))


def read_into(batch: np.void, place: int, planned: Planned, task: Task) -> Exception | None:
    """Put a clip into a place of the batch; what went wrong."""
    try:
        for name, values in read_clip(planned, task.num_queries, task.augment).items():
            batch[name][place] = values
    except ValueError as error:
        return ValueError(str(error))
    except Exception:
        return RuntimeError(f"clip {planned.index} of the run: {traceback.format_exc()}")
    return None


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
