"""TartanAir V1 and V2, file by file (dataset notes D4): what is read and refused, against a plane written by hand."""

import shutil
from pathlib import Path

import numpy as np
import plane
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from pipelines.catalog import Catalog
from pipelines.datasets.tartanair import DATASET, TartanAir
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Static

HEIGHT, WIDTH = 24, 32  # a twentieth of the real size
INTRINSICS = np.array([[16.0, 0, 16], [0, 16, 12], [0, 0, 1]])
NED_FROM_CAM = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
REAL = Path(__file__).parents[1] / "../shared/data/tartanair_v1"


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """<raw>/harbour with one trajectory, as the dataset ships it."""
    folder = tmp_path / "raw" / "harbour" / "Easy" / "P002"
    (folder / "image_left").mkdir(parents=True)
    (folder / "depth_left").mkdir()
    rows = []
    for t in range(plane.FRAMES):
        pose = plane.world_from_cam(t)
        rows.append([*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3] @ NED_FROM_CAM.T).as_quat()])  # xyzw
        Image.fromarray(plane.picture(t, HEIGHT, WIDTH)).save(folder / f"image_left/{t:06d}_left.png")
        depth = plane.depth(t, HEIGHT, WIDTH, INTRINSICS).astype(np.float32)
        np.save(folder / f"depth_left/{t:06d}_left_depth.npy", depth)
    np.savetxt(folder / "pose_left.txt", rows, fmt="%.18e")
    (folder / "image_left/._000000_left.png").write_bytes(b"\0\5\26\7")  # macOS companions in re-hosted copies
    (folder / "image_left/000000_left_small.png").write_bytes(b"")
    return tmp_path / "raw" / "harbour"


def only(raw: Path) -> TartanAir:
    (name,) = DATASET.find(RawFolder(str(raw)))
    return TartanAir(RawFolder(str(raw)), name)


def test_reads_what_the_files_say(env):
    sequence = only(env.parent)
    assert sequence.name == "harbour/Easy/P002"
    assert len(sequence) == plane.FRAMES  # the ._ file is no frame
    np.testing.assert_array_equal(sequence.frame_numbers, range(plane.FRAMES))
    np.testing.assert_allclose(sequence.cameras.intrinsics, np.tile(INTRINSICS, (plane.FRAMES, 1, 1)))
    assert sequence.motion(np.arange(2)) == Static()
    assert sequence.normal(0, np.arange(2), np.arange(2)) is None
    assert sequence.instance(0) is None and sequence.neighbours(0) is None
    for t in range(plane.FRAMES):
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], plane.world_from_cam(t), atol=1e-12)
        np.testing.assert_array_equal(sequence.image(t), plane.picture(t, HEIGHT, WIDTH))
        np.testing.assert_allclose(sequence.depth(t), plane.depth(t, HEIGHT, WIDTH, INTRINSICS), rtol=1e-6)


def test_pixel_centres_lie_at_one_half(env):
    sequence = only(env)
    geometry = sequence.depth(1), sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert plane.distance(*geometry, centre=0.5).max() < 1e-6
    assert np.median(plane.distance(*geometry, centre=0)) > 3e-4


def test_sky_and_broken_depth_are_unknown(env):
    path = env / "Easy/P002/depth_left/000001_left_depth.npy"
    depth = np.load(path)
    depth[0, :8] = [0, -1, np.nan, np.inf, 1000, 10000, 14000, 999.5]
    np.save(path, depth)
    read = only(env).depth(1)
    assert np.isnan(read[0, :7]).all() and read[0, 7] == np.float32(999.5)
    assert np.isfinite(read).sum() == read.size - 7


@pytest.mark.parametrize("level", [".", "Easy", "Easy/P002"])
def test_has_one_name_from_every_level(env, level):
    assert only(env / level).name == "harbour/Easy/P002"


