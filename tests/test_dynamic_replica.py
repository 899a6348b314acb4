"""Dynamic Replica, file by file (dataset notes D2): what is read and refused, against a plane written by hand."""

import shutil
from pathlib import Path

import implicitron
import numpy as np
import plane
import pytest
import torch
from odd_names import ODD, upload
from PIL import Image

from pipelines.datasets.dynamic_replica import DATASET, DynamicReplica
from pipelines.raw.folder import RawFolder
from pipelines.raw.place import open_place
from pipelines.sequence import Tracks

HEIGHT, WIDTH = 24, 42  # not square, so that half the longer side is not half the shorter one
INTRINSICS = np.array([[30.0, 0, 22], [0, 31, 11], [0, 0, 1]])
SEQUENCE = "009850-3_obj"
LEFT = f"train/{SEQUENCE}/left"
EVERY_FRAME = np.arange(plane.FRAMES)
STILL, MOVES, BROKEN = range(3)  # the vertices


def pose(t: int, camera: str) -> np.ndarray:
    """The right eye is 0.1 m to the right."""
    step = np.eye(4)
    step[0, 3] = 0.1 * (camera == "right")
    return plane.world_from_cam(t) @ step


def depth(t: int, camera: str) -> np.ndarray:
    world_from_cam = pose(t, camera)
    rays = plane.rays(HEIGHT, WIDTH, INTRINSICS) @ world_from_cam[:3, :3].T
    return (plane.OFFSET - plane.NORMAL @ world_from_cam[:3, 3]) / (rays @ plane.NORMAL)


def vertices(t: int) -> np.ndarray:
    return np.float32([[0.5, 0.25, 4], [0.1 * t, 0, 3], [np.inf if t == 1 else 1, 0, 4]])


def record(t: int, camera: str, *, isotropic: bool = True) -> dict:
    stem = f"{SEQUENCE}_source_{camera}"
    numbers = 30, 31, 22, 11
    return {
        "sequence_name": SEQUENCE,
        "frame_number": t,
        "frame_timestamp": t / 30,
        "camera_name": camera,
        "image": {"path": f"{stem}/images/{stem}-{t:04d}.png", "size": [HEIGHT, WIDTH]},
        "depth": {"path": f"{stem}/depths/{stem}_{t:04d}.geometric.png", "scale_adjustment": 1.0, "mask_path": None},
        "mask": {"path": f"{stem}/masks/{stem}_{t:04d}.png"},
        "viewpoint": implicitron.viewpoint(pose(t, camera), *numbers, height=HEIGHT, width=WIDTH, isotropic=isotropic),
        "trajectories": {"path": f"{stem}/trajectories/{t:06d}.pth"} if camera == "left" else None,
        "flow_forward": None,
    }


def records() -> list[dict]:
    """The left block, then the right one; another sequence, whose archive is not extracted, in between."""
    left, right = ([record(t, camera) for t in range(plane.FRAMES)] for camera in ("left", "right"))
    other = record(0, "left") | {"sequence_name": "abc123-7_obj"}
    other["image"] = {"path": "abc123-7_obj_source_left/images/abc123-7_obj_source_left-0000.png", "size": [24, 42]}
    return [*left, other, *right]


def picture(t: int, camera: str) -> np.ndarray:
    return plane.picture(t, HEIGHT, WIDTH)[:, :: 1 if camera == "left" else -1]


def save_depth(folder: Path, t: int, values: np.ndarray) -> None:
    bits = values.astype(np.float16).view(np.uint16)
    Image.fromarray(bits).save(folder / f"depths/{folder.name}_{t:04d}.geometric.png")


def save_vertices(folder: Path, t: int, **changes: object) -> None:
    tensors = {
        "traj_3d_world": torch.from_numpy(vertices(t)),
        "traj_2d": torch.full((3, 3), torch.inf),
        "verts_inds_vis": torch.tensor([True, t != 2, True]),
        "instances": torch.tensor([0, 4, 4]),
        "img": torch.zeros((HEIGHT, WIDTH, 3), dtype=torch.uint8),
    }
    torch.save(tensors | changes, folder / f"trajectories/{t:06d}.pth")


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """<raw>/train with both eyes of one sequence."""
    split = tmp_path / "raw" / "train"
    for camera in ("left", "right"):
        folder = split / f"{SEQUENCE}_source_{camera}"
        for kind in ("images", "depths", "masks", "trajectories"):
            (folder / kind).mkdir(parents=True)
        for t in range(plane.FRAMES):
            alpha = np.full((HEIGHT, WIDTH, 1), 200, np.uint8)
            rgba = np.concatenate([picture(t, camera), alpha], axis=2)
            Image.fromarray(rgba).save(folder / f"images/{folder.name}-{t:04d}.png")
            save_depth(folder, t, depth(t, camera))
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[4:9, 3 + t : 12] = 255
            Image.fromarray(mask).save(folder / f"masks/{folder.name}_{t:04d}.png")
            if camera == "left":
                save_vertices(folder, t)
        (folder / "images/done.ok").write_text("")
    implicitron.save(records(), split / "frame_annotations_train.jgz")
    return split


