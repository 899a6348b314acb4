"""Reading the arrays of a group: Zarr's format by a reader of our own, which needs one ranged read for a chunk.

Through Zarr itself every chunk takes two turns of an event loop and the index of its shard another read, which costs
as much as decoding a small clip. Here the group's zarr.json, read once, says where each chunk of the two large arrays
lies.
"""

import json
import os
from functools import lru_cache
from typing import Any

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np

from pipelines.raw.place import is_local, open_place

KEPT_GROUPS = 1024  # that stay open in a process, some kilobytes each
DECOMPRESS = {"zstd": numcodecs.zstd.decompress, "blosc": numcodecs.blosc.decompress}


class Damaged(ValueError):
    """What is stored cannot be read as it was written."""


class Group:
    """The arrays of one data/GROUP.zarr. Damaged for what is missing, cut short, changed, or in another format."""

    def __init__(self, uri: str) -> None:
        self._fs, self._path = open_place(uri)
        self._local = is_local(self._fs)
        document = json.loads(self._bytes("zarr.json"))
        self.settings: dict[str, Any] = dict(document["attributes"]["settings"])
        """Of the conversion that made it."""
        self._byte_ranges: dict[str, list] = document["attributes"]["byte_ranges"]
        self._arrays: dict[str, Any] = document["consolidated_metadata"]["metadata"]
        self._small: dict[str, np.ndarray] = {}

    def chunk(self, name: str, clip: int, sample: int = 0) -> np.ndarray:
        """What `video` has for a clip, or `queries` for a sample of it."""
        array = self._arrays[name]
        start, length = self._byte_ranges[name][clip][sample]
        shard = f"{name}/c/{'/'.join('0' * len(array['shape']))}"
        sharding = array["codecs"][0]["configuration"]
        axes = 2 if name == "queries" else 1  # clips, samples: a chunk has one of each
        shape = sharding["chunk_shape"][axes:]
        return _decoded(self._bytes(shard, start, length), sharding["codecs"], array["data_type"], shape)

    def small(self, name: str) -> np.ndarray:
        """An array that holds little for every clip of the group, whole. Read once, kept."""
        if name not in self._small:
            array = self._arrays[name]
            content = self._bytes(f"{name}/c/{'/'.join('0' * len(array['shape']))}")
            self._small[name] = _decoded(content, array["codecs"], array["data_type"], array["shape"])
        return self._small[name]

    def _bytes(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        where = f"{self._path}/{path}"
        if self._local:  # plain calls: fsspec's take as long as the reading
            with open(where, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size if length is None else length
                content = os.pread(file.fileno(), size, start)
        else:
            content = self._fs.cat_file(where, start=start, end=None if length is None else start + length)
        if length is not None and len(content) != length:
            raise Damaged(f"{path} ends before byte {start + length}")
        return content


@lru_cache(KEPT_GROUPS)
def open_group(uri: str) -> Group:
    """A group, opened once per process."""
    return Group(uri)


def _decoded(content: bytes, codecs: list[dict[str, Any]], dtype: str, shape: list[int]) -> np.ndarray:
    """A new array from a chunk encoded as `store/writer.py` does: bytes, a compressor, a CRC-32C at the end."""
    names = [codec["name"] for codec in codecs]
    if len(names) != 3 or names[0] != "bytes" or names[1] not in DECOMPRESS or names[2] != "crc32c":
        raise Damaged(f"its chunks are encoded by {', '.join(names)}, which this reader does not know")
    data, checksum = content[:-4], int.from_bytes(content[-4:], "little")
    if google_crc32c.value(data) != checksum:
        raise Damaged("its checksum is wrong")
    plain = np.empty(shape, np.dtype(dtype).newbyteorder("<"))
    DECOMPRESS[names[1]](data, plain)
    return plain
