"""TFRecord shards of tf.train.Example, read without TensorFlow, local or s3://.

A shard is a row of records, each
    uint64  length                     little-endian
    uint32  masked crc32c of length
    bytes   Example                    as many as length says
    uint32  masked crc32c of Example

and an Example, in the wire format of Protocol Buffers, is a map from names of features to a list of byte strings, of
float32 or of int64. Records are found by stepping over lengths; one is read at a time, and only the features asked for
are taken apart.
"""

import struct
from collections.abc import Collection, Iterator
from typing import Any

import google_crc32c
import numpy as np

from pipelines.raw.files import RawFiles
from pipelines.raw.folder import RawFolder

MAX_RECORD = 1 << 30  # bytes; a video of MOVi-F has about 150 MB
MAX_RECORDS = 1 << 20  # of a shard
HEADER = struct.Struct("<QI")
CRC = struct.Struct("<I")


class Example(RawFiles):
    """One Example: number i of the byte strings called "depth" is read like a file "depth/i"."""

    def __init__(self, raw: RawFolder, path: str, number: int, wanted: Collection[str]) -> None:
        """ValueError unless the record is whole and holds an Example; of its features only `wanted` are kept."""
        self.uri = f"record {number} of {path} in {raw.uri}"
        try:
            self.features = _features(_payload(raw, path, number), wanted)
        except ValueError as error:
            raise ValueError(f"{self.uri} {error}: download the shard again") from None

    def read(self, path: str) -> bytes:
        name, _, i = path.rpartition("/")
        strings = self.features.get(name, ())
        if not i.isdecimal() or not int(i) < len(strings) or not isinstance(strings[int(i)], bytes):
            raise ValueError(f"{self.uri} has no byte string {path}: not this dataset's record, or an incomplete one")
        return strings[int(i)]


def record_starts(raw: RawFolder, path: str) -> list[int]:
    """Where in a shard its records begin. The last may be cut or corrupt: reading it will say so."""
    size, start, starts = raw.size(path), 0, []
    while start < size and len(starts) < MAX_RECORDS:
        starts.append(start)
        header = raw.part(path, start, HEADER.size)
        if len(header) < HEADER.size or not _fits(header[:8], header[8:]):
            break
        start += HEADER.size + HEADER.unpack(header)[0] + CRC.size
    return starts


def masked_crc(data: bytes) -> bytes:
    """The checksum of the framing: crc32c, turned by 15 bits and shifted."""
    crc = google_crc32c.value(data)
    return CRC.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _fits(data: bytes, checksum: bytes) -> bool:
    return masked_crc(data) == checksum


def _payload(raw: RawFolder, path: str, number: int) -> bytes:
    starts = record_starts(raw, path)
    if not 0 <= number < len(starts):
        raise ValueError(f"is not there: the shard has {len(starts)} records")
    header = raw.part(path, starts[number], HEADER.size)
    if len(header) < HEADER.size or not _fits(header[:8], header[8:]):
        raise ValueError("is cut, or the checksum of its length is wrong")
    length, begin = HEADER.unpack(header)[0], starts[number] + HEADER.size
    if length > MAX_RECORD:
        raise ValueError(f"claims {length} bytes, more than the {MAX_RECORD} that are read at once")
    if begin + length + CRC.size > raw.size(path):
        raise ValueError(f"claims {length} bytes, but the file ends before")
    payload = raw.part(path, begin, length)
    if not _fits(payload, raw.part(path, begin + length, CRC.size)):
        raise ValueError("is corrupt: the checksum of its content is wrong")
    return payload


def _features(payload: bytes, wanted: Collection[str]) -> dict[str, Any]:
    """Of each wanted feature of an Example a list of bytes, or an array of float32 or int64."""
    found = {}
    for features in _field(memoryview(payload), 1):
        for entry in _field(features, 1):
            name = b"".join(_field(entry, 1)).decode(errors="replace")
            if name in wanted:
                for kind, content in (pair for feature in _field(entry, 2) for pair in _fields(feature)):
                    found[name] = _values(kind, list(_field(content, 1)))
    return found


def _values(kind: int, contents: list[memoryview]) -> list[bytes] | np.ndarray:
    """A BytesList (1), FloatList (2) or Int64List (3). Numbers come one by one or packed together: both are read."""
    if kind == 1:
        return [bytes(content) for content in contents]
    joined = memoryview(b"".join(contents))
    if kind == 2:
        return np.frombuffer(joined, "<f4")
    numbers, at = [], 0
    while kind == 3 and at < len(joined):
        number, at = _varint(joined, at)
        numbers.append(number)
    return np.array(numbers, np.uint64).view(np.int64)


def _field(message: memoryview, number: int) -> Iterator[memoryview]:
    """The content of every field of this number."""
    return (content for found, content in _fields(message) if found == number)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field, that of a varint undecoded. ValueError if one would end beyond the message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                end = _varint(message, at)[1]
            case 1:
                end = at + 8
            case 2:
                length, at = _varint(message, at)
                end = at + length
            case 5:
                end = at + 4
            case kind:
                raise ValueError(f"holds no Example: a field of wire type {kind}")
        if end > len(message):
            raise ValueError("holds no Example: a field ends beyond its message")
        yield key >> 3, message[at:end]
        at = end


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits per byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at + shift // 7 >= len(data):
            break
        byte = data[at + shift // 7]
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, at + shift // 7 + 1
    raise ValueError("holds no Example: a number without end")
