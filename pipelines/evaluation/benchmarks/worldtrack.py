"""WorldTrack (St4RTrack): tracks in the camera of frame 0, by both protocols. Its reconstruction part is in `cloud.py`.

    DATA/{adt_mini,pstudio_mini,po_mini,ds_mini}/NAME.npz     see `track_clip.py`

First `FRAMES` frames; tracks that are visible in frame 0, from their projection there. WorldTrack's own pixels have
their origin at the centre of the first one, so ours are half a pixel more.

| protocol    | asked at                                        | what is not finite          | outside the image    |
|-------------|-------------------------------------------------|-----------------------------|----------------------|
| `ours`      | (x + 0.5) / W: where the point is               | is a miss                   | clipped, and counted |
| `opend4rt`  | x / (W - 1)                                     | is left out                 | clipped              |
| `st4rtrack` | the pixel of its 512-pixel image, cut off       | NaN spoils the scale        | dropped              |

Scores are PROTOCOL.ALIGNMENT.TRACKS.METRIC: every alignment of `evaluation/worldtrack.py`, over `all` tracks, those
that are `dynamic`, aligned by themselves, and `visible` entries alone; `dynamic_of_all` has the scale of all tracks.
Beside the mean over clips, `METRIC_pooled` is that of `ours` over tracks, of which a clip may have three.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float64

from pipelines.evaluation import worldtrack
from pipelines.evaluation.benchmarks.benchmark import (
    NOT_PUBLISHED,
    Benchmark,
    ClipName,
    Found,
    Prediction,
    Scores,
    npz_clips,
    require_clips,
    require_shape,
)
from pipelines.evaluation.benchmarks.track_sheet import track_sheet
from pipelines.evaluation.similarity import Degenerate
from pipelines.evaluation.track_clip import TrackClip, read_track_clip
from pipelines.geometry import inverse, project, transform
from pipelines.results.asked import Asked
from pipelines.results.given import Intrinsics, Points

SUBSETS = {"adt_mini": 50, "pstudio_mini": 50, "po_mini": 50, "ds_mini": 50}
FRAMES = 64
LONG_EDGE, MULTIPLE = 512, 16  # of St4RTrack's images
Protocol = Literal["ours", "opend4rt", "st4rtrack"]
RULES: dict[Protocol, worldtrack.Rule] = {"ours": "misses", "opend4rt": "opend4rt", "st4rtrack": "st4rtrack"}


class WorldTrack(Benchmark):
    key = "worldtrack"
    title = "WorldTrack"
    headline = "ours.global.all.apd"
    higher_is_better = True
    shown: ClassVar = {
        "apd": "APD ↑",
        "epe": "EPE, m ↓",
        "apd_pooled": "APD over tracks ↑",
        "epe_pooled": "EPE over tracks, m ↓",
    }
    rules = (
        f"first {FRAMES} frames, tracks visible in frame 0, all times; APD: 0.1, 0.3, 0.5, 1 m, inclusive; dynamic: "
        "path over 1 cm, aligned by themselves; plain mean over the clips that have the score"
    )

    def find(self, data: Sequence[str]) -> Found:
        clips = require_clips(npz_clips(data, SUBSETS), data, self.title, f"{'|'.join(SUBSETS)}/NAME.npz")
        counts = {subset: sum(clip.subset == subset for clip in clips) for subset in SUBSETS}
        told = {subset: f"{count} of {SUBSETS[subset]} clips" for subset, count in counts.items()}
        # One of ADT's 50 is scored by neither evaluator.
        whole = all(count >= SUBSETS[subset] - (subset == "adt_mini") for subset, count in counts.items())
        title = f"{len(clips)} of {sum(SUBSETS.values())} clips" + ("" if whole else NOT_PUBLISHED)
        return Found(clips, [], title, told)

    def open(self, clip: ClipName) -> TrackClip:
        truth = read_track_clip(clip.data, f"{clip.subset}/{clip.name}.npz").first(FRAMES)
        if not truth.visible[0].any():
            raise ValueError(f"{truth.where} has no track that is visible in frame 0: there is nothing to score")
        if clip.subset != "pstudio_mini" and truth.cam_from_world is None:
            raise ValueError(f"{truth.where} has no extrinsics_w2c, which only PStudio's files lack: download it again")
        return truth

    def asked(self, truth: TrackClip, *, known_intrinsics: bool) -> Asked:
        uv = np.concatenate([query_points(truth, protocol) for protocol in RULES])
        points = Points(np.clip(uv, 0, 1).astype(np.float32), np.zeros(len(uv), np.int64))
        fx, fy, cx, cy = truth.fx_fy_cx_cy.tolist()
        intrinsics = Intrinsics(fx, fy, cx + 0.5, cy + 0.5) if known_intrinsics else None
        return Asked(tasks=("tracks",), points=points, intrinsics=intrinsics)

    def prediction(self, truth: TrackClip, results: dict[str, dict[str, np.ndarray]]) -> Prediction:
        tracks = results["tracks"]
        parts = dict(zip(RULES, np.split(tracks["xyz"].swapaxes(0, 1), len(RULES), axis=1), strict=True))
        seen = np.split(tracks["visible"].swapaxes(0, 1), len(RULES), axis=1)[0]
        others = {f"tracks_world_{protocol}": parts[protocol] for protocol in RULES if protocol != "ours"}
        return {"tracks_world": parts["ours"], "visibility": seen, **others}

    def scores(self, truth: TrackClip, prediction: Prediction) -> Scores:
        """A prediction has the tracks that are visible in frame 0, or all of the file, in its order."""
        chosen = truth.visible[0]
        g, seen = truth.tracks_in_first[:, chosen], truth.visible[:, chosen]
        outside = ~inside_image(truth)
        row: Scores = {"frames": len(truth), "tracks": int(chosen.sum()), "outside": int(outside.sum())}
        for protocol, rule in RULES.items():
            p = said_tracks(truth, prediction, protocol)
            used = ~outside if protocol == "st4rtrack" else np.ones(len(outside), bool)
            row |= _protocol_scores(g[:, used], p[:, used], seen[:, used], rule, protocol)
            if protocol == "ours":
                row["not_finite"] = int((~np.isfinite(p).all(axis=-1)).sum())
                row["scale"] = _scale(g, p)
                moving = worldtrack.dynamic_tracks(g)
                row |= {"dynamic_tracks": int(moving.sum()), "dynamic_share": float(moving.mean())}
        return row

    def summary(self, rows: Sequence[Scores]) -> Scores:
        """Also over tracks, and St4RTrack's way: its mean of any EPE is over the clips that have a global one."""
        means = super().summary(rows)
        for key in [key for key in means if key.startswith("ours.") and key.endswith((".apd", ".epe"))]:
            tracks = "dynamic_tracks" if ".dynamic" in key else "tracks"
            known = [row for row in rows if row.get(key) is not None]
            weights = [row[tracks] for row in known]
            means[f"{key}_pooled"] = float(np.average([row[key] for row in known], weights=weights)) if known else None
        with_global = sum(row.get("st4rtrack.global.all.epe") is not None for row in rows)
        for key in [key for key in means if key.startswith("st4rtrack.") and key.endswith(".epe")]:
            values = [row.get(key) for row in rows]
            means[key] = worldtrack.mean_over_clips(values, divide_by=with_global) if with_global else None
        return means

    def picture(self, truth: TrackClip, prediction: Prediction, title: str) -> np.ndarray:
        chosen = truth.visible[0]
        own = transform(inverse(truth.first_from_cam)[:, None], said_tracks(truth, prediction, "ours"))
        shown = replace(truth, tracks=truth.tracks[:, chosen], visible=truth.visible[:, chosen], queries=None)
        return track_sheet(shown, own, shown.tracks, title)


