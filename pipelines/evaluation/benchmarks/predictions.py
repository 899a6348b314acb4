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
| SUBSET/NAME/frame_0000.npy               | depth of each frame, as CUT3R's evaluation has it                         |
| SUBSET/NAME/pred_traj.txt                | its poses, a line "i x y z qw qx qy qz" per frame from 0                  |
| SUBSET/NAME.json                         | OpenD4RT: {"tracks_world": [T][N][3]}, and the other keys likewise        |

SUBSET may be left out. NAME is that of the truth, or what evaluation codes call it ("balloon2"); found by exact name,
never by order. Nothing in them is executed.
"""

import io
import json
from typing import Any

import numpy as np

from pipelines.evaluation.benchmarks.benchmark import ClipName, Prediction
from pipelines.geometry import rotation_from_xyzw
from pipelines.results.footage import natural
from pipelines.results.reading import read_result
from pipelines.whole import listed, read_file, written

KEYS = ("tracks_XYZ", "visibility", "tracks_world", "tracks_world_opend4rt", "tracks_world_st4rtrack", "depth")
KEYS = (*KEYS, "world_from_cam", "points_world")
DENSE = {"dense_world": "pts3d1_p", "points_world": "pts3d2_p", "depth": "frame_"}
"""Key -> how its files begin, of each frame one."""
TRAJECTORY = "pred_traj.txt"


def write_prediction(folder: str, clip: ClipName, prediction: Prediction, about: dict[str, Any]) -> None:
    """Whole or not at all, in place of the one that was there."""
    arrays = {key: x.astype(np.float32) if x.dtype.kind == "f" else x for key, x in prediction.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays, about=np.array(json.dumps(about, sort_keys=True)))
    with written(f"{folder}/{clip.file}") as file:
        file.write(content.getvalue())


def read_prediction(folder: str, clip: ClipName) -> tuple[Prediction, dict[str, Any]] | None:
    """With what is told of it; None if there is none. ValueError naming the file if it is damaged."""
    stems = [f"{folder}/{name}" for called in clip.called for name in (f"{clip.subset}/{called}", called)]
    for stem in stems:
        if (content := read_file(f"{stem}.npz")) is not None:
            return _arrays(content, f"{stem}.npz")
    for stem in stems:
        if (content := read_file(f"{stem}.json")) is not None:
            return _opend4rt(content, f"{stem}.json"), {"from": f"{stem}.json"}
    for stem in stems:
        if found := _of_folder(stem, listed(stem)):
            return found, {"from": stem}
    return None


def _of_folder(uri: str, names: list[str]) -> Prediction:
    """Empty if nothing in it is a prediction."""
    if "result.json" in names:
        return _of_infer(uri)
    found = {}
    for key, start in DENSE.items():
        files = sorted((name for name in names if name.startswith(start) and name.endswith(".npy")), key=natural)
        if not files:
            continue
        _require_all(files, start, uri)
        found[key] = _stacked([_npy(f"{uri}/{name}") for name in files], uri)
        if key != "depth":
            found[key] = found[key][..., :3]
    if TRAJECTORY in names:
        found["world_from_cam"] = _trajectory(f"{uri}/{TRAJECTORY}")
    return _checked(found, uri) if found else {}


def _require_all(files: list[str], start: str, uri: str) -> None:
    """ValueError naming the frame that is not there: what follows would be scored against another one's truth."""
    numbers = [name.removeprefix(start).removesuffix(".npy") for name in files]
    for number, place in zip(numbers, range(len(files)), strict=True):
        if not number.isdecimal() or int(number) != place:
            raise ValueError(
                f"prediction {uri} has {start}{number}.npy where frame {place} is due: one file per frame, from 0"
            )


def _stacked(arrays: list[np.ndarray], uri: str) -> np.ndarray:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"frames of prediction {uri} have different shapes: {', '.join(map(str, sorted(shapes)))}")
    return np.stack(arrays)


def _trajectory(uri: str) -> np.ndarray:
    """Lines "i x y z qw qx qy qz": world_from_cam of frame i. NaN for frames that have no line."""
    try:
        text = (read_file(uri) or b"").decode()
        rows = np.array([line.split() for line in text.splitlines() if line.strip() and line[0] != "#"], np.float64)
        frames = rows[:, 0].astype(int)
        if rows.shape[1] != 8 or (frames != rows[:, 0]).any() or (frames < 0).any() or len(set(frames)) != len(frames):
            raise ValueError("frames in the first column, each once")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"prediction {uri} must have lines i x y z qw qx qy qz ({error}): write it again") from None
    poses = np.full((frames.max() + 1, 4, 4), np.nan)
    poses[frames] = np.eye(4)
    poses[frames, :3, :3] = rotation_from_xyzw(rows[:, [5, 6, 7, 4]])
    poses[frames, :3, 3] = rows[:, 1:4]
    return poses


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
        return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy raises anything on damage
        raise ValueError(f"prediction {uri} is no array ({error}): write it again") from None


def _checked(found: Prediction, uri: str) -> Prediction:
    if not found:
        raise ValueError(f"prediction {uri} has none of {', '.join(KEYS)}: see pipelines/evaluation/benchmarks/")
    for key, array in found.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{key} of prediction {uri} is {array.dtype}: it must be numbers")
    if "visibility" in found:
        found["visibility"] = found["visibility"].astype(bool)
    return found
