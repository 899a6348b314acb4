"""Video depth on Sintel, Bonn, KITTI and ScanNet: all alignments of `evaluation/depth.py`, side by side.

The model is asked at the centres of the truth's own pixels, so nothing is resized; stored predictions of another size
are, as the official code does it (bicubic). A dataset's score is the mean over sequences weighted by valid pixels, as
in the tables of the field; `METRIC_plain` is the plain mean. `disparity_lstsq` has rules of its own
(`evaluation/disparity.py`). `official.ALIGNMENT` is what the official code gives, where one NaN spoils a sequence.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pipelines.evaluation import depth, disparity
from pipelines.evaluation.benchmarks.benchmark import (
    Benchmark,
    ClipName,
    Found,
    Prediction,
    Scores,
    number,
    plain_means,
    require_aspect,
    require_clips,
)
from pipelines.evaluation.benchmarks.sequence_clip import LAYOUT, SequenceClip, find_sequences, open_clip, protocol
from pipelines.pictures.drawing import below, beside, caption, depth_colours, depth_range, fitted, titled
from pipelines.results.asked import Asked
from pipelines.results.given import Intrinsics

NAMES = {"delta_1.25": "delta1", "delta_1.25^2": "delta2", "delta_1.25^3": "delta3"}
OFFICIAL = ("metric", "scale", "scale_shift")
FRAMES, SIDE = 3, 420  # of the picture


class VideoDepth(Benchmark):
    key = "depth"
    title = "Video depth"
    headline = "scale_shift.abs_rel"
    higher_is_better = False
    shown: ClassVar = {
        "abs_rel": "AbsRel ↓",
        "abs_rel_plain": "AbsRel, plain mean ↓",
        "rmse": "RMSE, m ↓",
        "delta1": "delta < 1.25 ↑",
    }
    rules = (
        "one alignment per sequence over all its frames; valid: 0 < truth < cap (Sintel, Bonn 70 m, ScanNet 10 m); "
        "Sintel cut off at 70 m after alignment; mean over sequences weighted by valid pixels; what is not finite is "
        "left out of fit and errors, and counts as wrong in the deltas"
    )

    def find(self, data: Sequence[str]) -> Found:
        found = find_sequences(self.key, data)
        require_clips(found.clips, data, self.title, LAYOUT)
        return found

    def open(self, clip: ClipName) -> SequenceClip:
        return open_clip(self.key, clip)

    def asked(self, truth: SequenceClip, *, known_intrinsics: bool) -> Asked:
        return Asked(
            tasks=("depth",),
            depth_size=max(truth.sequence.image_size),
            intrinsics=first_intrinsics(truth) if known_intrinsics else None,
        )

    def prediction(self, truth: SequenceClip, results: dict[str, dict[str, np.ndarray]]) -> Prediction:
        return {"depth": results["depth"]["depth"]}

    def scores(self, truth: SequenceClip, prediction: Prediction) -> Scores:
        rule, right = protocol(self.key)[truth.name.subset], truth.depth
        said = at_size_of(right, prediction, truth.where)
        row: Scores = {
            "digest": truth.digest_with(right),
            "frames": len(truth),
            "height": right.shape[1],
            "width": right.shape[2],
        }
        rules = {"cap": rule.get("cap"), "clip": rule.get("clip")}
        for alignment in depth.FITS:
            found = depth.depth_scores(right, said, alignment, **rules)
            row |= {"valid_pixels": found["valid_pixels"], "not_finite": found["not_finite"]}
            row |= _named(alignment, found)
            if alignment in OFFICIAL:
                if found["not_finite"]:
                    found = depth.depth_scores(right, said, alignment, **rules, parity=True)
                row |= _named(f"official.{alignment}", found)
        return row | _named(
            disparity.NAME, disparity.disparity_scores(right, said, disparity.Rule(**rule["disparity"]))
        )

    def summary(self, rows: Sequence[Scores]) -> Scores:
        """Weighted by valid pixels, and plain (of `disparity_lstsq` plain alone); a score that a sequence lacks is
        lacking in the weighted mean too."""
        means = plain_means(rows)
        weights = np.array([row["valid_pixels"] for row in rows], np.float64)
        for alignment in (*depth.FITS, *(f"official.{name}" for name in OFFICIAL)):
            for metric in depth.METRICS:
                key = f"{alignment}.{NAMES.get(metric, metric)}"
                means[f"{key}_plain"] = means[key]
                values = [row[key] for row in rows]
                known = weights.sum() > 0 and None not in values
                means[key] = float(np.average(values, weights=weights)) if known else None
        for metric in depth.METRICS:
            key = f"{disparity.NAME}.{NAMES.get(metric, metric)}"
            means[f"{key}_plain"] = means[key]
        return means | {"clips": len(rows), "valid_pixels": int(weights.sum())}

    def picture(self, truth: SequenceClip, prediction: Prediction, title: str) -> np.ndarray:
        right = truth.depth
        said = at_size_of(right, prediction, truth.where)
        cap = protocol(self.key)[truth.name.subset].get("cap")
        right = np.where(depth.valid_pixels(right, cap), right, np.nan)
        scale = np.nanmedian(right) / np.nanmedian(np.where(np.isnan(right), np.nan, said))
        low, high = depth_range(right)
        rows = []
        for t in np.linspace(0, len(right) - 1, min(FRAMES, len(right))).astype(int).tolist():
            tiles = [truth.image(t), depth_colours(right[t], low, high), depth_colours(scale * said[t], low, high)]
            words = (f"frame {t}", f"truth, {low:.1f} to {high:.1f} m", "prediction, by medians")
            rows.append(beside([titled(fitted(tile, SIDE), word) for tile, word in zip(tiles, words, strict=True)]))
        return below([caption(rows[0].shape[1], title), *rows])


BENCHMARK = VideoDepth()


def _named(alignment: str, found: dict[str, float]) -> Scores:
    return {f"{alignment}.{NAMES.get(key, key)}": number(found[key]) for key in (*depth.METRICS, "scale", "shift")}


def first_intrinsics(truth: SequenceClip) -> Intrinsics:
    """Of the first frame. ValueError if there are none, or if they change, which is more than can be told."""
    if isinstance(truth, SequenceClip) and "intrinsics" in truth.sequence.lacks:
        raise ValueError(f"{truth.where} came without intrinsics: evaluate it without --known-intrinsics")
    matrices = truth.corner_intrinsics
    if np.abs(matrices - matrices[:1]).max() > 1e-3 * matrices[0, 0, 0]:
        raise ValueError(f"intrinsics of {truth.where} change: --known-intrinsics can tell only those that do not")
    (fx, _, cx), (_, fy, cy), _ = matrices[0].tolist()
    return Intrinsics(fx, fy, cx, cy)


def at_size_of(truth: np.ndarray, prediction: Prediction, where: str) -> np.ndarray:
    """(T, H, W). ValueError for another number of frames."""
    said = prediction.get("depth")
    if said is None or said.ndim != 3 or len(said) != len(truth):
        shape = "missing" if said is None else said.shape
        raise ValueError(f"depth of the prediction for {where} is {shape}, the truth has {len(truth)} frames")
    if said.shape == truth.shape:
        return said
    require_aspect(said.shape[1:], truth.shape[1:], "depth", where)
    return np.stack([depth.resized(frame.astype(np.float32), truth.shape[1:]) for frame in said])
