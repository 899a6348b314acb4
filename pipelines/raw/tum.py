"""Lists and paths of TUM's RGB-D benchmark: text with a time in seconds at the beginning of each line."""

import numpy as np
from jaxtyping import Float, Float64, Int64

from pipelines.geometry import rotation_from_xyzw
from pipelines.raw.folder import RawFolder


def read_list(raw: RawFolder, path: str) -> tuple[Float64[np.ndarray, "n"], list[str]]:
    """(times, files) of lines "time path". ValueError naming the line that is none."""
    times, files = [], []
    for number, line in enumerate(raw.text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        try:
            times.append(float(parts[0]))
            files.append(parts[1])
        except (ValueError, IndexError):
            raise ValueError(f"line {number} of {path} in {raw.uri} must be a time and a path: {line!r}") from None
    if (np.diff(times) <= 0).any():
        raise ValueError(f"times of {path} in {raw.uri} do not ascend: download it again")
    return np.array(times), files


def read_path(raw: RawFolder, path: str) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n 4 4"]]:
    """(times, poses) of lines "time tx ty tz qx qy qz qw", poses as they stand there, mostly world_from_cam."""
    rows = raw.table(path, columns=8)
    norm = np.linalg.norm(rows[:, 4:], axis=1)
    if (bad := ~(np.abs(norm - 1) < 1e-2) | ~np.isfinite(rows).all(axis=1)).any():
        raise ValueError(
            f"pose {int(np.flatnonzero(bad)[0])} of {path} in {raw.uri} must be finite, its quaternion of length 1 "
            "(time tx ty tz qx qy qz qw): download it again"
        )
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = rotation_from_xyzw(rows[:, 4:])
    poses[:, :3, 3] = rows[:, 1:4]
    return rows[:, 0], poses


def associate(
    times: Float[np.ndarray, "A"], others: Float[np.ndarray, "B"], within: float = 0.02
) -> Int64[np.ndarray, "pairs 2"]:
    """What belongs together by time: the nearest pairs first, each stamp once, |dt| < `within` seconds, strictly.

    Returns (index of time, index of other time), ascending in the first.
    """
    order = np.argsort(others, kind="stable")
    first, last = (np.searchsorted(others[order], times + sign * within) for sign in (-1, 1))
    rows = np.repeat(np.arange(len(times)), last + 1 - first)
    columns = np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)] or [first])
    there = columns < len(others)
    rows, columns = rows[there], order[columns[there]]
    gaps = np.abs(times[rows] - others[columns])
    near = gaps < within
    rows, columns, gaps = rows[near], columns[near], gaps[near]

    pairs, used_rows, used_columns = [], set(), set()
    for place in np.lexsort([columns, rows, gaps]).tolist():
        row, column = int(rows[place]), int(columns[place])
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)
