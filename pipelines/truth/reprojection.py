"""Which reading of the raw files do depth and cameras agree on? The measure behind the audit (dataset notes 4).

Pixels of one frame are lifted by their depth, moved to another frame's camera and compared with its depth there. The
adapter declares one reading: pixel centres at one half, depth along z, world_from_cam in OpenCV axes. Every other
reading is one mistake away from it; where one of them fits better, that mistake has been made, here or by the dataset.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, Int64

from pipelines.geometry import inverse, project, rotation_from_xyzw, transform, unproject, xyzw_from_rotation
from pipelines.sequence import Sequence

GAPS = (1, 5, 20)  # frames between the two of a pair
PAIRS_PER_GAP = 3
PIXELS = 6_000  # of all pairs together
WINDOW = 5  # inverse depth is averaged over 5 x 5 pixels: exact on planes, and steps of stored depth average out
SMOOTH = 0.01  # a pixel further from that mean is an edge
FEWEST = 100  # points that must land on a surface
NO_OVERLAP = float("inf")

Poses = Float64[np.ndarray, "T 4 4"]


@dataclass(frozen=True)
class Reading:
    """The declared reading with one thing changed. `name` says what would be the truth if this one fits."""

    name: str
    shift: float = 0.0
    """Added to the principal point, in pixels."""
    focal: float = 1.0
    ray: int = 0
    """1: depth is a distance along the ray. -1: it was taken for one, and is not."""
    unit: float = 1.0
    lag: int = 0
    """Depth of frame t goes with the pose of frame t + lag."""
    poses: Callable[[Poses], Poses] = lambda poses: poses


def _axes(declared_from_true: Float64[np.ndarray, "3 3"]) -> Callable[[Poses], Poses]:
    turn = np.eye(4)
    turn[:3, :3] = declared_from_true
    return lambda poses: poses @ turn


def _reordered(order: list[int], camera_from_file: Float64[np.ndarray, "3 3"]) -> Callable[[Poses], Poses]:
    """The quaternion of every rotation, in the axes of the file, with its components (x, y, z, w) in another order."""

    def change(poses: Poses) -> Poses:
        changed, known = poses.copy(), np.isfinite(poses).all(axis=(1, 2))
        quaternion = xyzw_from_rotation(poses[known, :3, :3] @ camera_from_file)[:, order]
        changed[known, :3, :3] = rotation_from_xyzw(quaternion) @ camera_from_file.T
        return changed

    return change


NED = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # OpenCV axes from forward, right, down
OPENGL = np.diag([1.0, -1, -1])
FILE_AXES = {"OpenCV": np.eye(3), "NED": NED, "OpenGL": OPENGL}
DECLARED = Reading("as declared")
# Mistakes of the size of half a pixel drown in noisy depth, the others do not.
PIXEL_READINGS = (
    Reading("the principal point lies half a pixel further right and down", shift=0.5),
    Reading("the principal point lies half a pixel further left and up", shift=-0.5),
)
OTHER_READINGS = (
    Reading("depth is a distance along the ray, not along z", ray=1),
    Reading("depth lies along z and was taken for a distance along the ray", ray=-1),
    Reading("the poses are cam_from_world, not world_from_cam", poses=inverse),
    Reading("the camera axes are OpenGL's (y up, -z forward)", poses=_axes(OPENGL)),
    Reading("the camera axes are PyTorch3D's (x left, y up)", poses=_axes(np.diag([-1.0, -1, 1]))),
    Reading("the camera axes are NED (x forward, y right, z down)", poses=_axes(NED.T)),
    Reading("the camera axes were taken for NED and are not", poses=_axes(NED)),
    *(
        Reading(
            f"the quaternions are {true} and were taken for {taken} (in {name} axes)", poses=_reordered(order, axes)
        )
        for name, axes in FILE_AXES.items()
        for true, taken, order in (("wxyz", "xyzw", [1, 2, 3, 0]), ("xyzw", "wxyz", [3, 0, 1, 2]))
    ),
    *(Reading(f"the focal length is {factor:g} times as long", focal=factor) for factor in (0.9, 0.97, 1.03, 1.1)),
    *(
        Reading(f"the unit of depth is {unit:g} times as long", unit=unit)
        for unit in (1e-3, 1e-2, 0.1, 10.0, 100.0, 1e3)
    ),
    Reading("depth belongs to the pose of the frame before", lag=-1),
    Reading("depth belongs to the pose of the frame after", lag=1),
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well a reading fits: medians over the pairs' pixels."""

    error: float
    """Median |depth found - depth predicted| / depth predicted; NO_OVERLAP if hardly a point lands on a surface."""
    close: float
    """Share of points with an error below 5 %."""
    parallax: float
    """Median over pixels of how far camera motion moves them against a camera that only turns, in pixels; of the pair
    in which it is largest."""
    seen_through: float
    """Share of points that lie before the surface found: something moved, or a pose or depth is wrong."""
    landed: int
    """Points that landed on a surface."""


