"""What is hidden and comes back, on synthetic scenes with exact truth that anybody can write (`synthesize hidden`).

    DATA/scenes/NAME.npz      the layout of TAPVid-3D (`track_clip.py`)

Everything is compared in the camera of each frame, with one s = median ||g|| / median ||p|| over what is visible.

| entries of   | are                                                                                            |
|--------------|------------------------------------------------------------------------------------------------|
| `seen`       | visible                                                                                        |
| `hidden`     | within the image, behind something                                                             |
| `outside`    | out of view                                                                                    |
| `return`     | the first `AFTER` visible frames after a track was not visible for `AWAY` frames or longer     |

Of each: `epe`, the mean error in metres of what is finite; `within`, the share off by 10 cm at most, what is not finite
being off; `lost`, the share that is not finite. `return.identity`: the share of returns whose nearest true point is the
track's own, or one as near as 10 cm to it. `drift`: EPE of what is visible in the last quarter, less the first's.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float64
from scipy.spatial import KDTree

from pipelines.evaluation.benchmarks.benchmark import (
    Benchmark,
    ClipName,
    Found,
    Prediction,
    Scores,
    require_shape,
)
from pipelines.evaluation.benchmarks.tapvid3d import BENCHMARK as TAPVID3D
from pipelines.evaluation.benchmarks.track_sheet import track_sheet
from pipelines.evaluation.track_clip import TrackClip, read_track_clip
from pipelines.geometry import project
from pipelines.problems import counted
from pipelines.raw.folder import RawFolder
from pipelines.results.asked import Asked

SUBSET = "scenes"
AWAY, AFTER = 8, 8  # frames
NEAR = 0.1  # metres


class Hidden(Benchmark):
    key = "hidden"
    title = "Hidden and back"
    headline = "return.within"
    higher_is_better = True
    shown: ClassVar = {
        "epe": "EPE, m ↓",
        "within": "within 10 cm ↑",
        "lost": "not finite ↓",
        "identity": "identity ↑",
    }
    rules = "synthetic scenes; one scale per clip by the medians of what is visible; plain mean over clips"

    def find(self, data: Sequence[str]) -> Found:
        clips = [
            ClipName(SUBSET, name.removesuffix(".npz"), place)
            for place in data
            for name in RawFolder(place).listdir(SUBSET)[1]
            if name.endswith(".npz")
        ]
        if not clips:
            raise ValueError(
                f"no {SUBSET}/*.npz in {', '.join(data)}: python -m pipelines synthesize hidden --frames 200 --out DIR"
            )
        return Found(sorted(clips), [], "synthetic scenes", {SUBSET: counted(len(clips), "clip")})

    def open(self, clip: ClipName) -> TrackClip:
        return read_track_clip(clip.data, f"{SUBSET}/{clip.name}.npz")

    def asked(self, truth: TrackClip, *, known_intrinsics: bool) -> Asked:
        return TAPVID3D.asked(truth, known_intrinsics=known_intrinsics)

    def prediction(self, truth: TrackClip, results: dict[str, dict[str, np.ndarray]]) -> Prediction:
        return TAPVID3D.prediction(truth, results)

    def scores(self, truth: TrackClip, prediction: Prediction) -> Scores:
        g, v = truth.tracks, truth.visible
        p = require_shape(prediction, "tracks_XYZ", g.shape, truth.where)
        finite = np.isfinite(p).all(axis=-1)
        used = v & finite
        row: Scores = {"frames": len(truth), "tracks": g.shape[1]}
        if used.any():
            p = p * float(np.median(np.linalg.norm(g[used], axis=-1)) / np.median(np.linalg.norm(p[used], axis=-1)))
        error = np.where(finite, np.linalg.norm(p - g, axis=-1), np.inf)

        inside = in_image(truth)
        back = returns(v)
        for name, entries in (("seen", v), ("hidden", inside & ~v), ("outside", ~inside & ~v), ("return", back)):
            row |= {f"{name}.entries": int(entries.sum()), f"{name}.epe": _mean(error[entries & finite])}
            row[f"{name}.within"] = _mean(error[entries] <= NEAR)
            row[f"{name}.lost"] = _mean(~finite[entries])
        row["return.identity"] = identity(g, p, back & finite, int(back.sum()))
        quarter = len(truth) // 4
        first, last = _mean(error[:quarter][used[:quarter]]), _mean(error[-quarter:][used[-quarter:]])
        row["drift"] = None if first is None or last is None else last - first
        return row

    def picture(self, truth: TrackClip, prediction: Prediction, title: str) -> np.ndarray:
        return track_sheet(truth, prediction["tracks_XYZ"], truth.tracks, title)


BENCHMARK = Hidden()


def in_image(truth: TrackClip) -> Bool[np.ndarray, "T N"]:
    """Whether a point is before the camera and where an image pixel is."""
    uv = project(truth.tracks, truth.intrinsics)
    return (truth.tracks[..., 2] > 0) & (uv >= 0).all(axis=-1) & (uv < truth.size[::-1]).all(axis=-1)


def returns(visible: Bool[np.ndarray, "T N"]) -> Bool[np.ndarray, "T N"]:
    """The first `AFTER` visible frames after `AWAY` or more that are not."""
    back = np.zeros_like(visible)
    away, left = np.zeros((2, visible.shape[1]), int)
    for t, seen in enumerate(visible):
        left = np.where(seen & (away >= AWAY), AFTER, left)
        back[t] = seen & (left > 0)
        left = left - back[t]
        away = np.where(seen, 0, away + 1)
    return back


def identity(
    g: Float64[np.ndarray, "T N 3"], p: Float64[np.ndarray, "T N 3"], entries: Bool[np.ndarray, "T N"], total: int
) -> float | None:
    """The share of `total` whose nearest true point at that time is near their own."""
    right = 0
    for t in np.flatnonzero(entries.any(axis=1)):
        _, nearest = KDTree(g[t]).query(p[t, entries[t]])
        right += int((np.linalg.norm(g[t, nearest] - g[t, entries[t]], axis=-1) <= NEAR).sum())
    return right / total if total else None


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if values.size else None
