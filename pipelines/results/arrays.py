"""The .npz files of results: written part by part and looked at without being read whole, however long a video is."""

import io
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.raw.files import npy_header

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: the lengths of its name and of what follows that


@dataclass(frozen=True)
class Rows:
    """An array that comes in parts along its first axis: one part is in memory at a time."""

    count: int
    """Of all rows together."""
    parts: Callable[[], Iterable[np.ndarray]]
    """Gives them in order, from the start, each time it is called."""

    def whole(self) -> np.ndarray:
        return np.concatenate(list(self.parts()))


Arrays = Mapping[str, np.ndarray | Rows]


def write_npz(path: Path, arrays: Arrays) -> None:
    """What `np.savez` writes. ValueError if there are not as many rows as was said."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                if isinstance(array, Rows):
                    _write_rows(member, key, array)
                else:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)


def _write_rows(member: io.BufferedIOBase, key: str, rows: Rows) -> None:
    written = 0
    for part in rows.parts():
        if written == 0:
            header = np.lib.format.header_data_from_array_1_0(part)
            shape = (rows.count, *part.shape[1:])
            np.lib.format.write_array_header_1_0(member, header | {"shape": shape, "fortran_order": False})
        member.write(np.asarray(part, order="C").data.cast("B"))
        written += len(part)
    if written != rows.count:
        raise ValueError(f"{key} has {written} rows, not {rows.count}")


def mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file of ours, read-only. They stay on disk: only what is looked at is read."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            with archive.open(member) as stream:
                shape, _, dtype = npy_header(stream)
                header = stream.tell()
            file.seek(member.header_offset)
            names = sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
            start = member.header_offset + LOCAL_HEADER.size + names + header
            key = member.filename.removesuffix(".npy")
            # Of nothing there is no map.
            arrays[key] = np.memmap(path, dtype, "r", start, shape) if 0 not in shape else np.empty(shape, dtype)
    return arrays