def test_finds_doubled_folders_and_gaps_in_numbers(env):
    for copy in ("office/office/Hard/P037", "more/office/Easy/P001", "office/Easy/.P001.partial"):
        shutil.copytree(env / "Easy/P002", env.parent / copy)
    names = DATASET.find(RawFolder(str(env.parent)))
    assert names == ["harbour/Easy/P002", "more/office/Easy/P001", "office/office/Hard/P037"]
    assert [DATASET.scene_of(name) for name in names] == ["harbour", "office", "office"]
    assert DATASET.scene_of("Office/Data_easy/P000") == DATASET.scene_of("more/Office/Data_hard/P1") == "office"
    assert len(TartanAir(RawFolder(str(env.parent)), names[1])) == plane.FRAMES


@pytest.mark.parametrize("level", ["Data_omni", "Data_anymal", "Data_diff", "hard"])
def test_the_environment_is_above_the_level_whatever_that_is_called(env, level):
    (env / "Easy").rename(env / level)
    env.rename(env.parent / "JapaneseCity")
    (name,) = DATASET.find(RawFolder(str(env.parents[1])))
    assert name == f"{env.parent.name}/JapaneseCity/{level}/P002"
    assert DATASET.scene_of(name) == "japanesecity"
    assert Catalog.load("tartanair").split_of(DATASET.scene_of(name)) == "val"


@pytest.mark.parametrize("name", ["hospital/P000", "raw/hospital/P000", "P000", "hospital/flights/P000", "/Easy/P000"])
def test_no_environment_is_guessed(name):
    with pytest.raises(ValueError, match=rf"'{name}' does not tell its environment.*<environment>/<level>/"):
        DATASET.scene_of(name)


def edit_line(line: int, column: int, value: str):
    def edit(folder: Path) -> None:
        lines = [row.split() for row in (folder / "pose_left.txt").read_text().splitlines()]
        lines[line][column] = value
        (folder / "pose_left.txt").write_text("\n".join(" ".join(row) for row in lines))

    return edit


def cut_poses(folder: Path) -> None:
    lines = (folder / "pose_left.txt").read_text().splitlines()
    (folder / "pose_left.txt").write_text("\n".join(lines[:-1]))


def resize(number: int, size: tuple[int, int]):
    def save(folder: Path) -> None:
        Image.new("RGB", size).save(folder / f"image_left/{number:06d}_left.png")

    return save


