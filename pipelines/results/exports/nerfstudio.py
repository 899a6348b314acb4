"""nerfstudio's `transforms.json`, with the frames and a point cloud to begin from.

Its cameras look along -z with y up, its world has z up: `applied_transform` says how its world is turned from ours.
https://docs.nerf.studio/quickstart/data_conventions.html
"""

import json
from pathlib import Path

import numpy as np

from pipelines.results.exports.photos import photo_names, write_photos
from pipelines.results.exports.point_cloud import ply
from pipelines.results.exports.static import known_cameras, static_cloud, static_tracks
from pipelines.results.reading import Result

THEIRS_FROM_WORLD = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # y down to z up
CAM_FROM_THEIRS = np.diag([1.0, -1, -1, 1])
CLOUD = "points.ply"


def write(folder: Path, result: Result, about: str) -> list[str]:
    cameras, video = result.arrays("cameras"), result.video
    known = known_cameras(cameras, result.uri)
    notes = write_photos(folder / "images", result)
    poses = THEIRS_FROM_WORLD @ cameras["world_from_cam"].astype(np.float64) @ CAM_FROM_THEIRS
    frames = []
    for t in np.flatnonzero(known).tolist():
        lens = cameras["intrinsics"][t].astype(np.float64)
        frames.append(
            {
                "file_path": f"images/{photo_names(result)[t]}",
                "fl_x": lens[0, 0],
                "fl_y": lens[1, 1],
                "cx": lens[0, 2],
                "cy": lens[1, 2],
                "transform_matrix": poses[t].tolist(),
            }
        )
    xyz, rgb = static_cloud(result)
    if not len(xyz):
        xyz = static_tracks(result).xyz
        rgb = np.full((len(xyz), 3), 128, np.uint8)
    turned = xyz @ THEIRS_FROM_WORLD[:3, :3].T
    (folder / CLOUD).write_bytes(ply({"xyz": turned, "rgb": rgb}, f"{about}; turned by applied_transform"))
    document = {
        "about": about,
        "camera_model": "PINHOLE",
        "w": video.width,
        "h": video.height,
        "applied_transform": THEIRS_FROM_WORLD[:3].tolist(),
        "ply_file_path": CLOUD,
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(document, indent=1) + "\n")
    if missing := int((~known).sum()):
        notes.append(f"{missing} of {len(known)} frames are left out: their camera is not known")
    return notes
