"""PointOdyssey v1.2 as its authors ship it (dataset notes D1), one sequence at a time.

    train/room_0000/
        rgbs/rgb_00000.jpg
        depths/depth_00000.png       uint16, metres * 65.535, floored; 65535 is sky, 0 is nothing
        masks/mask_00000.png         one colour per object, 0 elsewhere
        normals/normal_00000.jpg     unit normals in Blender's world axes, (n + 1) * 127.5
        anno.npz, info.npz, scene_info.json

The last three tracks are odd, as some real ones are: one has infinite trajs_2d, one no valid frame, one is never seen.
"""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from PIL import Image

from pipelines.geometry import inverse, project, transform
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Rendering, Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (128, 72), "official": (960, 540)}
TRACKS_PER_COLUMN = 16  # of the image: about 15,000 at the official size
RAW_FROM_SCENE = np.diag([1.0, -1.0, -1.0, 1.0])  # +Y up
BLENDER_FROM_RAW = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # +Z up
STEPS_PER_METRE = 65535 / 1000
SKY = 65535
MASK_COLOURS = np.random.default_rng(0).integers(64, 256, (256, 3)).astype(np.uint8)
MASK_COLOURS[0] = 0
INFINITE_UV, INVALID, OUTSIDE = -3, -2, -1  # the odd tracks


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A scene under a ceiling or, for odd seeds, the sky; fields of view differ."""
    width, height = SIZES[size]
    angle = np.radians(np.random.default_rng([seed, 2]).uniform(55, 75))
    focal = width / 2 / np.tan(angle / 2)
    return Scene.random(
        seed,
        num_frames=num_frames,
        width=width,
        height=height,
        intrinsics=np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]),
        moving=True,
        open_top=seed % 2 == 1,
    )


def folder(index: int) -> str:
    return f"train/room_{index:04d}"


def write(scene: Scene, folder: Path, *, dtype: type[np.floating] = np.float32) -> None:
    """Write a scene into a new folder. Annotations are stored as `dtype`: the dataset's generator used float16."""
    for name in ("rgbs", "depths", "masks", "normals"):
        (folder / name).mkdir(parents=True)
    for t in range(len(scene)):
        _write_frame(folder, t, scene.render(t), cam_from_world(scene)[t])
    annotations = {"intrinsics": scene.cameras.intrinsics, "extrinsics": cam_from_world(scene)}
    annotations |= tracks(scene, TRACKS_PER_COLUMN * scene.width)
    with np.errstate(over="ignore"):  # beyond 65504 a float16 is inf, in the dataset too
        annotations = {name: value.astype(dtype) for name, value in annotations.items()}
    np.savez_compressed(folder / "anno.npz", **annotations)
    np.savez(folder / "info.npz", **{name: np.array(value.shape) for name, value in annotations.items()})
    assets = [f"{type(solid).__name__.lower()}_{i}" for i, solid in enumerate(scene.solids[1:])]
    focal = scene.cameras.intrinsics[0, 0, 0]
    info = {"sensor_width": 36.0, "focal_length": 36.0 * focal / scene.width, "assets": assets}
    (folder / "scene_info.json").write_text(json.dumps(info))


def cam_from_world(scene: Scene) -> Float64[np.ndarray, "T 4 4"]:
    return inverse(RAW_FROM_SCENE @ scene.cameras.world_from_cam)


def tracks(scene: Scene, count: int) -> dict[str, Float64[np.ndarray, "T P ..."]]:
    """trajs_3d in the raw world, trajs_2d, visibs and valids of up to `count` points seen in the scene."""
    hits = scene.surface_points(count)
    frames = [np.full(len(hits.surface), t) for t in range(len(scene))]
    xyz = np.stack([scene.position(hits, t) for t in frames])
    visible = np.stack([scene.visible(hits, t) for t in frames])
    valid = np.ones_like(visible)
    visible[:, OUTSIDE] = visible[:, INVALID] = valid[:, INVALID] = False
    # In front of the cameras but far to the right, whatever the field of view.
    xyz[:, OUTSIDE] = transform(scene.cameras.world_from_cam[len(scene) // 2], np.array([40.0, 0, 20]))
    xyz[:, INVALID] = 0
    xyz_raw = xyz @ RAW_FROM_SCENE[:3, :3].T
    extrinsics, matrices = cam_from_world(scene), scene.cameras.intrinsics
    uv = np.stack([project(transform(extrinsics[t], xyz), matrices[t]) for t, xyz in zip(frames, xyz_raw, strict=True)])
    uv[:, INFINITE_UV] = np.inf
    return {"trajs_2d": uv, "trajs_3d": xyz_raw, "visibs": visible.astype(float), "valids": valid.astype(float)}


def _write_frame(folder: Path, t: int, frame: Rendering, cam_from_world: Float64[np.ndarray, "4 4"]) -> None:
    Image.fromarray(frame.image).save(folder / f"rgbs/rgb_{t:05d}.jpg", quality=95)
    nothing = ~np.isfinite(frame.depth)
    steps = np.where(nothing, SKY, np.floor(np.clip(frame.depth, 0, 1000) * STEPS_PER_METRE)).astype(np.uint16)
    steps[tuple(np.argwhere(nothing)[:3].T)] = 0
    Image.fromarray(steps).save(folder / f"depths/depth_{t:05d}.png", compress_level=1)
    colours = MASK_COLOURS[frame.instance + 1]
    Image.fromarray(colours).save(folder / f"masks/mask_{t:05d}.png", compress_level=1)
    normal = np.nan_to_num(frame.normal) @ cam_from_world[:3, :3] @ BLENDER_FROM_RAW.T
    coded = np.round((normal + 1) * 127.5).astype(np.uint8)
    Image.fromarray(coded).save(folder / f"normals/normal_{t:05d}.jpg", quality=95, subsampling=0)
