"""The queries of a sample as they are stored: fields, bits, dtype, packing.

| field          | per query  | is                                                                     |
|----------------|------------|------------------------------------------------------------------------|
| `uv_norm`      | 2 float32  | the pixel asked about, in frame `t_src`, from 0 to 1                   |
| `t_src`        | uint8 or   | its frame, counted from 0 within the clip; uint16 for clips of more    |
|                | uint16     | than 255 frames                                                        |
| `t_tgt`        | as `t_src` | when we want the point                                                 |
| `t_cam`        | as `t_src` | whose camera expresses it                                              |
| `xyz`          | 3 float32  | the point at `t_tgt`, in the axes of camera `t_cam`, dataset's unit    |
| `uv_tgt`       | 2 float32  | where it appears in frame `t_tgt`, from 0 to 1                         |
| `displacement` | 3 float32  | point(t_tgt) - point(t_src), in the axes of camera `t_cam`             |
| `normal`       | 3 float16  | of its surface at `t_tgt`, unit length, in the axes of camera `t_cam`  |
| `visible`      | bool       | seen at `t_tgt`, neither hidden nor out of view                        |
| `valid`        | uint8      | `VALID_BITS`: which of the targets above are known; others are zero    |
| `flags`        | uint8      | `FLAG_BITS`: near an edge of depth or motion, on something that moves  |
"""

import numpy as np
from jaxtyping import UInt8

VALID_BITS = {"xyz": 1, "uv_tgt": 2, "visible": 4, "displacement": 8, "normal": 16}
FLAG_BITS = {"edge": 1, "dynamic": 2}


def query_dtype(num_frames: int) -> np.dtype:
    """One query: its fields, little-endian, the widest first, so that each lies aligned in a sample."""
    time = "<u1" if num_frames <= 255 else "<u2"
    return np.dtype(
        [
            ("uv_norm", "<f4", 2),
            ("xyz", "<f4", 3),
            ("uv_tgt", "<f4", 2),
            ("displacement", "<f4", 3),
            ("normal", "<f2", 3),
            ("t_src", time),
            ("t_tgt", time),
            ("t_cam", time),
            ("visible", "?"),
            ("valid", "u1"),
            ("flags", "u1"),
        ]
    )


def pack_queries(rows: np.ndarray) -> UInt8[np.ndarray, "bytes"]:
    """Q rows of `query_dtype` as they are stored: field after field."""
    return np.frombuffer(b"".join(rows[name].tobytes() for name in rows.dtype.names), np.uint8)


def unpack_queries(data: UInt8[np.ndarray, "bytes"], num_frames: int) -> dict[str, np.ndarray]:
    """The fields of a stored sample, each with Q rows, as views."""
    record = query_dtype(num_frames)
    count = data.size // record.itemsize
    fields = {}
    for name, (field, offset) in record.fields.items():
        stored = data[count * offset : count * (offset + field.itemsize)]
        fields[name] = stored.view(field.base).reshape(count, *field.shape)
    return fields
