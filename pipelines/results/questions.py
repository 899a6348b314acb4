"""What the windows of one video are asked."""

from dataclasses import dataclass

import torch

from model import recipes
from pipelines.results.asked import Asked
from pipelines.results.sources import Video

MAX_POINTS = 500_000  # of a cloud; beyond that every second, third, ... row and column of the frames is asked


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of one video, whatever its windows."""

    tasks: tuple[str, ...]
    points: torch.Tensor
    """(N, 2) float32: what is tracked, as uv_norm in frames `t_src`."""
    t_src: torch.Tensor
    """(N,) int64"""
    size: tuple[int, int]
    """(H, W) of the source."""
    depth_size: tuple[int, int]
    """(H, W)"""
    dense_size: tuple[int, int]
    """(H, W)"""
    cloud_stride: int
    all_pixels: bool
    native: bool
    shared_focal: bool
    intrinsics: torch.Tensor | None
    """(3, 3) float64, known ones, in units of the image's width and height."""
    poses: torch.Tensor | None
    """(T, 4, 4) float64, known ones: NaN where not."""
    loops: bool
    forecast: int

    @classmethod
    def of(cls, video: Video, image_size: int, asked: Asked) -> "Questions":
        """ValueError, naming the video, for what cannot be asked of it."""
        asked.check(video.frame_numbers, video.size, video.name)
        stride = 1
        while not asked.all_pixels and len(video.clip) * (image_size // stride) ** 2 > MAX_POINTS:
            stride += 1
        points, t_src = recipes.pixel_centres(asked.grid, asked.grid), None
        if asked.points is not None:
            points, t_src = torch.from_numpy(asked.points.points), torch.from_numpy(asked.points.t_src)
        side = asked.depth_size or (max(video.size) if asked.native else image_size)
        poses, intrinsics, (height, width) = None, None, video.size
        if asked.poses is not None:
            poses = torch.from_numpy(asked.poses.of(video.frame_numbers, video.name))
        if asked.intrinsics is not None:
            intrinsics = recipes.norm_intrinsics(asked.intrinsics.matrix, width, height)
        return cls(
            tasks=asked.tasks,
            points=points,
            t_src=torch.full((len(points),), asked.query_frame) if t_src is None else t_src,
            size=video.size,
            depth_size=_fitted(video.size, side),
            dense_size=_fitted(video.size, asked.dense_grid),
            cloud_stride=stride,
            all_pixels=asked.all_pixels,
            native=asked.native,
            shared_focal=asked.shared_focal,
            intrinsics=intrinsics,
            poses=poses,
            loops=asked.loops,
            forecast=asked.forecast,
        )

    def model(self, model: recipes.AnsweringModel) -> recipes.AnsweringModel:
        """The one to ask: it goes by what is known of the camera."""
        return model if self.intrinsics is None else recipes.WithIntrinsics(model, self.intrinsics)


def _fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(H, W) of the same aspect whose long side is so long."""
    return tuple(max(1, round(side * longest / max(size))) for side in size)
