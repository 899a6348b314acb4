"""One sequence that was audited, as a picture: where its points land, and how well each way of reading it fits."""

import numpy as np
from matplotlib.figure import Figure

from pipelines.sequence import Sequence
from pipelines.truth.reprojection import DECLARED, Reprojection
from pipelines.truth.verdict import Verdict

PHOTO = 6.0  # inches, the width of a photo, and its height at most
LINE = 0.24  # of a bar with its name


def audit_sheet(sequence: Sequence, measured: Reprojection, verdict: Verdict) -> Figure:
    """Two frames, the points of the first in the second coloured by their error, and the error of every reading."""
    names = sorted(verdict.errors, key=verdict.errors.get)
    height, width = sequence.image_size
    heights = min(PHOTO * height / width, PHOTO) + 0.6, LINE * len(names) + 0.8  # of photos, and of bars
    figure = Figure(figsize=(2 * PHOTO + 1, sum(heights)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    left, right = top.subplots(1, 2)
    left.set_anchor("E")  # beside one another in the middle, also where they are high
    right.set_anchor("W")
    for axes in (left, right):
        axes.set_axis_off()
    if (example := measured.example()) is not None:
        source, target, uv, error = example
        left.imshow(sequence.image(source), extent=_extent(sequence))
        left.set_title(f"frame {sequence.frame_numbers[source]}")
        right.imshow(sequence.image(target), extent=_extent(sequence))
        dots = right.scatter(*uv.T, c=100 * np.abs(error), s=5, cmap="turbo", vmin=0, vmax=5)
        right.set_title(f"its points in frame {sequence.frame_numbers[target]}: error of depth in %")
        top.colorbar(dots, ax=right, shrink=0.8)
    axes = bottom.subplots()
    values = np.array([verdict.errors[name] for name in names])
    finite = np.where(np.isfinite(values), values, np.nan)
    colours = ["tab:green" if name == DECLARED.name else "tab:grey" for name in names]
    axes.barh(names, finite, color=colours)
    axes.set(xscale="log", xlabel="median error of depth (no bar: no overlap)")
    axes.set_ylim(len(names) - 0.4, -0.6)  # the best on top, also those without a bar
    axes.tick_params(labelsize=9)
    figure.suptitle(f"{sequence.name}: {verdict.outcome}. {verdict.reason}", fontsize=11)
    return figure


def _extent(sequence: Sequence) -> tuple[int, int, int, int]:
    height, width = sequence.image_size
    return 0, width, height, 0
