"""The files that St4RTrack writes for each frame j, against the anchor, which is frame 0 of the clip.

    pts3d1_pJ.npy   (H, W, 6) what frame 0 shows, at the time of frame j; xyz in the camera of frame 0, rgb from 0 to 1
    pts3d2_pJ.npy   (H, W, 6) what frame j shows, at its own time, in the camera of frame 0
    conf1_pJ.npy, conf2_pJ.npy (H, W); img1_pJ.png, img2_pJ.png

The first are the tracks, so H and W are those of their grid; the second are depth and camera, of the size of depth.npz.
Their confidence is 1 + exp(raw), which is 1 / (1 - c) of ours.
"""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from pipelines.geometry import image_grid, scaled_intrinsics, transform, unproject
from pipelines.results.exports.static import first_from_world
from pipelines.results.reading import Arrays, Result

MOST_CONFIDENT = 1e4


def write(folder: Path, result: Result, about: str) -> list[str]:
    tracks, depth, cameras = (result.arrays(task) for task in ("tracks", "depth", "cameras"))
    anchor_from_world = first_from_world(cameras)
    clouds = transform(anchor_from_world, _clouds(depth["depth"], cameras, result))
    grid, notes = _grid(tracks, result.uri), []
    try:
        frames = result.frames
    except ValueError as error:
        notes.append(f"its pictures are grey: {error}")
        frames = [np.full((*clouds.shape[1:3], 3), 128, np.uint8)] * len(clouds)
    anchor = None
    for j, frame in enumerate(frames):
        anchor = _resized(frame, grid) if anchor is None else anchor
        xyz, conf = (
            transform(anchor_from_world, tracks["xyz"][:, j]).reshape(*grid, 3),
            tracks["confidence"][:, j].reshape(grid),
        )
        _write_head(folder, 1, j, xyz, conf, anchor)
        _write_head(folder, 2, j, clouds[j], depth["confidence"][j], _resized(frame, clouds.shape[1:3]))
    notes.append(f"pts3d1 is {grid[0]} x {grid[1]}, pts3d2 {clouds.shape[1]} x {clouds.shape[2]} (H, W), resized")
    return notes


def _write_head(
    folder: Path,
    head: int,
    j: int,
    xyz: Float[np.ndarray, "h w 3"],
    confidence: Float[np.ndarray, "h w"],
    image: UInt8[np.ndarray, "h w 3"],
) -> None:
    theirs = np.minimum(1 / np.maximum(1 - confidence, 1 / MOST_CONFIDENT), MOST_CONFIDENT)
    np.save(folder / f"pts3d{head}_p{j}.npy", np.concatenate([xyz, image / 255], axis=-1).astype(np.float32))
    np.save(folder / f"conf{head}_p{j}.npy", theirs.astype(np.float32))
    Image.fromarray(image).save(folder / f"img{head}_p{j}.png")


def _grid(tracks: Arrays, where: str) -> tuple[int, int]:
    """(rows, columns) of the points that were asked. ValueError unless they are a grid over the first frame."""
    (u, columns), (v, rows) = (np.unique(axis, return_inverse=True) for axis in tracks["points"].T)
    in_order = np.array_equal(rows * len(u) + columns, np.arange(len(u) * len(v)))
    if not in_order or tracks["t_src"].any():
        raise ValueError(f"tracks of {where} are no grid over its first frame, which these files need")
    return len(v), len(u)


def _clouds(depth: Float[np.ndarray, "T h w"], cameras: Arrays, result: Result) -> Float[np.ndarray, "T h w 3"]:
    """What each pixel shows, in the world."""
    height, width = depth.shape[1:]
    ratios = {"width_ratio": width / result.video.width, "height_ratio": height / result.video.height}
    intrinsics = scaled_intrinsics(cameras["intrinsics"].astype(np.float64), **ratios)[:, None, None]
    return transform(cameras["world_from_cam"][:, None, None], unproject(image_grid(height, width), depth, intrinsics))


def _resized(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