def opened(split: Path, name: str = LEFT) -> DynamicReplica:
    return DynamicReplica(RawFolder(str(split.parent)), name)


def left(split: Path) -> Path:
    return split / f"{SEQUENCE}_source_left"


@pytest.mark.parametrize("camera", ["left", "right"])
def test_reads_what_the_files_say(split, camera):
    assert DATASET.find(RawFolder(str(split.parent))) == [LEFT, f"train/{SEQUENCE}/right"]
    sequence = opened(split, f"train/{SEQUENCE}/{camera}")
    assert len(sequence) == plane.FRAMES and sequence.image_size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(sequence.frame_numbers, EVERY_FRAME)
    assert sequence.normal(0, np.arange(2), np.arange(2)) is None and sequence.neighbours(0) is None
    for t in range(plane.FRAMES):
        np.testing.assert_allclose(sequence.cameras.intrinsics[t], INTRINSICS, atol=1e-9)
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], pose(t, camera), atol=1e-9)
        np.testing.assert_array_equal(sequence.image(t), picture(t, camera))
        np.testing.assert_allclose(sequence.depth(t), depth(t, camera), rtol=2**-11)
        foreground = np.zeros((HEIGHT, WIDTH), bool)
        foreground[4:9, 3 + t : 12] = True
        np.testing.assert_array_equal(sequence.instance(t), np.where(foreground, 0, -1))
        assert sequence.instance(t).dtype == np.int32


def test_pixel_centres_lie_at_one_half(split):
    sequence = opened(split)
    geometry = sequence.depth(1), sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert np.median(plane.distance(*geometry, centre=0)) > 5 * np.median(plane.distance(*geometry, centre=0.5))


def test_bits_that_are_no_depth_are_unknown(split):
    values = depth(1, "left")
    values[0, :5] = [-0.0, 0, np.inf, np.nan, -1]
    save_depth(left(split), 1, values)
    path = left(split) / f"depths/{SEQUENCE}_source_left_0001.geometric.png"
    assert np.asarray(Image.open(path))[0, :3].tolist() == [0x8000, 0, 0x7C00]
    read = opened(split).depth(1)
    assert np.isnan(read[0, :5]).all()
    np.testing.assert_allclose(read[0, 5:], values[0, 5:], rtol=2**-11)
    assert np.isfinite(read).sum() == read.size - 5


@pytest.mark.parametrize("foreground", [1, 128, 255])
def test_masks_may_have_any_grey(split, foreground):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :7] = foreground
    Image.fromarray(mask).save(left(split) / f"masks/{SEQUENCE}_source_left_0000.png")
    np.testing.assert_array_equal(opened(split).instance(0), np.where(mask > 0, 0, -1))


def test_tracks_are_the_vertices_in_the_world(split):
    motion = opened(split).motion(np.array([0, 2, 3]))
    assert isinstance(motion, Tracks) and motion.xyz_world.dtype == np.float32
    np.testing.assert_array_equal(motion.xyz_world, np.stack([vertices(t) for t in (0, 2, 3)], axis=1))
    np.testing.assert_array_equal(motion.visible, [[1, 1, 1], [1, 0, 1], [1, 1, 1]])  # hidden is no reason to drop


def test_vertices_that_are_not_finite_are_unknown(split):
    motion = opened(split).motion(EVERY_FRAME)
    assert np.isnan(motion.xyz_world[BROKEN, 1]).all() and not motion.visible[BROKEN, 1]
    known = np.isfinite(motion.xyz_world).all(axis=2)
    assert known.sum() == known.size - 1 and motion.visible.sum() == known.size - 2


def test_flags_may_be_numbers(split):
    for t in range(plane.FRAMES):
        save_vertices(left(split), t, verts_inds_vis=torch.tensor([1, 0, 1], dtype=torch.uint8))
    np.testing.assert_array_equal(opened(split).motion(np.array([0, 3])).visible, [[1, 1], [0, 0], [1, 1]])


def test_the_right_eye_has_no_tracks(split):
    motion = opened(split, f"train/{SEQUENCE}/right").motion(np.array([0, 2]))
    assert motion.xyz_world.shape == (0, 2, 3) and motion.visible.shape == (0, 2)


