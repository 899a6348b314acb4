"""A package in the layout of OpenD4RT's demos, with arrays where theirs has JSON of over 100 MB.

    manifest.json                        what is in it, frame and unit
    assets/input_video.mp4, input_video_poster.jpg
    assets/tracks.npz                    tracks_xyz_local, tracks_xyz_ref0 (N, T, 3), tracks_uv_norm (N, T, 2),
                                         tracks_visibility, tracks_confidence (N, T); query_uv_norm (N, 2), t_src (N,)
    assets/depth_pred_raw.npz            depth, confidence (T, h, w)
    assets/depth_pred.mp4
    assets/cameras.npz                   world_from_cam (T, 4, 4), intrinsics (T, 3, 3), native pixels

`ref0` is the camera of frame 0; `local` the camera of each frame.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.geometry import transform
from pipelines.pictures.results import depth_frames
from pipelines.pictures.video_file import write_video
from pipelines.results.exports.static import first_from_world
from pipelines.results.reading import Result


def write(folder: Path, result: Result, about: str) -> list[str]:
    result.require("tracks", "depth", "cameras")
    assets = folder / "assets"
    assets.mkdir()
    tracks, depth, cameras = (result.arrays(task) for task in ("tracks", "depth", "cameras"))
    np.savez_compressed(
        assets / "tracks.npz",
        tracks_xyz_local=tracks["xyz_cam"],
        tracks_xyz_ref0=transform(first_from_world(cameras), tracks["xyz"]).astype(np.float32),
        tracks_uv_norm=tracks["uv_norm"],
        tracks_visibility=tracks["visible"],
        tracks_confidence=tracks["confidence"],
        query_uv_norm=tracks["points"],
        t_src=tracks["t_src"],
    )
    np.savez_compressed(assets / "depth_pred_raw.npz", depth=depth["depth"], confidence=depth["confidence"])
    np.savez_compressed(
        assets / "cameras.npz", world_from_cam=cameras["world_from_cam"], intrinsics=cameras["intrinsics"]
    )
    notes, video = [], result.video
    try:
        write_video(assets / "input_video.mp4", result.frames, video.fps)
        write_video(
            assets / "depth_pred.mp4", depth_frames(result.frames, depth["depth"], result.document.lengths), video.fps
        )
        Image.fromarray(next(iter(result.frames))).save(assets / "input_video_poster.jpg", quality=90)
    except ValueError as error:
        notes.append(f"without videos: {error}")
    document = {
        "about": about,
        "name": video.name,
        "fps": video.fps,
        "frame_numbers": video.frame_numbers,
        "width": video.width,
        "height": video.height,
        "assets": sorted(path.name for path in assets.iterdir()),
    }
    (folder / "manifest.json").write_text(json.dumps(document, indent=1) + "\n")
    return notes