BENCHMARK = WorldTrack()


def first_pixels(truth: TrackClip) -> Float64[np.ndarray, "Q 2"]:
    """Where the tracks that are visible in frame 0 are there, in WorldTrack's pixels (x, y)."""
    return project(truth.tracks[0, truth.visible[0]], truth.intrinsics)


def inside_image(truth: TrackClip) -> Bool[np.ndarray, "Q"]:
    """Whether St4RTrack's gather finds a pixel for them."""
    height, width = truth.size
    cut = np.trunc(first_pixels(truth) * _small_size(truth) / [width, height])
    return ((cut >= 0) & (cut < _small_size(truth))).all(axis=1)


def query_points(truth: TrackClip, protocol: Protocol) -> Float64[np.ndarray, "Q 2"]:
    """What each protocol asks at, as uv_norm."""
    xy, size = first_pixels(truth), np.array(truth.size[::-1], np.float64)
    if protocol == "opend4rt":
        return xy / (size - 1)
    if protocol == "st4rtrack":
        return (np.trunc(xy * _small_size(truth) / size) + 0.5) / _small_size(truth)
    return (xy + 0.5) / size


def _small_size(truth: TrackClip) -> Float64[np.ndarray, "2"]:
    """(W, H) of the image that St4RTrack makes of a frame."""
    size = np.array(truth.size[::-1], np.float64)
    return np.maximum(np.round(size * LONG_EDGE / size.max() / MULTIPLE), 1) * MULTIPLE


