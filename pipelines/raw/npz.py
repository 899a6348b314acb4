"""Rows of the arrays in an .npz file, in bounded memory and without ever executing a pickle.

`np.load` reads an array whole, which for point tracks is gigabytes. Here a zip member is a stream, read in blocks of
rows of which the last ones are kept: calls that advance through the file, even overlapping, cost one pass over it.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from pipelines.raw.files import npy_header
from pipelines.raw.folder import RawFolder
from pipelines.raw.pickled_bytes import unpickled_bytes
from pipelines.raw.place import Refused

BLOCK_BYTES = 1 << 23
BOUNDED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # NumPy writes no other; these alone inflate as far as asked for
MAX_PICKLE = 1 << 30  # bytes; 300 JPEGs of 1920 x 1280 have a tenth
KEPT_BLOCKS = 24  # 200 MB: for four arrays of 20,000 points, more frames than a clip spans


@dataclass(frozen=True)
class _Member:
    stream: zipfile.ZipExtFile
    start: int  # where the first row begins
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def rows_per_block(self) -> int:
        return max(1, BLOCK_BYTES // max(1, self.row_bytes))


class Npz:
    """An .npz file in a raw folder. ValueError for what is corrupt, truncated or pickled."""

    def __init__(self, raw: RawFolder, path: str) -> None:
        self._where = f"{path} in {raw.uri}"
        self._members: dict[str, _Member] = {}
        self._block = lru_cache(KEPT_BLOCKS)(self._read_block)
        file = raw.open(path)
        with self._reading():
            self._zip = zipfile.ZipFile(file)

    def keys(self) -> list[str]:
        """Names of the arrays."""
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def __contains__(self, key: str) -> bool:
        return f"{key}.npy" in self._zip.namelist()

    def shape(self, key: str) -> tuple[int, ...] | None:
        """Shape of an array; None where nothing was saved, or `None` in its place, alone or in a list.

        Of one pickled object it is not asked what it is: that would mean to run it.
        """
        if key not in self:
            return None
        member = self._open(key)
        if member.dtype.hasobject:
            if math.prod(member.shape) <= 1:
                return None
            raise ValueError(f"{key} of {self._where} holds pickled Python objects: refused, they can run any code")
        return member.shape

    def rows(self, key: str, rows: Int64[np.ndarray, "n"] | None = None) -> np.ndarray:
        """The given rows (all by default) of an array, in the dtype it was saved in."""
        shape = self.shape(key)
        if not shape:
            raise ValueError(f"{self._where} has no array {key!r}: not this dataset's file, or an old version of it")
        member = self._open(key)
        rows = np.arange(shape[0]) if rows is None else rows
        result = np.empty((len(rows), *shape[1:]), member.dtype)
        for i in np.argsort(rows):
            block, row = divmod(int(rows[i]), member.rows_per_block)
            result[i] = self._block(key, block)[row]
        return result

    def byte_strings(self, key: str) -> list[bytes]:
        """A list of byte strings, such as images, saved with a fixed length or as Python objects."""
        if key not in self:
            raise ValueError(f"{self._where} has no array {key!r}: not this dataset's file, or an old version of it")
        member = self._open(key)
        if member.dtype.hasobject:
            with self._reading():
                member.stream.seek(member.start)
                size = self._zip.getinfo(f"{key}.npy").file_size - member.start
                if size > MAX_PICKLE:
                    raise ValueError(f"{key} is larger than {MAX_PICKLE} bytes")
                return unpickled_bytes(member.stream.read(size))
        if member.dtype.kind != "S" or len(member.shape) != 1:
            raise ValueError(f"{key} of {self._where} is {member.shape} {member.dtype}, not a list of byte strings")
        return [bytes(value) for value in self.rows(key)]

    def _read_block(self, key: str, block: int) -> np.ndarray:
        member = self._open(key)
        first = block * member.rows_per_block
        count = min(member.rows_per_block, member.shape[0] - first)
        with self._reading():
            member.stream.seek(member.start + first * member.row_bytes)
            data = member.stream.read(count * member.row_bytes)
            return np.frombuffer(data, member.dtype).reshape(count, *member.shape[1:])

    def _open(self, key: str) -> _Member:
        """The array's header, read once; its stream stays open where the last block ended."""
        if key not in self._members:
            with self._reading():
                if self._zip.getinfo(f"{key}.npy").compress_type not in BOUNDED:
                    raise ValueError(f"{key} is compressed with neither nothing nor deflate")
                stream = self._zip.open(f"{key}.npy")
                shape, column_major, dtype = npy_header(stream)
            start, stored = stream.tell(), self._zip.getinfo(f"{key}.npy").file_size
            if not dtype.hasobject and start + math.prod(shape) * dtype.itemsize != stored:
                raise ValueError(f"{key} of {self._where} is {shape} {dtype} but has {stored} bytes: download it again")
            if column_major and len(shape) > 1:
                raise ValueError(f"{key} of {self._where} is stored column by column: save it again in C order")
            self._members[key] = _Member(stream, start, shape, dtype)
        return self._members[key]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Refused:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self._where} is corrupt or truncated ({error}): download it again") from None
