"""The layouts in which ScanNet scans lie on disks: the .sens stream, and three ways to export its frames. Notes D6.

    scene0000_00.sens                              as downloaded (pipelines/raw/sens.py)

    color/0.jpg depth/0.png pose/0.txt             by the official Python exporter: numbers without leading zeros,
    intrinsic/{intrinsic,extrinsic}_{color,depth}.txt    those of the stream also where frames were skipped

    frame-000000.color.jpg .depth.pgm .pose.txt    by the official `sens` tool; the PGM is big-endian
    _info.txt                                      "m_calibrationDepthIntrinsic = ..." and so on, 4x4 on one line

    color/000000.jpg depth/000000.png pose/000000.txt    the download scannet_frames_25k: every 100th frame
    intrinsics_color.txt intrinsics_depth.txt

    color_90/frame_0000.jpg depth_90/frame_0000.png      as evaluation codes prepare a scan: 90 frames of it alone
    pose_90.txt                                          16 (or 12) numbers a line

Depth is u16, 1000 per metre (the stream and _info.txt say so themselves), 0 where unknown; poses are world_from_depth.
Intrinsics are in pixels of which the centre of the top-left one is (0, 0).
"""

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from pipelines.raw.folder import RawFolder
from pipelines.raw.sens import SensFile

DEPTH_SHIFT = 1000  # units per metre
USUAL_SIZE, USUAL_FOCAL = (480, 640), 577.87  # of the depth camera


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What the files of one scan say, before colour and depth are brought together. C: colour, D: depth camera."""

    where: str
    """For messages."""
    numbers: Int64[np.ndarray, "T"]
    world_from_depth: Float64[np.ndarray, "T 4 4"]
    """As stored; anything but a rigid motion where tracking was lost."""
    colour_from_depth: Float64[np.ndarray, "4 4"]
    colour_intrinsics: Float64[np.ndarray, "T 3 3"]
    """Pixels of images of `colour_size`, corner origin, as the other."""
    depth_intrinsics: Float64[np.ndarray, "T 3 3"]
    colour_size: tuple[int, int]
    """(H, W), as the other."""
    depth_size: tuple[int, int]
    colour: Callable[[int], UInt8[np.ndarray, "H W 3"]]
    """RGB of the t-th frame."""
    depth: Callable[[int], Float32[np.ndarray, "h w"]]
    """Metres of the t-th frame, 0 where unknown."""
    prepared: bool = False
    lacks: frozenset[str] = frozenset()
    """As of `Sequence`."""


def sens_stream(raw: RawFolder, folder: str) -> Recording:
    """The .sens file of a folder."""
    files = [name for name in raw.listdir(folder)[1] if name.endswith(".sens")]
    if len(files) != 1:
        raise ValueError(f"{folder} in {raw.uri} has {' and '.join(files)}: give each scan a folder of its own name")
    path = f"{folder}/{files[0]}"
    sens = SensFile(raw, path)
    return Recording(
        where=f"{path} in {raw.uri}",
        numbers=np.arange(len(sens.poses)),
        world_from_depth=sens.poses,
        colour_from_depth=_colour_from_depth(sens.colour_extrinsics, sens.depth_extrinsics, path),
        colour_intrinsics=_corner(sens.colour_intrinsics, len(sens.poses)),
        depth_intrinsics=_corner(sens.depth_intrinsics, len(sens.poses)),
        colour_size=sens.colour_size,
        depth_size=sens.depth_size,
        colour=sens.colour,
        depth=lambda t: sens.depth(t) / np.float32(sens.depth_shift),
    )


def python_export(raw: RawFolder, folder: str) -> Recording:
    kinds = [f"intrinsic/{kind}_{camera}.txt" for kind in ("intrinsic", "extrinsic") for camera in ("color", "depth")]
    return _export(raw, folder, "color/%d.jpg", "depth/%d.png", "pose/%d.txt", _matrix_files(raw, folder, kinds))


def frames_25k(raw: RawFolder, folder: str) -> Recording:
    files = ["intrinsics_color.txt", "intrinsics_depth.txt"]
    matrices = [*_matrix_files(raw, folder, files), np.eye(4), np.eye(4)]
    return _export(raw, folder, "color/%06d.jpg", "depth/%06d.png", "pose/%06d.txt", matrices)


def tool_export(raw: RawFolder, folder: str) -> Recording:
    path = f"{folder}/_info.txt"
    told = dict(re.findall(r"^(\w+) *= *(.*)$", raw.text(path), re.MULTILINE))
    keys = [f"m_calibration{camera}{kind}" for kind in ("Intrinsic", "Extrinsic") for camera in ("Color", "Depth")]
    if missing := [key for key in (*keys, "m_depthShift") if key not in told]:
        raise ValueError(f"{path} in {raw.uri} does not tell {', '.join(missing)}: export the scan again")
    matrices = [_matrix(told[key], f"{key} of {path} in {raw.uri}") for key in keys]
    names = "frame-%06d.color.jpg", "frame-%06d.depth.pgm", "frame-%06d.pose.txt"
    shift = told["m_depthShift"].strip()
    if not re.fullmatch(r"\d+(\.\d*)?", shift) or not 0 < float(shift) < np.inf:
        raise ValueError(
            f"m_depthShift of {path} in {raw.uri} is {shift!r}, not units per metre: export the scan again"
        )
    return _export(raw, folder, *names, matrices, shift=float(shift))


def prepared(raw: RawFolder, folder: str) -> Recording:
    """Intrinsics are not among these files: those of most scans. Without images or poses: for stored predictions."""
    colours, depths = (_in_order(raw, f"{folder}/{kind}_90") for kind in ("color", "depth"))
    poses = _rows_of_poses(raw, f"{folder}/pose_90.txt") if raw.holds(folder, "pose_90.txt") else np.zeros((0, 4, 4))
    counts = {"color_90": len(colours), "depth_90": len(depths), "pose_90.txt": len(poses)}
    count = max(counts.values())
    if wrong := [f"{part} has {there}" for part, there in counts.items() if there not in (0, count)]:
        raise ValueError(f"{folder} in {raw.uri} has {count} frames, but {' and '.join(wrong)}: prepare it again")
    if not count:
        raise ValueError(f"{folder} in {raw.uri} has neither color_90/frame_0000.jpg nor depth_90/frame_0000.png")
    if not len(poses):
        poses = np.full((count, 4, 4), np.nan)
    depth_size = raw.image_size(depths[0]) if depths else USUAL_SIZE
    colour_size = raw.image_size(colours[0]) if colours else depth_size
    lacks = {"images": not colours, "depth": not depths, "intrinsics": True}
    return Recording(
        where=f"{folder} in {raw.uri}",
        numbers=np.arange(count),
        world_from_depth=poses,
        colour_from_depth=np.eye(4),
        colour_intrinsics=_usual(colour_size, count),
        depth_intrinsics=_usual(depth_size, count),
        colour_size=colour_size,
        depth_size=depth_size,
        colour=lambda t: raw.rgb(colours[t]),
        depth=lambda t: raw.grey16(depths[t]) / np.float32(DEPTH_SHIFT),
        prepared=True,
        lacks=frozenset(what for what, missing in lacks.items() if missing),
    )


def _in_order(raw: RawFolder, folder: str) -> list[str]:
    """Files called by a number at their end, by it."""
    found = {int(match[1]): file for file in raw.listdir(folder)[1] if (match := re.fullmatch(r".*?(\d+)\.\w+", file))}
    return [f"{folder}/{found[number]}" for number in sorted(found)]


def _rows_of_poses(raw: RawFolder, path: str) -> Float64[np.ndarray, "T 4 4"]:
    try:
        rows = np.array([line.split() for line in raw.text(path).splitlines() if line.strip()], np.float64)
        rows = rows.reshape(len(rows), -1, 4)
        poses = np.tile(np.eye(4), (len(rows), 1, 1))
        poses[:, : rows.shape[1]] = rows
    except ValueError:
        raise ValueError(f"{path} in {raw.uri} must have 16 or 12 numbers a line: prepare it again") from None
    return poses


def _usual(size: tuple[int, int], count: int) -> Float64[np.ndarray, "T 3 3"]:
    """As wide as the usual depth camera's."""
    height, width = size
    focal = USUAL_FOCAL / USUAL_SIZE[1] * width
    return np.tile([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]], (count, 1, 1))