@dataclass(frozen=True)
class _Pair:
    source: int
    target: int
    uv: Float64[np.ndarray, "N 2"]
    depth: Float64[np.ndarray, "N"]


class Reprojection:
    """A sample of frame pairs of one sequence, read once; `fit` measures one reading on them."""

    def __init__(self, sequence: Sequence) -> None:
        """ValueError where a frame cannot be read."""
        self._sequence = sequence
        self._inverse_depth: dict[int, Float64[np.ndarray, "H W"]] = {}
        rng, pairs = np.random.default_rng(0), frame_pairs(sequence)
        self._pairs = [self._pair(source, target, PIXELS // len(pairs), rng) for source, target in pairs]

    def fit(self, reading: Reading) -> Fit:
        """How well depth and cameras agree if they are read in this way."""
        cameras = self._sequence.cameras
        intrinsics = cameras.intrinsics.copy()
        intrinsics[:, (0, 1), (0, 1)] *= reading.focal
        intrinsics[:, :2, 2] += reading.shift
        poses = reading.poses(cameras.world_from_cam)

        errors, parallaxes = [np.zeros(0)], [0.0]
        for pair in self._pairs:
            times = pair.source + reading.lag, pair.target + reading.lag
            if not all(0 <= t < len(poses) and np.isfinite(poses[t]).all() for t in times):
                continue
            target_from_source = inverse(poses[times[1]]) @ poses[times[0]]
            _, error, parallax = self._compare(pair, reading, intrinsics, target_from_source)
            errors.append(error)
            parallaxes.append(parallax)

        error = np.concatenate(errors)
        if len(error) < FEWEST:
            return Fit(error=NO_OVERLAP, close=0.0, parallax=0.0, seen_through=0.0, landed=len(error))
        return Fit(
            error=float(np.median(np.abs(error))),
            close=float((np.abs(error) < 0.05).mean()),
            parallax=max(parallaxes),
            seen_through=float((error > 0.05).mean()),
            landed=len(error),
        )

    def example(self) -> tuple[int, int, Float64[np.ndarray, "n 2"], Float64[np.ndarray, "n"]] | None:
        """For a picture, of the pair in the middle: its two frames, and where in the second the points of the first
        land as declared, with which relative error. None if there is no pair."""
        if not self._pairs:
            return None

        pair = self._pairs[len(self._pairs) // 2]
        cameras = self._sequence.cameras
        target_from_source = inverse(cameras.world_from_cam[pair.target]) @ cameras.world_from_cam[pair.source]
        uv, error, _ = self._compare(pair, DECLARED, cameras.intrinsics, target_from_source)
        return pair.source, pair.target, uv, error

    def _compare(
        self, pair: _Pair, reading: Reading, intrinsics: Float64[np.ndarray, "T 3 3"], target_from_source: np.ndarray
    ) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "n"], float]:
        """Of the points that land on a surface, where and with which relative error (found - predicted), and their
        median parallax."""
        z = _along_z(pair.uv, pair.depth * reading.unit, intrinsics[pair.source], reading.ray)
        xyz = transform(target_from_source, unproject(pair.uv, z, intrinsics[pair.source]))

        front = xyz[:, 2] > 1e-9
        xyz, z = xyz[front], z[front]
        uv = project(xyz, intrinsics[pair.target])

        found = self._look(pair.target, uv)
        landed = np.isfinite(found)
        found = _along_z(uv[landed], found[landed] * reading.unit, intrinsics[pair.target], reading.ray)

        only_turned = xyz[landed] - target_from_source[:3, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.linalg.norm(uv[landed] - project(only_turned, intrinsics[pair.target]), axis=1)
        parallax = float(np.nanmedian(moved)) if landed.any() else 0.0
        return uv[landed], found / xyz[landed, 2] - 1, parallax

    def _look(self, t: int, uv: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "N"]:
        """Depth as stored at positions of frame t, NaN outside and where it is not smooth."""
        inverse_depth = self._frame(t)
        height, width = inverse_depth.shape
        corner = np.nan_to_num(uv - 0.5, nan=-1, posinf=-1, neginf=-1)
        inside = ((corner >= 0) & (corner < [width - 1, height - 1])).all(axis=1)
        corner = np.where(inside[:, None], corner, 0)

        column, row = corner.astype(int).T
        fu, fv = (corner - np.stack([column, row], axis=1)).T
        cell = np.stack([inverse_depth[row + j, column + i] for j in (0, 1) for i in (0, 1)], axis=1)
        weights = np.stack([(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv], axis=1)
        return np.where(inside, 1 / (weights * cell).sum(axis=1), np.nan)

    def _pair(self, source: int, target: int, pixels: int, rng: np.random.Generator) -> _Pair:
        """Random pixels of the source on smooth, static surfaces."""
        inverse_depth, instance = self._frame(source), self._sequence.instance(source)
        usable = np.isfinite(inverse_depth)
        if instance is not None:
            usable &= instance < 0

        chosen = np.flatnonzero(usable)
        chosen = rng.choice(chosen, min(pixels, len(chosen)), replace=False)
        row, column = np.divmod(chosen, inverse_depth.shape[1])
        return _Pair(source, target, np.stack([column + 0.5, row + 0.5], axis=1), 1 / inverse_depth[row, column])

    def _frame(self, t: int) -> Float64[np.ndarray, "H W"]:
        """Inverse depth as stored, averaged over windows; NaN where they are not known or not smooth."""
        if t not in self._inverse_depth:
            pixel = 1 / self._sequence.depth(t).astype(np.float64)
            known = np.isfinite(pixel)
            filled = np.where(known, pixel, 0)
            mean = cv2.blur(filled, (WINDOW, WINDOW), borderType=cv2.BORDER_CONSTANT)
            smooth = known & (np.abs(pixel - mean) < SMOOTH * mean)  # at the border and beside the unknown it is not
            whole = cv2.erode(smooth.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0)
            self._inverse_depth[t] = np.where(whole, mean, np.nan)
        return self._inverse_depth[t]


def frame_pairs(sequence: Sequence) -> list[tuple[int, int]]:
    """Pairs of frames with known poses, spread over the sequence: at three gaps, or of photos each with a neighbour."""
    known = sequence.cameras.known
    if len(sequence) and sequence.neighbours(0) is not None:
        places = np.unique(np.linspace(0, len(sequence) - 1, len(GAPS) * PAIRS_PER_GAP).astype(int)).tolist()
        pairs = [(t, next((n for n in sequence.neighbours(t) if known[n]), t)) for t in places if known[t]]
        return [pair for pair in pairs if pair[0] != pair[1]]

    pairs = []
    for gap in GAPS:
        starts: Int64[np.ndarray, n] = np.flatnonzero(known[:-gap] & known[gap:] if gap < len(known) else [])
        spread = np.linspace(0, len(starts) - 1, PAIRS_PER_GAP + 2)[1:-1].astype(int) if len(starts) else []
        pairs += [(int(starts[i]), int(starts[i]) + gap) for i in sorted(set(spread))]
    return pairs


def _along_z(
    uv: Float64[np.ndarray, "N 2"], depth: Float64[np.ndarray, "N"], intrinsics: Float64[np.ndarray, "3 3"], ray: int
) -> Float64[np.ndarray, "N"]:
    if not ray:
        return depth
    length = np.linalg.norm(unproject(uv, np.ones(len(uv)), intrinsics), axis=1)
    return depth / length if ray > 0 else depth * length
