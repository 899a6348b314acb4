"""What a user knows of a video, from files: points to follow, intrinsics, camera poses. Nothing in them is executed.

| what       | as                                                                                                   |
|------------|------------------------------------------------------------------------------------------------------|
| points     | .csv with the columns u,v,t; .json: {"points": [[u, v], ...], "t_src": [t, ...]}; .npz:      |
|            | `points` (N, 2), `t_src` (N,), as in tracks.npz. u and v are uv_norm, from 0 to 1; t is a frame of    |
|            | the clip, counted from 0                                                                             |
| intrinsics | fx,fy,cx,cy in native pixels; .json: {"fx": ..., "fy": ..., "cx": ..., "cy": ...}; .npz: `intrinsics` |
|            | (3, 3)                                                                                               |
| poses      | .txt as cameras.txt (TUM: frame of the source, position, quaternion); .npz: `world_from_cam`          |
|            | (T, 4, 4), one per frame of the clip, NaN where not known                                             |
"""

import csv
import io
import math
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from pipelines import documents
from pipelines.geometry import rotation_from_xyzw
from pipelines.raw.folder import RawFolder
from pipelines.raw.npz import Npz
from pipelines.whole import read_file

MOST_FRAMES = 2**31 - 1
ROTATION_TOLERANCE = 1e-3
"""By which the upper left of a pose may differ from a rotation."""

MANUAL = "see the table at the top of pipelines/results/given.py"


@dataclass(frozen=True)
class Points:
    points: Float32[np.ndarray, "N 2"]
    """uv_norm in frame `t_src`."""
    t_src: Int64[np.ndarray, "N"]


@dataclass(frozen=True)
class PointsDocument:
    """`Points` as JSON has them."""

    points: list[tuple[float, float]]
    t_src: list[int]


@dataclass(frozen=True)
class Poses:
    """Known poses, by frames of the source or of the clip."""

    world_from_cam: Float64[np.ndarray, "P 4 4"]
    frames: Int64[np.ndarray, "P"] | None
    """Of the source; None: one for each frame of the clip."""

    def of(self, frame_numbers: Int64[np.ndarray, "T"], where: str) -> Float64[np.ndarray, "T 4 4"]:
        """Those of a clip, NaN where there is none. ValueError, naming the video, if fewer than two are of it, or if
        they do not move."""
        found = self._of_frames(frame_numbers, where)
        positions = found[np.isfinite(found).all(axis=(1, 2)), :3, 3]
        if len(positions) < 2:
            raise ValueError(f"--poses has hardly a pose of the frames of {where}: its first column counts them from 0")
        if not np.ptp(positions, axis=0).any():
            raise ValueError(f"the cameras of --poses do not move in {where}: no scale can be told")
        return found

    def _of_frames(self, frame_numbers: Int64[np.ndarray, "T"], where: str) -> Float64[np.ndarray, "T 4 4"]:
        if self.frames is None:
            if len(self.world_from_cam) != len(frame_numbers):
                raise ValueError(
                    f"--poses has {len(self.world_from_cam)} poses, {where} has {len(frame_numbers)} frames: one for "
                    "each, or a .txt with frame numbers"
                )
            return self.world_from_cam
        found = np.full((len(frame_numbers), 4, 4), np.nan)
        place = {int(frame): i for i, frame in enumerate(self.frames)}
        for i, number in enumerate(frame_numbers.tolist()):
            if number in place:
                found[i] = self.world_from_cam[place[number]]
        return found


@dataclass(frozen=True)
class Intrinsics:
    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        values = (self.fx, self.fy, self.cx, self.cy)
        if not (all(map(math.isfinite, values)) and self.fx > 0 and self.fy > 0):
            raise ValueError(f"--intrinsics {values} must be finite numbers, fx and fy above 0")

    @property
    def matrix(self) -> Float64[np.ndarray, "3 3"]:
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])


def read_points(uri: str) -> Points:
    """ValueError, naming the file and what is wrong."""
    kinds = {".csv": _points_of_csv, ".json": _points_of_json, ".npz": _points_of_npz}
    points, t_src = _read("--points", uri, kinds)
    if not len(points) or points.shape != (len(t_src), 2) or t_src.ndim != 1:
        raise ValueError(f"--points {uri} has points {points.shape}, frames {t_src.shape}: (N, 2) and (N,), N > 0")
    outside = ~((points >= 0) & (points <= 1)).all(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"--points {uri}: {int(outside.sum())} of {len(points)} are outside the image, first point {row} at "
            f"{points[row].tolist()}: u and v run from 0 to 1, pixels divided by (W, H)"
        )
    if (t_src < 0).any():
        raise ValueError(f"--points {uri} has frame {int(t_src.min())}: frames are counted from 0")
    return Points(points.astype(np.float32), t_src)


def read_intrinsics(given: str) -> Intrinsics:
    """From four numbers or a file. ValueError naming it and what is wrong."""
    if given.count(",") == 3:
        try:
            return Intrinsics(*map(float, given.split(",")))
        except ValueError as error:
            raise ValueError(f"--intrinsics {given} must be fx,fy,cx,cy in pixels of the video: {error}") from None
    return _read("--intrinsics", given, {".json": _intrinsics_of_json, ".npz": _intrinsics_of_npz})