def test_lists_without_trajectories_give_no_tracks(split):
    """As for the right eye, whether null or absent."""
    listed = records()
    for t, fields in enumerate(listed):
        fields.pop("trajectories") if t % 2 else fields.update(trajectories=None)
    implicitron.save(listed, split / "frame_annotations_train.jgz")
    shutil.rmtree(left(split) / "trajectories")
    assert opened(split).motion(EVERY_FRAME).xyz_world.shape == (0, plane.FRAMES, 3)


def test_norm_image_bounds_have_half_the_width_and_half_the_height_as_units(split):
    listed = [record(t, "left", isotropic=False) for t in range(plane.FRAMES)]
    listed[2]["viewpoint"]["intrinsics_format"] = "ndc_norm_image_bounds"
    implicitron.save(listed, split / "frame_annotations_train.jgz")
    np.testing.assert_allclose(opened(split).cameras.intrinsics, [INTRINSICS] * plane.FRAMES, atol=1e-9)


def test_the_order_of_the_list_does_not_matter(split):
    implicitron.save(records()[::-1], split / "frame_annotations_train.jgz")
    sequence = opened(split)
    np.testing.assert_allclose(sequence.cameras.world_from_cam[3], pose(3, "left"), atol=1e-9)
    np.testing.assert_array_equal(sequence.image(1), picture(1, "left"))


def test_lists_may_be_unpacked(split):
    implicitron.save(records(), split / "frame_annotations_train.json")
    (split / "frame_annotations_train.jgz").unlink()
    assert DATASET.find(RawFolder(str(split.parent)))[0] == LEFT
    np.testing.assert_allclose(opened(split).depth(2), depth(2, "left"), rtol=2**-11)


def test_splits_may_lie_in_one_folder(split):
    """Then the list, not the folder, tells the split."""
    raw = split.parent / "all"
    split.rename(raw)
    listed = [record | {"sequence_name": "other"} for record in records() if record["sequence_name"] == SEQUENCE]
    implicitron.save(listed, raw / "frame_annotations_valid.jgz")
    for level, outer in ((raw, ""), (raw.parent, "all/")):
        names = DATASET.find(RawFolder(str(level)))
        splits = [("train", SEQUENCE), ("valid", "other")]
        expected = [f"{outer}{kind}/{name}/{eye}" for kind, name in splits for eye in ("left", "right")]
        assert names == expected
        assert [DATASET.scene_of(name) for name in names] == ["train", "train", "valid", "valid"]
        for name in names:
            sequence = DynamicReplica(RawFolder(str(level)), name)
            np.testing.assert_allclose(sequence.depth(3), depth(3, name.split("/")[-1]), rtol=2**-11)


def test_has_one_name_from_every_level_and_may_lie_deeper(split):
    assert DATASET.find(RawFolder(str(split)))[0] == LEFT
    assert len(DynamicReplica(RawFolder(str(split)), LEFT)) == plane.FRAMES
    deeper = split.parent / "dynamic_replica_v2"
    deeper.mkdir()
    shutil.move(split, deeper / "train")
    name = DATASET.find(RawFolder(str(split.parent)))[0]
    assert name == f"dynamic_replica_v2/{LEFT}" and DATASET.scene_of(name) == "train"
    np.testing.assert_allclose(opened(split, name).depth(1), depth(1, "left"), rtol=2**-11)


def test_reads_the_same_from_s3(split, s3_uri):
    implicitron.save(records(), split / "frame_annotations_train.json")
    odd_uri = f"{s3_uri}/{ODD}"
    upload(split, f"{odd_uri}/train")
    raw = RawFolder(odd_uri)
    assert DATASET.find(raw) == [LEFT, f"train/{SEQUENCE}/right"]
    remote, local = DynamicReplica(raw, LEFT), opened(split)
    np.testing.assert_array_equal(remote.depth(1), local.depth(1))
    np.testing.assert_array_equal(remote.motion(EVERY_FRAME).xyz_world, local.motion(EVERY_FRAME).xyz_world)
    fs, path = open_place(f"{odd_uri}/train/frame_annotations_train.jgz")
    fs.rm_file(path)
    unpacked = DynamicReplica(RawFolder(f"{odd_uri}/train"), LEFT)
    np.testing.assert_array_equal(unpacked.cameras.world_from_cam, local.cameras.world_from_cam)


def change(split: Path, t: int, **fields: object) -> None:
    listed = records()
    listed[t] |= fields
    implicitron.save(listed, split / "frame_annotations_train.jgz")


def drop(split: Path, t: int) -> None:
    implicitron.save([record for i, record in enumerate(records()) if i != t], split / "frame_annotations_train.jgz")


def remove(pattern: str):
    return lambda split: next(left(split).glob(pattern)).unlink()


