"""Whether there is memory for what a window says of every pixel: all else is small, but these maps may be native."""

import psutil

from model.recipes.windows import WindowPlan
from pipelines.results.questions import Questions

PIXEL_BYTES = {"depth": 20, "flow": 29}
"""Of a map of one frame: the arrays of `results/files.py`."""

COPIES = 3  # of a window's maps: frame by frame, as one array, and on its way to the disk


def require_room(plan: WindowPlan, questions: Questions, most: int | None = None) -> None:
    """ValueError, saying what helps, if the maps of a window do not fit into the memory that is free, or into `most`
    bytes."""
    frames = int(plan.owner.bincount().max())
    height, width = questions.depth_size
    maps = [task for task in PIXEL_BYTES if task in questions.tasks]
    needed = COPIES * frames * height * width * sum(PIXEL_BYTES[task] for task in maps)
    free = psutil.virtual_memory().available
    room = free if most is None else min(free, most)
    if needed > room:
        raise ValueError(
            f"{' and '.join(maps)} of {width} x {height} pixels of the {frames} frames of a window take "
            f"{needed / 1e9:.1f} GB of memory, and there are {room / 1e9:.1f}: give a smaller --depth-size, or a "
            "shorter --window"
        )
