"""Tracks of all pixels: of one frame, or of the whole clip without following the same point twice (paper Alg. 1)."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.recipes.asking import AnsweringModel, Encoded, frames_of, pixel_centres, prepare
from model.recipes.results import AllTracks, Tracks
from model.recipes.tracking import tracks

SEEDS = 4096
"""Tracks asked together: few enough that a frame is soon marked by what was found, enough to fill a GPU."""


def pixel_tracks(
    model: AnsweringModel,
    video: Tensor | np.ndarray,
    *,
    t_src: int = 0,
    height: int,
    width: int,
    aspect: float | None = None,
    t_cam: int | Literal["target"] = "target",
    memory: Encoded | None = None,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> Tracks:
    """Follow every pixel of frame `t_src`, seen as height x width, forwards and backwards.

    The N points are the pixels row by row: `xyz.view(height, width, T, 3)` is that of each.
    """
    options = {"aspect": aspect, "t_cam": t_cam, "memory": memory, "native": native, "chunk_size": chunk_size}
    return tracks(model, video, pixel_centres(height, width), t_src, **options)


@torch.inference_mode()
def all_tracks(
    model: AnsweringModel,
    video: Tensor | np.ndarray,
    *,
    height: int,
    width: int,
    t_cam: int | Literal["target"] = "target",
    most_queries: int | None = None,
    seed: int = 0,
    aspect: float | None = None,
    memory: Encoded | None = None,
    native: Tensor | np.ndarray | None = None,
    chunk_size: int | None = None,
) -> AllTracks:
    """Follow the pixels of all frames, seen as height x width, each surface point once where the model allows.

    A grid of cells (T, height, width) holds what has been visited. From the frame with most cells that were not, such
    cells are followed, `SEEDS` at a time, and all cells through which these tracks pass while visible are visited. A
    seed's own cell always is, whatever the model says of it: so it ends for any answers, after T * height * width
    seeds at the latest.

    Args:
        t_cam: as in `tracks`. Marking needs no camera, so either costs one set of queries.
        most_queries: stop before more than so many; what is left then is told by `visited`.
        seed: of the order in which cells of a frame are followed.

    Raises:
        ValueError: `most_queries` does not suffice for a single track.
    """
    video, native = frames_of(video), frames_of(native)
    memory, patch_video = prepare(model, video, aspect, memory, native)
    num_frames, device = memory.num_frames, model.device
    if most_queries is not None and most_queries < num_frames:
        raise ValueError(f"most_queries ({most_queries}) must be at least {num_frames}: what one track asks")
    most_seeds = num_frames * height * width if most_queries is None else most_queries // num_frames
    grid = VisitedGrid(num_frames, height, width, device)
    options = {"t_cam": t_cam, "seed": seed, "chunk_size": chunk_size, "patch_video": patch_video}
    return track_unvisited(model, memory, grid, most_seeds, **options)


@torch.inference_mode()
def track_unvisited(
    model: AnsweringModel,
    memory: Encoded,
    grid: "VisitedGrid",
    most_seeds: int,
    *,
    t_cam: int | Literal["target"] = "target",
    seed: int = 0,
    chunk_size: int | None = None,
    patch_video: Tensor | None = None,
) -> AllTracks:
    """`all_tracks` through the cells that are not yet visited, one at least, from so many of them; marks the grid."""
    num_frames, device = memory.num_frames, model.device
    centres = pixel_centres(grid.height, grid.width).to(device)
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(num_frames, device=device)[None]
    cameras = times if t_cam == "target" else torch.full_like(times, t_cam)
    parts, points, sources = [], [], []
    followed = 0
    while followed < most_seeds:
        frame, cells = grid.unvisited(min(SEEDS, most_seeds - followed), generator)
        if not len(cells):
            break
        followed += len(cells)
        t_src = torch.full((1, len(cells)), frame, device=device)
        answers = model.decode_times(
            memory, centres[cells][None], t_src, times, cameras, chunk_size=chunk_size, patch_video=patch_video
        )
        shape = (len(cells), num_frames)
        grid.visit(answers.uv_tgt.view(*shape, 2), answers.visible.view(shape))
        grid.visit_cells(frame, cells)
        of_tracks = (answers.xyz, answers.uv_tgt, answers.visible, answers.confidence)
        parts.append([x.cpu().view(*shape, *x.shape[2:]) for x in of_tracks])
        points.append(centres[cells].cpu())
        sources.append(t_src[0].cpu())

    xyz, uv_norm, visible, confidence = (torch.cat(part) for part in zip(*parts, strict=True))
    return AllTracks(
        xyz=xyz,
        uv_norm=uv_norm,
        visible=visible,
        confidence=confidence,
        t_cam=t_cam,
        points=torch.cat(points),
        t_src=torch.cat(sources),
        visited=grid.share(),
        queries=followed * num_frames,
    )


class VisitedGrid:
    """Which cells of all frames a track has passed through. Marking waits for nothing on a GPU."""

    def __init__(self, num_frames: int, height: int, width: int, device: torch.device) -> None:
        self.height, self.width = height, width
        self.num_cells = height * width
        # One cell more, for what is not seen.
        self.flat = torch.zeros(num_frames * self.num_cells + 1, dtype=torch.bool, device=device)
        self.first_cells = torch.arange(num_frames, device=device) * self.num_cells

    @property
    def cells(self) -> Tensor:
        """(T, height * width) bool."""
        return self.flat[:-1].view(-1, self.num_cells)

    def unvisited(self, most: int, generator: torch.Generator) -> tuple[int, Tensor]:
        """The frame with most unvisited cells, and at most so many of these, in random order."""
        frame = int((~self.cells).sum(dim=1).argmax())
        cells = (~self.cells[frame]).nonzero()[:, 0]
        order = torch.randperm(len(cells), generator=generator)[:most]
        return frame, cells[order.to(cells.device)]

    def visit(self, uv_norm: Tensor, visible: Tensor) -> None:
        """Mark the cells of tracks (N, T, 2) where they are visible (N, T) and inside the frame."""
        u, v = uv_norm.unbind(-1)
        inside = visible & (u >= 0) & (u < 1) & (v >= 0) & (v < 1)  # NaN is nowhere
        column, row = ((x.nan_to_num().clamp(0, 1) * n).long() for x, n in ((u, self.width), (v, self.height)))
        cell = self.first_cells + row * self.width + column
        self.flat[torch.where(inside, cell, len(self.flat) - 1)] = True

    def visit_cells(self, frame: int, cells: Tensor) -> None:
        self.flat[frame * self.num_cells + cells] = True

    def visit_frames(self, frames: Tensor) -> None:
        """Mark all cells of frames."""
        self.cells[frames.to(self.flat.device)] = True

    def share(self) -> float:
        """Of all cells, those visited."""
        return float(self.cells.float().mean())
