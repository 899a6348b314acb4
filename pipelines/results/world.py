"""All windows of a video laid into one world: along their seams, by loops, or on known poses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.recipes import PoseFit, fit_poses
from model.recipes.joining import Seam, WindowGeometry, chain, join_cameras
from model.recipes.loops import Loop
from model.recipes.windows import WindowPlan
from pipelines.results.pose_graph import ClosedPath, Edge, close_loops


@dataclass(frozen=True)
class World:
    world_from_window: torch.Tensor
    """(W, 4, 4) float64, with scales; NaN after a seam that could not be joined."""
    loops: Sequence[Loop]
    closed: ClosedPath | None
    """None: no loop."""
    fit: PoseFit | None
    """None: no poses are known."""

    def describe(self) -> dict[str, Any]:
        """For result.json."""
        report: dict[str, Any] = {}
        if self.loops:
            names = ("first", "second", "alike", "disagreement", "seen_back", "closed")
            report["loops"] = [{name: getattr(loop, name) for name in names} for loop in self.loops]
        if self.closed is not None:
            report["loop_disagreement"] = {"before": self.closed.before, "after": self.closed.after}
        if self.fit is not None:
            report["pose_fit"] = {
                "scale": float(torch.linalg.det(self.fit.known_from_world[:3, :3])) ** (1 / 3),
                "position": self.fit.position,
                "rotation_degrees": self.fit.rotation,
                "cameras": self.fit.cameras,
            }
            report["lengths"] = "unit of --poses"
            report["unit"] = "that of --poses: lengths are as metric as they are"
            report["world"] = "that of --poses; cameras x right, y down, z forward"
        return report


def lay_out(
    plan: WindowPlan,
    geometry: Sequence[WindowGeometry],
    seams: Sequence[Seam],
    loops: Sequence[Loop],
    poses: torch.Tensor | None,
) -> World:
    """The windows' places.

    Args:
        loops: that were looked at; those that closed count.
        poses: (T, 4, 4) known ones, whose world and unit it then is; NaN where not known.

    Raises:
        ValueError: the cameras do not fit to `poses` at all, as they do not move.
    """
    world_from_window, closed = chain(seams), None
    distance = float(geometry[0].landmarks.norm(dim=-1).nanmedian())
    found = [loop for loop in loops if loop.closed and loop.first_from_second.isfinite().all()]
    if found and all(seam.joined for seam in seams):
        edges = [Edge(loop.first, loop.second, loop.first_from_second.numpy()) for loop in found]
        closed = close_loops([seam.window_from_next.numpy() for seam in seams], edges, distance)
        world_from_window = torch.from_numpy(closed.world_from_window)
    fit = None
    if poses is not None:
        path = join_cameras(plan, geometry, world_from_window)
        fit = fit_poses(path.world_from_cam.double(), poses, distance)
        world_from_window = fit.known_from_world @ world_from_window
    return World(world_from_window, loops, closed, fit)
