"""What a model, or another method, said about a benchmark's clips: an .npz per clip, SUBSET/NAME.npz.

| key                  | shape             | of           | is                                                         |
|----------------------|-------------------|--------------|------------------------------------------------------------|
| `tracks_XYZ`         | (T, N, 3)         | tapvid3d     | any unit, each in the camera of its own frame              |
| `visibility`         | (T, N) bool       | tapvid3d     | said to be visible                                         |
| `tracks_world`       | (T, N, 3)         | worldtrack   | in the camera of frame 0; of TAPVid-3D optional            |
| `points_world`       | (T, h, w, 3)      | cloud        | of all pixels, in the camera of frame 0                    |
| `depth`              | (T, h, w)         | depth        | along z; at the truth's size, or resized to it (bicubic)   |
| `world_from_cam`     | (T, 4, 4)         | pose         | NaN where it could not be told                             |
| `about`              | () text           |              | JSON: which model, of what, asked how; may be absent       |

N are the truth's tracks in its order (of WorldTrack those visible in frame 0, or all). Other methods' files are read
too, by what they are:

| what is there                            | is                                                                        |
|------------------------------------------|---------------------------------------------------------------------------|
| SUBSET/NAME.npz or NAME.npz              | the table above; TAPVid-3D's own prediction files are such                |
| NAME/result.json                         | a folder of results that `infer` wrote                                    |
| SUBSET/NAME/pts3d1_p*.npy                | St4RTrack: where the pixels of frame 0 are at each time, in its camera    |
| SUBSET/NAME/pts3d2_p*.npy                | St4RTrack: where the pixels of each frame are, in the camera of frame 0   |
| SUBSET/NAME.json                         | OpenD4RT: {"tracks_world": [T][N][3]}, and the other keys likewise        |

Nothing in them is executed. They are found by exact name, never by order.
"""

import io
import json
from typing import Any

import numpy as np

from pipelines.evaluation.benchmarks.benchmark import ClipName, Prediction
from pipelines.results.footage import natural
from pipelines.results.reading import read_result
from pipelines.whole import listed, read_file, written

KEYS = ("tracks_XYZ", "visibility", "tracks_world", "tracks_world_opend4rt", "tracks_world_st4rtrack", "depth")
KEYS = (*KEYS, "world_from_cam", "points_world")
ST4RTRACK = {"pts3d1_p": "dense_world", "pts3d2_p": "points_world"}


def write_prediction(folder: str, clip: ClipName, prediction: Prediction, about: dict[str, Any]) -> None:
    """Whole or not at all, in place of the one that was there."""
    arrays = {key: x.astype(np.float32) if x.dtype.kind == "f" else x for key, x in prediction.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays, about=np.array(json.dumps(about, sort_keys=True)))
    with written(f"{folder}/{clip.file}") as file:
        file.write(content.getvalue())


def read_prediction(folder: str, clip: ClipName) -> tuple[Prediction, dict[str, Any]] | None:
    """With what is told of it; None if there is none. ValueError naming the file if it is damaged."""
    for uri in (f"{folder}/{clip.file}", f"{folder}/{clip.file.partition('/')[2]}"):
        if (content := read_file(uri)) is not None:
            return _arrays(content, uri)
    stem = clip.file.removesuffix(".npz")
    name = stem.partition("/")[2]
    for uri in (f"{folder}/{stem}.json", f"{folder}/{name}.json"):
        if (content := read_file(uri)) is not None:
            return _opend4rt(content, uri), {"from": uri}
    for uri in (f"{folder}/{stem}", f"{folder}/{name}"):
        names = listed(uri)
        if "result.json" in names:
            return _of_infer(uri), {"from": uri}
        found = {}
        for start, key in ST4RTRACK.items():
            if files := sorted((n for n in names if n.startswith(start) and n.endswith(".npy")), key=natural):
                found[key] = np.stack([_npy(f"{uri}/{n}") for n in files])
        if found:
            return found, {"from": uri}
    return None


def _arrays(content: bytes, uri: str) -> tuple[Prediction, dict[str, Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found = {key: file[key] for key in KEYS if key in file}
            about = json.loads(str(file["about"])) if "about" in file else {"from": uri}
    except Exception as error:  # zip and NumPy raise anything on damage
        raise ValueError(f"prediction {uri} is damaged or holds Python objects ({error}): write it again") from None
    return _checked(found, uri), about


def _opend4rt(content: bytes, uri: str) -> Prediction:
    try:
        document = json.loads(content)
        found = {key: np.array(document[key], np.float64) for key in KEYS if key in document}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"prediction {uri} is no JSON of arrays ({error}): write it again") from None
    return _checked(found, uri)


def _of_infer(uri: str) -> Prediction:
    result, found = read_result(uri), {}
    if "tracks" in result.tasks:
        tracks = result.arrays("tracks")
        found = {"tracks_XYZ": tracks["xyz_cam"], "visibility": tracks["visible"], "tracks_world": tracks["xyz"]}
        found = {key: array.swapaxes(0, 1) for key, array in found.items()}
    if "depth" in result.tasks:
        found["depth"] = result.arrays("depth")["depth"]
    if "cameras" in result.tasks:
        found["world_from_cam"] = result.arrays("cameras")["world_from_cam"]
    return _checked(found, uri)


def _npy(uri: str) -> np.ndarray:
    content = read_file(uri)
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)[..., :3]
    except Exception as error:  # NumPy raises anything on damage
        raise ValueError(f"prediction {uri} is no array of points ({error}): write it again") from None


def _checked(found: Prediction, uri: str) -> Prediction:
    if not found:
        raise ValueError(f"prediction {uri} has none of {', '.join(KEYS)}: see pipelines/evaluation/benchmarks/")
    for key, array in found.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{key} of prediction {uri} is {array.dtype}: it must be numbers")
    if "visibility" in found:
        found["visibility"] = found["visibility"].astype(bool)
    return found
