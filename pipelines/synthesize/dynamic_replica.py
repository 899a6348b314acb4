"""Dynamic Replica (v2) as its authors ship it (dataset notes D2), one sequence at a time, seen by both eyes.

    room0000/train/
        frame_annotations_train.jgz                          all records of the left eye, then all of the right one
        <seq>_source_{left,right}/
            images/<seq>_source_left-0000.png                RGBA, and done.ok
            depths/<seq>_source_left_0000.geometric.png      float16 bits, metres along z; three pixels are -0, 0, inf
            masks/<seq>_source_left_0000.png                 255 where something moves
            trajectories/000000.pth                          left eye only: a dictionary of torch tensors

Left out: flow and instance maps. Each folder of a split holds one sequence; the first track has an infinite traj_2d.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.geometry import inverse, project, transform
from pipelines.synthesize import Size
from pipelines.synthesize.annotations import half_bits, save_list, save_png, viewpoint
from pipelines.synthesize.scene import Rendering, Scene

SIZES: dict[Size, tuple[int, int]] = {"small": (128, 72), "official": (1280, 720)}
RAW_FROM_SCENE = np.eye(4)
RAW_FROM_SCENE[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # Z up; how the rooms lie is arbitrary
RAW_FROM_SCENE[:3, 3] = 1, -2, 0.5
TRACKS_PER_COLUMN = 16  # of the image: about 20,000 at the official size
BASELINE = 0.12  # metres
FRAME_SECONDS = 1 / 30


def scene(seed: int, *, num_frames: int, size: Size) -> Scene:
    """A closed room; the fields of view differ."""
    width, height = SIZES[size]
    focal = width / 2 / np.tan(np.radians(np.random.default_rng([seed, 2]).uniform(60, 75)) / 2)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Scene.random(seed, num_frames=num_frames, width=width, height=height, intrinsics=intrinsics)


def folder(index: int) -> str:
    return f"room{index:04d}/train"


def right_eye(scene: Scene) -> Scene:
    """The same scene seen by the right camera."""
    return scene.beside(BASELINE)


def sequence_name(scene: Scene) -> str:
    return f"{scene.seed % 1_000_000:06d}-3_obj"


def write(scene: Scene, folder: Path) -> None:
    """Write a scene into a new folder."""
    records = []
    for camera, view in (("left", scene), ("right", right_eye(scene))):
        stem = f"{sequence_name(scene)}_source_{camera}"
        for t in range(len(scene)):
            record = _record(view, t, camera, stem)
            frame = view.render(t)
            _write_frame(folder, record, scene, frame)
            if camera == "left":
                record["trajectories"] = {"path": f"{stem}/trajectories/{t:06d}.pth"}
            records.append(record)
        (folder / stem / "images/done.ok").write_text("")
    _write_trajectories(scene, folder, [record["trajectories"] for record in records[: len(scene)]])
    save_list(records, folder / "frame_annotations_train.jgz")


def _record(view: Scene, t: int, camera: str, stem: str) -> dict[str, Any]:
    cam_from_world = inverse(RAW_FROM_SCENE @ view.cameras.world_from_cam[t])
    size = {"width": view.width, "height": view.height}
    return {
        "sequence_name": sequence_name(view),
        "frame_number": t,
        "frame_timestamp": t * FRAME_SECONDS,
        "image": {"path": f"{stem}/images/{stem}-{t:04d}.png", "size": [view.height, view.width]},
        "depth": {"path": f"{stem}/depths/{stem}_{t:04d}.geometric.png", "scale_adjustment": 1.0, "mask_path": None},
        "mask": {"path": f"{stem}/masks/{stem}_{t:04d}.png", "mass": None},
        "viewpoint": viewpoint(cam_from_world, view.cameras.intrinsics[t], **size),
        "meta": None,
        "camera_name": camera,
        "trajectories": None,
        "flow_forward": None,
        "flow_backward": None,
    }


def _write_frame(folder: Path, record: dict[str, Any], scene: Scene, frame: Rendering) -> None:
    opaque = np.full((*frame.instance.shape, 1), 255, np.uint8)
    save_png(np.concatenate([frame.image, opaque], axis=2), folder / record["image"]["path"])
    bits = half_bits(frame.depth)
    bits[0, :3] = 0x8000, 0, 0x7C00
    save_png(bits, folder / record["depth"]["path"])
    moves = (frame.instance >= 0) & scene.moving[frame.instance]
    save_png(moves.astype(np.uint8) * 255, folder / record["mask"]["path"])


def _write_trajectories(scene: Scene, folder: Path, annotations: list[dict[str, str]]) -> None:
    """Points seen at some time, where they are at every time. The format is torch's own, so torch writes it."""
    import torch  # not above: every job imports this module

    hits = scene.surface_points(TRACKS_PER_COLUMN * scene.width)
    for t, annotation in enumerate(annotations):
        frames = np.full(len(hits.surface), t)
        xyz = scene.position(hits, frames)
        xyz_cam = transform(inverse(scene.cameras.world_from_cam[t]), xyz)
        uv = project(xyz_cam, np.broadcast_to(scene.cameras.intrinsics[t], (len(xyz), 3, 3)))
        uv[0] = np.inf
        path = folder / annotation["path"]
        path.parent.mkdir(exist_ok=True)
        with Image.open(folder / path.parents[1].name / f"images/{path.parents[1].name}-{t:04d}.png") as image:
            colours = np.asarray(image)[..., :3].copy()
        tensors = {
            "traj_3d_world": torch.tensor(transform(RAW_FROM_SCENE, xyz), dtype=torch.float32),
            "traj_2d": torch.tensor(np.column_stack([uv, 1 / xyz_cam[:, 2]]), dtype=torch.float32),
            "verts_inds_vis": torch.tensor(scene.visible(hits, frames)),
            "instances": torch.tensor(np.where(hits.surface > 0, hits.surface, 0)),
            "img": torch.tensor(colours),
        }
        torch.save(tensors, path)
