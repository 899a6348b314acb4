"""BlendedMVS as its authors ship it (dataset notes D7), one scene at a time: photos of a static room under the sky.

    BlendedMVS/000000000000000000000000/
        blended_images/00000000.jpg 00000000_masked.jpg
        rendered_depth_maps/00000000.pfm
        cams/00000000_cam.txt ... pair.txt

One number is left out. The first camera file has two numbers about depth, the second a DEPTH_MIN of 0, the third three,
others four. In a long scene the last photo has no neighbours. Every second scene has a unit of its own, and one lies in
a folder of its own name.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image

from pipelines.geometry import inverse
from pipelines.synthesize import Size
from pipelines.synthesize.arrangement import LONG
from pipelines.synthesize.scene import Rendering, Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (128, 96), "official": (768, 576)}
RAW_FROM_SCENE = np.array([[0.0, 0, 1, -4], [1, 0, 0, 2], [0, 1, 0, 1], [0, 0, 0, 1]])
SKIPPED = 2  # the number that no photo has
NESTED = 1  # the scene that lies deeper
NEIGHBOURS = 10  # at most


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A scene under an open sky in which only the camera moves, with a camera as in the real set."""
    width, height = SIZES[size]
    focal = 575.955 / 768 * width
    intrinsics = np.array([[focal, 0, 0.515 * width], [0, focal, 0.485 * height], [0, 0, 1]])
    return Scene.random(
        seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics, moving=False, open_top=True
    )


def folder(index: int) -> str:
    pid = f"{index:024x}"
    return f"BlendedMVS/{pid}/{pid}" if index == NESTED else f"BlendedMVS/{pid}"


def units_per_metre(scene: Scene) -> float:
    return 37.5 if scene.seed % 2 else 1.0


def frame_numbers(num_frames: int) -> Int64[np.ndarray, "T"]:
    numbers = np.arange(num_frames)
    return numbers + (numbers >= SKIPPED)


def write(scene: Scene, folder: Path) -> None:
    """Write a static scene into a new folder."""
    for name in ("blended_images", "rendered_depth_maps", "cams"):
        (folder / name).mkdir(parents=True)
    for t, number in enumerate(frame_numbers(len(scene))):
        frame = scene.render(t)
        depth = np.where(np.isfinite(frame.depth), units_per_metre(scene) * frame.depth, 0).astype(np.float32)
        _write_images(folder / f"blended_images/{number:08d}", frame)
        pfm = f"Pf\n{scene.width} {scene.height}\n-1.000000\n".encode() + np.flipud(depth).astype("<f4").tobytes()
        (folder / f"rendered_depth_maps/{number:08d}.pfm").write_bytes(pfm)
        (folder / f"cams/{number:08d}_cam.txt").write_text(_camera(scene, t, depth_line(t, depth[depth > 0])))
    (folder / "cams/pair.txt").write_text(_pairs(scene))


def depth_line(t: int, depth: np.ndarray) -> str:
    """DEPTH_MIN DEPTH_INTERVAL [DEPTH_NUM [DEPTH_MAX]] of a range that loses nothing, as the authors cut it."""
    smallest, largest = 0.8 * depth.min(), 1.01 * depth.max()
    interval = (largest - smallest) / 128
    numbers = [0 if t == 1 else smallest, interval, 128, largest][: {0: 2, 2: 3}.get(t, 4)]
    return " ".join(f"{number:g}" for number in numbers)


def _camera(scene: Scene, t: int, depth: str) -> str:
    cam_from_world = inverse(RAW_FROM_SCENE @ scene.cameras.world_from_cam[t])
    cam_from_world[:3, 3] *= units_per_metre(scene)
    extrinsic = "".join(f"{_row(row)} \n" for row in cam_from_world)
    intrinsic = "".join(f"{_row(row)} \n" for row in scene.cameras.intrinsics[t])
    return f"extrinsic\n{extrinsic}\nintrinsic\n{intrinsic}\n{depth} \n"


def _row(values: Float64[np.ndarray, "n"]) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _pairs(scene: Scene) -> str:
    """Photos in an order of the scene's own, the neighbours of each with the nearest in time first."""
    numbers = frame_numbers(len(scene))
    listed = len(scene) - (len(scene) >= LONG)
    lines = [str(len(scene))]
    for t in np.random.default_rng([scene.seed, 4]).permutation(len(scene)):
        others = sorted(set(range(listed)) - {int(t)}, key=lambda other: (abs(other - t), other))
        others = others[:NEIGHBOURS] if t < listed else []
        scores = " ".join(f"{numbers[other]} {1000 / abs(other - t):g}" for other in others)
        lines += [str(numbers[t]), f"{len(others)} {scores}"]
    return "\n".join(lines) + "\n"


def _write_images(path: Path, frame: Rendering) -> None:
    Image.fromarray(frame.image).save(path.with_suffix(".jpg"), quality=95)
    masked = np.where(np.isfinite(frame.depth)[..., None], frame.image, 0).astype(np.uint8)
    Image.fromarray(masked).save(path.with_name(f"{path.name}_masked.jpg"), quality=95)
