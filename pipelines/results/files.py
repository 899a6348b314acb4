"""What a model says about one video, and the files it becomes.

| file        | task    | key or column    | shape, dtype      | what it is                                         |
|-------------|---------|------------------|-------------------|----------------------------------------------------|
| result.json |         |                  |                   | request, model, video, and this table with shapes  |
| tracks.npz  | tracks  | `points`         | (N, 2) float32    | the pixels followed, as uv_norm in frame `t_src`   |
|             |         | `t_src`          | (N,) int64        | 0: a grid over the first frame, row by row         |
|             |         | `xyz`            | (N, T, 3) float32 | in the world                                       |
|             |         | `xyz_cam`        | (N, T, 3) float32 | each in the camera of its own frame                |
|             |         | `uv_norm`        | (N, T, 2) float32 | where it appears in each frame, `t_src` too: there |
|             |         |                  |                   | it is the model's answer, near `points`            |
|             |         | `visible`        | (N, T) bool       | seen, not hidden or out of view                    |
|             |         | `confidence`     | (N, T) float32    | of `xyz_cam`, from 0 to 1; 0 where lost            |
|             |         | `status`         | (N, T) int8       | 1 followed, 2 found again after long hidden,       |
|             |         |                  |                   | 3 lost: from there on NaN; 0 not begun: NaN        |
| dense_tracks.npz | dense_tracks | as of tracks.npz |           | tracks that pass through every cell of all frames, |
|             |         |                  |                   | and begin where none did                           |
| forecast.npz | tracks | `xyz`            | (N, F, 3) float32 | in the world, in the frames after the last: at a   |
|             |         |                  |                   | constant velocity, no answer of the model          |
|             |         | `velocity`       | (N, 3) float32    | from the last 5 positions that were visible        |
|             |         | `last_seen`      | (N,) int64        | -1: never                                          |
| uncertainty.npz | uncertainty | `jitter`  | (N, T) float32    | root mean square distance of `xyz_cam` of tracks,  |
|             |         |                  |                   | when asked elsewhere in the pixel; NaN where the   |
|             |         |                  |                   | window did not see that                            |
|             |         | `windows`        | (N, T) float32    | distance between what two windows say of `xyz`;    |
|             |         |                  |                   | NaN where there is one                             |
| depth.npz   | depth   | `depth`          | (T, h, w) float32 | along +z; NaN where it would be behind the camera  |
|             |         | `normal`         | (T, h, w, 3) float32 | unit length, axes of each frame's camera        |
|             |         | `confidence`     | (T, h, w) float32 | from 0 to 1                                        |
| flow.npz    | flow    | `xyz`            | (T-1, h, w, 3) float32 | where each pixel's point is               |
|             |         | `flow`           | (T-1, h, w, 3) float32 | how far it moves until the next frame, in |
|             |         |                  |                   | the same camera: 0 for what rests                  |
|             |         | `visible`        | (T-1, h, w) bool  | still seen then                                    |
|             |         | `confidence`     | (T-1, h, w) float32 | of the less confident of both                    |
| points.npz  | points  | `xyz`            | (P, 3) float32    | in the world, at the time each was seen            |
|             |         | `rgb`            | (P, 3) uint8      | colour of the pixel                                |
|             |         | `normal`         | (P, 3) float32    | unit length, axes of the world                     |
|             |         | `confidence`     | (P,) float32      | from 0 to 1; at most a tenth, the least confident, |
|             |         |                  |                   | is left out                                        |
|             |         | `frame`          | (P,) int64        | of the clip, in which it was seen                  |
|             |         | `left_out`       | () float32        | share of the pixels asked; in result.json too      |
| points.ply  | points  |                  |                   | the same, binary, for other programs               |
| cameras.npz | cameras | `world_from_cam` | (T, 4, 4) float32 | NaN where it could not be told                     |
|             |         | `intrinsics`     | (T, 3, 3) float32 | in native pixels; NaN where it could not be told   |
|             |         | `residual`       | (T,) float32      | of the pose fit, relative to the depth             |
| cameras.txt | cameras | TUM format       |                   | source frame number, tx ty tz, qx qy qz qw         |
| thumbnail.jpg |       |                  |                   | the frame in the middle, small                     |
| page.html   |         |                  |                   | all of it to look at, in a browser, no network       |

`xyz`, `xyz_cam`, `depth` and the cameras are separate answers of the model, not one computed from the other, and differ
a little: `xyz_cam` moved into the world by `world_from_cam` is near `xyz`, but not equal.

confidence: of a calibrated model, 0.1 / (0.1 + b), where half of such answers are off by less than b of their distance.
World: the camera of the clip's first frame; OpenCV axes. Lengths: model units, one unknown factor per video. With known
poses both are theirs, and `pose_fit` in result.json tells how far the cameras that were found are from them. A video
that is longer than the model takes is looked at in windows; `windows` in result.json has their frames, and of each seam
the scale, what is left between the same points as both windows say them (`residual`, relative), and the share of those
that agree (`inliers`). What comes after a seam that could not be joined is NaN. `loops` has the pairs of windows that
may have seen one place, `loop_disagreement` how far those that did were apart before and after they were closed.
Pixels: the centre of the top-left one is (0.5, 0.5); uv_norm = uv / (W, H). h x w has the native aspect, its long side
is the model's image size unless told otherwise; fx = fy, as pixels are square, unless intrinsics are known. Pictures:
tracks.mp4, depth.mp4, confidence.mp4, points.png, cameras.png; they are at most about 1280 pixels wide, and what lasts
less than 2 seconds is shown more slowly. `export` puts what it makes into exports/, beside these files.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import documents
from pipelines.results.arrays import Arrays, mapped, write_npz
from pipelines.results.sources import Video
from pipelines.whole import listed

SCHEMA = 1
USUAL_TASKS = ("tracks", "depth", "points", "cameras")
TASKS = (*USUAL_TASKS, "dense_tracks", "flow", "uncertainty")
UNIT = "model units"
SECONDS = 2.0  # that a video to look at lasts at least; a shorter one is shown more slowly
SEPARATE = (
    "xyz, xyz_cam, depth and the cameras are separate answers of the model, not one computed from the other, and "
    "differ a little: xyz_cam moved into the world by world_from_cam is near xyz, but not equal"
)
LOST = 3
"""In `status` of tracks; 1 and 2: it is known where they are."""

WINDOWS = ".windows"
"""How a hidden folder of OUT ends that keeps what a model said of the windows of a video (`results/kept.py`)."""

WINDOW_FILE = re.compile(r"\d+\.geometry\.npz")
"""The last one of a window: where it is, the window is whole."""

RESULT = "result.json"
"""Written last: where it is, all other files are."""
ADAPTED = "adapt.json"
"""In the folder of a model that was adapted to a video: what was asked, and what came of it."""
INDEX = "index.html"
"""Beside the folders of a job's results: leads to their pages."""

