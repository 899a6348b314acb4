"""The files of the table at the top of `files.py`, from what the windows of a video said."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import documents
from pipelines.pictures.drawing import Picture, position_colours, save
from pipelines.pictures.results import camera_figure, cloud_picture, confidence_frames, depth_frames, track_frames
from pipelines.pictures.video_file import video_file
from pipelines.results.arrays import Arrays, mapped, write_npz
from pipelines.results.exports.point_cloud import ply
from pipelines.results.exports.trajectories import tum
from pipelines.results.files import FIELDS, LOST, RESULT, SCHEMA, UNIT
from pipelines.results.page.job_page import write_thumbnail
from pipelines.results.page.video_page import PAGE, page_picture, shown_every, video_page
from pipelines.results.reading import Document
from pipelines.results.sources import Video

MOST_DRAWN = 4096  # tracks; more would hide the frames
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
    lengths = about.get("lengths", UNIT)
    pictures = _show_frames(folder, video, results, lengths)
    if "points" in results:
        points = results["points"]
        (folder / "points.ply").write_bytes(ply(points))
        save(folder / "points.png", cloud_picture(points["xyz"], points["rgb"], video.size, lengths))
    if "cameras" in results:
        cameras = results["cameras"]
        (folder / "cameras.txt").write_text(tum(video.frame_numbers, cameras["world_from_cam"]))
        figure = camera_figure(cameras["world_from_cam"], cameras["intrinsics"], video.size, lengths)
        figure.savefig(folder / "cameras.png", dpi=110)
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
    (folder / PAGE).write_text(video_page(told, results, pictures))
    (folder / RESULT).write_text(json.dumps(document, indent=1) + "\n")


def _show_frames(
    folder: Path, video: Video, results: dict[str, dict[str, np.ndarray]], lengths: str
) -> Sequence[bytes]:
    """Videos and thumbnail, for all of which the frames are decoded once. Gives the pictures of the page."""
    films: dict[str, Callable[[Iterator], Iterator[Picture]]] = {}
    if "tracks" in results:
        films["tracks.mp4"] = partial(_with_tracks, tracks=results["tracks"])
    if "depth" in results:
        depth = results["depth"]
        films["depth.mp4"] = partial(depth_frames, depth=depth["depth"], unit=lengths)
        films["confidence.mp4"] = partial(confidence_frames, confidence=depth["confidence"])

    length, pictures = len(video.frames), []
    fps = min(video.fps, length / SECONDS)
    source, *copies = tee(video.frames, 1 + len(films))
    drawn = [draw(frames) for draw, frames in zip(films.values(), copies, strict=True)]
    with ExitStack() as files:
        add = [files.enter_context(video_file(folder / name, fps)) for name in films]
        for t, (frame, *shown) in enumerate(zip(source, *drawn, strict=True)):
            for add_to, picture in zip(add, shown, strict=True):
                add_to(picture)
            if t % shown_every(length) == 0:
                pictures.append(page_picture(frame, length))
            if t == length // 2:
                write_thumbnail(folder, frame)
    return pictures


def _with_tracks(frames: Iterator[Picture], tracks: dict[str, np.ndarray]) -> Iterator[Picture]:
    count = len(tracks["points"])
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:MOST_DRAWN])
    points, t_src, uv_norm = (tracks[key][chosen] for key in ("points", "t_src", "uv_norm"))
    seen, status = tracks["visible"][chosen], tracks["status"][chosen]
    uv_norm[np.arange(len(chosen)), t_src] = points  # where it was asked to begin
    hidden = ~seen & (status > 0) & (status < LOST)
    return track_frames(frames, uv_norm, seen, hidden, status == LOST, position_colours(points), among=count)
