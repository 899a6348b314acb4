"""One clip of an evaluation as a picture: where the points should be, and where the model puts them."""

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.clip_store import VALID_BITS, Clip
from pipelines.contact_sheet import MAX_FRAMES, WIDTH
from pipelines.geometry import inverse, project, transform
from pipelines.pictures import Picture, below, beside, caption, dot, line, stretched, titled

PER_FRAME = 40  # points drawn into each frame
IN_PLOT = 4000  # points in each plot
TRUE, PREDICTED = (80, 255, 120), (255, 70, 200)


def error_sheet(
    clip: Clip,
    video: UInt8[np.ndarray, "T S S 3"],
    truth: dict[str, np.ndarray],
    predicted: Float32[np.ndarray, "Q 3"],
    guess: Float32[np.ndarray, "Q 3"],
) -> Picture:
    """Frames with projections, then plots from above and of depth. Predictions are scaled to the truth already."""
    rng = np.random.default_rng(0)
    known = truth["valid"] & VALID_BITS["xyz"] > 0
    numbers = clip.frame_index
    shown = np.unique(np.linspace(0, len(video) - 1, min(MAX_FRAMES, len(video))).round().astype(int))
    width = min(WIDTH // len(shown), 440)
    tiles = []
    for t in shown:
        here = known & (truth["t_tgt"] == t) & (truth["t_cam"] == t) & truth["visible"]
        tile = stretched(video[t], width, round(width / clip.aspect)).copy()
        for q in rng.permutation(np.flatnonzero(here))[:PER_FRAME]:
            to_image = clip.intrinsics[t] / np.array([[video.shape[2]], [video.shape[1]], [1]])
            start, end = (project(xyz[q].astype(np.float64), to_image) for xyz in (truth["xyz"], predicted))
            dot(tile, start, TRUE, 5.0, hollow=True)
            if predicted[q, 2] > 0:
                line(tile, start, end, PREDICTED)
                dot(tile, end, PREDICTED, 2.5)
        tiles.append(titled(tile, f"frame {numbers[t]}"))
    strip = beside(tiles)
    explain = "points seen in each frame: green ring = true place, magenta dot = the model's, by the true intrinsics"
    title = caption(strip.shape[1], f"{clip.dataset}   {clip.id}", 20)
    chosen = rng.permutation(np.flatnonzero(known))[:IN_PLOT]
    return below([title, titled(strip, explain), _plots(clip, video, truth, predicted, guess, chosen, strip.shape[1])])


def _plots(
    clip: Clip,
    video: UInt8[np.ndarray, "T S S 3"],
    truth: dict[str, np.ndarray],
    predicted: Float32[np.ndarray, "Q 3"],
    guess: Float32[np.ndarray, "Q 3"],
    chosen: Int64[np.ndarray, "n"],
    width: int,
) -> Picture:
    unit = "m" if clip.is_metric else "not metric"
    figure = Figure(figsize=(width / 100, width / 290), dpi=100, layout="constrained")
    true_plot, model_plot, depth_plot = figure.subplots(1, 3)
    first_from_cam = inverse(clip.world_from_cam[:1]) @ clip.world_from_cam  # (T, 4, 4)
    to_first = first_from_cam[truth["t_cam"][chosen]].astype(np.float64)
    true = transform(to_first, truth["xyz"][chosen].astype(np.float64))
    rgb = _source_colours(video, truth, chosen)
    limits = [_limits(true[:, axis]) for axis in (0, 2)]
    for axes, points, title in (
        (true_plot, true, "truth, from above"),
        (model_plot, transform(to_first, predicted[chosen].astype(np.float64)), "model, from above"),
    ):
        axes.scatter(points[:, 0], points[:, 2], c=rgb, s=10, linewidths=0)
        axes.set(title=title, xlabel=f"x, right ({unit})", ylabel="z, forward", xlim=limits[0], ylim=limits[1])
        axes.set(facecolor="0.15", aspect="equal")
    own = chosen[truth["t_tgt"][chosen] == truth["t_cam"][chosen]]
    true_depth = truth["xyz"][own, 2]
    low, high = np.exp(_limits(np.log(true_depth[true_depth > 0])))
    for xyz, name, colour in ((guess, "constant-depth guess", "0.7"), (predicted, "model", "tab:blue")):
        depth_plot.scatter(true_depth, xyz[own, 2], s=6, linewidths=0, color=colour, label=name)
    depth_plot.plot([low, high], [low, high], color="black", linewidth=1)
    depth_plot.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    depth_plot.set(title="depth where t_tgt = t_cam", xlabel=f"true ({unit})", ylabel="answered, scaled")
    depth_plot.legend(loc="upper left", markerscale=2)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _limits(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """What all but the outermost values span, with a margin."""
    low, high = np.quantile(values, (0.01, 0.99)) if values.size else (0.0, 1.0)
    margin = 0.15 * max(high - low, 1e-6)
    return float(low - margin), float(high + margin)


def _source_colours(
    video: UInt8[np.ndarray, "T S S 3"], truth: dict[str, np.ndarray], chosen: Int64[np.ndarray, "n"]
) -> Float[np.ndarray, "n 3"]:
    """The colour of each query's pixel, from 0 to 1, brightened to stand out."""
    size = np.array(video.shape[2:0:-1])
    column, row = np.minimum((truth["uv_norm"][chosen] * size).astype(int), size - 1).T
    return (video[truth["t_src"][chosen], row, column] / 255) ** 0.6
