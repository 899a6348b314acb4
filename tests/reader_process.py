"""Readers in a process of their own, so that a crash, a hang or runaway memory is seen and ends nothing."""

import multiprocessing
import resource
import sys
import traceback
import tracemalloc
from dataclasses import dataclass

from jaxtyping import install_import_hook

SECONDS = 20  # no file of some thousand bytes takes longer to read
ADDRESSES = 6 << 30  # bytes; asking for more is MemoryError instead of a machine without memory


@dataclass(frozen=True)
class Outcome:
    """How reading a file ended."""

    error: str = ""
    """Name of the exception's class; empty if there was none."""
    message: str = ""
    details: str = ""
    resident: int = 0
    """The most bytes that the process ever had in memory, above those it had when it began to read files."""
    traced: int = 0
    """The most bytes that Python and NumPy had asked for while reading this file, used or not."""


def serve(pipe, folder: str) -> None:
    """In the child: read what is asked for until the pipe is closed. Shapes are checked as in all tests."""
    with install_import_hook("pipelines", "beartype.beartype"):
        from untrusted import READERS

        from pipelines.raw.folder import RawFolder
    raw = RawFolder(folder)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tracemalloc.start()
    start = _resident()
    pipe.send("ready")
    while request := pipe.recv():
        reader, path = request
        told = {}
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            READERS[reader](raw, path)
        except BaseException as error:
            told = {"error": type(error).__name__, "message": str(error), "details": traceback.format_exc()[-3000:]}
        traced = tracemalloc.get_traced_memory()[1] - before
        pipe.send(Outcome(**told, resident=_resident() - start, traced=traced))


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class ReaderProcess:
    """The child, started again where it crashed, hung or was told to end."""

    def __init__(self, folder: str) -> None:
        self._folder, self._process = folder, None

    def read(self, reader: str, path: str) -> Outcome:
        if self._process is None:
            self._start()
        try:
            self._pipe.send((reader, path))
            if self._pipe.poll(SECONDS):
                return self._pipe.recv()
            problem = f"still reading after {SECONDS} seconds"
        except (EOFError, ConnectionError):
            self._process.join(SECONDS)
            problem = f"the process ended with {self._process.exitcode}"
        self.end()
        return Outcome(error="crash or hang", message=problem)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._folder), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.poll(120) and self._pipe.recv() == "ready"

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None
