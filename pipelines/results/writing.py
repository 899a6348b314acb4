"""The files of the table at the top of `files.py`, from what the windows of a video said."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import documents
from pipelines.pictures.drawing import position_colours, save
from pipelines.pictures.results import camera_figure, cloud_picture, confidence_frames, depth_frames, track_frames
from pipelines.pictures.video_file import write_video
from pipelines.results.arrays import Arrays, mapped, write_npz
from pipelines.results.exports.point_cloud import ply
from pipelines.results.exports.trajectories import tum
from pipelines.results.files import FIELDS, LOST, RESULT, SCHEMA, UNIT
from pipelines.results.page.job_page import write_thumbnail
from pipelines.results.page.video_page import PAGE, video_page
from pipelines.results.reading import Document
from pipelines.results.sources import Video

SECONDS = 2.0  # that a video to look at lasts at least; a shorter one is shown more slowly
SEPARATE = (
    "xyz, xyz_cam, depth and the cameras are separate answers of the model, not one computed from the other, and "
    "differ a little: xyz_cam moved into the world by world_from_cam is near xyz, but not equal"
)


def write_arrays(folder: Path, results: dict[str, Arrays]) -> dict[str, dict[str, np.ndarray]]:
    """The .npz files of the table, into an empty local folder. Gives the same arrays, as they lie there."""
    for task, arrays in results.items():
        write_npz(folder / f"{task}.npz", arrays)
    return {task: mapped(folder / f"{task}.npz") for task in results}


def write_results(folder: Path, video: Video, results: dict[str, dict[str, np.ndarray]], about: dict[str, Any]) -> None:
    """All other files of the table, pictures included, from the arrays; `about` goes into result.json."""
    fps, lengths = min(video.fps, len(video.frames) / SECONDS), about.get("lengths", UNIT)
    if "tracks" in results:
        tracks = results["tracks"]
        colours = position_colours(tracks["points"])
        uv_norm = tracks["uv_norm"].copy()
        uv_norm[np.arange(len(uv_norm)), tracks["t_src"]] = tracks["points"]  # where it was asked to begin
        seen, status = tracks["visible"], tracks["status"]
        hidden = ~seen & (status > 0) & (status < LOST)
        pictures = track_frames(video.frames, uv_norm, seen, hidden, status == LOST, colours)
        write_video(folder / "tracks.mp4", pictures, fps)
    if "depth" in results:
        depth = results["depth"]
        write_video(folder / "depth.mp4", depth_frames(video.frames, depth["depth"], lengths), fps)
        write_video(folder / "confidence.mp4", confidence_frames(video.frames, depth["confidence"]), fps)
    if "points" in results:
        points = results["points"]
        (folder / "points.ply").write_bytes(ply(points))
        save(folder / "points.png", cloud_picture(points["xyz"], points["rgb"], video.size, lengths))
    if "cameras" in results:
        cameras = results["cameras"]
        (folder / "cameras.txt").write_text(tum(video.frame_numbers, cameras["world_from_cam"]))
        figure = camera_figure(cameras["world_from_cam"], cameras["intrinsics"], video.size, lengths)
        figure.savefig(folder / "cameras.png", dpi=110)
    write_thumbnail(folder, video.frames)
    files = {
        f"{task}.npz": {
            key: {
                "shape": array.shape,
                "dtype": str(array.dtype),
                "unit": FIELDS[f"{task}.npz"][key][0].replace(UNIT, lengths),
                "frame": FIELDS[f"{task}.npz"][key][1],
                **({"value": array.item()} if array.ndim == 0 else {}),
            }
            for key, array in arrays.items()
        }
        for task, arrays in results.items()
    }
    height, width = video.size
    document = {
        "schema": SCHEMA,
        "unit": f"{UNIT}: scale-free, one unknown factor for the whole video",
        "world": "camera of the first frame; x right, y down, z forward",
        **about,
        "video": {
            "name": video.name,
            "frame_numbers": video.frame_numbers.tolist(),
            "seconds": None if video.seconds is None else video.seconds.round(6).tolist(),
            "fps": video.fps,
            "width": width,
            "height": height,
            "notes": list(video.notes),
        },
        "agreement": SEPARATE,
        "files": files,
        "all_files": sorted({PAGE, *(file.name for file in folder.iterdir())}),
    }
    told = documents.parse(json.dumps(document).encode(), Document, RESULT, "", others="ignore")
    (folder / PAGE).write_text(video_page(told, results, video.frames))
    (folder / RESULT).write_text(json.dumps(document, indent=1) + "\n")
