"""Recordings of TUM RGB-D as its authors ship them (dataset notes E5): no names of the published list.

    rgbd_dataset_freiburg3_room0000/{rgb,depth}/<time>.png  rgb.txt  depth.txt  groundtruth.txt

Times of colour, depth and poses differ by some milliseconds, poses come three times as often, and one frame in the
middle has no depth.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float64
from PIL import Image

from pipelines.geometry import xyzw_from_rotation
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (96, 72), "official": (640, 480)}
INTRINSICS = (535.4, 539.2, 320.1, 247.6)  # of freiburg3, the centre of the first pixel at 0
PER_METRE = 5000
BEGIN, FPS = 1341846313.592026, 30.0
COMMENT = "# a synthetic room\n# file: '{}'\n# timestamp ...\n"


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    return scene_of(seed, INTRINSICS, num_frames=num_frames, size=size)


def scene_of(seed: int, published: tuple[float, float, float, float], *, num_frames: int, size: Size) -> Scene:
    """Filmed with these intrinsics of 640 x 480."""
    width, height = SIZES[size]
    fx, fy, cx, cy = published
    scale = np.array([width / 640, height / 480, 1.0])[:, None]
    intrinsics = scale * np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1.0]])
    return Scene.random(seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics)


def folder(index: int) -> str:
    return f"rgbd_dataset_freiburg3_room{index:04d}"


def write(scene: Scene, folder: Path) -> None:
    """Write a recording into a new folder."""
    write_recording(scene, folder, scene.cameras.world_from_cam)


def write_recording(scene: Scene, folder: Path, poses: Float64[np.ndarray, "T 4 4"]) -> None:
    """With these poses in groundtruth.txt."""
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    lists = {"rgb": [], "depth": []}
    truth = []
    for t in range(len(scene)):
        frame, time = scene.render(t), BEGIN + t / FPS
        image, depth = f"rgb/{time:.6f}.png", f"depth/{time + 0.004:.6f}.png"
        Image.fromarray(frame.image).save(folder / image, compress_level=1)
        lists["rgb"].append(f"{time:.6f} {image}")
        if t != len(scene) // 2:
            steps = np.round(PER_METRE * np.where(np.isfinite(frame.depth), frame.depth, 0))
            Image.fromarray(steps.astype(np.uint16)).save(folder / depth, compress_level=1)
            lists["depth"].append(f"{time + 0.004:.6f} {depth}")
        numbers = [*poses[t, :3, 3], *xyzw_from_rotation(poses[t, :3, :3])]
        for late in (-0.011, 0.001, 0.012):  # the one in the middle is of this frame
            truth.append(f"{time + late:.6f} " + " ".join(f"{number:.9f}" for number in numbers))
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text(COMMENT.format(folder.name) + "\n".join(lines) + "\n")
    (folder / "groundtruth.txt").write_text(COMMENT.format(folder.name) + "\n".join(truth) + "\n")


def prepare(folder: Path, chosen: str) -> None:
    """Make of a recording what evaluation codes make of it: images and depth alone, in folders that end with `chosen`,
    and of the poses the one nearest to each image."""
    for kind in ("rgb", "depth"):
        (folder / kind).rename(folder / f"{kind}_{chosen}")
        (folder / f"{kind}.txt").unlink()
    rows = (folder / "groundtruth.txt").read_text().splitlines()[COMMENT.count("\n") :]
    (folder / f"groundtruth_{chosen}.txt").write_text("\n".join(rows[1::3]) + "\n")
    (folder / "groundtruth.txt").unlink()
