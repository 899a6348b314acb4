"""Points of all pixels of all frames in the camera of the first: the paper's clouds, and WorldTrack's reconstruction.

    DATA as Sintel and ScanNet are shipped           every pixel with truth, as for depth
    DATA/{po_mini,tum}/NAME.npz                      of WorldTrack: see `depth_clip.py`; truth from 0.1 to 5 m

The model is asked (u, v, t, t, 0) at the truth's own pixels; stored points of another size are resized to it, linearly
(as St4RTrack's are). Alignments are those of `evaluation/clouds.py`. `nearest`, after scale_mean_shift: of a sample of
pixels the mean distance to the nearest true point and back, the share of truth nearer than 5 cm, |cosine| of normals.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import Float64

from pipelines.evaluation import clouds
from pipelines.evaluation.benchmarks.benchmark import (
    NOT_PUBLISHED,
    Benchmark,
    ClipName,
    Found,
    Prediction,
    Scores,
    npz_clips,
    number,
    require_aspect,
    require_clips,
)
from pipelines.evaluation.benchmarks.depth import first_intrinsics
from pipelines.evaluation.benchmarks.sequence_clip import LAYOUT, SequenceClip, find_sequences, open_clip, protocol
from pipelines.evaluation.depth import valid_pixels
from pipelines.evaluation.depth_clip import DepthClip, read_depth_clip
from pipelines.geometry import image_grid, inverse, transform, unproject
from pipelines.pictures.drawing import below, beside, caption, depth_colours, depth_range, fitted, titled
from pipelines.problems import counted
from pipelines.results.asked import Asked

METRICS = {
    "l1_sum": "l1_sum",
    "l1_mean_axis": "l1_mean_axis",
    "l2": "epe",
    "apd": "apd",
    "rel": "rel",
    "delta": "delta",
}
WORLDTRACK = {"po_mini": 50, "tum": None}  # clips of the release, where that is known
FRAMES, NEAREST, FARTHEST = 64, 0.1, 5.0  # of WorldTrack; metres, strictly
SHOWN, SIDE = 3, 420  # of the picture

Truth = SequenceClip | DepthClip


class PointClouds(Benchmark):
    key = "cloud"
    title = "Point clouds"
    headline = "scale_mean_shift.l1_sum"
    higher_is_better = False
    shown: ClassVar = {
        "l1_sum": "L1 summed, m ↓",
        "l1_mean_axis": "L1 per axis, m ↓",
        "epe": "EPE, m ↓",
        "apd": "APD ↑",
        "rel": "Rel ↓",
        "delta": "distance < 25 % ↑",
        "accuracy": "accuracy, m ↓",
        "completion": "completion, m ↓",
        "completion_ratio": "completion < 5 cm ↑",
        "normals": "normals, cosine ↑",
    }
    rules = (
        "all pixels with truth of all frames together, in the camera of the first; Sintel to 70 m, ScanNet to 10 m, "
        f"WorldTrack {NEAREST} to {FARTHEST:g} m and its first {FRAMES} frames; what is not finite is left out of fits "
        "and errors, and a miss in APD; plain mean over sequences"
    )

    def find(self, data: Sequence[str]) -> Found:
        found, clips = find_sequences(self.key, data), npz_clips(data, WORLDTRACK)
        require_clips([*found.clips, *clips], data, self.title, f"{LAYOUT}, or {'|'.join(WORLDTRACK)}/NAME.npz")
        told, partial = dict(found.subsets), "NOT" in found.title
        for subset, whole in WORLDTRACK.items():
            if here := sum(clip.subset == subset for clip in clips):
                told[subset] = counted(here, "clip") if whole is None else f"{here} of {whole} clips"
                partial |= whole is not None and here < whole
        title = ", ".join(f"{subset} {part}" for subset, part in told.items())
        return Found([*found.clips, *clips], found.missing, title + (NOT_PUBLISHED if partial else ""), told)

    def open(self, clip: ClipName) -> Truth:
        if clip.subset in WORLDTRACK:
            return read_depth_clip(clip.data, f"{clip.subset}/{clip.name}.npz", frames=FRAMES)
        truth = open_clip(self.key, clip)
        if lacks := truth.sequence.lacks:
            raise ValueError(
                f"{truth.where} came without {' and '.join(sorted(lacks))}: give the dataset as it is shipped"
            )
        if not np.isfinite(truth.world_from_cam[0]).all():
            raise ValueError(f"the first pose of {truth.where} is not known: its points have no camera to be told in")
        return truth

    def asked(self, truth: Truth, *, known_intrinsics: bool) -> Asked:
        intrinsics = first_intrinsics(truth) if known_intrinsics else None
        return Asked(tasks=("points",), depth_size=max(truth.size), all_pixels=True, intrinsics=intrinsics)

    def prediction(self, truth: Truth, results: dict[str, dict[str, np.ndarray]]) -> Prediction:
        return {"points_world": results["points"]["xyz"].reshape(len(truth), *truth.size, 3)}

    def scores(self, truth: Truth, prediction: Prediction) -> Scores:
        frames = Frames.of(truth, prediction)
        found = clouds.cloud_scores(frames)
        row: Scores = {"frames": len(truth), "height": frames.depth.shape[1], "width": frames.depth.shape[2]}
        if isinstance(truth, SequenceClip):
            row["digest"] = truth.digest_with(frames.depth)
        row |= {key: found[key] for key in ("points_expected", "points_used")} | {"scale": number(found["s"])}
        for alignment in clouds.ALIGNMENTS:
            for metric, ours in METRICS.items():
                row[f"{alignment}.{ours}"] = number(found[alignment][metric]) if alignment in found else None
        near = found.get("nearest")
        sides = {side: near and near[side] for side in ("accuracy", "completion")}
        row |= {f"nearest.{side}": near and number(values["mean"]) for side, values in sides.items()}
        row |= {f"nearest.{side}_median": near and number(values["median"]) for side, values in sides.items()}
        row["nearest.completion_ratio"] = near and near["completion_ratio"]
        row["nearest.normals"] = near and number(np.mean([values["normal_mean"] for values in sides.values()]))
        return row

    def picture(self, truth: Truth, prediction: Prediction, title: str) -> np.ndarray:
        frames = Frames.of(truth, prediction)
        right = np.where(frames.valid, frames.depth, np.nan)
        low, high = depth_range(right)
        scale = clouds.cloud_scores(frames)["s"]
        rows = []
        for t in np.linspace(0, len(truth) - 1, min(SHOWN, len(truth))).astype(int).tolist():
            said = transform(inverse(frames.first_from_cam[t]), scale * frames.said(t))[..., 2]
            tiles = [truth.image(t), depth_colours(right[t], low, high), depth_colours(said, low, high)]
            words = (f"frame {t}", f"truth, {low:.1f} to {high:.1f} m", "prediction, in its camera")
            rows.append(beside([titled(fitted(tile, SIDE), word) for tile, word in zip(tiles, words, strict=True)]))
        return below([caption(rows[0].shape[1], title), *rows])


BENCHMARK = PointClouds()


@dataclass(frozen=True)
class Frames:
    """Truth and prediction, one frame at a time."""

    depth: np.ndarray
    """(T, H, W) metres along z."""
    valid: np.ndarray
    """(T, H, W) bool"""
    intrinsics: Float64[np.ndarray, "T 3 3"]
    first_from_cam: Float64[np.ndarray, "T 4 4"]
    """NaN where it is not known."""
    predicted: np.ndarray
    """(T, h, w, 3)"""

    @classmethod
    def of(cls, truth: Truth, prediction: Prediction) -> "Frames":
        """ValueError for points of another number of frames."""
        said = prediction.get("points_world")
        if said is None or said.ndim != 4 or len(said) < len(truth):
            shape = "missing" if said is None else said.shape
            raise ValueError(
                f"points_world of the prediction for {truth.where} is {shape}: it must be ({len(truth)}, h, w, 3)"
            )
        require_aspect(said.shape[1:3], truth.size, "points_world", truth.where)
        depth = truth.depth
        if isinstance(truth, DepthClip):
            valid = (depth > NEAREST) & (depth < FARTHEST)
        else:
            valid = valid_pixels(depth, protocol("cloud")[truth.name.subset]["cap"])
        return cls(depth, valid, truth.corner_intrinsics, truth.first_from_cam, said)

    def said(self, t: int) -> Float64[np.ndarray, "H W 3"]:
        """What is predicted for frame t, at the truth's size."""
        points, size = self.predicted[t].astype(np.float64), self.depth.shape[1:]
        if points.shape[:2] == size:
            return points
        return cv2.resize(points, size[::-1], interpolation=cv2.INTER_LINEAR)

    def __iter__(self) -> Iterator[clouds.Maps]:
        uv = image_grid(*self.depth.shape[1:])
        for t, depth in enumerate(self.depth):
            own = unproject(uv, depth.astype(np.float64), self.intrinsics[t])
            yield clouds.Maps(transform(self.first_from_cam[t], own), self.said(t), self.valid[t])
