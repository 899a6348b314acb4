"""A COLMAP model: photos, cameras, and points that stand still with all the frames that see them.

    images/              the frames
    sparse/0/            cameras.txt, images.txt, points3D.txt (https://colmap.github.io/format.html)

Pixels are as ours: the centre of the top-left one is (0.5, 0.5). Poses are `cam_from_world`, quaternions w first.
Points with a track can be adjusted; those of the cloud have none, and are there for splats to begin from.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipelines.geometry import inverse, xyzw_from_rotation
from pipelines.results.exports.photos import colours_at, photo_names, write_photos
from pipelines.results.exports.static import StaticTracks, known_cameras, static_cloud, static_tracks
from pipelines.results.reading import Result

SAME_LENS = 1e-3  # relative: focal lengths that differ by less are those of one camera


def write(folder: Path, result: Result, about: str) -> list[str]:
    """`about`: one line for the head of every file."""
    tracks, cameras = static_tracks(result), result.arrays("cameras")
    known = known_cameras(cameras, result.uri)
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    camera_of = _write_cameras(sparse / "cameras.txt", cameras["intrinsics"], known, result, about)
    _write_images(sparse / "images.txt", cameras["world_from_cam"], known, camera_of, tracks, result, about)
    _write_points(sparse / "points3D.txt", tracks, result, about)
    notes = write_photos(folder / "images", result)
    if missing := int((~known).sum()):
        notes.append(f"{missing} of {len(known)} frames are left out: their camera is not known")
    notes.append(f"{len(tracks.xyz)} tracks stand still and are seen from {tracks.seen.sum(axis=1).mean():.1f} frames")
    return notes


def _write_cameras(
    path: Path, intrinsics: Float[np.ndarray, "T 3 3"], known: np.ndarray, result: Result, about: str
) -> list[int]:
    """The camera of each frame: one for all, if their intrinsics are the same."""
    lenses = intrinsics[known].astype(np.float64)
    spread = np.ptp(lenses[:, (0, 1, 0, 1), (0, 1, 2, 2)], axis=0) / np.median(lenses[:, 0, 0])
    one = bool((spread < SAME_LENS).all())
    shown = np.median(lenses, axis=0)[None] if one else lenses
    lines = [f"# {about}", "# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy"]
    for number, lens in enumerate(shown, start=1):
        values = " ".join(f"{x:.9g}" for x in (lens[0, 0], lens[1, 1], lens[0, 2], lens[1, 2]))
        lines.append(f"{number} PINHOLE {result.video.width} {result.video.height} {values}")
    path.write_text("\n".join(lines) + "\n")
    return [1] * len(known) if one else np.cumsum(known).tolist()


def _write_images(
    path: Path,
    world_from_cam: Float[np.ndarray, "T 4 4"],
    known: np.ndarray,
    camera_of: list[int],
    tracks: StaticTracks,
    result: Result,
    about: str,
) -> None:
    cam_from_world = inverse(world_from_cam.astype(np.float64))
    names = photo_names(result)
    lines = [f"# {about}", "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", "# u v POINT3D_ID ..."]
    for t in np.flatnonzero(known).tolist():
        pose = cam_from_world[t]
        x, y, z, w = xyzw_from_rotation(pose[:3, :3])
        values = " ".join(f"{value:.12g}" for value in (w, x, y, z, *pose[:3, 3]))
        lines.append(f"{t + 1} {values} {camera_of[t]} {names[t]}")
        here = np.flatnonzero(tracks.seen[:, t])
        lines.append(" ".join(f"{tracks.uv[n, t, 0]:.4f} {tracks.uv[n, t, 1]:.4f} {n + 1}" for n in here))
    path.write_text("\n".join(lines) + "\n")


def _write_points(path: Path, tracks: StaticTracks, result: Result, about: str) -> None:
    colours = np.zeros((len(tracks.xyz), 3), np.uint8)
    for t in np.unique(tracks.t_src).tolist():
        colours[tracks.t_src == t] = colours_at(result, tracks.source[tracks.t_src == t], t)
    place = np.cumsum(tracks.seen, axis=0) - 1  # of each observation, in the list of its image
    lines = [f"# {about}", "# POINT3D_ID X Y Z R G B ERROR (IMAGE_ID POINT2D_IDX) ..."]
    for n, (xyz, rgb, error) in enumerate(zip(tracks.xyz, colours, tracks.error, strict=True)):
        views = " ".join(f"{t + 1} {place[n, t]}" for t in np.flatnonzero(tracks.seen[n]))
        lines.append(f"{n + 1} {_point(xyz, rgb)} {error:.4g} {views}")
    for n, (xyz, rgb) in enumerate(zip(*static_cloud(result), strict=True), start=len(tracks.xyz) + 1):
        lines.append(f"{n} {_point(xyz, rgb)} 0")
    path.write_text("\n".join(lines) + "\n")


def _point(xyz: np.ndarray, rgb: np.ndarray) -> str:
    x, y, z = xyz
    red, green, blue = rgb
    return f"{x:.9g} {y:.9g} {z:.9g} {red} {green} {blue}"
