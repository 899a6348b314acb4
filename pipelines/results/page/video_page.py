"""page.html: what a model says of a video, in one file that needs nothing else and no network.

It has a timeline, the point cloud, the tracks, the cameras with their images, and answers clicks; see `page.html` and
the scripts beside it, which are put into it as they are.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipelines.pictures.drawing import position_colours
from pipelines.results.page.numbers import LEVELS, Box, Numbers, share_bytes
from pipelines.results.page.parts import HERE, filled, small_picture
from pipelines.results.reading import Arrays, Document, read_result
from pipelines.whole import write_file

PAGE = "page.html"
SHOWN = ("tracks", "points", "cameras")  # tasks whose arrays are on it
LARGEST = 10_000_000  # bytes of a page: more, and only every second, third, ... point is shown
IMAGE_SIDE = 320  # of the frames in it
IMAGE_BYTES = 2_000_000  # of all of them: with more frames each is smaller
MAX_TRACKED = 250_000  # tracks times frames: of more tracks, some are shown
MAX_FRAMES = 600  # of a longer video, every second, third, ... frame is shown
SCRIPTS = ("decode.js", "maths.js", "data.js", "shaders.js", "scene.js", "view.js", "picture.js", "player.js")
KNOWN, VISIBLE, FOUND_AGAIN = 1, 2, 4
"""Bits of what is said of a track at a time; none: lost."""


def rewrite_page(uri: str) -> list[str]:
    """Make page.html of the results at `uri` again, in place of the one that was there; gives notes on it."""
    result, notes = read_result(uri), []
    arrays = {task: result.arrays(task) for task in SHOWN if task in result.tasks}
    try:
        length = len(result.frames)
        frames = islice(result.frames, 0, None, shown_every(length))
        pictures = [page_picture(frame, length) for frame in frames]
    except ValueError as error:
        pictures, notes = [], [str(error)]
    content = video_page(result.document, arrays, pictures, notes)
    write_file(f"{result.uri}/{PAGE}", content.encode())
    return notes


def shown_every(length: int) -> int:
    """Of so many frames, every how-many-th is on the page."""
    return -(-length // MAX_FRAMES)


def page_picture(frame: UInt8[np.ndarray, "H W 3"], length: int) -> bytes:
    """A frame of a video of `length` frames as the page has it: a JPEG."""
    return small_picture(frame, IMAGE_BYTES * shown_every(length) // length, IMAGE_SIDE)


def video_page(
    document: Document, arrays: dict[str, Arrays], pictures: Sequence[bytes], notes: Sequence[str] = ()
) -> str:
    """The page, at most `LARGEST` bytes. `arrays`: of each task, as in its .npz file; `pictures`: `page_picture` of
    every `shown_every`-th frame, or none; `notes`: what to say besides."""
    step, notes = shown_every(len(document.video)), list(notes)
    if step > 1:
        notes.append(f"one of {step} frames is shown, for the size of this page")
        document, arrays = _fewer_frames(document, arrays, step)
    stride = 1
    while True:
        page = _page(document, arrays, pictures, notes, stride)
        if len(page) <= LARGEST:
            return page
        stride += 1


def _page(
    document: Document, arrays: dict[str, Arrays], pictures: Sequence[bytes], notes: list[str], stride: int
) -> str:
    video, numbers = document.video, Numbers()
    tracks, points, cameras = (arrays.get(task) for task in SHOWN)
    notes = [*video.notes, *notes]
    clouds = [points["xyz"]] if points else []
    clouds += [tracks["xyz"].reshape(-1, 3)] if tracks else []
    clouds += [cameras["world_from_cam"][:, :3, 3]] * 3 if cameras else []
    box = Box.around(*clouds, np.zeros((0, 3)))
    about: dict[str, Any] = {
        "name": video.name,
        "fps": video.fps,
        "frames": video.frame_numbers,
        "times": video.times,
        "size": [video.width, video.height],
        "lengths": document.lengths,
        "unit": document.unit,
        "world": document.world,
        "model": document.model.get("digest", "not known"),
        "seams": document.seams,
        "low": box.low.tolist(),
        "high": box.high.tolist(),
        "levels": LEVELS,
    }
    if points:
        notes += _add_points(numbers, about, points, box, len(video), stride)
    if tracks:
        notes += _add_tracks(numbers, about, tracks, box)
    if cameras:
        notes += _add_cameras(numbers, cameras)
    if pictures:
        numbers.add_pictures("images", pictures)
    about |= {"notes": notes, "arrays": numbers.places}
    return _with_scripts(about, numbers.packed())


def _fewer_frames(document: Document, arrays: dict[str, Arrays], step: int) -> tuple[Document, dict[str, Arrays]]:
    """Every so many-th frame, as if the video had no others."""
    video = document.video
    shown = replace(
        video,
        frame_numbers=video.frame_numbers[::step],
        fps=video.fps / step,
        seconds=None if video.seconds is None else video.seconds[::step],
    )
    lasts = [window.last // step for window in document.windows]
    windows = [
        replace(window, first=min(-(-window.first // step), last), last=last)
        for window, last in zip(document.windows, lasts, strict=True)
    ]
    fewer: dict[str, Arrays] = {}
    if "tracks" in arrays:
        tracks = arrays["tracks"]
        fewer["tracks"] = {key: array[:, ::step] if array.ndim > 1 else array for key, array in tracks.items()}
        fewer["tracks"] |= {"points": tracks["points"], "t_src": tracks["t_src"] // step}
    if "points" in arrays:
        frame = arrays["points"]["frame"]
        fewer["points"] = {key: array[frame % step == 0] for key, array in arrays["points"].items() if array.ndim}
        fewer["points"]["frame"] //= step
    if "cameras" in arrays:
        fewer["cameras"] = {key: array[::step] for key, array in arrays["cameras"].items()}
    return replace(document, video=shown, windows=windows), fewer


def _with_scripts(about: dict[str, Any], data: str) -> str:
    """A script that is inside of HTML ends at the first `</`, so there must be none in what it holds."""
    scripts = "\n".join((HERE / name).read_text() for name in SCRIPTS)
    parts = {
        "title": html.escape(about["name"]),
        "style": (HERE / "style.css").read_text(),
        "about": json.dumps(about, allow_nan=False).replace("<", "\\u003c"),
        "data": data,
        "scripts": scripts,
    }
    return filled(PAGE, parts)


def _add_points(
    numbers: Numbers, about: dict[str, Any], points: Arrays, box: Box, length: int, stride: int
) -> list[str]:
    order = np.argsort(points["frame"], kind="stable")
    inside = box.holds(points["xyz"][order])
    chosen = order[inside][::stride]
    frame = points["frame"][chosen]
    about["first_points"] = np.searchsorted(frame, np.arange(length + 1)).tolist()
    numbers.add_differences("points", box.steps(points["xyz"][chosen]))
    numbers.add("colours", (points["rgb"][chosen] & 0xF8).T)
    numbers.add("confidence", share_bytes(points["confidence"][chosen], 64))
    notes = []
    if away := int((~inside).sum()):
        notes.append(f"{away} of {len(order)} points are not shown: they are nowhere, or far from all others")
    if stride > 1:
        notes.append(f"one of {stride} points is shown, for the size of this page")
    return notes


def _add_tracks(numbers: Numbers, about: dict[str, Any], tracks: Arrays, box: Box) -> list[str]:
    count, length = tracks["xyz"].shape[:2]
    chosen = np.linspace(0, count - 1, min(count, MAX_TRACKED // length)).round().astype(int)
    xyz, visible = tracks["xyz"][chosen], tracks["visible"][chosen]
    known = box.holds(xyz)
    state = np.where(known, KNOWN + VISIBLE * visible + FOUND_AGAIN * (tracks["status"][chosen] == 2), 0)
    about["tracks"] = chosen.tolist()
    numbers.add("track_xyz", box.steps(xyz))
    numbers.add("track_state", state.astype(np.uint8))
    numbers.add("track_confidence", share_bytes(tracks["confidence"][chosen], 101))
    uv = np.nan_to_num(tracks["uv_norm"][chosen], nan=-1.0)
    uv[np.arange(len(chosen)), tracks["t_src"][chosen]] = np.nan_to_num(tracks["points"][chosen], nan=-1.0)
    numbers.add("track_uv", np.rint(np.clip(uv, -1, 2) * 10_000).astype(np.int16))
    numbers.add("track_source", tracks["t_src"][chosen].astype(np.int32))
    numbers.add("track_colours", position_colours(tracks["points"][chosen]))
    return [f"{len(chosen)} of {count} tracks are shown"] if count > len(chosen) else []


def _add_cameras(numbers: Numbers, cameras: Arrays) -> list[str]:
    pose, lens = cameras["world_from_cam"], cameras["intrinsics"]
    known = np.isfinite(pose).all(axis=(1, 2)) & np.isfinite(lens).all(axis=(1, 2))
    numbers.add("camera_known", known.astype(np.uint8))
    numbers.add("poses", np.where(known[:, None, None], pose, np.eye(4)).astype(np.float32))
    numbers.add("lenses", np.where(known[:, None, None], lens, np.eye(3)).astype(np.float32))
    missing = int((~known).sum())
    return [f"the camera of {missing} of {len(known)} frames is not known"] if missing else []
