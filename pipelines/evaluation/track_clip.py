"""Clips of point tracks as TAPVid-3D and WorldTrack ship them: an .npz per clip, with the arrays of `npz_clip.py` and

| key                 | shape, dtype          | is                                                                     |
|---------------------|-----------------------|------------------------------------------------------------------------|
| `tracks_XYZ`        | (T, N, 3) float       | metres, each in the camera of its own frame, OpenCV axes               |
| `visibility`        | (T, N) bool           | true: visible                                                          |
| `queries_xyt`       | (N, 3) float          | TAPVid-3D: pixel and frame from which each track is asked              |
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64

from pipelines.evaluation.npz_clip import NpzClip, NpzFile
from pipelines.geometry import check_fit, transform

FARTHEST = 500.0  # metres in the median; a street is a tenth of that


@dataclass(frozen=True, kw_only=True)
class TrackClip(NpzClip):
    tracks: Float64[np.ndarray, "T N 3"]
    """Metres, each in the camera of its own frame."""
    visible: Bool[np.ndarray, "T N"]
    queries: Float64[np.ndarray, "N 3"] | None
    """x, y in pixels, frame."""

    def first(self, frames: int) -> "TrackClip":
        """Its first frames only."""
        return replace(
            self,
            jpegs=self.jpegs[:frames],
            tracks=self.tracks[:frames],
            visible=self.visible[:frames],
            cam_from_world=None if self.cam_from_world is None else self.cam_from_world[:frames],
        )

    @property
    def truth(self) -> tuple[np.ndarray | None, ...]:
        return self.tracks, self.visible, self.queries

    @cached_property
    def tracks_in_first(self) -> Float64[np.ndarray, "T N 3"]:
        """Metres, all in the camera of frame 0."""
        return transform(self.first_from_cam[:, None], self.tracks)


def read_track_clip(folder: str, path: str) -> TrackClip:
    """ValueError naming the file for what is missing, damaged or pickled, or not finite where it counts."""
    file = NpzFile(folder, path)
    tracks, seen = (file.numbers(key, needed=True) for key in ("tracks_XYZ", "visibility"))
    queries, jpegs = file.numbers("queries_xyt"), file.jpegs()
    frames, count = len(jpegs), tracks.shape[1] if tracks.ndim == 3 else -1
    shapes = {"tracks_XYZ": (tracks, (frames, count, 3)), "visibility": (seen, (frames, count))}
    file.require_shapes(frames, shapes | {"queries_xyt": (queries, (count, 3))})
    visible = seen > 0
    if not np.isfinite(tracks[visible]).all():
        raise ValueError(f"tracks_XYZ of {file.where} are not finite where they are visible: download it again")
    if visible.any() and (far := float(np.median(np.linalg.norm(tracks[visible], axis=-1)))) > FARTHEST:
        raise ValueError(f"tracks_XYZ of {file.where} are {far:.0f} m away in the median: are they in millimetres?")
    filmed = file.filmed(frames)
    clip = TrackClip(where=file.where, jpegs=jpegs, tracks=tracks, visible=visible, queries=queries, **filmed)
    check_fit(clip.intrinsics, clip.size, file.where)
    return clip
