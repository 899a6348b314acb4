"""What a video is adapted to: answers that somebody believes, in an .npz file of Q rows. Nothing in it is executed.

| key                         | shape, dtype     | what it is                                                       |
|-----------------------------|------------------|------------------------------------------------------------------|
| `clip`                      | (3,) int         | T, H, W: of the chosen frames, in pixels of the video            |
| `video`                     | (1,) text        | optional: digest of these frames, as `request.video` has it in   |
|                             |                  | result.json or adapt.json; labels of others are then refused     |
| `uv_norm`                   | (Q, 2) float     | the pixel asked about, in frame `t_src`, from 0 to 1             |
| `t_src`, `t_tgt`, `t_cam`   | (Q,) int         | frames of the clip, counted from 0 among those chosen            |
| `xyz`                       | (Q, 3) float     | the point at `t_tgt`, in camera `t_cam`; any one unit of length  |
| `uv_tgt`                    | (Q, 2) float     | where it appears in frame `t_tgt`, from 0 to 1 where inside      |
| `visible`                   | (Q,) bool        | seen in frame `t_tgt`                                            |
| `displacement`              | (Q, 3) float     | the point at `t_tgt` minus the point at `t_src`                  |
| `normal`                    | (Q, 3) float     | of its surface, unit length                                      |
| `depth`                     | (Q,) float       | z of `xyz`, where no more is known of it, in any one unit; NaN   |
|                             |                  | where it is not known                                            |
| `xyz_known` and so on       | (Q,) bool        | optional: the rows in which that label is known; by default all  |
| `weight`                    | (Q,) float       | optional, >= 0: how often a row is learnt from; 0 never          |

One of the six labels is enough; what is not there is masked. Conventions as everywhere: docs/formats.md.
"""

import hashlib
import io
import posixpath
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from pipelines.query_table import VALID_BITS
from pipelines.raw.folder import RawFolder
from pipelines.raw.npz import Npz
from pipelines.raw.place import absolute, open_place, reachable
from pipelines.whole import write_file

TIMES = ("t_src", "t_tgt", "t_cam")
ASKED = ("uv_norm", *TIMES)
SHAPES = {"xyz": (3,), "uv_tgt": (2,), "visible": (), "displacement": (3,), "normal": (3,)}
MOST_LABELS = 10_000_000  # a file of them is 500 MB
UNIT_TOLERANCE = 1e-2  # of the length of a normal; files may be float16

Columns = dict[str, np.ndarray]
"""`ASKED`, five labels, `valid` and `flags` as in query_table.py, `weight`, and `depth`, NaN where it is not known: Q
rows of each."""


@dataclass(frozen=True)
class PseudoLabels:
    clip: tuple[int, int, int]
    """T, H, W."""
    columns: Columns
    video: str | None = None
    """Digest of the frames that they are of, where that is known."""

    def __len__(self) -> int:
        return len(self.columns["t_src"])

    @property
    def digest(self) -> str:
        """Of all that is learnt from them."""
        digest = hashlib.blake2b(repr(self.clip).encode(), digest_size=16)
        for name, column in sorted(self.columns.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(column))
        return digest.hexdigest()

    @classmethod
    def of(cls, clip: tuple[int, int, int], given: Columns, where: str, video: str | None = None) -> "PseudoLabels":
        """From the arrays of a file, without `clip` and `video`. ValueError, naming `where`, for what is no label."""
        unknown = sorted(set(given) - {*ASKED, *SHAPES, "depth", "weight", *(f"{name}_known" for name in SHAPES)})
        if unknown:
            raise ValueError(f"{where} has {', '.join(unknown)}, which no label is called: see docs/adapt.md")
        if missing := [name for name in ASKED if name not in given]:
            raise ValueError(f"{where} lacks {', '.join(missing)}: see docs/adapt.md")
        count = len(given["t_src"])
        columns = {"uv_norm": _array(given, "uv_norm", (count, 2), "f", where)}
        columns |= {name: _array(given, name, (count,), "iu", where) for name in TIMES}
        _require_range(columns, clip[0], where)

        columns["valid"], columns["flags"] = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
        evenly = {"weight": np.ones(count, np.float32)}
        columns["weight"] = _array(evenly | given, "weight", (count,), "f", where)
        if not (np.isfinite(columns["weight"]) & (columns["weight"] >= 0)).all():
            raise ValueError(f"{where}: a weight is negative or no number; 0 is for rows not to learn from")
        for name in SHAPES:
            columns[name], known = _label(given, name, count, where)
            columns["valid"] |= np.where(known & (columns["weight"] > 0), VALID_BITS[name], 0).astype(np.uint8)
        columns["depth"] = np.where(columns["weight"] > 0, _depth(given, count, where), np.float32(np.nan))
        if not (columns["valid"].any() or np.isfinite(columns["depth"]).any()):
            raise ValueError(f"{where} has no label: one of {', '.join(SHAPES)}, depth must be known in some row")
        return cls(clip, columns, video)

    def require_of(self, clip: tuple[int, int, int], video: str, where: str) -> None:
        """ValueError if they are of other frames than these."""
        if self.clip != clip:
            raise ValueError(
                f"{where} is of (T, H, W) = {self.clip}, the chosen frames are {clip}: labels of another video, or of "
                "other frames; see --start, --step, --fps and --num-frames"
            )
        if self.video not in (None, video):
            raise ValueError(f"{where} is of video {self.video}, this one is {video}: labels of another video")


