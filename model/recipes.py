"""Which questions give which result (paper Tab. 1). One encoder pass serves them all: pass `memory` along.

| recipe        | u, v       | t_src   | t_tgt   | t_cam               | read from the answers         |
|---------------|------------|---------|---------|---------------------|-------------------------------|
| tracks        | given      | given   | 0..T-1  | = t_tgt, or one     | xyz, visible                  |
| point_cloud   | all pixels | 0..T-1  | = t_src | one                 | xyz                           |
| depth         | all pixels | 0..T-1  | = t_src | = t_src             | z                             |
| cameras, pose | grid       | i       | = t_src | i and j             | two point sets, same instant  |
| cameras, K    | grid       | 0..T-1  | = t_src | = t_src             | xyz                           |

What every recipe takes:
    video    (T, S, S, 3) uint8, resized to the model's square S without cropping; with `memory`, what it is of
    aspect   raw width / height; None takes it from `memory`, else from `native`, else from `video` itself
    memory   `model.encode(video[None], aspect)`, to encode only once; None encodes here
    native   (T, H, W, 3) uint8, the raw frames: query patches are cut from them, which sharpens edges (paper App. C)
    chunk_size  queries decoded at a time; None, the default: as many as free memory allows

Results are on the CPU. Lengths are in the model's unit, one per clip but arbitrary. Precision follows the caller's
`torch.autocast`.
"""

from typing import Literal

import torch
from torch import Tensor

from model.camera_fit import fit_rigid_robust, focal_lengths
from model.d4rt import D4RT, Memory
from model.decoder import Prediction
from model.queries import Queries
from model.results import CameraPath, Depth, PointCloud, Tracks

MIN_GRID = 4
"""Smallest side of the camera grid: 16 points, below which a rigid fit is not to be trusted."""


