"""Clips of depth as WorldTrack ships them (po_mini, ds_mini, tum): an .npz with the arrays of `npz_clip.py` and

| key                 | shape, dtype          | is                                                                     |
|---------------------|-----------------------|------------------------------------------------------------------------|
| `depth_map`         | (T, H, W) float32     | metres along z                                                         |

Pixels have their origin at the centre of the first one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from pipelines.evaluation.npz_clip import NpzClip, NpzFile
from pipelines.evaluation.track_clip import FARTHEST
from pipelines.geometry import check_fit


@dataclass(frozen=True, kw_only=True)
class DepthClip(NpzClip):
    depth: Float32[np.ndarray, "T H W"]

    @property
    def truth(self) -> tuple[np.ndarray | None, ...]:
        return (self.depth,)

    @property
    def corner_intrinsics(self) -> Float64[np.ndarray, "T 3 3"]:
        """In pixels that begin at the image's corner."""
        matrix = self.intrinsics
        matrix[:2, 2] += 0.5
        return np.tile(matrix, (len(self), 1, 1))


def read_depth_clip(folder: str, path: str, *, frames: int) -> DepthClip:
    """Its first frames. ValueError naming the file for what is missing, damaged or pickled."""
    file = NpzFile(folder, path)
    jpegs, shape = file.jpegs(), file.npz.shape("depth_map")
    if shape is None or len(shape) != 3 or shape[0] != len(jpegs):
        raise ValueError(f"depth_map of {file.where} is {shape}, of {len(jpegs)} images it must be (T, H, W)")
    filmed = file.filmed(len(jpegs))
    if filmed["cam_from_world"] is None:
        raise ValueError(
            f"{file.where} has no extrinsics_w2c, without which points have no common camera: download it again"
        )
    filmed["cam_from_world"] = filmed["cam_from_world"][:frames]
    depth = file.npz.rows("depth_map", np.arange(min(frames, len(jpegs)))).astype(np.float32)
    clip = DepthClip(where=file.where, jpegs=jpegs[:frames], depth=depth, **filmed)
    if shape[1:] != clip.size:
        raise ValueError(
            f"depth_map of {file.where} is {shape[1:]} (H, W), its images are {clip.size}: download it again"
        )
    known = depth[depth > 0]
    if not len(known) or (far := float(np.median(known))) > FARTHEST:
        told = "has no value above 0" if not len(known) else f"is {far:.0f} m in the median: is it in millimetres?"
        raise ValueError(f"depth_map of {file.where} {told}")
    check_fit(clip.intrinsics, clip.size, file.where)
    return clip