REFUSED = {
    "missing depth": (
        lambda folder: (folder / "depth_left/000002_left_depth.npy").unlink(),
        r"missing file .*depth_left/000002_left_depth\.npy",
    ),
    "missing image": (lambda folder: (folder / "image_left/000003_left.png").unlink(), r"missing .*000003_left\.png"),
    "image after the last": (lambda folder: resize(7, (32, 24))(folder), r"lists 4 .* has 5 .*000007_left\.png"),
    "fewer poses than frames": (cut_poses, r"pose_left\.txt lists 3 frames but .*image_left has 4"),
    "no poses": (lambda folder: (folder / "pose_left.txt").write_text("\n"), r"pose_left\.txt lists 0 frames"),
    "pose not finite": (edit_line(1, 0, "nan"), r"line 2 of .*pose_left\.txt .* is no pose"),
    "quaternion not of length 1": (edit_line(2, 3, "1.5"), r"line 3 of .*pose_left\.txt .*quaternion"),
    "pose not a number": (edit_line(2, 3, "abc"), r"pose_left\.txt .*cannot be read"),
    "eight columns": (edit_line(0, 6, "1 2"), r"pose_left\.txt .*cannot be read|has 8 columns"),
    "not 4:3": (resize(0, (32, 32)), r"000000_left\.png .* is 32x32: TartanAir V1 is 640x480"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(env, case):
    damage, message = REFUSED[case]
    damage(env / "Easy/P002")
    with pytest.raises(ValueError, match=message):
        only(env)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_refuses_frames_that_do_not_fit(env):
    folder = env / "Easy/P002"
    sequence = only(env)
    resize(2, (16, 12))(folder)
    with pytest.raises(ValueError, match=r"000002_left\.png .*\(12, 16\).*\(24, 32\)"):
        sequence.image(2)
    np.save(folder / "depth_left/000002_left_depth.npy", np.ones((12, 16), np.float32))
    with pytest.raises(ValueError, match=r"000002_left_depth\.npy .*\(12, 16\)"):
        sequence.depth(2)
    truncate(folder / "image_left/000003_left.png")
    with pytest.raises(ValueError, match=r"000003_left\.png .*cannot be read as an image"):
        sequence.image(3)
    truncate(folder / "depth_left/000003_left_depth.npy")
    with pytest.raises(ValueError, match=r"000003_left_depth\.npy .*cannot be read"):
        sequence.depth(3)
    np.save(folder / "depth_left/000003_left_depth.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"000003_left_depth\.npy .*cannot be read as a plain"):
        sequence.depth(3)


def test_refuses_other_folders(tmp_path):
    with pytest.raises(ValueError, match=r"expected TartanAir V1.*pose_left\.txt.*found nothing"):
        DATASET.find(RawFolder(str(tmp_path)))
    (tmp_path / "Office/Data_easy/P000").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"or V2: .*pose_lcam_front\.txt.*found Office/"):
        DATASET.find(RawFolder(str(tmp_path)))


# V2

SIDE = 24
INTRINSICS_V2 = np.array([[12.0, 0, 12], [0, 12, 12], [0, 0, 1]])


@pytest.fixture
def env_v2(env: Path) -> Path:
    """<raw>/Harbour with one trajectory of V2, beside that of V1."""
    folder = env.parent / "Harbour/Data_hard/P001"
    for kind in ("image", "depth", "seg"):
        (folder / f"{kind}_lcam_front").mkdir(parents=True)
    for t in range(plane.FRAMES):
        name = f"{t:06d}_lcam_front"
        Image.fromarray(plane.picture(t, SIDE, SIDE)).save(folder / f"image_lcam_front/{name}.png")
        save_depth(folder / f"depth_lcam_front/{name}_depth.png", plane.depth(t, SIDE, SIDE, INTRINSICS_V2))
    shutil.copy(env / "Easy/P002/pose_left.txt", folder / "pose_lcam_front.txt")
    (folder / "pose_rcam_front.txt").write_text("0 0 0 0 0 0 1\n")
    return env.parent / "Harbour"


def save_depth(path: Path, depth: np.ndarray) -> None:
    """The bytes of each float32 are its blue, green, red and alpha."""
    blue, green, red, alpha = np.moveaxis(depth.astype("<f4")[..., None].view(np.uint8), -1, 0)
    Image.fromarray(np.stack([red, green, blue, alpha], axis=-1)).save(path)


def test_reads_v2(env_v2):
    sequence = only(env_v2)
    assert sequence.name == "Harbour/Data_hard/P001" and sequence.image_size == (SIDE, SIDE)
    np.testing.assert_allclose(sequence.cameras.intrinsics, np.tile(INTRINSICS_V2, (plane.FRAMES, 1, 1)))
    for t in range(plane.FRAMES):
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], plane.world_from_cam(t), atol=1e-12)
        np.testing.assert_array_equal(sequence.image(t), plane.picture(t, SIDE, SIDE))
        np.testing.assert_array_equal(sequence.depth(t), plane.depth(t, SIDE, SIDE, INTRINSICS_V2).astype(np.float32))
    geometry = sequence.depth(1), sequence.cameras.intrinsics[1], sequence.cameras.world_from_cam[1]
    assert plane.distance(*geometry, centre=0.5).max() < 1e-6
    assert np.median(plane.distance(*geometry, centre=0)) > 3e-4


def test_sky_of_v2_is_unknown(env_v2):
    depth = plane.depth(1, SIDE, SIDE, INTRINSICS_V2)
    depth[0, :8] = [0, -1, np.nan, np.inf, 1000, 10000, 1e30, 999.5]
    save_depth(env_v2 / "Data_hard/P001/depth_lcam_front/000001_lcam_front_depth.png", depth)
    assert np.flatnonzero(np.isnan(only(env_v2).depth(1))).tolist() == list(range(7))