@torch.inference_mode()
def tracks(
    model: D4RT,
    video: Tensor,
    uv_norm: Tensor,
    t_src: Tensor,
    *,
    aspect: float | None = None,
    t_cam: int | Literal["target"] = "target",
    memory: Memory | None = None,
    native: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tracks:
    """Follow N points, each seen at `uv_norm` (N, 2) in frame `t_src` (N,), through the clip (paper 2.1).

    t_cam: "target" gives positions in each frame's own camera; a frame number gives "world" positions in its camera.
    """
    memory, patch_video = prepare(model, video, aspect, memory, native)
    times = torch.arange(memory.num_frames, device=model.device)[None]  # (1, T)
    answers = model.decode_times(
        memory,
        uv_norm.to(model.device)[None],
        t_src.to(model.device)[None],
        times,
        times if t_cam == "target" else torch.full_like(times, t_cam),
        chunk_size=chunk_size,
        patch_video=patch_video,
    )
    shape = (len(uv_norm), memory.num_frames)
    return Tracks(
        xyz=answers.xyz.cpu().view(*shape, 3),
        uv_norm=answers.uv_tgt.cpu().view(*shape, 2),
        visible=answers.visible.cpu().view(shape),
        confidence=answers.confidence.cpu().view(shape),
        t_cam=t_cam,
    )


@torch.inference_mode()
def depth(
    model: D4RT,
    video: Tensor,
    *,
    height: int | None = None,
    width: int | None = None,
    aspect: float | None = None,
    memory: Memory | None = None,
    native: Tensor | None = None,
    chunk_size: int | None = None,
) -> Depth:
    """Depth of every pixel of every frame, at any resolution: by default that of `native`, else of `video`.

    Pixel (x, y) of the output is asked at ((x + 0.5) / width, (y + 0.5) / height).
    """
    memory, patch_video = prepare(model, video, aspect, memory, native)
    height, width = output_size(video, native, height, width)
    uv_norm = pixel_centres(height, width)
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    maps, confidences = [], []
    for t in range(memory.num_frames):
        now = torch.tensor([t])
        answers = ask_frames(model, memory, uv_norm, t_src=now, t_cam=now, **options)
        z = answers.xyz[0, :, 2]
        maps.append(torch.where(z > 0, z, torch.nan).view(height, width))
        confidences.append(answers.confidence.view(height, width))
    return Depth(depth=torch.stack(maps), confidence=torch.stack(confidences))


@torch.inference_mode()
def point_cloud(
    model: D4RT,
    video: Tensor,
    *,
    t_cam: int = 0,
    stride: int = 1,
    min_confidence_percentile: float = 10.0,
    aspect: float | None = None,
    memory: Memory | None = None,
    native: Tensor | None = None,
    chunk_size: int | None = None,
) -> PointCloud:
    """The pixels of all frames as points in the camera of frame `t_cam`, each at the time it was seen.

    Colours come from `native` if given, else from `video`; so does the pixel grid, of which every `stride`-th row and
    column is asked. The least confident `min_confidence_percentile` percent of the clip are dropped.
    """
    if stride < 1:
        raise ValueError(f"stride ({stride}) must be at least 1 pixel")
    if not 0 <= min_confidence_percentile < 100:
        raise ValueError(f"min_confidence_percentile ({min_confidence_percentile}) must be in [0, 100)")
    memory, patch_video = prepare(model, video, aspect, memory, native)
    frames = (video if native is None else native)[:, stride // 2 :: stride, stride // 2 :: stride].cpu()
    uv_norm = pixel_centres(*output_size(video, native, None, None), stride=stride)
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    parts = []
    for t in range(memory.num_frames):
        now, camera = torch.tensor([t]), torch.tensor([t_cam])
        answers = ask_frames(model, memory, uv_norm, t_src=now, t_cam=camera, **options)
        parts.append((answers.xyz[0], answers.normal[0], answers.confidence[0]))
    xyz, normal, confidence = (torch.cat(part) for part in zip(*parts, strict=True))
    dropped = int(len(xyz) * min_confidence_percentile / 100)
    keep = torch.ones(len(xyz), dtype=torch.bool)
    keep[confidence.argsort(stable=True)[:dropped]] = False
    return PointCloud(
        xyz=xyz[keep],
        rgb=frames.reshape(-1, 3)[keep],
        normal=normal[keep],
        confidence=confidence[keep],
        frame=torch.arange(memory.num_frames).repeat_interleave(len(uv_norm))[keep],
    )


@torch.inference_mode()
def cameras(
    model: D4RT,
    video: Tensor,
    *,
    grid: int = 8,
    reference: int | Literal["sliding"] = 0,
    width: int | None = None,
    height: int | None = None,
    shared_focal: bool = False,
    square_pixels: bool = False,
    aspect: float | None = None,
    memory: Memory | None = None,
    native: Tensor | None = None,
    chunk_size: int | None = None,
) -> CameraPath:
    """Pose and intrinsics of every frame, from a grid x grid of points.

    Pose: the same points at the same instant, asked in the reference camera and in camera j, differ by a rigid motion
    alone. Both answers have t_tgt = t_src, so things that move are frozen and need no mask.

    Args:
        reference: the frame whose camera is the world. "sliding" fits each camera to the one before it and chains,
            which suits large camera motion; the world is then frame 0.
        width, height: frame size in pixels that `intrinsics` refer to; by default of `native`, else of `video`.
        shared_focal: one focal length for the clip (median over its frames) instead of one per frame.
        square_pixels: fx = fy in pixels of the raw frames, whose width / height is the aspect.
    """
    memory, patch_video = prepare(model, video, aspect, memory, native)
    num_frames, (height, width) = memory.num_frames, output_size(video, native, height, width)
    if grid < MIN_GRID:
        raise ValueError(f"grid ({grid}) must be at least {MIN_GRID}: a rigid fit needs {MIN_GRID**2} points")
    if reference != "sliding" and not 0 <= reference < num_frames:
        raise ValueError(f"reference ({reference}) must be 'sliding' or a frame from 0 to {num_frames - 1}")
    t = torch.arange(num_frames)
    anchor = (t - 1).clamp(min=0) if reference == "sliding" else torch.full_like(t, reference)
    uv_norm = pixel_centres(grid, grid)
    options = {"chunk_size": chunk_size, "patch_video": patch_video}
    own = ask_frames(model, memory, uv_norm, t_src=t, t_cam=t, **options)
    moved = ask_frames(model, memory, uv_norm, t_src=anchor, t_cam=t, **options)

    anchor_points = own.xyz[anchor]  # (T, P, 3), camera anchor[t]
    weights = own.confidence[anchor] * moved.confidence
    cam_from_anchor, residual, inliers = fit_rigid_robust(anchor_points, moved.xyz, weights)
    anchor_from_cam = torch.linalg.inv(cam_from_anchor)
    if reference == "sliding":
        path = [anchor_from_cam[0]]
        for step in anchor_from_cam[1:]:
            path.append(path[-1] @ step)
        anchor_from_cam = torch.stack(path)
    focal = focal_lengths(own.xyz, uv_norm, float(memory.aspect[0]), shared=shared_focal, square=square_pixels)
    intrinsics = torch.zeros(num_frames, 3, 3)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = (focal * torch.tensor([width, height])).unbind(-1)
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = width / 2, height / 2, 1
    return CameraPath(anchor_from_cam.float(), intrinsics, residual, inliers)


def pixel_centres(height: int, width: int, stride: int = 1) -> Tensor:
    """uv_norm of every stride-th pixel, row by row: (P, 2) float32."""
    y, x = (torch.arange(stride // 2, length, stride).add(0.5) / length for length in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def output_size(video: Tensor, native: Tensor | None, height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width): as asked for, else of the native frames, else of the video."""
    default = (video if native is None else native).shape[1:3]
    height, width = height or default[0], width or default[1]
    return int(height), int(width)


def prepare(
    model: D4RT, video: Tensor, aspect: float | None, memory: Memory | None, native: Tensor | None
) -> tuple[Memory, Tensor | None]:
    """The memory of one clip and the video to cut patches from, both on the model's device. Raises ValueError."""
    size = model.config.image_size
    if video.ndim != 4 or (memory is None and tuple(video.shape[1:]) != (size, size, 3)):
        raise ValueError(
            f"video has shape {tuple(video.shape)}; recipes take one clip (T, {size}, {size}, 3), already resized to "
            "the model's square without cropping, and the raw width / height as `aspect`; or, of another size, a "
            "`memory` that you encoded"
        )
    if native is not None and (native.ndim != 4 or len(native) != len(video)):
        raise ValueError(f"native has shape {tuple(native.shape)}; it must hold the same {len(video)} raw frames")
    patch_video = None if native is None else native.to(model.device)[None]
    if memory is None:
        if aspect is None:
            aspect = 1.0 if native is None else native.shape[2] / native.shape[1]
        clip_aspect = torch.tensor([aspect], dtype=torch.float32, device=model.device)
        return model.encode(video.to(model.device)[None], clip_aspect), patch_video
    if memory.video.shape != (1, *video.shape):
        raise ValueError(
            f"memory is of videos {tuple(memory.video.shape)}, this one is {tuple(video.shape)}: encode it by itself"
        )
    if aspect is not None and abs(float(memory.aspect[0]) - aspect) > 1e-3 * aspect:
        raise ValueError(f"aspect ({aspect}) is not that of the memory ({float(memory.aspect[0]):g}); give one of them")
    return memory, patch_video


def ask_frames(
    model: D4RT,
    memory: Memory,
    uv_norm: Tensor,
    *,
    t_src: Tensor,
    t_cam: Tensor,
    chunk_size: int | None,
    patch_video: Tensor | None,
) -> Prediction:
    """Where are the points seen at `uv_norm` (P, 2) in each frame of t_src (F,), then, in the cameras t_cam (F,)?

    The answers are (F, P, ...), on the CPU.
    """
    shape = (len(t_src), len(uv_norm))
    uv_norm = uv_norm.to(model.device).repeat(len(t_src), 1)[None]  # (1, F * P, 2)
    t_src, t_cam = (t.to(model.device).repeat_interleave(shape[1])[None] for t in (t_src, t_cam))
    queries = Queries(uv_norm, t_src, t_src, t_cam)
    answers = model.decode(memory, queries, chunk_size=chunk_size, patch_video=patch_video)
    return Prediction(*(x.cpu().view(*shape, *x.shape[2:]) for x in vars(answers).values()))
