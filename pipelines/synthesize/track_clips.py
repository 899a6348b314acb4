"""An .npz of point tracks with its images, as TAPVid-3D and WorldTrack ship clips (`evaluation/track_clip.py`)."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image

from pipelines.geometry import inverse, transform
from pipelines.synthesize.scene import Hits, Scene


def clip_arrays(scene: Scene, hits: Hits, pixel_origin: float) -> dict[str, np.ndarray]:
    """The arrays of a clip whose tracks are `hits`, at their place in every frame.

    `pixel_origin`: where the centre of the first pixel is in the files, 0.5 or 0.
    """
    count, times = len(hits.surface), range(len(scene))
    cam_from_world = inverse(scene.cameras.world_from_cam)
    frames = [np.full(count, t) for t in times]
    matrix = scene.cameras.intrinsics[0]
    centre = matrix[:2, 2] - 0.5 + pixel_origin
    return {
        "images_jpeg_bytes": np.array([jpeg(scene, t) for t in times]),
        "tracks_XYZ": np.stack([transform(cam_from_world[t], scene.position(hits, frames[t])) for t in times]),
        "visibility": np.stack([scene.visible(hits, frames[t]) for t in times]),
        "fx_fy_cx_cy": np.array([matrix[0, 0], matrix[1, 1], *centre]),
        "extrinsics_w2c": cam_from_world,
    }


def jpeg(scene: Scene, t: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(scene.render(t).image).save(content, "jpeg", quality=95)
    return content.getvalue()


def seen_points(scene: Scene, frames: Int64[np.ndarray, "N"], rng: np.random.Generator) -> tuple[Hits, np.ndarray]:
    """What is seen at random pixels of these frames, the sky left out, and those pixels (uv, corner origin)."""
    uv = rng.uniform(0, [scene.width, scene.height], (len(frames), 2))
    hits = scene.trace(uv, frames)
    met = hits.surface >= 0
    return hits[met], np.concatenate([uv, frames[:, None]], axis=1)[met]


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **arrays)
