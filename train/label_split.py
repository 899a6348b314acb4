"""Labels of a video dealt out: to the windows that the model sees together, and to learn from or to judge by."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from model.recipes.windows import WindowPlan
from pipelines.query_table import VALID_BITS
from train.config import MIN_POINTS
from train.pseudo_labels import TIMES, Columns, PseudoLabels

HELD_OUT_SHARE = 0.2  # of the points
MOST_HELD_OUT = 8192  # rows: they are all asked about every few steps, and more would take longer than these
SEED = 0


@dataclass(frozen=True)
class Part:
    """The labels of one window; times count from its first frame."""

    window: range
    learnt: Columns
    held_out: Columns
    truth: Columns | None = None

    def __len__(self) -> int:
        return len(self.learnt["t_src"]) + len(self.held_out["t_src"])


def deal(labels: PseudoLabels, plan: WindowPlan, where: str, truth: PseudoLabels | None = None) -> list[Part]:
    """One part for each window that has something to learn from and something to judge by.

    ValueError, naming `where` the labels are from, if there is none.
    """
    held, number_of = held_out_rows(labels.columns), window_of(labels.columns, plan)
    truth_number_of = None if truth is None else window_of(truth.columns, plan)
    parts = []
    for number, window in enumerate(plan.windows):
        learnt, judged = (_rows(labels.columns, (number_of == number) & chosen, window) for chosen in (~held, held))
        if countable(learnt) and countable(judged):
            known = None if truth is None else _rows(truth.columns, truth_number_of == number, window)
            parts.append(Part(window, learnt, judged, known if known is not None and countable(known) else None))
    if not parts:
        raise ValueError(
            f"{where}: there are not enough labels. Of frames that are looked at together ({len(plan.windows[0])}) it "
            f"takes {MIN_POINTS} positions, or labels of another kind, to learn from and as many to judge by: every "
            f"{round(1 / HELD_OUT_SHARE)}th of {len(np.unique(point_numbers(labels.columns)))} points"
        )
    return parts


def countable(columns: Columns) -> int:
    """Labels that a loss can be made of: lengths only where there are enough positions to tell the scale from."""
    known = {name: int((columns["valid"] & bit > 0).sum()) for name, bit in VALID_BITS.items()}
    if known["xyz"] < MIN_POINTS:
        known["xyz"] = known["displacement"] = 0
    depths = int(np.isfinite(columns["depth"]).sum())
    return sum(known.values()) + (depths if depths >= MIN_POINTS else 0)


def window_of(columns: Columns, plan: WindowPlan) -> Int64[np.ndarray, "Q"]:
    """The window in which each row is learnt: the one that answers for t_src; -1 if that does not have all its frames.

    One only: others may have another unit of length.
    """
    owner = plan.owner.numpy()[columns["t_src"]]
    start, stop = (np.array([getattr(window, end) for window in plan.windows])[owner] for end in ("start", "stop"))
    inside = np.all([(columns[name] >= start) & (columns[name] < stop) for name in TIMES], axis=0)
    return np.where(inside, owner, -1)


def point_numbers(columns: Columns) -> Int64[np.ndarray, "Q"]:
    """The number of each row's point, seen at `uv_norm` in `t_src`."""
    points = np.column_stack([columns["t_src"], columns["uv_norm"]])
    return np.unique(points, axis=0, return_inverse=True)[1].reshape(-1)


def held_out_rows(columns: Columns) -> Bool[np.ndarray, "Q"]:
    """Rows to judge by: those of a share of the points, all rows of a point together, because what is known of it at
    one time nearly tells where it is at the next. Always the same ones."""
    number = point_numbers(columns)
    rows_of = np.bincount(number)
    wanted = max(1, round(HELD_OUT_SHARE * len(rows_of)))
    chosen = np.random.default_rng(SEED).permutation(len(rows_of))[:wanted]
    fits = np.cumsum(rows_of[chosen]) <= MOST_HELD_OUT
    chosen = chosen[: max(1, int(fits.sum()))]
    return np.isin(number, chosen)


def _rows(columns: Columns, rows: Bool[np.ndarray, "Q"], window: range) -> Columns:
    return {name: x[rows] - window.start if name in TIMES else x[rows] for name, x in columns.items()}
