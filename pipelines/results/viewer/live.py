"""A click on a pixel, and its track appears: asks a model about the video of a result."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from model import recipes
from model.recipes.alignment import fit_robust, move
from model.recipes.asking import AnsweringModel
from pipelines.geometry import finite, inverse, project, transform
from pipelines.results.sources import Clip
from pipelines.results.viewer.opened import Opened

NEAR = 0.02  # radians between a click and the point that was meant
ASKED = 400  # tracks by which a window is laid on the world, at most


class Live:
    """Of one video. Windows are encoded when they are first needed, and kept."""

    def __init__(self, model: AnsweringModel, opened: Opened, clip: Clip) -> None:
        self.model, self.clip = model, clip
        self.plan = recipes.plan_windows(len(clip), model.config.clip_frames)
        video = opened.document.video
        self.aspect = video.width / video.height
        self._encoded: dict[int, tuple[np.ndarray, Any]] = {}

    @torch.inference_mode()
    def with_track(self, opened: Opened, uv_norm: Float[np.ndarray, "2"], t: int) -> Opened:
        """The result with one track more, of what is seen at `uv_norm` in frame t; it is known in the window of t.

        ValueError if nothing tells where in the world the window is: fewer than 16 tracks are seen in frame t.
        """
        window, said = self._ask(uv_norm[None], t)
        world = self._world_from_window(opened, t)
        xyz = move(world, said.xyz[0]).numpy()
        length = len(self.clip)
        row = {
            "points": uv_norm,
            "t_src": np.array(t),
            "xyz": np.full((length, 3), np.nan),
            "xyz_cam": np.full((length, 3), np.nan),
            "uv_norm": np.full((length, 2), np.nan),
            "visible": np.zeros(length, bool),
            "confidence": np.zeros(length),
            "status": np.where(np.arange(length) < window.start, 0, 3),
        }
        inside = slice(window.start, window.stop)
        row["xyz"][inside], row["status"][inside] = xyz, 1
        row["uv_norm"][inside], row["visible"][inside] = said.uv_norm[0].numpy(), said.visible[0].numpy()
        row["confidence"][inside] = said.confidence[0].numpy()
        tracks = opened.arrays["tracks"]
        more = {key: np.concatenate([tracks[key], row[key][None].astype(tracks[key].dtype)]) for key in tracks}
        return replace(opened, arrays=opened.arrays | {"tracks": more})

    def _ask(self, uv_norm: Float[np.ndarray, "N 2"], t: int) -> tuple[range, recipes.Tracks]:
        """Answers of the window of frame t, in the camera of its first frame and its own unit."""
        number = int(self.plan.owner[t])
        window = self.plan.windows[number]
        if number not in self._encoded:
            video = torch.as_tensor(self.clip[list(window)])
            memory = self.model.encode(video[None].to(self.model.device), torch.tensor([self.aspect]))
            self._encoded[number] = video, memory
        video, memory = self._encoded[number]
        points = torch.as_tensor(uv_norm, dtype=torch.float32)
        return window, recipes.tracks(self.model, video, points, t - window.start, t_cam=0, memory=memory)

    def _world_from_window(self, opened: Opened, t: int) -> torch.Tensor:
        """(4, 4) similarity: lays what the window says of tracks that are seen in frame t on what the result says."""
        tracks = opened.arrays["tracks"]
        known = tracks["visible"][:, t] & finite(tracks["xyz"][:, t]) & finite(tracks["uv_norm"][:, t])
        rows = np.flatnonzero(known)[:ASKED]
        if len(rows) < 16:
            raise ValueError(f"only {len(rows)} tracks are seen in frame {t}: 16 are needed to place an answer")
        window, said = self._ask(tracks["uv_norm"][rows, t], t)
        here = said.xyz[:, t - window.start].double()[None]
        there = torch.as_tensor(tracks["xyz"][rows, t]).double()[None]
        world = fit_robust(here, there, torch.ones_like(here[..., 0]), scale=True).target_from_source[0]
        if not world.isfinite().all():
            raise ValueError(f"what the model says of frame {t} does not fit to the result")
        return world


def pixel_of(
    opened: Opened, t: int, origin: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "2"]:
    """uv_norm in frame t of the first point of the cloud that a ray in the world meets. ValueError if it meets none."""
    points, cameras, video = opened.arrays.get("points"), opened.arrays.get("cameras"), opened.document.video
    if points is None or cameras is None:
        raise ValueError("a click needs a result with points and cameras")
    xyz = points["xyz"][(points["frame"] == t) & finite(points["xyz"])].astype(np.float64) - origin
    along = xyz @ direction
    aside = np.linalg.norm(xyz - along[:, None] * direction, axis=1)
    met = np.flatnonzero((along > 0) & (aside < NEAR * along))
    if not len(met):
        raise ValueError("there is no point where you clicked")
    closest = met[np.argmin(along[met])]
    pose, lens = cameras["world_from_cam"][t].astype(np.float64), cameras["intrinsics"][t].astype(np.float64)
    uv_norm = project(transform(inverse(pose), xyz[closest] + origin), lens) / [video.width, video.height]
    if not ((uv_norm >= 0) & (uv_norm < 1)).all():
        raise ValueError("that point is not in the frame that is shown")
    return uv_norm
