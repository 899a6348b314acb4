"""What a model says about a video, as pictures: tracks, depth, points, cameras.

Whatever the size of the video, a picture is at most about `WIDTH` pixels wide and high, and its text can be read.
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.pictures.drawing import (
    DARK,
    TEXT,
    Colour,
    Picture,
    below,
    beside,
    caption,
    colour_bar,
    colour_of,
    cross,
    depth_colours,
    depth_range,
    dot,
    fitted,
    line,
    titled,
)

WIDTH = 1280
TRACKS_SIDE = 960  # smaller frames are enlarged to this, so that a grid of points does not hide them
DEPTH_SIDE = 590  # of the frame and its depth, which lie side by side
CLOUD_SIDE = 420  # of each view
TEXT_WIDTH = 520  # of a picture with text, at least
TRAIL = 8  # frames
TRAIL_SHARE = 204  # of 255, by which the newest part of a trail hides what is below it
CROSSED = 12  # frames for which it is shown where a point was lost
LOST = (255, 60, 60)
VIEWS = {"from the first camera": (0, 0), "from further left": (35, 0), "from further above": (0, 35)}
"""What is written above a view -> degrees to the left and up, around the middle of the points."""


class Trails:
    """Where points came from, fading from frame to frame: each part of a trail is drawn once."""

    def __init__(self, size: tuple[int, int]) -> None:
        """`size` of the frames, (H, W)."""
        self._colours, self._share = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)

    def fade(self) -> None:
        self._share = cv2.subtract(self._share, -(-TRAIL_SHARE // TRAIL))

    def add(self, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], colour: Colour, width: int) -> None:
        line(self._colours, start, end, colour, width + 1)  # also below the soft edge of its share
        line(self._share, start, end, (TRAIL_SHARE,), width)

    def over(self, image: Picture) -> Picture:
        share = self._share.astype(np.float32) / 255
        return cv2.blendLinear(self._colours, image, share, 1 - share)


def track_frames(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    uv_norm: Float[np.ndarray, "N T 2"],
    visible: Bool[np.ndarray, "N T"],
    hidden: Bool[np.ndarray, "N T"],
    lost: Bool[np.ndarray, "N T"],
    colours: UInt8[np.ndarray, "N 3"],
    *,
    among: int | None = None,
) -> Iterator[Picture]:
    """Each frame with its points: discs where visible, rings where hidden, and where they were, fading. Where one was
    lost there is a cross for some frames. How many there are of each is written above, and `among` how many tracks
    these are."""
    known = visible | hidden
    last = np.maximum.accumulate(np.where(known, np.arange(known.shape[1]), -1), axis=1)
    some = f"{len(uv_norm)} of {among} tracks:   " if among not in (None, len(uv_norm)) else ""
    colour, trails = [colour_of(row) for row in colours], None
    for t, frame in enumerate(frames):
        image = fitted(frame, max(TRACKS_SIDE, *frame.shape[:2]))
        radius = max(3.0, max(image.shape) / 320)
        trails = trails or Trails(image.shape[:2])
        trails.fade()
        for n in np.flatnonzero(visible[:, t - 1] & visible[:, t]) if t else ():
            trails.add(uv_norm[n, t - 1], uv_norm[n, t], colour[n], round(radius * 0.7))
        image = trails.over(image)
        for n in np.flatnonzero(lost[:, t] & (last[:, t] >= max(0, t - CROSSED))):
            cross(image, uv_norm[n, last[n, t]], LOST, radius)
        for n in np.flatnonzero(hidden[:, t]):
            dot(image, uv_norm[n, t], colour[n], radius, hollow=True)
        for n in np.flatnonzero(visible[:, t]):
            dot(image, uv_norm[n, t], colour[n], radius)
        counts = (mask[:, t].sum() for mask in (visible, hidden, lost))
        text = "{} seen: discs   {} hidden: rings   {} lost: crosses".format(*counts)
        yield titled(image, some + text, max(TEXT, max(image.shape) // 55))


def depth_frames(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], depth: Float[np.ndarray, "T h w"], unit: str
) -> Iterator[Picture]:
    """Each frame beside its depth, in one colour scale for the whole clip, which is written above it."""
    low, high = depth_range(depth)
    scale = f"depth in {unit}: {low:.3g} to {high:.3g} (2nd to 98th percentile of the clip)"
    yield from _beside_maps(frames, depth, low, high, scale)


def confidence_frames(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], confidence: Float[np.ndarray, "T h w"]
) -> Iterator[Picture]:
    """Each frame beside how sure the model is of its depth, from 0 (red) to 1 (blue)."""
    yield from _beside_maps(frames, confidence, 0.0, 1.0, "confidence of depth: 0 red, 1 blue")


def _beside_maps(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    maps: Float[np.ndarray, "T h w"],
    low: float,
    high: float,
    scale: str,
) -> Iterator[Picture]:
    bar = None
    for frame, z in zip(frames, maps, strict=True):
        image = fitted(frame, DEPTH_SIDE)
        size = image.shape[1::-1]
        bar = colour_bar(size[1], low, high) if bar is None else bar
        if z.size > size[0] * size[1]:  # what is not shown needs no colour
            z = cv2.resize(np.asarray(z), size, interpolation=cv2.INTER_NEAREST)
        colours = cv2.resize(depth_colours(z, low, high), size, interpolation=cv2.INTER_NEAREST)
        row = beside([image, colours, bar])
        yield below([caption(max(row.shape[1], TEXT_WIDTH), scale), row], gap=0)


def cloud_picture(
    xyz: Float[np.ndarray, "P 3"], rgb: UInt8[np.ndarray, "P 3"], image_size: tuple[int, int], unit: str
) -> Picture:
    """The points from three sides. `xyz` is in the first camera, OpenCV axes; `image_size` is (H, W) of the video."""
    tile = fitted(np.zeros((*image_size, 3), np.uint8), CLOUD_SIDE)
    in_front = np.isfinite(xyz).all(axis=-1) & (xyz[:, 2] > 0)
    xyz, rgb = xyz[in_front], rgb[in_front]
    if not len(xyz):
        return caption(TEXT_WIDTH, "no point lies in front of the first camera")
    middle = np.median(xyz, axis=0)
    reach = np.quantile(np.abs(xyz[:, :2] / xyz[:, 2:]), 0.98, axis=0)  # of what the first camera sees
    focal = float(min(0.5 * np.array(tile.shape[1::-1]) / reach)) if reach.all() else float(CLOUD_SIDE)
    views = []
    for name, (left, up) in VIEWS.items():
        turn, _ = cv2.Rodrigues(np.radians([up, -left, 0.0]))
        view = _splatted((xyz - middle) @ turn.T + middle, rgb, focal, tile.shape[:2])
        views.append(titled(view, name))
    low, high = depth_range(xyz[:, 2])
    text = f"{len(xyz)} points, {low:.3g} to {high:.3g} {unit} from the first camera"
    row = beside(views)
    return below([caption(max(row.shape[1], TEXT_WIDTH), text), row], gap=0)


def _splatted(
    xyz: Float[np.ndarray, "P 3"], rgb: UInt8[np.ndarray, "P 3"], focal: float, image_size: tuple[int, int]
) -> Picture:
    """Every point as a square, so large that the points of one frame would leave no gaps; nearer ones over others."""
    height, width = image_size
    image = np.full((height, width, 3), DARK, np.uint8)
    order = np.argsort(-xyz[:, 2])
    xyz, rgb = xyz[order], rgb[order]
    shown = xyz[:, 2] > 1e-6
    uv = xyz[shown, :2] / xyz[shown, 2:] * focal + 0.5 * np.array([width, height])
    side = int(np.clip(np.ceil((height * width / len(xyz)) ** 0.5), 3, 9))
    around = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) - side // 2
    u, v = (np.floor(uv)[:, None] + around).reshape(-1, 2).T
    colours = np.repeat(rgb[shown], len(around), axis=0)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    image[v[inside].astype(int), u[inside].astype(int)] = colours[inside]
    return image


def camera_figure(
    world_from_cam: Float[np.ndarray, "T 4 4"],
    intrinsics: Float[np.ndarray, "T 3 3"],
    image_size: tuple[int, int],
    unit: str,
) -> Figure:
    """The path of the camera from above and from the side, with what it sees of either. `image_size` is (H, W)."""
    known = np.isfinite(world_from_cam).all(axis=(1, 2)) & np.isfinite(intrinsics).all(axis=(1, 2))
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    figure.suptitle(f"camera path, {known.sum()} of {len(known)} frames; world = camera of frame 0; {unit}")
    views = (("from above", 0, 2, "x, right", "z, forward"), ("from the side", 2, 1, "z, forward", "y, down"))
    centres = world_from_cam[known, :3, 3]
    extent = float(np.ptp(centres, axis=0).max()) if len(centres) else 0.0
    size = 0.2 * extent if extent > 1e-6 else 0.1
    for axes, (title, across, up, across_label, up_label) in zip(figure.subplots(1, 2), views, strict=True):
        axes.set(title=title, xlabel=across_label, ylabel=up_label)
        _draw_path(axes, world_from_cam[known], intrinsics[known], image_size, (across, up), size)
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(alpha=0.3)
        if up == 1:
            axes.invert_yaxis()  # y points down
    return figure


def _draw_path(
    axes: Axes,
    world_from_cam: Float[np.ndarray, "T 4 4"],
    intrinsics: Float[np.ndarray, "T 3 3"],
    image_size: tuple[int, int],
    pair: tuple[int, int],
    size: float,
) -> None:
    if not len(world_from_cam):
        axes.text(0.5, 0.5, "no camera was found", transform=axes.transAxes, ha="center")
        return
    height, width = image_size
    centres = world_from_cam[:, :3, 3]
    axes.plot(*centres[:, pair].T, color="0.6", linewidth=1, zorder=1)
    for t in np.unique(np.linspace(0, len(centres) - 1, 12).round().astype(int)):
        colour = _viridis(t / max(len(centres) - 1, 1))
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
        rays = np.concatenate([corners, np.ones((4, 1))], axis=1) @ np.linalg.inv(intrinsics[t]).T
        ends = size * rays / max(1, np.abs(rays).max()) @ world_from_cam[t, :3, :3].T + centres[t]
        for a, b in zip(ends, np.roll(ends, 1, axis=0), strict=True):
            axes.plot(*np.stack([a, b, centres[t], a])[:, pair].T, color=colour, linewidth=0.8)
    for t, name in ((0, "first"), (len(centres) - 1, "last")):
        colour = _viridis(float(t > 0))
        axes.plot(*centres[t, list(pair)], "o", color=colour, markersize=6, label=name, zorder=3)
    axes.legend(loc="best")


def _viridis(share: float) -> tuple[float, ...]:
    return colormaps["viridis"](0.9 * share)
