"""A picture of tracks beside the truth: four frames with where points are, and where they are said to be."""

import numpy as np
from jaxtyping import Float, UInt8

from pipelines.evaluation.track_clip import TrackClip
from pipelines.geometry import project
from pipelines.pictures.drawing import below, beside, caption, colour_of, dot, fitted, line, position_colours, titled

FRAMES, TRACKS, SIDE = 4, 64, 420


def track_sheet(
    clip: TrackClip,
    predicted: Float[np.ndarray, "T N 3"],
    truth: Float[np.ndarray, "T N 3"],
    title: str,
) -> UInt8[np.ndarray, "H W 3"]:
    """Discs: the truth where it is visible. Rings, with a line to it: the prediction.

    Both in the camera of each frame; the prediction in any unit, which a projection does not show.
    """
    height, width = clip.size
    chosen = np.linspace(0, truth.shape[1] - 1, min(TRACKS, truth.shape[1])).astype(int)
    tiles = []
    for t in np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).astype(int).tolist():
        with np.errstate(all="ignore"):
            right, said = (
                project(points[t, chosen], clip.intrinsics) / [width, height] for points in (truth, predicted)
            )
        image = fitted(clip.image(t), SIDE).copy()
        colours = position_colours(np.clip(np.nan_to_num(right), 0, 1))
        for row, track in enumerate(chosen):
            if not clip.visible[t, track]:
                continue
            colour = colour_of(colours[row])
            line(image, right[row], said[row], colour)
            dot(image, right[row], colour, 3.0)
            dot(image, said[row], colour, 5.0, hollow=True)
        tiles.append(titled(image, f"frame {t}"))
    row = beside(tiles)
    return below([caption(row.shape[1], title), row])
