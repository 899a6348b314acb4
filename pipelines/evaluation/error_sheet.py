"""One clip of an evaluation as a picture: where the points should be, and where the model puts them."""

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model import D4RT, recipes
from pipelines.evaluation.scores import ask, constant_depth, scale
from pipelines.geometry import inverse, project, transform
from pipelines.pictures.contact_sheet import MAX_FRAMES, WIDTH
from pipelines.pictures.drawing import (
    DARK,
    Picture,
    below,
    beside,
    caption,
    colour_bar,
    colour_of,
    depth_colours,
    depth_range,
    dot,
    line,
    stretched,
    titled,
)
from pipelines.query_table import VALID_BITS
from pipelines.store.reader import Clip, evenly

BACKGROUND = tuple(level / 255 for level in DARK)
LINE = "0.5"  # of axes
PER_FRAME = 40  # points drawn into each frame
IN_PLOT = 4000  # points in each plot
DEPTH_SIDE = 48  # pixels of a depth map
TRUE, PREDICTED = (80, 255, 120), (255, 70, 200)
PLOTS = {"figure.facecolor": BACKGROUND, "axes.facecolor": BACKGROUND, "axes.edgecolor": LINE}


def error_sheet(model: D4RT, clip: Clip) -> Picture:
    """Frames with projections and with depth, then plots from above and of depth. Asks the model once more.

    What it answers is drawn in the clip's scale (see `pipelines/evaluation/scores.py`).
    """
    rng = np.random.default_rng(0)
    video, truth, numbers = clip.video, clip.all_queries(), clip.frame_index
    known = truth["valid"] & VALID_BITS["xyz"] > 0
    shown = evenly(len(video), MAX_FRAMES)
    answers, guess = ask(model, video, clip.aspect, truth), constant_depth(truth, clip.intrinsics, video.shape[1])
    s = scale(truth, answers.xyz)
    predicted, guessed = s * answers.xyz, scale(truth, guess.xyz) * guess.xyz
    width = min(WIDTH // len(shown), 440)
    height = round(width / clip.aspect)

    tiles = []
    for t in shown:
        here = known & (truth["t_tgt"] == t) & (truth["t_cam"] == t) & truth["visible"]
        tile = stretched(video[t], width, height).copy()
        for q in rng.permutation(np.flatnonzero(here))[:PER_FRAME]:
            to_image = clip.intrinsics[t] / np.array([[video.shape[2]], [video.shape[1]], [1]])
            start, end = (project(xyz[q].astype(np.float64), to_image) for xyz in (truth["xyz"], predicted))
            dot(tile, start, TRUE, 5.0, hollow=True)
            if predicted[q, 2] > 0:
                line(tile, start, end, PREDICTED)
                dot(tile, end, PREDICTED, 2.5)
        tiles.append(titled(tile, f"frame {numbers[t]}"))
    frames = beside(tiles)

    own = known & (truth["t_src"] == truth["t_tgt"]) & (truth["t_tgt"] == truth["t_cam"])
    low, high = depth_range(truth["xyz"][known, 2])
    tiles = []
    for t, depth in zip(shown, s * frame_depth(model, video, clip.aspect, shown), strict=True):
        tile = stretched(depth_colours(depth, low, high), width, height).copy()
        for q in rng.permutation(np.flatnonzero(own & (truth["t_src"] == t)))[:PER_FRAME]:
            dot(tile, truth["uv_norm"][q], colour_of(depth_colours(truth["xyz"][q, 2:], low, high)[0]), 4.0)
        tiles.append(tile)
    depths = beside([*tiles, colour_bar(height, low, high)])

    explain = "points seen in each frame: green ring = true place, magenta dot = the model's, by the true intrinsics"
    unit = "m" if clip.is_metric else "not metric"
    explain_depth = f"depth ({unit}): the model's, with true ones as dots: the better it is, the less they stand out"
    chosen = rng.permutation(np.flatnonzero(known))[:IN_PLOT]
    with style.context(["dark_background", PLOTS]):
        plots = _plots(clip, video, truth, predicted, guessed, chosen, frames.shape[1])
    return below(
        [
            caption(frames.shape[1], f"{clip.dataset}   {clip.id}", 20),
            titled(frames, explain),
            titled(depths, explain_depth),
            plots,
        ]
    )


@torch.inference_mode()
def frame_depth(
    model: D4RT, video: UInt8[np.ndarray, "T S S 3"], aspect: float, shown: list[int]
) -> Float32[np.ndarray, "n side side"]:
    """Depth of some frames in the model's unit, on a coarse grid; NaN where it is not positive."""
    times, grid = torch.tensor(shown), recipes.pixel_centres(DEPTH_SIDE, DEPTH_SIDE)
    options = {"chunk_size": None, "patch_video": None}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        memory, _ = recipes.prepare(model, torch.from_numpy(video), aspect, None, None)
        answers = recipes.ask_frames(model, memory, grid, t_src=times, t_cam=times, **options)
    depth = answers.xyz[..., 2].float().numpy().reshape(len(shown), DEPTH_SIDE, DEPTH_SIDE)
    return np.where(depth > 0, depth, np.float32(np.nan))


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
        axes.set_aspect("equal")
    own = chosen[truth["t_tgt"][chosen] == truth["t_cam"][chosen]]
    true_depth = truth["xyz"][own, 2]
    low, high = np.exp(_limits(np.log(true_depth[true_depth > 0])))
    for xyz, name, colour in ((guess, "constant-depth guess", "0.7"), (predicted, "model", "tab:cyan")):
        depth_plot.scatter(true_depth, xyz[own, 2], s=6, linewidths=0, color=colour, label=name)
    depth_plot.plot([low, high], [low, high], color=LINE, linewidth=1)
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
