"""Records of a JSON list of any length, plain or gzipped (.jgz), in bounded memory.

Annotation lists of whole datasets unpack to hundreds of megabytes. They are decoded record by record, once per process,
and kept in groups (a sequence's records together) as compressed text: about the memory of the file itself.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pipelines.raw.folder import RawFolder
from pipelines.raw.place import Refused

CHUNK = 1 << 20  # characters read at a time
MAX_RECORD = 1 << 22  # characters of one record; real ones have some thousand
MAX_RUN = 512  # records compressed together
KEPT_LISTS = 4
DECODER = json.JSONDecoder()
NOT_SPACE = re.compile(r"[^ \t\r\n]|\Z")

Record = dict[str, Any]


class Groups:
    """The records of a list by the values of some of their fields, all of which are text."""

    def __init__(self, blocks: dict[tuple[str, ...], list[bytes]]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._blocks)

    def first(self, key: tuple[str, ...]) -> Record:
        return _unpacked(self._blocks[key][0])[0]

    def records(self, key: tuple[str, ...]) -> list[Record]:
        """In the order of the file; none if no record has these values."""
        return [record for block in self._blocks.get(key, []) for record in _unpacked(block)]


def groups(raw: RawFolder, path: str, *fields: str) -> Groups:
    """The records of a list by `fields`. ValueError for a file that is not a whole list of records with these."""
    return _groups(raw.uri, path, fields, raw.version(path))


@lru_cache(KEPT_LISTS)
def _groups(uri: str, path: str, fields: tuple[str, ...], version: str) -> Groups:
    """`version` changes with the file, so that what is kept is never older than it."""
    blocks: dict[tuple[str, ...], list[bytes]] = {}
    run_key, run = (), []
    for record, text in parse(RawFolder(uri), path):
        key = tuple(record.get(field) for field in fields)
        if not all(isinstance(value, str) for value in key):
            raise ValueError(f"a record of {path} in {uri} has {dict(zip(fields, key, strict=True))}: text is needed")
        if run and (key != run_key or len(run) == MAX_RUN):
            blocks.setdefault(run_key, []).append(_packed(run))
            run = []
        run_key = key
        run.append(text)
    if run:
        blocks.setdefault(run_key, []).append(_packed(run))
    return Groups(blocks)


def _packed(run: list[str]) -> bytes:
    return zlib.compress(f"[{','.join(run)}]".encode(), 1)


def _unpacked(block: bytes) -> list[Record]:
    return json.loads(zlib.decompress(block))


def parse(raw: RawFolder, path: str) -> Iterator[tuple[Record, str]]:
    """The records of a list, each decoded and as its text."""
    with raw.open(path) as file:
        text = io.TextIOWrapper(gzip.GzipFile(fileobj=file) if path.endswith(".jgz") else file, "utf-8")
        try:
            yield from _Scanner(text).records()
        except Refused:
            raise
        except (OSError, EOFError, zlib.error, RecursionError, ValueError) as error:
            raise ValueError(
                f"{path} in {raw.uri} cannot be read as a JSON list of records ({error}): truncated or corrupt, "
                "download it again"
            ) from None


class _Scanner:
    """Reads a list from a stream of characters, of which it holds a chunk and at most one record."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text, self._buffer, self._place = text, "", 0

    def records(self) -> Iterator[tuple[Record, str]]:
        self._expect("[")
        if self._next() != "]":
            yield self._record()
        while self._next() != "]":
            self._expect(",")
            yield self._record()
        self._expect("]")
        if self._next():
            raise ValueError(f"{self._next()!r} stands after its end")

    def _next(self) -> str:
        """The character after the white space ahead; empty at the end."""
        while True:
            self._place = NOT_SPACE.search(self._buffer, self._place).start()
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            self._buffer, self._place = self._text.read(CHUNK), 0
            if not self._buffer:
                return ""

    def _expect(self, mark: str) -> None:
        if (found := self._next()) != mark:
            raise ValueError(f"{found!r} stands where {mark!r} should" if found else "it ends before the list does")
        self._place += 1

    def _record(self) -> tuple[Record, str]:
        if (found := self._next()) != "{":
            raise ValueError(f"{found!r} stands where a record should" if found else "it ends before the list does")
        while True:
            try:
                record, end = DECODER.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._place > MAX_RECORD:
                    raise ValueError(f"no whole record within {MAX_RECORD} characters: {error.msg}") from None
                if not (more := self._text.read(CHUNK)):
                    raise ValueError(f"a record is not whole: {error.msg}") from None
                self._buffer, self._place = self._buffer[self._place :] + more, 0
            else:
                text = self._buffer[self._place : end]
                self._place = end
                return record, text
