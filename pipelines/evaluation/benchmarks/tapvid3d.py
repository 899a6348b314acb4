"""TAPVid-3D: DriveTrack, ADT, PStudio; AJ, APD and OA of tracks in the camera of each frame, and in the world.

    DATA/{adt,pstudio,drivetrack}/NAME.npz     see `track_clip.py`

Each track is asked from its query: t_src = the query's frame, t_tgt = t_cam = t. Pixels begin at the image's corner.
World: the camera of frame 0 (t_cam = 0); clips without extrinsics have a camera that stands still in PStudio, elsewhere
it is not known, and they have no scores in the world.
"""

import gzip
import json
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pipelines.catalog import FOLDER
from pipelines.evaluation import tapvid3d
from pipelines.evaluation.benchmarks.benchmark import (
    NOT_PUBLISHED,
    Benchmark,
    ClipName,
    Found,
    Prediction,
    Scores,
    npz_clips,
    number,
    plain_means,
    require_clips,
    require_shape,
)
from pipelines.evaluation.benchmarks.track_sheet import track_sheet
from pipelines.evaluation.track_clip import TrackClip, read_track_clip
from pipelines.problems import counted
from pipelines.results.asked import Asked
from pipelines.results.given import Intrinsics, Points

SUBSETS = ("adt", "drivetrack", "pstudio")
SPLITS = FOLDER / "benchmarks/tapvid3d_splits.json.gz"
METRICS = {
    "average_jaccard": "aj",
    "average_pts_within_thresh": "apd",
    "occlusion_accuracy": "oa",
}


class TapVid3d(Benchmark):
    key = "tapvid3d"
    title = "TAPVid-3D"
    headline = "median.aj"
    higher_is_better = True
    shown: ClassVar = {
        "aj": "AJ ↑",
        "apd": "APD ↑",
        "oa": "OA ↑",
        "l1_sum": "L1, m ↓",
        "l1_sum_relative": "L1 / median distance ↓",
    }
    rules = (
        "Koppula et al. 2024, official thresholds, all frames of every track; plain means over clips, then subsets; "
        "points that are not finite are misses; world: camera of frame 0, visible entries and their medians"
    )

    def find(self, data: Sequence[str]) -> Found:
        clips = npz_clips(data, SUBSETS)
        return against_splits(require_clips(clips, data, self.title, f"{'|'.join(SUBSETS)}/NAME.npz"))

    def open(self, clip: ClipName) -> TrackClip:
        truth = read_track_clip(clip.data, f"{clip.subset}/{clip.name}.npz")
        if truth.queries is None:
            raise ValueError(f"{truth.where} has no queries_xyt: not a file of TAPVid-3D")
        frames = tapvid3d.query_frames(truth.queries)
        if not ((frames >= 0) & (frames < len(truth))).all():
            raise ValueError(f"queries_xyt of {truth.where} has frames beyond its {len(truth)}: download it again")
        return truth

    def asked(self, truth: TrackClip, *, known_intrinsics: bool) -> Asked:
        height, width = truth.size
        uv = np.clip(truth.queries[:, :2] / [width, height], 0, 1).astype(np.float32)
        points = Points(uv, tapvid3d.query_frames(truth.queries))
        intrinsics = Intrinsics(*truth.fx_fy_cx_cy.tolist()) if known_intrinsics else None
        return Asked(tasks=("tracks",), points=points, intrinsics=intrinsics)

    def prediction(self, truth: TrackClip, results: dict[str, dict[str, np.ndarray]]) -> Prediction:
        tracks = results["tracks"]
        return {
            "tracks_XYZ": tracks["xyz_cam"].swapaxes(0, 1),
            "tracks_world": tracks["xyz"].swapaxes(0, 1),
            "visibility": tracks["visible"].swapaxes(0, 1),
        }

    def scores(self, truth: TrackClip, prediction: Prediction) -> Scores:
        predicted = require_shape(prediction, "tracks_XYZ", truth.tracks.shape, truth.where)
        clip = tapvid3d.Clip(
            truth=truth.tracks,
            truth_visible=truth.visible,
            predicted=predicted,
            visible=require_shape(prediction, "visibility", truth.visible.shape, truth.where).astype(bool),
            focal=tapvid3d.focal_length(truth.fx_fy_cx_cy, truth.size),
            query_frames=tapvid3d.query_frames(truth.queries),
        )
        row: Scores = {"frames": len(truth), "tracks": truth.tracks.shape[1]}
        row["not_finite"] = float(np.mean(~np.isfinite(predicted).all(axis=-1)))
        row["queries_hidden"] = int((~truth.visible[clip.query_frames, np.arange(truth.tracks.shape[1])]).sum())
        for scaling in tapvid3d.SCALINGS:
            found = tapvid3d.scores(clip, scaling)
            row |= {f"{scaling}.{name}": number(found[key]) for key, name in METRICS.items()}
        if "tracks_world" in prediction and truth.cam_from_world is not None:
            in_world = require_shape(prediction, "tracks_world", truth.tracks.shape, truth.where)
            row |= world_scores(truth, in_world, clip.focal)
        return row

    def missed(self) -> Scores:
        """As the official script has it: zeros, in OA too."""
        return {f"{scaling}.{name}": 0.0 for scaling in tapvid3d.SCALINGS for name in METRICS.values()}

    def overall(self, subsets: dict[str, Scores]) -> Scores | None:
        """The plain mean of the subsets, if all are there."""
        if set(subsets) != set(SUBSETS):
            return None
        scores = [{k: v for k, v in subset.items() if not k.endswith("#")} for subset in subsets.values()]
        return plain_means(scores) | {"clips": sum(subset["clips"] for subset in subsets.values())}

    def picture(self, truth: TrackClip, prediction: Prediction, title: str) -> np.ndarray:
        return track_sheet(truth, prediction["tracks_XYZ"], truth.tracks, title)


