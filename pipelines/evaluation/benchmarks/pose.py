"""Camera paths: ATE and RPE after Sim(3), and AUC@30.

On Sintel, Bonn, TUM and ScanNet, or any truth in TUM's format; on RealEstate10K and CO3D, of which the field prints
AUC@30, and whose lengths have a unit of their own.

A path that cannot be aligned (a camera that stands still, a line) has no ATE and no RPE-T, keeps its RPE-R, and is
counted. A path with a camera that could not be told fails: it has no scores, and is listed with its reason.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pipelines.datasets import reader
from pipelines.evaluation import pose
from pipelines.evaluation.benchmarks.benchmark import (
    Benchmark,
    ClipName,
    Found,
    Prediction,
    Scores,
    plain_means,
    require_clips,
    require_shape,
)
from pipelines.evaluation.benchmarks.depth import first_intrinsics
from pipelines.evaluation.benchmarks.sequence_clip import LAYOUT, SequenceClip, find_sequences, open_clip
from pipelines.evaluation.similarity import Degenerate
from pipelines.geometry import inverse
from pipelines.results.asked import Asked

DRAWN = 10  # frames of a scene, as VGGT draws them
BY_CATEGORY = "co3d"
"""Scores are means over its categories, each that over its sequences; with as many pairs in each, that is pooling."""
WORDS = ("reason", "drawn", "category")
"""What is told of a clip, and is no score."""


class CameraPose(Benchmark):
    key = "pose"
    title = "Camera pose"
    headline = "sim3.ate"
    higher_is_better = False
    shown: ClassVar = {
        "ate": "ATE, m ↓",
        "rpe_t": "RPE-T, m ↓",
        "rpe_r": "RPE-R, ° ↓",
        "auc_30": "AUC@30 ↑",
        "auc_30_exact": "its exact area ↑",
        "rotation_5": "rotation < 5° ↑",
        "direction_5": "direction < 5° ↑",
    }
    rules = (
        "Sim(3) by Umeyama over all frames; RPE of neighbouring frames, root mean squares; AUC@30 over all pairs of "
        f"frames of a sequence, or of {DRAWN} drawn by generator 0, VGGT's bins; plain mean over the sequences "
        "that have the score, on CO3D over categories; lengths on RealEstate10K and CO3D are no metres"
    )

    def find(self, data: Sequence[str]) -> Found:
        found = find_sequences(self.key, data)
        require_clips(found.clips, data, self.title, LAYOUT)
        return found

    def open(self, clip: ClipName) -> SequenceClip:
        truth = open_clip(self.key, clip)
        if np.isfinite(truth.world_from_cam).all(axis=(1, 2)).sum() < 2:
            raise ValueError(f"{truth.where} has hardly a frame whose pose is known")
        return truth

    def asked(self, truth: SequenceClip, *, known_intrinsics: bool) -> Asked:
        return Asked(tasks=("cameras",), intrinsics=first_intrinsics(truth) if known_intrinsics else None)

    def prediction(self, truth: SequenceClip, results: dict[str, dict[str, np.ndarray]]) -> Prediction:
        return {"world_from_cam": results["cameras"]["world_from_cam"]}

    def scores(self, truth: SequenceClip, prediction: Prediction) -> Scores:
        right = truth.world_from_cam
        said = require_shape(prediction, "world_from_cam", right.shape, truth.where)
        row: Scores = {"frames": len(truth)} | pair_scores(said, right, "pairs")
        if truth.name.subset == BY_CATEGORY:
            row["category"] = reader(BY_CATEGORY).scene_of(truth.name.name)
        drawn = drawn_frames(right)
        row |= pair_scores(said[drawn], right[drawn], "ten_frames") | {"drawn": " ".join(map(str, drawn.tolist()))}
        try:
            found = pose.path_scores(said, right)
        except ValueError as error:
            return row | {"alignable": 0, "reason": str(error)}
        row |= {
            "alignable": int(found["reason"] is None),
            "reason": found["reason"],
            "frames_without_truth": found["frames_without_truth"],
            "sim3.ate": found["ate"],
            "sim3.rpe_t": found["rpe_translation"],
            "sim3.rpe_r": found["rpe_rotation_degrees"],
        }
        known = np.isfinite(right).all(axis=(1, 2))
        for alignment in ("se3", "scale_only", "none"):
            try:
                errors = pose.position_errors(said[known], right[known], alignment)
            except Degenerate:
                continue
            row[f"{alignment}.ate"] = pose.root_mean_square(errors)
        return row

    def summary(self, rows: Sequence[Scores]) -> Scores:
        kept = [{key: value for key, value in row.items() if key not in WORDS} for row in rows]
        not_alignable = sum(row["alignable"] == 0 for row in rows)
        categories = sorted({row["category"] for row in rows if "category" in row})
        if not categories:
            return plain_means(kept) | {"clips": len(rows), "not_alignable": not_alignable}
        means = []
        for category in categories:
            of_it = plain_means([scores for scores, row in zip(kept, rows, strict=True) if row["category"] == category])
            means.append({key: value for key, value in of_it.items() if not key.endswith("#")})
        return plain_means(means) | {"clips": len(rows), "categories": len(categories), "not_alignable": not_alignable}

    def picture(self, truth: SequenceClip, prediction: Prediction, title: str) -> np.ndarray:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        right, said = truth.world_from_cam, prediction["world_from_cam"].astype(np.float64)
        known = np.isfinite(right).all(axis=(1, 2)) & np.isfinite(said).all(axis=(1, 2))
        try:
            said = pose.align(said[known], right[known], "sim3")
        except Degenerate:
            said = said[known]
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        for axes, (a, b), words in zip(figure.subplots(1, 2), ((0, 2), (0, 1)), ("x, z", "x, y"), strict=True):
            axes.plot(right[known, a, 3], right[known, b, 3], "k-", label="truth")
            axes.plot(said[:, a, 3], said[:, b, 3], "C3.-", label="prediction, Sim(3)")
            axes.set(title=words, aspect="equal", adjustable="datalim")
        figure.axes[0].legend()
        figure.suptitle(title, fontsize=10)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]


BENCHMARK = CameraPose()


def pair_scores(said: np.ndarray, right: np.ndarray, kind: str) -> Scores:
    """AUC@30 over all pairs with truth, and the shares of them off by less than 5 degrees; pairs with a camera that is
    not finite are in none."""
    known = np.isfinite(right).all(axis=(1, 2))
    finite = np.isfinite(said[known]).all(axis=(1, 2))
    usable = np.where(finite[:, None, None], said[known], np.eye(4))
    rotation, direction = pose.pair_errors(inverse(usable), inverse(right[known]))
    first, second = np.triu_indices(len(usable), 1)
    lost = ~(finite[first] & finite[second])
    rotation, direction = np.where(lost, np.nan, rotation), np.where(lost, np.nan, direction)
    return {
        f"{kind}.auc_30": pose.auc(rotation, direction, 30),
        f"{kind}.auc_30_exact": pose.auc_exact(rotation, direction, 30.0),
        f"{kind}.rotation_5": float(np.mean(rotation < 5)),
        f"{kind}.direction_5": float(np.mean(direction < 5)),
    }


def drawn_frames(right: np.ndarray) -> np.ndarray:
    """`DRAWN` of those with truth, in the order drawn, by generator 0; all if there are fewer."""
    known = np.flatnonzero(np.isfinite(right).all(axis=(1, 2)))
    return np.random.default_rng(0).permutation(known)[:DRAWN]
