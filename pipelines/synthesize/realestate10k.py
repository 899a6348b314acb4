"""Clips of RealEstate10K (`datasets/realestate10k.py`): a static room, no names of the published list.

    test/<16 hexadecimal digits>.txt    test/<the same>/<time>.png

Times begin anywhere, in steps of a frame of a video; of one line in the middle there is no image, as where frames could
not be taken out of a video. Units of length are not metres.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.geometry import inverse
from pipelines.synthesize import Size
from pipelines.synthesize.scene import Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (128, 72), "official": (640, 360)}
BEGIN, STEP = 67_433_000, 33_367  # microseconds
PER_METRE = 0.37


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """In which only the camera moves."""
    width, height = SIZES[size]
    intrinsics = np.array([[0.5 * width, 0, width / 2], [0, 0.5 * width, height / 2], [0, 0, 1]])
    return Scene.random(seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics, moving=False)


def units_per_metre(scene: Scene) -> float:
    return PER_METRE


def folder(index: int) -> str:
    return f"test/{index:016x}"


def write_tree(scene: Scene, root: Path, index: int) -> None:
    """Write a clip below the raw folder."""
    images = root / folder(index)
    images.mkdir(parents=True)
    lines = ["https://example.org/a-synthetic-room"]
    for t in range(len(scene)):
        time = BEGIN + t * STEP
        cam_from_world = inverse(scene.cameras.world_from_cam[t])[:3]
        cam_from_world[:, 3] *= PER_METRE
        matrix = scene.cameras.intrinsics[t]
        focal = [matrix[0, 0] / scene.width, matrix[1, 1] / scene.height]
        centre = [matrix[0, 2] / scene.width, matrix[1, 2] / scene.height]
        numbers = [*focal, *centre, 0, 0, *cam_from_world.ravel()]
        lines.append(f"{time} " + " ".join(f"{number:.9f}" for number in numbers))
        if t != len(scene) // 2:
            Image.fromarray(scene.render(t).image).save(images / f"{time}.png", compress_level=1)
    images.with_suffix(".txt").write_text("\n".join(lines) + "\n")