def _scale(g: Float64[np.ndarray, "T N 3"], p: Float64[np.ndarray, "T N 3"]) -> float | None:
    """s of `global`: what prediction is multiplied by to be metres."""
    finite = np.isfinite(p).all(axis=-1)
    far, said = (np.linalg.norm(points[finite], axis=-1) for points in (g, p))
    return float(np.median(far) / np.median(said)) if finite.any() else None


def _protocol_scores(
    g: Float64[np.ndarray, "T N 3"],
    p: Float64[np.ndarray, "T N 3"],
    seen: Bool[np.ndarray, "T N"],
    rule: worldtrack.Rule,
    protocol: Protocol,
) -> Scores:
    """Every alignment of all tracks, of those that move, and over visible entries only."""
    moving = worldtrack.dynamic_tracks(g)
    seen_only = np.where(seen[..., None], g, np.nan)
    parts = {"all": (g, p), "dynamic": (g[:, moving], p[:, moving]), "visible": (seen_only, p)}
    row: Scores = {}
    for alignment in worldtrack.ALIGNMENTS:
        for tracks, pair in parts.items():
            row |= _named(f"{protocol}.{alignment}.{tracks}", _found(*pair, alignment, rule))
    with np.errstate(all="ignore"):
        of_all = worldtrack.align(g, p, "global", rule)[:, moving]
        moved = worldtrack.errors(g[:, moving], of_all, rule) if moving.any() else None
    row |= _named(f"{protocol}.global.dynamic_of_all", moved)
    for tracks in ("all", "dynamic"):
        if found := _found(*parts[tracks], "global", rule):
            shares = zip(worldtrack.THRESHOLDS, found["fractions"], strict=True)
            row |= {f"{protocol}.global.{tracks}.within_{threshold:g}m": share for threshold, share in shares}
    return row


def _found(g: np.ndarray, p: np.ndarray, alignment: worldtrack.Alignment, rule: worldtrack.Rule) -> dict | None:
    """None where there is nothing to score, or too little to align."""
    if not np.isfinite(g).any():
        return None
    try:
        return worldtrack.scores(g, p, alignment, rule)
    except Degenerate:
        return None


def _named(name: str, found: dict | None) -> Scores:
    return {f"{name}.{metric}": found and found[metric] for metric in ("apd", "epe")}


def said_tracks(truth: TrackClip, prediction: Prediction, protocol: Protocol) -> Float64[np.ndarray, "T Q 3"]:
    """In the camera of frame 0, of the tracks that are visible there: asked by the protocol, or else what there is."""
    key = "tracks_world" if protocol == "ours" else f"tracks_world_{protocol}"
    array = prediction.get(key, prediction.get("tracks_world"))
    if array is None and "dense_world" in prediction:
        array = gathered(truth, prediction["dense_world"])
    chosen = truth.visible[0]
    if array is not None and array.shape == truth.tracks.shape:
        array = array[:, chosen]
    shape = (len(truth), int(chosen.sum()), 3)
    return require_shape({} if array is None else {"tracks_world": array}, "tracks_world", shape, truth.where)


def gathered(truth: TrackClip, dense: np.ndarray) -> Float64[np.ndarray, "T Q 3"]:
    """Of St4RTrack's points of all pixels of frame 0 (T, h, w, 3), those of the tracks that are visible there, pixels
    being cut off; NaN outside."""
    if dense.ndim != 4 or len(dense) < len(truth):
        raise ValueError(f"the points of all pixels for {truth.where} are {dense.shape}, not ({len(truth)}, h, w, 3)")
    size = np.array(dense.shape[2:0:-1])
    x, y = np.trunc(first_pixels(truth) * size / truth.size[::-1]).astype(int).T
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
    found = np.full((len(truth), len(x), 3), np.nan)
    found[:, inside] = dense[: len(truth), y[inside], x[inside]]
    return found
