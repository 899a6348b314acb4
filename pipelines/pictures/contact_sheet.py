"""One clip of a store as a picture: do the queries lie on what they say, and go where it goes?"""

import numpy as np
from jaxtyping import Bool, Int64

from pipelines.pictures.drawing import (
    Picture,
    below,
    beside,
    caption,
    colour_bar,
    colour_of,
    cross,
    depth_colours,
    depth_range,
    distinct_colours,
    dot,
    line,
    stretched,
    titled,
)
from pipelines.query_table import FLAG_BITS, VALID_BITS
from pipelines.store.reader import Clip, evenly

MAX_FRAMES = 8
FOLLOWED = 48  # queries drawn with their targets; more would hide the frames
PER_FRAME = 300  # dots in the other two rows
WIDTH = 1800  # of a sheet, about
FLAG_COLOURS = {0: (120, 190, 255), FLAG_BITS["edge"]: (255, 230, 0), FLAG_BITS["dynamic"]: (255, 60, 220)}
BOTH = (255, 140, 0)


def contact_sheet(clip: Clip) -> Picture:
    """Three rows of up to eight frames in their raw aspect."""
    video, numbers = clip.video, clip.frame_index
    shown = evenly(len(video), MAX_FRAMES)
    queries = clip.all_queries()
    width = min(WIDTH // len(shown), 440)
    tiles = [stretched(video[t], width, round(width / clip.aspect)) for t in shown]
    names = [f"frame {numbers[t]}" for t in shown]
    followed, count = _followed(tiles, shown, queries)
    depth, low, high = _depth(tiles, shown, queries)
    unit = "m" if clip.is_metric else "(not metric)"
    rows = {
        f"where {count} queries go: disc = source, ring = target seen there, cross = target hidden there": followed,
        "sources: yellow = near an edge, magenta = on something that moves, orange = both, blue = neither": _flags(
            tiles, shown, queries
        ),
        f"depth of points seen at t_tgt = t_cam, {low:.3g} to {high:.3g} {unit}": depth,
    }
    images = []
    for text, row in rows.items():
        strip = beside([titled(tile, name) for tile, name in zip(row, names, strict=True)])
        if row is depth:
            strip = beside([strip, colour_bar(len(strip), low, high)])
        images.append(titled(strip, text))
    widest = max(image.shape[1] for image in images)
    return below([caption(widest, f"{clip.dataset}   {clip.id}", 20), *images])


def _known(queries: dict[str, np.ndarray], field: str) -> Bool[np.ndarray, "Q"]:
    return queries["valid"] & VALID_BITS[field] > 0


def _some(mask: Bool[np.ndarray, "Q"], count: int) -> Int64[np.ndarray, "n"]:
    """At most `count` places where the mask is true, always the same."""
    places = np.flatnonzero(mask)
    return np.random.default_rng(0).permutation(places)[:count]


def _followed(tiles: list[Picture], shown: list[int], queries: dict[str, np.ndarray]) -> tuple[list[Picture], int]:
    tiles = [tile.copy() for tile in tiles]
    t_src, t_tgt = queries["t_src"], queries["t_tgt"]
    drawable = np.isin(t_src, shown) & np.isin(t_tgt, shown) & (t_src != t_tgt)
    chosen = _some(drawable & _known(queries, "uv_tgt") & _known(queries, "visible"), FOLLOWED)
    for q, row in zip(chosen, distinct_colours(len(chosen)), strict=True):
        source, target = queries["uv_norm"][q], queries["uv_tgt"][q]
        colour = colour_of(row)
        there = tiles[int(np.searchsorted(shown, t_tgt[q]))]
        line(there, source, target, colour)
        if queries["visible"][q]:
            dot(there, target, colour, 6.0, hollow=True)
        else:
            cross(there, target, colour, 5.0)
        dot(tiles[int(np.searchsorted(shown, t_src[q]))], source, colour, 5.0)
    return tiles, len(chosen)


def _flags(tiles: list[Picture], shown: list[int], queries: dict[str, np.ndarray]) -> list[Picture]:
    tiles = [tile.copy() for tile in tiles]
    for tile, t in zip(tiles, shown, strict=True):
        for q in _some(queries["t_src"] == t, PER_FRAME):
            dot(tile, queries["uv_norm"][q], FLAG_COLOURS.get(int(queries["flags"][q]), BOTH), 2.5)
    return tiles


def _depth(
    tiles: list[Picture], shown: list[int], queries: dict[str, np.ndarray]
) -> tuple[list[Picture], float, float]:
    tiles = [tile.copy() for tile in tiles]
    seen = _known(queries, "xyz") & _known(queries, "uv_tgt") & _known(queries, "visible") & queries["visible"]
    seen &= queries["t_tgt"] == queries["t_cam"]
    depth = queries["xyz"][:, 2]
    low, high = depth_range(depth[seen])
    colours = depth_colours(depth, low, high)
    for tile, t in zip(tiles, shown, strict=True):
        for q in _some(seen & (queries["t_tgt"] == t), PER_FRAME):
            dot(tile, queries["uv_tgt"][q], colour_of(colours[q]), 3.0)
    return tiles, low, high
