"""What each window of a long video says of its cameras, and how the windows become one world.

    geometry = [look(model, video, plan, number, aspect=...) for number in range(len(plan))]     independent, heavy
    seams = [join(a, b) for a, b in pairwise(geometry)]                                          cheap, repeatable
    world_from_window = chain(seams)
    cameras = join_cameras(plan, geometry, world_from_window)

A window says where things are in the camera of its first frame, in a unit of its own. That frame is shared with the
window before, and both windows are asked the very same questions about shared frames: same pixel, same instant, in the
camera of that frame. So their answers are the same points, things that move being frozen in time, and no matcher is
needed. What is left between the two sets of answers is Sim(3), found robustly; SE(3) where the scale is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.recipes.alignment import MIN_POINTS, fit_robust, move_camera, scale_of
from model.recipes.asking import AnsweringModel, Encoded
from model.recipes.camera_paths import cameras
from model.recipes.results import CameraPath
from model.recipes.views import LANDMARK_FRAMES, Frames, View
from model.recipes.windows import WindowPlan, spread


@dataclass(frozen=True)
class WindowGeometry:
    """What one window says by itself: arrays to keep, from which everything is joined. F frames, Q landmarks.

    Positions in the window's own unit of length.
    """

    window_from_cam: Tensor
    """(F, 4, 4) float32: the camera of each frame in that of the first. NaN where it could not be told."""
    intrinsics: Tensor
    """(F, 3, 3) float32, as of `cameras`."""
    residual: Tensor
    """(F,) float32, as of `cameras`."""
    inliers: Tensor
    """(F,) float32, as of `cameras`."""
    landmarks: Tensor
    """(Q, 3) float32: points of the window's first frames, those shared with the window before, in its first camera."""
    landmark_confidence: Tensor
    """(Q,) float32."""
    next_landmarks: Tensor
    """(Q, 3) float32: what the next window is asked for its landmarks, asked of this one. Empty for the last window."""
    next_landmarks_here: Tensor
    """(Q, 3) float32: the same points in this window's first camera."""
    next_confidence: Tensor
    """(Q,) float32."""
    appearance: Tensor
    """(D,) float32: the mean encoding of the frames the landmarks are of."""


@dataclass(frozen=True)
class Seam:
    """How a window is joined to the one before it."""

    before_from_after: Tensor
    """(4, 4) float64, with a scale: positions in the camera of the after's first frame, as after says them -> as before
    says them. NaN if they could not be joined."""
    before_from_camera: Tensor
    """(4, 4) float64, rigid: that camera in the first camera of before."""
    residual: float
    """Typical distance between the same points as both windows say them, relative to their range."""
    inliers: float
    """Share of the points that agree to `alignment.INLIER_DISTANCE`."""
    points: int
    """How many were asked of both."""

    @property
    def joined(self) -> bool:
        return bool(self.window_from_next.isfinite().all())

    @property
    def window_from_next(self) -> Tensor:
        """(4, 4) float64, with a scale: positions in the first camera of after -> in that of before."""
        return self.before_from_camera @ self.before_from_after

    @property
    def scale(self) -> float:
        """The unit of after in that of before."""
        return float(scale_of(self.before_from_after))

    def describe(self) -> dict[str, float | int | bool | str]:
        """For a report."""
        report = {
            "joined": self.joined,
            "scale": self.scale,
            "residual": self.residual,
            "inliers": self.inliers,
            "points": self.points,
        }
        if not self.joined:
            report["reason"] = f"fewer than {MIN_POINTS} finite answers, or all on one line: the world ends here"
        return report


@torch.inference_mode()
def look(
    model: AnsweringModel,
    video: Frames,
    plan: WindowPlan,
    number: int,
    *,
    aspect: float,
    width: int | None = None,
    height: int | None = None,
    memory: Encoded | None = None,
    chunk_size: int | None = None,
) -> WindowGeometry:
    """Look at window `number` of a video, alone. `video` needs to have the frames of this window only."""
    window = plan.windows[number]
    view = View.of(model, video, window, aspect=aspect, memory=memory, chunk_size=chunk_size)
    path = cameras(model, view.memory.video[0], width=width, height=height, memory=view.memory, chunk_size=chunk_size)
    own, confidence = view.landmarks(landmark_frames(plan, number), window.start)
    there, here, both = torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0)
    if number + 1 < len(plan):
        instants = landmark_frames(plan, number + 1)
        there, sure = view.landmarks(instants, plan.windows[number + 1].start)
        here, sure_here = view.landmarks(instants, window.start)
        both = torch.minimum(sure, sure_here)
    return WindowGeometry(
        window_from_cam=path.world_from_cam,
        intrinsics=path.intrinsics,
        residual=path.residual,
        inliers=path.inliers,
        landmarks=own,
        landmark_confidence=confidence,
        next_landmarks=there,
        next_landmarks_here=here,
        next_confidence=both,
        appearance=_appearance(view, min(plan.common, len(window))),
    )


def landmark_frames(plan: WindowPlan, number: int) -> list[int]:
    """The instants of the landmarks of a window: among the frames it shares with the one before."""
    window = plan.windows[number]
    return spread(plan.shared(number - 1) if number else window[: plan.common], LANDMARK_FRAMES)


def join(before: WindowGeometry, after: WindowGeometry, *, scale: bool = True) -> Seam:
    """The seam between a window and the next; without `scale`, both are taken to be in one unit, such as metres."""
    confidence = before.next_confidence * after.landmark_confidence
    same = fit_robust(after.landmarks[None], before.next_landmarks[None], confidence[None], scale=scale)
    step = fit_robust(
        before.next_landmarks[None], before.next_landmarks_here[None], before.next_confidence[None], scale=False
    )
    return Seam(
        before_from_after=same.target_from_source[0],
        before_from_camera=step.target_from_source[0],
        residual=float(same.residual),
        inliers=float(same.inliers),
        points=len(confidence),
    )


def chain(seams: Sequence[Seam]) -> Tensor:
    """world_from_window (W, 4, 4) float64, with scales: the world is the first camera, its unit that of window 0.

    NaN from a seam on that could not be joined.
    """
    path = [torch.eye(4, dtype=torch.float64)]
    for seam in seams:
        path.append(path[-1] @ seam.window_from_next)
    return torch.stack(path)


def join_cameras(plan: WindowPlan, geometry: Sequence[WindowGeometry], world_from_window: Tensor) -> CameraPath:
    """The cameras of all frames, each as its window says, in the world."""
    parts = []
    for number, window in enumerate(plan.windows):
        mine = plan.owner[window.start : window.stop] == number
        said = geometry[number]
        pose = move_camera(world_from_window[number], said.window_from_cam[mine].double())
        parts.append((pose.float(), said.intrinsics[mine], said.residual[mine], said.inliers[mine]))
    return CameraPath(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _appearance(view: View, num_frames: int) -> Tensor:
    """The mean token of the first frames."""
    tubelet = view.model.config.tubelet
    slots = -(-view.memory.num_frames // tubelet)
    tokens = view.memory.tokens[0]
    per_slot = len(tokens) // slots  # rounds the aspect token off
    return tokens[: per_slot * -(-num_frames // tubelet)].float().mean(dim=0).cpu()
