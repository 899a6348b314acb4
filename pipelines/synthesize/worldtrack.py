"""Clips of WorldTrack as St4RTrack's authors ship them: PointOdyssey, Dynamic Replica, ADT, PStudio, TUM in turn.

    po_mini/room_000000.npz    ds_mini/...    adt_mini/...    pstudio_mini/...    tum/...

Pixels have their origin at the centre of the first one. PStudio's files have no extrinsics; the first two subsets and
TUM have depth, TUM no tracks. Half of the tracks begin in frame 0, the others come into view later.
"""

from pathlib import Path

import numpy as np

from pipelines.synthesize.scene import Scene
from pipelines.synthesize.tapvid3d import SIZES, TRACKS, scene
from pipelines.synthesize.tapvid3d import as_filmed as as_filmed_3d
from pipelines.synthesize.track_clips import clip_arrays, seen_points, write_npz

__all__ = ["SIZES", "scene"]

SUBSETS = ("po_mini", "ds_mini", "adt_mini", "pstudio_mini", "tum")


def folder(index: int) -> str:
    return f"{SUBSETS[index % len(SUBSETS)]}/room_{index:06d}.npz"


def as_filmed(scene: Scene, path: Path) -> Scene:
    return as_filmed_3d(scene, path.with_name("pstudio") / path.name if path.parent.name == "pstudio_mini" else path)


def write(scene: Scene, path: Path) -> None:
    """Write a clip into a new file."""
    scene, subset = as_filmed(scene, path), path.parent.name
    rng = np.random.default_rng([scene.seed, 5])
    frames = np.where(np.arange(TRACKS) % 2, rng.integers(0, len(scene), TRACKS), 0)
    hits, _ = seen_points(scene, frames, rng)
    arrays = clip_arrays(scene, hits, pixel_origin=0.0)
    if subset == "pstudio_mini":
        del arrays["extrinsics_w2c"]
    if subset in ("po_mini", "ds_mini", "tum"):
        depth = np.stack([scene.render(t, supersample=1).depth for t in range(len(scene))])
        arrays["depth_map"] = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
    if subset == "tum":
        del arrays["tracks_XYZ"]
        arrays["visibility"] = arrays["depth_map"] > 0
    write_npz(path, arrays)