LAYOUTS = {
    "*.sens": sens_stream,
    "intrinsic": python_export,
    "_info.txt": tool_export,
    "intrinsics_depth.txt": frames_25k,
    "color_90": prepared,
    "pose_90.txt": prepared,
}
"""By a file or folder that only this layout has. The first counts where a scan was exported into its own folder: the
exporters encode colour once more."""


def _export(
    raw: RawFolder,
    folder: str,
    colour: str,
    depth: str,
    pose: str,
    matrices: list[Float64[np.ndarray, "4 4"]],
    shift: float = DEPTH_SHIFT,
) -> Recording:
    """One file of each kind per frame. `matrices`: intrinsics of colour and depth, extrinsics of colour and depth."""
    numbers = raw.frame_numbers(*posixpath.split(f"{folder}/{pose}"))
    colours, depths, poses = (
        raw.frame_files(*posixpath.split(f"{folder}/{kind}"), numbers, f"{folder}/{pose}")
        for kind in (colour, depth, pose)
    )
    return Recording(
        where=f"{folder} in {raw.uri}",
        numbers=numbers,
        world_from_depth=np.stack(_matrix_files(raw, ".", poses)),
        colour_from_depth=_colour_from_depth(*matrices[2:], folder),
        colour_intrinsics=_corner(matrices[0], len(numbers)),
        depth_intrinsics=_corner(matrices[1], len(numbers)),
        colour_size=raw.image_size(colours[0]),
        depth_size=raw.image_size(depths[0]),
        colour=lambda t: raw.rgb(colours[t]),
        depth=lambda t: raw.grey16(depths[t]) / np.float32(shift),
    )


def _matrix_files(raw: RawFolder, folder: str, names: list[str]) -> list[Float64[np.ndarray, "4 4"]]:
    paths = [f"{folder}/{name}" for name in names]
    return [_matrix(text, f"{path} in {raw.uri}") for path, text in zip(paths, raw.texts(paths), strict=True)]


def _matrix(text: str, where: str) -> Float64[np.ndarray, "4 4"]:
    try:
        return np.array(text.split(), np.float64).reshape(4, 4)
    except ValueError:
        raise ValueError(f"{where} must be 16 numbers, not {text[:80]!r}: export or download it again") from None


def _colour_from_depth(
    colour: Float64[np.ndarray, "4 4"], depth: Float64[np.ndarray, "4 4"], path: str
) -> Float64[np.ndarray, "4 4"]:
    """The depth camera's extrinsics, as the toolkit's own point clouds use them."""
    if not np.allclose(colour, np.eye(4), atol=1e-5):
        raise ValueError(f"the colour extrinsics of {path} are not the identity: what they mean is not known, not read")
    return depth


def _corner(matrix: Float64[np.ndarray, "4 4"], count: int) -> Float64[np.ndarray, "T 3 3"]:
    """Their top-left centre (0, 0) is our (0.5, 0.5)."""
    return np.tile(matrix[:3, :3] + [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], (count, 1, 1))
