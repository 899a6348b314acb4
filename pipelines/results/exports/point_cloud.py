"""A point cloud as a binary PLY file, little-endian."""

from pathlib import Path

import numpy as np

from pipelines.results.reading import Arrays, Result


def write(folder: Path, result: Result, about: str) -> list[str]:
    (folder / "points.ply").write_bytes(ply(result.arrays("points"), about))
    return []


COLUMNS = {  # array -> (names of its columns, PLY type, NumPy type)
    "xyz": (("x", "y", "z"), "float", "<f4"),
    "normal": (("nx", "ny", "nz"), "float", "<f4"),
    "rgb": (("red", "green", "blue"), "uchar", "u1"),
    "confidence": (("confidence",), "float", "<f4"),
    "frame": (("frame",), "int", "<i4"),
}


def ply(points: Arrays, about: str = "") -> bytes:
    """A point cloud, as points.npz has it or less of it, with a line about it in its head."""
    columns = {
        name: (kind, dtype, points[key].reshape(len(points["xyz"]), -1)[:, i])
        for key, (names, kind, dtype) in COLUMNS.items()
        if key in points
        for i, name in enumerate(names)
    }
    vertices = np.empty(len(points["xyz"]), [(name, dtype) for name, (_, dtype, _) in columns.items()])
    for name, (_, _, values) in columns.items():
        vertices[name] = values
    comment = f"comment {about}\n" if about else ""
    properties = "".join(f"property {kind} {name}\n" for name, (kind, _, _) in columns.items())
    header = f"ply\nformat binary_little_endian 1.0\n{comment}element vertex {len(vertices)}\n{properties}end_header\n"
    return header.encode("ascii", "replace") + vertices.tobytes()
