"""What the viewer can open, alike: our result folders, folders of St4RTrack, packages of `export`."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines import documents
from pipelines.results.files import RESULT
from pipelines.results.page.parts import small_picture
from pipelines.results.reading import Arrays, Document, VideoFacts, read_result
from pipelines.whole import listed, read_file

IMAGE_SIDE, IMAGE_BYTES = 480, 40_000
FPS = 10.0  # of what does not say
MAX_TRACKS = 2000  # of a dense grid
MANIFEST = "manifest.json"
FIRST = "pts3d1_p0.npy"


@dataclass(frozen=True)
class Opened:
    """A video and what was said of it; arrays are those of `results/files.py`, as far as there are any."""

    document: Document
    arrays: dict[str, Arrays]
    images: list[bytes]
    """Small JPEG files, one per frame; none if the video is gone."""
    notes: list[str]

    @property
    def name(self) -> str:
        return self.document.video.name

    def __len__(self) -> int:
        return len(self.document.video)

    def image(self, t: int) -> np.ndarray | None:
        return np.asarray(Image.open(io.BytesIO(self.images[t]))) if self.images else None


@dataclass(frozen=True)
class Manifest:
    """Of manifest.json, what is used of it."""

    name: str
    fps: float
    frame_numbers: list[int]
    width: int
    height: int


def find_openable(place: str) -> list[str]:
    """Folders at `place` that can be opened: itself, or those in it. ValueError if there is none."""
    place = place.rstrip("/")
    if _kind(place):
        return [place]
    found = [f"{place}/{name}" for name in listed(place) if _kind(f"{place}/{name}")]
    if not found:
        raise ValueError(
            f"{place} holds nothing to look at: give --out of infer, a folder of St4RTrack ({FIRST}), or a package of "
            "export --formats opend4rt"
        )
    return found


def open_folder(uri: str) -> Opened:
    """ValueError, naming it, for what is damaged or incomplete. A video that is gone is a note."""
    opened = _kind(uri)
    if opened is None:
        raise ValueError(f"{uri} holds nothing to look at")
    return opened(uri)


def _kind(uri: str) -> Callable[[str], Opened] | None:
    names = listed(uri)
    kinds = {RESULT: _open_result, FIRST: _open_st4rtrack, MANIFEST: _open_package}
    return next((kind for file, kind in kinds.items() if file in names), None)


def _open_result(uri: str) -> Opened:
    result = read_result(uri)
    shown = [task for task in ("tracks", "points", "cameras") if task in result.tasks]
    notes, images = list(result.video.notes), []
    try:
        images = [small_picture(frame, IMAGE_BYTES, IMAGE_SIDE) for frame in result.frames]
    except ValueError as error:
        notes.append(str(error))
    return Opened(result.document, {task: result.arrays(task) for task in shown}, images, notes)


def _open_st4rtrack(uri: str) -> Opened:
    """Head 1 as tracks, head 2 as the cloud. Its world is the camera of its anchor."""
    numbers = sorted(int(found[1]) for name in listed(uri) if (found := re.fullmatch(r"pts3d1_p(\d+)\.npy", name)))
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{uri} has pts3d1_p of frames {numbers}: some are missing between 0 and {numbers[-1]}")
    heads = [[_loaded(uri, f"{kind}{head}_p{j}.npy") for j in numbers] for kind in ("pts3d", "conf") for head in (1, 2)]
    moved, seen, _, conf_seen = heads
    height, width = moved[0].shape[:2]
    stride = max(1, int(np.ceil(np.sqrt(height * width / MAX_TRACKS))))
    xyz = np.stack([cloud[::stride, ::stride, :3].reshape(-1, 3) for cloud in moved], axis=1)
    v, u = np.mgrid[:height:stride, :width:stride]
    asked = np.stack([(u + 0.5) / width, (v + 0.5) / height], axis=-1).reshape(-1, 2)
    tracks = {
        "points": asked,
        "t_src": np.zeros(len(asked), int),
        "xyz": xyz,
        "uv_norm": np.full((*xyz.shape[:2], 2), np.nan),
        "visible": np.ones(xyz.shape[:2], bool),
        "confidence": _from_theirs(heads[2], stride),
        "status": np.ones(xyz.shape[:2], np.int8),
    }
    points = {
        "xyz": np.concatenate([cloud[..., :3].reshape(-1, 3) for cloud in seen]),
        "rgb": np.concatenate([(cloud[..., 3:] * 255).clip(0, 255).reshape(-1, 3) for cloud in seen]).astype(np.uint8),
        "confidence": 1 - 1 / np.concatenate([conf.reshape(-1) for conf in conf_seen]).clip(1),
        "frame": np.repeat(numbers, [cloud[..., 0].size for cloud in seen]),
    }
    images = [picture for j in numbers if (picture := read_file(f"{uri}/img2_p{j}.png")) is not None]
    notes = ["St4RTrack does not say which points are hidden: all count as seen"]
    return Opened(
        _document(uri.rpartition("/")[2], FPS, numbers, seen[0].shape[1], seen[0].shape[0]),
        {"tracks": tracks, "points": points},
        images if len(images) == len(numbers) else [],
        notes,
    )


def _from_theirs(conf: list[np.ndarray], stride: int) -> np.ndarray:
    """(N, T) from 0 to 1 of confidences that are 1 + exp(raw)."""
    return 1 - 1 / np.stack([one[::stride, ::stride].reshape(-1) for one in conf], axis=1).clip(1)


def _open_package(uri: str) -> Opened:
    manifest = documents.read(f"{uri}/{MANIFEST}", Manifest, "make it again with export", others="ignore")
    theirs = _loaded(uri, "assets/tracks.npz")
    names = {"points": "query_uv_norm", "t_src": "t_src", "xyz": "tracks_xyz_ref0", "uv_norm": "tracks_uv_norm"}
    names |= {"visible": "tracks_visibility", "confidence": "tracks_confidence"}
    if missing := sorted(set(names.values()) - set(theirs)):
        raise ValueError(f"assets/tracks.npz in {uri} has no {', '.join(missing)}: make it again with export")
    tracks = {ours: theirs[name] for ours, name in names.items()}
    tracks["status"] = np.where(np.isfinite(tracks["xyz"]).all(axis=-1), 1, 3).astype(np.int8)
    document = _document(manifest.name, manifest.fps, manifest.frame_numbers, manifest.width, manifest.height)
    return Opened(document, {"tracks": tracks, "cameras": _loaded(uri, "assets/cameras.npz")}, [], [])


def _document(name: str, fps: float, numbers: list[int], width: int, height: int) -> Document:
    video = VideoFacts(name, numbers, fps, width, height, [])
    return Document({}, video, "unknown", "camera of the first frame", [], lengths="unknown units")


def _loaded(uri: str, name: str) -> Arrays | np.ndarray:
    """Of an .npy or .npz file."""
    content = read_file(f"{uri}/{name}")
    if content is None:
        raise ValueError(f"{uri} lacks {name}")
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
        return found if isinstance(found, np.ndarray) else dict(found)
    except Exception as error:  # NumPy raises anything on damage
        raise ValueError(f"{name} in {uri} is damaged: {error}") from None
