"""What a model says about one video, and the files it becomes; `writing.py` makes them, `reading.py` reads them.

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
from dataclasses import dataclass, field
from typing import Any

from pipelines import documents
from pipelines.raw.place import version_of
from pipelines.whole import listed

SCHEMA = 1
"""Of result.json and adapt.json."""
USUAL_TASKS = ("tracks", "depth", "points", "cameras")
TASKS = (*USUAL_TASKS, "dense_tracks", "flow", "uncertainty")
UNIT = "model units"
LOST = 3
"""In `status` of tracks; 1 and 2: it is known where they are."""

WINDOWS = ".windows"
"""How a hidden folder of OUT ends that keeps what a model said of the windows of a video (`results/kept.py`)."""

DIGEST = re.compile(r"[0-9a-f]{32}")
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


def claim_of(request: dict[str, Any]) -> bytes:
    """What a folder on S3 says while its results are on their way, so that no other results get between them."""
    return json.dumps(request, sort_keys=True).encode()


@dataclass(frozen=True)
class Schema:
    schema: int


@dataclass(frozen=True)
class Answer:
    """Of result.json, what tells whether it is the answer to a request, and whether all of it is there."""

    request: dict[str, Any]
    all_files: list[str]
    model: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)


def read_answer(uri: str, document: str = RESULT) -> Answer | None:
    """What the document in the folder says; None if there is none at `uri`. ValueError if it is damaged or of another
    schema, or files it lists are gone."""
    remedy = f"remove {uri}, or use another --out"
    found = documents.read(f"{uri}/{document}", Schema, remedy, others="ignore")
    if found is not None and found.schema != SCHEMA:
        raise ValueError(f"{uri} has schema {found.schema}, this program reads {SCHEMA}: {remedy}")
    answer = documents.read(f"{uri}/{document}", Answer, remedy, others="ignore")
    if answer is not None and (gone := sorted(set(answer.all_files) - set(listed(uri)))):
        raise ValueError(f"{uri} lacks {', '.join(gone)}, which its {document} lists: {remedy}")
    return answer


@dataclass(frozen=True)
class Origin:
    """Of result.json, what tells what the results were made from."""

    request: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)
    source_version: str | None = None
    """Of the file, if it was one (`raw/place.py`)."""


def digest_told(uri: str, source: str) -> str | None:
    """Of the frames that the results at `uri` are of, if they are of the file `source` and nobody has touched it since:
    it need not be read to know that it is the same. None if that cannot be told."""
    origin = documents.read(f"{uri}/{RESULT}", Origin, f"remove {uri}, or use another --out", others="ignore")
    if origin is None or origin.source_version is None or origin.source.get("uri") != source:
        return None
    return origin.request.get("video") if version_of(source) == origin.source_version else None


def is_answered(uri: str, request: dict[str, Any], model: dict[str, Any], document: str = RESULT) -> bool:
    """Whether there is an answer to this very request, to be answered by this `model`, as the document names it.
    ValueError if there is one to another, or only a part."""
    answer = read_answer(uri, document)
    if answer is None:
        return False
    there = {key: (answer.request.get(key), now) for key, now in request.items()}
    differences = {key: f"{_shown(was)}, now {_shown(now)}" for key, (was, now) in there.items() if was != now}
    if "model_digest" in differences:
        del differences["model_digest"]
        differences["model"] = f"{model_in_words(answer.model)}, now {model_in_words(model)}"
    if "video" in differences:
        differences["video"] = f"{answer.source.get('uri')} with {differences['video']}"
    if differences:
        told = "; ".join(f"{key} was {words}" for key, words in differences.items())
        raise ValueError(f"{uri} holds results of another request ({told}): remove it, or use another --out")
    return True


def model_in_words(model: dict[str, Any]) -> str:
    """Of the `model` of a document: how it was called, what that meant, and only then its digest."""
    names = dict.fromkeys(str(model[key]) for key in ("uri", "version") if key in model)
    return f"{' = '.join(names) or 'one without a name'} ({_shown(model.get('digest'))})"


def _shown(value: Any) -> str:
    """A value of a request; of a digest its beginning, said to be one."""
    return f"digest {value[:8]}" if isinstance(value, str) and DIGEST.fullmatch(value) else repr(value)