def _array(given: Columns, name: str, shape: tuple[int, ...], kinds: str, where: str) -> np.ndarray:
    array = given[name]
    if array.shape != shape or array.dtype.kind not in kinds:
        wanted = {"f": "float", "iu": "int", "b": "bool"}[kinds]
        raise ValueError(f"{where}: {name} is {array.shape} {array.dtype}, it must be {shape} {wanted}")
    return array.astype({"f": np.float32, "iu": np.int64, "b": bool}[kinds])


def _require_range(columns: Columns, num_frames: int, where: str) -> None:
    inside = ((columns["uv_norm"] >= 0) & (columns["uv_norm"] <= 1)).all(axis=1)  # NaN is not
    if not inside.all():
        row = int((~inside).argmax())
        raise ValueError(
            f"{where}: uv_norm of row {row} is {columns['uv_norm'][row].tolist()}: from 0 to 1, pixels by (W, H)"
        )
    for name in TIMES:
        wrong = (columns[name] < 0) | (columns[name] >= num_frames)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{where}: {name} of row {row} is {columns[name][row]}, the clip has {num_frames} frames, from 0 on"
            )


def _label(given: Columns, name: str, count: int, where: str) -> tuple[np.ndarray, Bool[np.ndarray, "Q"]]:
    """(values, 0 where they are not known; where they are)."""
    shape, kind = (count, *SHAPES[name]), "b" if name == "visible" else "f"
    if name not in given:
        if f"{name}_known" in given:
            raise ValueError(f"{where} has {name}_known, but no {name}")
        return np.zeros(shape, bool if kind == "b" else np.float32), np.zeros(count, bool)
    values = _array(given, name, shape, kind, where)
    known = np.ones(count, bool)
    if f"{name}_known" in given:
        known = _array(given, f"{name}_known", (count,), "b", where)
    values[~known] = 0
    bad = ~np.isfinite(values.reshape(count, -1)).all(axis=1)
    if name == "normal":
        bad |= known & (np.abs(np.linalg.norm(values, axis=1) - 1) > UNIT_TOLERANCE)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{where}: {name} of row {row} is {values[row].tolist()}, in {int(bad.sum())} of {count} rows no label: "
            f"give {name}_known, False there"
        )
    return values, known


def _depth(given: Columns, count: int, where: str) -> Float32[np.ndarray, "Q"]:
    if "depth" not in given:
        return np.full(count, np.nan, np.float32)
    depth = _array(given, "depth", (count,), "f", where)
    if (bad := (depth <= 0) | np.isinf(depth)).any():
        row = int(bad.argmax())
        raise ValueError(
            f"{where}: depth of row {row} is {depth[row]}: it must be above 0, or NaN where it is not known"
        )
    return depth


def read_labels(uri: str, what: str) -> PseudoLabels:
    """ValueError, naming `what` by its option, the file, and what is wrong with it."""
    where = f"{what} {uri}"
    uri = absolute(uri)
    fs, path = open_place(uri)
    with reachable(where):
        if not fs.isfile(path):
            raise ValueError(f"{where} does not exist, or is no file")
    folder, name = posixpath.split(uri)
    file = Npz(RawFolder(folder), name)
    shapes = {key: file.shape(key) or () for key in file.keys()}  # noqa: SIM118, it is no dict
    if shapes.get("clip") != (3,) or shapes.get("video", (1,)) != (1,):
        raise ValueError(f"{where}: `clip` must be there, (3,): T, H, W; `video`, if it is, (1,): see docs/adapt.md")
    for key, shape in shapes.items():
        if not shape or shape[0] > MOST_LABELS or np.prod(shape[1:]) > SHAPES["xyz"][0]:
            raise ValueError(f"{where}: {key} is {shape}: Q rows of labels, at most {MOST_LABELS:,}")
    given = {key: file.rows(key) for key in shapes}
    clip, video = given.pop("clip"), given.pop("video", None)
    if clip.dtype.kind not in "iu" or (video is not None and video.dtype.kind != "U"):
        raise ValueError(f"{where}: `clip` must be whole numbers, `video` text: see docs/adapt.md")
    return PseudoLabels.of(tuple(clip.tolist()), given, where, None if video is None else str(video[0]))


def write_labels(uri: str, labels: PseudoLabels) -> None:
    """The file of the table, whole or not at all."""
    arrays = {name: labels.columns[name] for name in (*ASKED, "weight")}
    for name, bit in VALID_BITS.items():
        known = labels.columns["valid"] & bit > 0
        if known.any():
            arrays |= {name: labels.columns[name], f"{name}_known": known}
    if np.isfinite(labels.columns["depth"]).any():
        arrays["depth"] = labels.columns["depth"]
    if labels.video is not None:
        arrays["video"] = np.array([labels.video])
    file = io.BytesIO()
    np.savez(file, clip=np.array(labels.clip), **arrays)
    write_file(uri, file.getvalue())