BENCHMARK = TapVid3d()


def against_splits(clips: list[ClipName]) -> Found:
    """Which published list these clips are, and what is missing of it: the one they have most clips of."""
    there = {f"{clip.subset}/{clip.name}" for clip in clips}
    with gzip.open(SPLITS) as file:
        splits = json.load(file)
    subsets = {clip.subset for clip in clips}
    best, listed = "", set()
    for split, lists in splits.items():
        names = {f"{subset}/{name.removesuffix('.npz')}" for subset in subsets for name in lists[subset]}
        if not best or len(names & there) > len(listed & there):
            best, listed = split, names
    shared = len(listed & there)
    told = {subset: counted(sum(clip.subset == subset for clip in clips), "clip") for subset in sorted(subsets)}
    if not shared:
        return Found(clips, [], "clips of no published list", told)
    title = f"{best}, {', '.join(sorted(subsets))}"
    if shared < len(listed) or len(there) > shared:
        others = f" and {counted(len(there) - shared, 'other')}" if len(there) > shared else ""
        title += f": {shared} of its {len(listed)} clips{others}{NOT_PUBLISHED}"
    return Found(clips, sorted(listed - there), title, told)


def world_scores(truth: TrackClip, predicted: np.ndarray, focal: float) -> Scores:
    """APD in the camera of frame 0 over visible entries (`world`), with thresholds by z in that camera
    (`world_anchor_z`), or over all entries (`world_all`); L1 over visible entries, in metres and in median ||g||."""
    g, seen = truth.tracks_in_first, truth.visible
    depths = {"world": truth.tracks[..., 2], "world_anchor_z": g[..., 2], "world_all": truth.tracks[..., 2]}
    row: Scores = {}
    for name, depth in depths.items():
        counted = np.ones_like(seen) if name == "world_all" else seen
        found = tapvid3d.world_hits(g, predicted, counted, depth, focal)
        row[f"{name}.apd"] = number(found["average_pts_within_thresh"])
    finite = seen & np.isfinite(predicted).all(axis=-1)
    if finite.any():
        middle = float(np.median(np.linalg.norm(g[finite], axis=-1)))
        scale = middle / float(np.median(np.linalg.norm(predicted[finite], axis=-1)))
        off = float(np.abs(scale * predicted[finite] - g[finite]).sum(axis=-1).mean())
        row |= {"world.l1_sum": off, "world.l1_mean_axis": off / 3, "world.l1_sum_relative": off / middle}
    steps = np.linalg.norm(np.diff(g, axis=0), axis=-1).mean(axis=0)
    if steps.size and np.isfinite(steps).any():
        row["world.still_half_moves"] = float(np.median(np.sort(steps[np.isfinite(steps)])[: max(1, len(steps) // 2)]))
    return row