def read_poses(uri: str) -> Poses:
    """ValueError, naming the file and what is wrong."""
    poses = _read("--poses", uri, {".txt": _poses_of_tum, ".npz": _poses_of_npz})
    known = poses.world_from_cam[np.isfinite(poses.world_from_cam).all(axis=(1, 2))]
    turn = known[:, :3, :3]
    off = np.abs(turn @ turn.swapaxes(1, 2) - np.eye(3)).max(initial=0)
    if len(known) < 2 or off > ROTATION_TOLERANCE or (np.linalg.det(turn) < 0).any():
        raise ValueError(
            f"--poses {uri} must have two poses or more, each a rotation and a position (off by {off:.1e}): {MANUAL}"
        )
    if not np.array_equal(known[:, 3], np.broadcast_to([0, 0, 0, 1], (len(known), 4))):
        raise ValueError(f"--poses {uri}: the last row of each pose must be 0 0 0 1")
    return poses


def _read(option: str, uri: str, kinds: dict[str, Callable[[str, bytes], Any]]) -> Any:
    suffix = posixpath.splitext(uri)[1].lower()
    if suffix not in kinds:
        raise ValueError(f"{option} {uri} must end with {', '.join(kinds)}: {MANUAL}")
    content = read_file(uri)
    if content is None:
        raise ValueError(f"{option} {uri} does not exist")
    return kinds[suffix](uri, content)


def _points_of_csv(uri: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode()))
        if missing := sorted(set("uvt") - set(reader.fieldnames or ())):
            raise ValueError(f"no column {', '.join(missing)} in its first line")
        rows = list(reader)
        if any(None in row for row in rows):
            raise ValueError("a line has more values than the first has names")
        points = np.array([(float(row["u"]), float(row["v"])) for row in rows]).reshape(-1, 2)
        t_src = np.array([int(row["t"]) for row in rows], np.int64)
    except (UnicodeDecodeError, csv.Error, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"--points {uri} must have the columns u,v,t, numbers all ({error})") from None
    return points, t_src


def _points_of_json(uri: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    remedy = 'it must be {"points": [[u, v], ...], "t_src": [t, ...]}'
    told = documents.parse(content, PointsDocument, f"--points {uri}", remedy, others="forbid")
    if max(map(abs, told.t_src), default=0) > MOST_FRAMES:
        raise ValueError(f"--points {uri} has frame {max(told.t_src, key=abs)}: no video has so many")
    return np.array(told.points).reshape(-1, 2), np.array(told.t_src, np.int64)


def _points_of_npz(uri: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    points, t_src = _array("--points", uri, "points"), _array("--points", uri, "t_src", kinds="iu")
    if t_src.max(initial=0) > MOST_FRAMES:
        raise ValueError(f"--points {uri} has frame {t_src.max()}: no video has so many")
    return points, t_src.astype(np.int64)


def _intrinsics_of_json(uri: str, content: bytes) -> Intrinsics:
    remedy = 'it must be {"fx": ..., "fy": ..., "cx": ..., "cy": ...}'
    return documents.parse(content, Intrinsics, f"--intrinsics {uri}", remedy, others="forbid")


def _intrinsics_of_npz(uri: str, content: bytes) -> Intrinsics:
    matrix = _array("--intrinsics", uri, "intrinsics").astype(np.float64)
    if matrix.shape != (3, 3):
        raise ValueError(f"--intrinsics {uri} has {matrix.shape}: (3, 3), one camera for all frames")
    pinhole = Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
    if not np.array_equal(pinhole.matrix, matrix):
        raise ValueError(f"--intrinsics {uri} is {matrix.tolist()}: fx 0 cx, 0 fy cy, 0 0 1")
    return pinhole


def _poses_of_tum(uri: str, content: bytes) -> Poses:
    try:
        lines = [line for line in content.decode().splitlines() if line.strip() and not line.lstrip().startswith("#")]
        rows = np.array([[float(value) for value in line.split()] for line in lines]).reshape(-1, 8)
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"--poses {uri} must have eight numbers a line, as cameras.txt ({error})") from None
    frames = np.round(rows[:, 0])
    if not np.isfinite(rows).all() or (frames != rows[:, 0]).any() or len(np.unique(frames)) != len(frames):
        raise ValueError(
            f"--poses {uri}: its first column must be the frame, counted from 0 in the source, each once; times in "
            "seconds say nothing about which frame they are of"
        )
    if not rows[:, 4:].any(axis=1).all():
        raise ValueError(f"--poses {uri} has a quaternion 0 0 0 0, which is no rotation")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, 3] = rows[:, 1:4]
    poses[:, :3, :3] = rotation_from_xyzw(rows[:, 4:])
    return Poses(poses, frames.astype(np.int64))


def _poses_of_npz(uri: str, content: bytes) -> Poses:
    poses = _array("--poses", uri, "world_from_cam").astype(np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"--poses {uri} has {poses.shape}: (T, 4, 4), one per frame")
    return Poses(poses, None)


def _array(option: str, uri: str, key: str, kinds: str = "fiu") -> np.ndarray:
    """ValueError if it is not there or no array of such numbers: real ones, or whole ones alone."""
    folder, name = posixpath.split(uri)
    try:
        array = Npz(RawFolder(folder or "."), name).rows(key)
    except ValueError as error:
        raise ValueError(f"{option} {uri} has no readable array {key!r} ({error}): {MANUAL}") from None
    if array.dtype.kind not in kinds:
        numbers = "whole numbers" if kinds == "iu" else "real numbers"
        raise ValueError(f"{option} {uri}: {key} is {array.dtype}, it must be {numbers}")
    return array