TRACK_FIELDS = {
    "points": ("uv_norm", "frame t_src"),
    "t_src": ("frame of the clip", ""),
    "xyz": (UNIT, "world"),
    "xyz_cam": (UNIT, "camera of each frame"),
    "uv_norm": ("uv_norm", "each frame; in frame t_src the model's answer, near `points`"),
    "visible": ("bool", ""),
    "confidence": ("0 to 1", ""),
    "status": ("0 not begun, 1 followed, 2 found again, 3 lost", ""),
}
FIELDS: dict[str, dict[str, tuple[str, str]]] = {  # file -> key -> (unit, frame)
    "tracks.npz": TRACK_FIELDS,
    "dense_tracks.npz": TRACK_FIELDS,
    "forecast.npz": {
        "xyz": (UNIT, "world"),
        "velocity": (f"{UNIT} per frame", "world"),
        "last_seen": ("frame of the clip", ""),
    },
    "uncertainty.npz": {
        "jitter": (UNIT, "camera of each frame"),
        "windows": (UNIT, "world"),
    },
    "depth.npz": {
        "depth": (UNIT, "camera of each frame, along +z"),
        "normal": ("unit length", "camera of each frame"),
        "confidence": ("0 to 1", ""),
    },
    "flow.npz": {
        "xyz": (UNIT, "camera of each frame"),
        "flow": (f"{UNIT} until the next frame", "camera of each frame"),
        "visible": ("bool", ""),
        "confidence": ("0 to 1", ""),
    },
    "points.npz": {
        "xyz": (UNIT, "world"),
        "rgb": ("0 to 255", ""),
        "normal": ("unit length", "world"),
        "confidence": ("0 to 1", ""),
        "frame": ("frame of the clip", ""),
        "left_out": ("share of the pixels asked", ""),
    },
    "cameras.npz": {
        "world_from_cam": (UNIT, "world"),
        "intrinsics": ("native pixels", "camera of each frame"),
        "residual": ("share of depth", ""),
    },
}


def write_arrays(folder: Path, results: dict[str, Arrays]) -> dict[str, dict[str, np.ndarray]]:
    """The .npz files of the table, into an empty local folder. Gives the same arrays, as they lie there."""
    for task, arrays in results.items():
        write_npz(folder / f"{task}.npz", arrays)
    return {task: mapped(folder / f"{task}.npz") for task in results}


def write_results(folder: Path, video: Video, results: dict[str, dict[str, np.ndarray]], about: dict[str, Any]) -> None:
    """All other files of the table, pictures included, from the arrays; `about` goes into result.json."""
    # With Matplotlib, which those who only need the table above do not wait for.
    from pipelines.pictures.drawing import position_colours, save
    from pipelines.pictures.results import camera_figure, cloud_picture, confidence_frames, depth_frames, track_frames
    from pipelines.pictures.video_file import write_video
    from pipelines.results.exports.point_cloud import ply
    from pipelines.results.exports.trajectories import tum
    from pipelines.results.page.job_page import write_thumbnail
    from pipelines.results.page.video_page import PAGE, video_page
    from pipelines.results.reading import Document

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


def claim_of(request: dict[str, Any]) -> bytes:
    """What a folder on S3 says while its results are on their way, so that no other results get between them."""
    return json.dumps(request, sort_keys=True).encode()


@dataclass(frozen=True)
class Answer:
    """Of result.json, what tells whether it is the answer to a request, and whether all of it is there."""

    request: dict[str, Any]
    all_files: list[str]


def read_answer(uri: str, document: str = RESULT) -> Answer | None:
    """What the document in the folder says; None if there is none at `uri`. ValueError if it is damaged, or files it
    lists are gone."""
    remedy = f"remove {uri}, or use another --out"
    answer = documents.read(f"{uri}/{document}", Answer, remedy, others="ignore")
    if answer is not None and (gone := sorted(set(answer.all_files) - set(listed(uri)))):
        raise ValueError(f"{uri} lacks {', '.join(gone)}, which its {document} lists: {remedy}")
    return answer


def is_answered(uri: str, request: dict[str, Any], document: str = RESULT) -> bool:
    """Whether there is an answer to this very request. ValueError if there is one to another, or only a part."""
    answer = read_answer(uri, document)
    if answer is None:
        return False
    there = answer.request
    differences = [
        f"{key} was {there.get(key)!r}, now {request[key]!r}" for key in request if there.get(key) != request[key]
    ]
    if differences:
        raise ValueError(
            f"{uri} holds results of another request ({'; '.join(differences)}): remove it, or use another --out"
        )
    return True
