"""CO3D v2 as its authors ship it (dataset notes D8), one sequence per category folder: a static scene.

    room0000/apple/
        frame_annotations.jgz, sequence_annotations.jgz, set_lists/set_lists_fewview_{train,test}.json
        110_13051_23361/
            images/frame000001.jpg
            depths/frame000001.jpg.geometric.png     float16 bits of depth along z / scale_adjustment
            depth_masks/frame000001.png              1-bit: where depth is right
            masks/frame000001.png                    8-bit, brighter towards the centre

Scenes take turns: portrait, landscape and odd sizes; isotropic intrinsics or the older form, whose name is left out;
scale_adjustment 1 and 2.5; known and unknown quality. Depth outside depth_masks is wrong: the sky, a corner, and a few
pixels that are no number. The list is shuffled, frame_number is not the file's number, and after the scene's frames
come four that nobody may use: without depth, without viewpoint, blanked and only in a test list, blanked all the same.
Left out: pointcloud.ply and eval_batches.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from pipelines.geometry import inverse
from pipelines.synthesize import Size
from pipelines.synthesize.annotations import half_bits, save_list, save_png, viewpoint
from pipelines.synthesize.scene import Rendering, Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (96, 128), "official": (1080, 1920)}
RAW_FROM_SCENE = np.diag([-1.0, -1.0, 1.0, 1.0])  # Y up; how the objects lie is arbitrary
CATEGORY, SEQUENCE = "apple", "110_13051_23361"
SKY = 30.0  # what depth says where there is nothing
UNUSABLE = ("no depth", "no viewpoint", "test", "blank")
Row = dict[str, Any]


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A scene in which only the camera moves; in every second one under an open sky."""
    width, height = SIZES[size]
    width, height = ((width, height), (height, width), (width + 1, height - 1))[seed % 3]
    focal = 0.8 * max(width, height) / 2 / np.tan(np.radians(32))
    intrinsics = np.array([[focal, 0, 0.51 * width], [0, 1.01 * focal, 0.48 * height], [0, 0, 1]])
    return Scene.random(
        seed,
        num_frames=num_frames,
        width=width,
        height=height,
        intrinsics=intrinsics,
        moving=False,
        open_top=seed % 2 == 0,
    )


def frame_numbers(num_frames: int) -> Int64[np.ndarray, "T"]:
    """Image files count from 1."""
    return np.arange(1, num_frames + 1)


def folder(index: int) -> str:
    return f"room{index:04d}/{CATEGORY}"


def write(scene: Scene, folder: Path) -> None:
    """Write a static scene into a new folder."""
    records = [_record(scene, t, "") for t in range(len(scene))]
    records += [_record(scene, len(scene) - 1, kind, later=i) for i, kind in enumerate(UNUSABLE, 1)]
    for i, record in enumerate(records):
        if i < len(scene):
            frame = scene.render(i)  # the last one stands for all that nobody may use
        _write_frame(folder, record, scene, frame, blank=i - len(scene) >= UNUSABLE.index("test"))
    listed = [[SEQUENCE, record["frame_number"], record["image"]["path"]] for record in records]
    test = listed.pop(len(scene) + UNUSABLE.index("test"))
    (folder / "set_lists").mkdir()
    for name, parts in (("train", (listed[::2], listed[1::2], [])), ("test", (listed[:1], [], [test]))):
        text = json.dumps(dict(zip(("train", "val", "test"), parts, strict=True)))
        (folder / f"set_lists/set_lists_fewview_{name}.json").write_text(text)
    order = np.random.default_rng([scene.seed, 4]).permutation(len(records))
    save_list([records[i] for i in order], folder / "frame_annotations.jgz")
    quality = None if scene.seed % 2 else 0.87
    point_cloud = {"path": f"{CATEGORY}/{SEQUENCE}/pointcloud.ply", "quality_score": None, "n_points": None}
    sequence = {"sequence_name": SEQUENCE, "category": CATEGORY, "video": None, "point_cloud": point_cloud}
    save_list([sequence | {"viewpoint_quality_score": quality}], folder / "sequence_annotations.jgz")


def scale_adjustment(scene: Scene) -> float:
    return 2.5 if scene.seed % 4 >= 2 else 1.0


def trusted(scene: Scene, frame: Rendering) -> np.ndarray:
    """Where the depth file is right: not in the sky, not in the lower left corner."""
    mask = np.isfinite(frame.depth)
    mask[-(scene.height // 6) :, : scene.width // 6] = False
    return mask


def _record(scene: Scene, t: int, kind: str, later: int = 0) -> Row:
    cam_from_world = inverse(RAW_FROM_SCENE @ scene.cameras.world_from_cam[t])
    size = {"width": scene.width, "height": scene.height}
    place, file = f"{CATEGORY}/{SEQUENCE}", f"frame{t + later + 1:06d}"
    depth = {
        "path": f"{place}/depths/{file}.jpg.geometric.png",
        "scale_adjustment": scale_adjustment(scene),
        "mask_path": f"{place}/depth_masks/{file}.png",
    }
    seen = viewpoint(cam_from_world, scene.cameras.intrinsics[t], **size, isotropic=scene.seed % 2 == 0)
    return {
        "sequence_name": SEQUENCE,
        "frame_number": 3 * (t + later) + 1,
        "frame_timestamp": -1.0,
        "image": {"path": f"{place}/images/{file}.jpg", "size": [scene.height, scene.width]},
        "depth": None if kind == "no depth" else depth,
        "mask": {"path": f"{place}/masks/{file}.png", "mass": 100.0},
        "viewpoint": None if kind == "no viewpoint" else seen,
        "meta": {"frame_type": "test_unseen" if kind == "test" else "train_known", "frame_splits": []},
    }


def _write_frame(folder: Path, record: Row, scene: Scene, frame: Rendering, *, blank: bool) -> None:
    def place(path: str) -> Path:
        target = folder / path.removeprefix(f"{CATEGORY}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    shown = np.zeros_like(frame.image) if blank else frame.image
    Image.fromarray(shown).save(place(record["image"]["path"]), quality=95)
    u = np.abs(np.linspace(-1, 1, scene.width))
    save_png(np.tile((255 * (1 - u)).astype(np.uint8), (scene.height, 1)), place(record["mask"]["path"]))
    if record["depth"] is None:
        return
    right = trusted(scene, frame)
    depth = np.where(np.isfinite(frame.depth), frame.depth, SKY)
    depth = np.where(right, depth, 1.3 * depth) / record["depth"]["scale_adjustment"]
    depth[0, :3] = np.inf, np.nan, 0
    save_png(half_bits(np.zeros_like(depth) if blank else depth), place(record["depth"]["path"]))
    Image.fromarray(right & (not blank)).save(place(record["depth"]["mask_path"]))
