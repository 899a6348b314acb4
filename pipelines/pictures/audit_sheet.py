"""One sequence that was audited, as a picture: where its points land, and how well each way of reading it fits."""

import numpy as np
from matplotlib.figure import Figure

from pipelines.sequence import Sequence
from pipelines.truth.reprojection import DECLARED, Reprojection
from pipelines.truth.verdict import Verdict


def audit_sheet(sequence: Sequence, measured: Reprojection, verdict: Verdict) -> Figure:
    """Two frames, the points of the first in the second coloured by their error, and the error of every reading."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    left, right = top.subplots(1, 2)
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
    names = sorted(verdict.errors, key=verdict.errors.get)
    axes = bottom.subplots()
    values = np.array([verdict.errors[name] for name in names])
    finite = np.where(np.isfinite(values), values, np.nan)
    colours = ["tab:green" if name == DECLARED.name else "tab:grey" for name in names]
    axes.barh(names, finite, color=colours)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="median error of depth (no bar: no overlap)")
    axes.tick_params(labelsize=7)
    figure.suptitle(f"{sequence.name}: {verdict.outcome}. {verdict.reason}", fontsize=10)
    return figure


def _extent(sequence: Sequence) -> tuple[int, int, int, int]:
    height, width = sequence.image_size
    return 0, width, height, 0