def test_both_versions_lie_in_one_folder(env_v2):
    raw = RawFolder(str(env_v2.parent))
    names = DATASET.find(raw)
    assert names == ["Harbour/Data_hard/P001", "harbour/Easy/P002"]
    assert {DATASET.scene_of(name) for name in names} == {"harbour"}
    assert [TartanAir(raw, name).image_size for name in names] == [(SIDE, SIDE), (HEIGHT, WIDTH)]


def test_refuses_files_of_v2_that_do_not_fit(env_v2):
    folder = env_v2 / "Data_hard/P001"
    sequence = only(env_v2)
    Image.new("RGB", (SIDE, SIDE)).save(folder / "depth_lcam_front/000001_lcam_front_depth.png")
    with pytest.raises(ValueError, match=r"000001_lcam_front_depth\.png .*mode RGB, not a PNG of four 8-bit channels"):
        sequence.depth(1)
    save_depth(folder / "depth_lcam_front/000002_lcam_front_depth.png", np.ones((12, 12)))
    with pytest.raises(ValueError, match=r"000002_lcam_front_depth\.png .*\(12, 12\)"):
        sequence.depth(2)
    Image.new("RGB", (32, 24)).save(folder / "image_lcam_front/000000_lcam_front.png")
    with pytest.raises(ValueError, match=r"000000_lcam_front\.png .* is 32x24: TartanAir V2 is 640x640"):
        only(env_v2)
    (folder / "depth_lcam_front/000003_lcam_front_depth.png").unlink()
    with pytest.raises(ValueError, match=r"missing file .*000003_lcam_front_depth\.png"):
        only(env_v2)


def reprojection_error(sequence: TartanAir, source: int, target: int, centre: float) -> float:
    """Median relative depth error of source pixels seen again in the target frame (dataset notes 4)."""
    depth, other = sequence.depth(source).astype(float), sequence.depth(target).astype(float)
    pose = np.linalg.inv(sequence.cameras.world_from_cam[target]) @ sequence.cameras.world_from_cam[source]
    intrinsics = sequence.cameras.intrinsics[source]
    v, u = np.random.default_rng(0).integers(1, np.array(depth.shape)[:, None] - 1, (2, 20000))
    around = np.stack([depth[v + i, u + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    smooth = around.max(axis=0) < 1.02 * around.min(axis=0)
    v, u = v[smooth], u[smooth]
    pixel = np.stack([u + centre, v + centre, np.ones(len(u))])
    moved = pose[:3, :3] @ (np.linalg.inv(intrinsics) @ pixel * depth[v, u]) + pose[:3, 3:]
    x, y = (intrinsics @ moved)[:2] / moved[2] - centre
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    inside = (moved[2] > 0) & (i >= 0) & (j >= 0) & (i < depth.shape[0] - 1) & (j < depth.shape[1] - 1)
    i, j, fy, fx, z = i[inside], j[inside], (y - np.floor(y))[inside], (x - np.floor(x))[inside], moved[2][inside]
    cell = np.stack([other[i, j], other[i, j + 1], other[i + 1, j], other[i + 1, j + 1]])
    smooth = cell.max(axis=0) < 1.02 * cell.min(axis=0)
    weights = np.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx])
    return float(np.median(np.abs((cell * weights).sum(axis=0) - z)[smooth] / z[smooth]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real TartanAir sequence is not here: it may not be redistributed")
def test_real_frames_agree_with_each_other():
    sequence = only(REAL)
    assert len(sequence) == 48 and sequence.image_size == (480, 640)
    for t in (0, 8, 24):
        assert reprojection_error(sequence, t, t + 1, centre=0.5) < 3e-4
    for t in (0, 4, 8):  # half a metre of motion: half a pixel then shows above the steps of float16
        ours = reprojection_error(sequence, t, t + 5, centre=0.5)
        assert ours < 3e-4
        assert reprojection_error(sequence, t, t + 5, centre=0) > 4 * ours
