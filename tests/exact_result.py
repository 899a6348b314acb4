"""A result folder in which everything is exactly true: what an analytic scene shows, written as `infer` writes it."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.geometry import image_grid, inverse, project, rotate, transform, unproject
from pipelines.results.arrays import Arrays
from pipelines.results.sources import Selection, Source, read_video, video_digest
from pipelines.results.writing import write_arrays, write_results
from pipelines.synthesize.scene import Scene

SEAM = {"joined": True, "scale": 1.0, "residual": 0.0, "inliers": 1.0, "points": 100}
DIGEST = "0123456789abcdef0123456789abcdef"


def exact_arrays(scene: Scene, grid: int) -> dict[str, Arrays]:
    """Of grid x grid points over the first frame, and of every pixel. The world is the first camera."""
    length, size = len(scene), np.array([scene.width, scene.height])
    pose = inverse(scene.cameras.world_from_cam[0]) @ scene.cameras.world_from_cam
    intrinsics, cam_from_first = scene.cameras.intrinsics, inverse(pose)

    points = (image_grid(grid, grid) / grid).reshape(-1, 2)
    hits = scene.trace(points * size, np.zeros(len(points), int))
    everywhere = np.stack([scene.position(hits, np.full(len(points), t)) for t in range(length)], axis=1)
    xyz = transform(inverse(scene.cameras.world_from_cam[0]), everywhere)
    xyz_cam = transform(cam_from_first, xyz)
    visible = np.stack([scene.visible(hits, np.full(len(points), t)) for t in range(length)], axis=1)
    tracks = {
        "points": points.astype(np.float32),
        "t_src": np.zeros(len(points), np.int64),
        "xyz": xyz.astype(np.float32),
        "xyz_cam": xyz_cam.astype(np.float32),
        "uv_norm": (project(xyz_cam, intrinsics) / size).astype(np.float32),
        "visible": visible,
        "confidence": np.full(visible.shape, 0.9, np.float32),
        "status": np.ones(visible.shape, np.int8),
    }
    frames = [scene.render(t, supersample=1) for t in range(length)]
    depth = np.stack([frame.depth for frame in frames])
    normal = np.stack([frame.normal for frame in frames])
    own = unproject(image_grid(scene.height, scene.width), depth, intrinsics[:, None, None])
    cloud = {
        "xyz": transform(pose[:, None, None], own).reshape(-1, 3).astype(np.float32),
        "rgb": np.stack([frame.image for frame in frames]).reshape(-1, 3),
        "normal": rotate(pose[:, None, None], normal).reshape(-1, 3).astype(np.float32),
        "confidence": (1 / (1 + depth / 10)).reshape(-1).astype(np.float32),
        "frame": np.repeat(np.arange(length), scene.width * scene.height),
        "left_out": np.float32(0),
    }
    return {
        "tracks": tracks,
        "depth": {
            "depth": depth.astype(np.float32),
            "normal": normal.astype(np.float32),
            "confidence": (1 / (1 + depth / 10)).astype(np.float32),
        },
        "points": cloud | {"left_out": np.array(0, np.float32)},
        "cameras": {
            "world_from_cam": pose.astype(np.float32),
            "intrinsics": intrinsics.astype(np.float32),
            "residual": np.zeros(length, np.float32),
        },
    }


def write_exact(root: Path, scene: Scene, grid: int = 12, seams: tuple[int, ...] = (), **changed: Arrays) -> Path:
    """ROOT/NAME: results of the frames in ROOT/NAME-frames. `changed`: tasks whose arrays are others."""
    frames = root / "scene-frames"
    frames.mkdir(parents=True)
    for t in range(len(scene)):
        Image.fromarray(scene.render(t, supersample=1).image).save(frames / f"{t}.png")
    return write_of(root / "scene", frames, exact_arrays(scene, grid) | changed, seams)


def write_of(folder: Path, frames: Path, arrays: dict[str, Arrays], seams: tuple[int, ...] = ()) -> Path:
    """A result folder of the images in a folder."""
    source, selection = Source(str(frames)), Selection()
    video = read_video(source, selection, 8)
    ends = [*(seam + 3 for seam in seams), len(video.clip) - 1]
    windows = [
        {"first": first, "last": last, "seam": SEAM if k else None}
        for k, (first, last) in enumerate(zip((0, *seams), ends, strict=True))
    ]
    request = {"model_digest": DIGEST, "tasks": list(arrays), "video": video_digest(source, selection)}
    about = {
        "request": request,
        "model": {"digest": DIGEST},
        "source": {"uri": str(frames), "dataset": None, "sequence": None},
        "windows": windows,
    }
    folder.mkdir()
    write_results(folder, video, write_arrays(folder, arrays), about)
    return folder