REFUSED = {
    "gap": (lambda s: drop(s, 2), r"frames of '009850-3_obj', camera 'left', without gaps or repetitions; it lists 3"),
    "repetition": (lambda s: change(s, 1, frame_number=2), r"without gaps or repetitions; it lists 4"),
    "no depth": (lambda s: change(s, 1, depth=None), rf"frame 1 of '{LEFT}' in .* has no depth, mask or viewpoint"),
    "no mask": (lambda s: change(s, 1, mask=None), "has no depth, mask or viewpoint"),
    "no viewpoint": (lambda s: change(s, 1, viewpoint=None), "has no depth, mask or viewpoint"),
    "no trajectories": (lambda s: change(s, 1, trajectories=None), r"frame 1 .* only one of them has trajectories"),
    "another size": (
        lambda s: change(s, 1, image={"path": record(1, "left")["image"]["path"], "size": [WIDTH, HEIGHT]}),
        "frame 1 .* has another image size than frame 0",
    ),
    "missing image": (remove("images/*-0002.png"), r"missing file train/.*_source_left-0002\.png"),
    "missing depth": (remove("depths/*_0002.geometric.png"), r"missing file .*_0002\.geometric\.png"),
    "missing mask": (remove("masks/*_0002.png"), r"missing file .*masks/.*_0002\.png"),
    "missing trajectories": (remove("trajectories/000002.pth"), r"missing file .*trajectories/000002\.pth"),
    "resized images": (
        lambda s: Image.new("RGBA", (21, 12)).save(left(s) / f"images/{SEQUENCE}_source_left-0000.png"),
        r"left-0000\.png .* is \(12, 21\) \(H, W\), but .*frame_annotations_train\.jgz says \(24, 42\)",
    ),
    "path out of the folder": (
        lambda s: change(s, 1, mask={"path": "../../../secret.png"}),
        r"leaves the raw folder",
    ),
    "list cut short": (
        lambda s: (s / "frame_annotations_train.jgz").write_bytes(
            (s / "frame_annotations_train.jgz").read_bytes()[:-20]
        ),
        r"frame_annotations_train\.jgz .*truncated or corrupt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(split, case):
    opened(split)
    damage, message = REFUSED[case]
    damage(split)
    with pytest.raises(ValueError, match=message):
        opened(split)


@pytest.mark.parametrize("name", ["left", f"train/{SEQUENCE}/middle", "test/x/left", f"train/{SEQUENCE}"])
def test_refuses_names_that_are_not_there(split, name):
    with pytest.raises(ValueError, match=r"no list of split|must list the frames of|is no sequence of Dynamic Replica"):
        opened(split, name)


VERTICES = {
    "other number of vertices": (
        {"traj_3d_world": torch.zeros(2, 3), "verts_inds_vis": torch.ones(2)},
        r"different numbers of vertices: \[2, 3\]",
    ),
    "flags of other vertices": ({"verts_inds_vis": torch.ones(2)}, r"000002\.pth .*\(3, 3\) and verts_inds_vis \(2,\)"),
    "no flags": ({"verts_inds_vis": torch.tensor([0, 1, 2])}, r"000002\.pth .*N flags"),
    "two coordinates": ({"traj_3d_world": torch.zeros(3, 2)}, r"000002\.pth .*traj_3d_world \(3, 2\)"),
    "not a tensor": ({"traj_3d_world": [0.0]}, r"000002\.pth .*no tensor 'traj_3d_world'"),
}


@pytest.mark.parametrize("case", VERTICES)
def test_refuses_other_trajectories(split, case):
    changes, message = VERTICES[case]
    save_vertices(left(split), 2, **changes)
    assert opened(split).motion(np.array([0, 1])).xyz_world.shape == (3, 2, 3)
    with pytest.raises(ValueError, match=message):
        opened(split).motion(np.array([1, 2]))


def test_refuses_maps_of_another_size(split):
    sequence = opened(split)
    stem = f"{SEQUENCE}_source_left"
    Image.new("RGBA", (10, 6)).save(left(split) / f"images/{stem}-0001.png")
    Image.new("L", (10, 6)).save(left(split) / f"masks/{stem}_0001.png")
    Image.fromarray(np.ones((6, 10), np.uint16)).save(left(split) / f"depths/{stem}_0001.geometric.png")
    for read, name in ((sequence.image, r"-0001"), (sequence.depth, r"_0001\.geometric"), (sequence.instance, "_0001")):
        with pytest.raises(ValueError, match=rf"{name}\.png .* is \(6, 10\).*\(24, 42\)"):
            read(1)


def test_refuses_other_folders(tmp_path):
    (tmp_path / "Scene01").mkdir()
    with pytest.raises(ValueError, match=r"expected Dynamic Replica v2.*frame_annotations_<split>.*found Scene01/"):
        DATASET.find(RawFolder(str(tmp_path)))
