"""The conversion job, on real Ray: right against the analytic scenes, whole or absent, resumable, honest."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.catalog import Catalog
from pipelines.convert import convert
from pipelines.geometry import inverse, rotate, transform
from pipelines.query_table import FLAG_BITS, VALID_BITS
from pipelines.store.reader import ClipStore
from pipelines.synthesize.job import LAYOUTS, scene_for, synthesize

FRAMES = 6
SMALL = {"split": "all", "frames": FRAMES, "image_size": 64, "strides": (1, 1), "samples": 2, "queries": 512}
DATASETS = sorted(LAYOUTS)

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="session")
def raw(ray_cluster, tmp_path_factory) -> Path:
    """Three scenes of each dataset; a folder per dataset."""
    folder = tmp_path_factory.mktemp("raw")
    for dataset in DATASETS:
        synthesize(dataset, out=str(folder / dataset), scenes=3, frames=FRAMES, seed=7)
    return folder


@pytest.fixture(scope="session")
def stores(raw, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    for dataset in DATASETS:
        convert(dataset, raw=str(raw / dataset), store=str(folder / dataset), **SMALL)
    return folder


def scene_of(dataset: str, sequence: str):
    index = next(
        i for i in range(3) if sequence.endswith(LAYOUTS[dataset].folder(i)) or LAYOUTS[dataset].folder(i) in sequence
    )
    scene = scene_for(dataset, 7, index, frames=FRAMES, size="small")
    return LAYOUTS[dataset].right_eye(scene) if sequence.endswith(("/Camera_1", "/right")) else scene


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_stored_label_is_right(stores, dataset):
    """From the files of each layout to the queries in the store, against the scene that was written."""
    store = ClipStore(str(stores / dataset))
    errors, normals, agree, moved = [], [], [], 0
    catalog = Catalog.load(dataset)
    for clip in store:
        scene = scene_of(dataset, clip.sequence)
        units = getattr(LAYOUTS[dataset], "units_per_metre", lambda scene: 1.0)(scene)
        numbers = getattr(LAYOUTS[dataset], "frame_numbers", np.arange)(FRAMES)
        shown = np.searchsorted(numbers, clip.frame_index)  # photos are in no order
        assert sorted(shown) == list(range(FRAMES))
        cam_from_world = inverse(scene.cameras.world_from_cam)
        queries = clip.all_queries()
        uv = queries["uv_norm"].astype(float) * [scene.width, scene.height]
        t_src, t_tgt, t_cam = (shown[queries[name].astype(int)] for name in ("t_src", "t_tgt", "t_cam"))
        hits = scene.trace(uv, t_src)
        there, then = scene.position(hits, t_tgt), scene.position(hits, t_src)
        true = transform(cam_from_world[t_cam], there)
        valid = queries["valid"] & VALID_BITS["xyz"] > 0
        # Of what may move unannotated only what is seen again is known at other times.
        assert valid.mean() > (0.5 if catalog.motion == "unknown" else 0.95)
        xyz, displacement = queries["xyz"] / units, queries["displacement"] / units
        errors.append((np.linalg.norm(xyz - true, axis=1) / np.linalg.norm(true, axis=1))[valid])
        displacement = np.linalg.norm(displacement - rotate(cam_from_world[t_cam], there - then), axis=1)
        assert np.quantile(displacement[valid], 0.98) < 0.03
        dynamic = queries["flags"] & FLAG_BITS["dynamic"] > 0
        moved += (dynamic & valid & (t_src != t_tgt)).sum()
        assert (np.linalg.norm(there - then, axis=1)[valid & ~dynamic] < 0.02).mean() > 0.99
        told = queries["valid"] & VALID_BITS["visible"] > 0
        clear = told & smooth_around(scene, uv, t_src)
        clear[clear] &= smooth_around(scene, uv_in(scene, there, t_tgt)[clear], t_tgt[clear])
        agree.append((queries["visible"] == scene.visible(hits, t_tgt))[clear])
        normal_valid = queries["valid"] & VALID_BITS["normal"] > 0
        true_normal = rotate(cam_from_world[t_cam], scene.normal(hits, t_tgt))
        normals.append((queries["normal"].astype(float) * true_normal).sum(axis=1)[normal_valid])
    errors = np.concatenate(errors)
    assert np.median(errors) < 1e-3
    assert np.quantile(errors, 0.99) < 0.02
    assert np.concatenate(agree).mean() > 0.99
    normals = np.concatenate(normals)
    assert (normals.size > 1000) == (catalog.normals != "none") == (normals.size > 0)
    assert normals.size == 0 or np.median(normals) > np.cos(np.radians(3))
    assert (moved > 100) == (catalog.motion in ("tracks", "rigid_instances")) == (moved > 0)


def uv_in(scene, world: np.ndarray, t: np.ndarray) -> np.ndarray:
    cam = transform(inverse(scene.cameras.world_from_cam)[t], world)
    with np.errstate(divide="ignore", invalid="ignore"):
        homogeneous = np.einsum("nij,nj->ni", scene.cameras.intrinsics[t], cam / cam[:, 2:])
    return np.where(cam[:, 2:] > 0.1, homogeneous[:, :2], -1e3)


def smooth_around(scene, uv: np.ndarray, t: np.ndarray) -> np.ndarray:
    """No silhouette within a pixel and a half; true outside the image, where nothing can be mistaken."""
    inside = ((uv >= 0) & (uv < [scene.width, scene.height])).all(axis=1)
    there = scene.trace(uv, t)
    smooth = np.ones(len(uv), bool)
    for offset in 1.5 * np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]):
        around = scene.trace(uv + offset, t)
        smooth &= (around.surface == there.surface) & (np.abs(around.depth - there.depth) < 0.1 * there.depth)
    return smooth | ~inside


def test_pictures_and_cameras_in_the_store(stores):
    store = ClipStore(str(stores / "virtual_kitti2"))
    clip = store[0]
    scene = scene_of("virtual_kitti2", clip.sequence)
    assert clip.video.shape == (FRAMES, 64, 64, 3) and clip.aspect == pytest.approx(scene.width / scene.height)
    scale = np.array([64 / scene.width, 64 / scene.height, 1])[:, None]
    np.testing.assert_allclose(clip.intrinsics, scene.cameras.intrinsics * scale, rtol=1e-5)
    np.testing.assert_array_equal(clip.frame_index, np.arange(FRAMES))
    relative = inverse(clip.world_from_cam[0].astype(float)) @ clip.world_from_cam[-1]
    true = inverse(scene.cameras.world_from_cam[0]) @ scene.cameras.world_from_cam[-1]
    np.testing.assert_allclose(relative, true, atol=1e-4)


def test_on_s3_the_same_store(raw, stores, s3_uri):
    convert("tartanair", raw=str(raw / "tartanair"), store=s3_uri, **SMALL)
    local, remote = ClipStore(str(stores / "tartanair")), ClipStore(s3_uri)
    assert remote.info["digest"] == local.info["digest"]
    np.testing.assert_array_equal(remote[1].video, local[1].video)


def test_an_interrupted_job_goes_on_and_ends_alike(raw, stores, tmp_path, capsys):
    """A store without its end and with two groups that were not published: only those are made, and what was written of
    them before is swept."""
    store = tmp_path / "store"
    shutil.copytree(stores / "virtual_kitti2", store)
    (store / "store.json").unlink()
    groups = sorted((store / "data").glob("*/*.zarr"))
    for mark in sorted((store / "groups").glob("*/*.json"))[:2]:
        mark.unlink()
    (groups[0] / "zarr.json").unlink()
    untouched = (groups[2] / "zarr.json").stat().st_mtime_ns
    convert("virtual_kitti2", raw=str(raw / "virtual_kitti2"), store=str(store), **SMALL)
    assert ClipStore(str(store)).info["digest"] == ClipStore(str(stores / "virtual_kitti2")).info["digest"]
    assert (groups[2] / "zarr.json").stat().st_mtime_ns == untouched
    assert len(list((store / "data").glob("*/*.zarr"))) == len(groups)
    assert not groups[0].exists() and not groups[1].exists()
    capsys.readouterr()
    convert("virtual_kitti2", raw=str(raw / "virtual_kitti2"), store=str(store), **SMALL)
    assert "nothing to do" in capsys.readouterr().out


def test_other_settings_on_an_existing_store(raw, stores):
    with pytest.raises(ValueError, match=r"other settings \(queries: 512 there, 256 asked\)"):
        convert("tartanair", raw=str(raw / "tartanair"), store=str(stores / "tartanair"), **SMALL | {"queries": 256})


def broken_copy(raw: Path, tmp_path: Path) -> Path:
    """The TartanAir scenes, one image of the second sequence cut in half."""
    copy = tmp_path / "raw"
    shutil.copytree(raw / "tartanair", copy)
    image = sorted(copy.rglob("000003_left.png"))[1]
    image.write_bytes(image.read_bytes()[:2000])
    return copy


def test_a_broken_sequence_is_listed_and_the_others_are_converted(raw, tmp_path, capsys):
    store = str(tmp_path / "store")
    convert("tartanair", raw=str(broken_copy(raw, tmp_path)), store=store, max_failed_share=0.5, **SMALL)
    info = ClipStore(store).info
    assert info["counts"]["failed"] == 1 and info["num_clips"] == 2
    (reason,) = info["failed"].values()
    assert "000003_left.png" in reason and "truncated or corrupt" in reason
    assert "1 failed" in capsys.readouterr().out


def test_too_many_failures_leave_no_store(raw, tmp_path):
    store = tmp_path / "store"
    copy = broken_copy(raw, tmp_path)
    with pytest.raises(ValueError, match=r"1 of 3 sequences failed.*--max-failed-share"):
        convert("tartanair", raw=str(copy), store=str(store), **SMALL)
    assert not (store / "store.json").exists()
    with pytest.raises(ValueError, match="run convert"):
        ClipStore(str(store))
    # What is mended is all that is left to do.
    shutil.rmtree(copy)
    shutil.copytree(raw / "tartanair", copy)
    convert("tartanair", raw=str(copy), store=str(store), **SMALL)
    assert len(ClipStore(str(store))) == 3


def test_sequences_shorter_than_a_clip_are_skipped_with_the_reason(raw, tmp_path):
    with pytest.raises(ValueError, match="0 clips were written"):
        convert("tartanair", raw=str(raw / "tartanair"), store=str(tmp_path / "s"), **SMALL | {"frames": FRAMES + 1})


def test_no_sequence_of_a_split(raw, tmp_path):
    with pytest.raises(ValueError, match="no sequence of split 'test'"):
        convert("tartanair", raw=str(raw / "tartanair"), store=str(tmp_path / "s"), **SMALL | {"split": "test"})


@pytest.mark.parametrize("content", ["nothing", "another dataset"])
def test_the_command_refuses_a_wrong_folder_in_words(raw, tmp_path, content):
    folder = tmp_path / "raw"
    folder.mkdir()
    if content == "another dataset":
        folder = raw / "virtual_kitti2"
    store = tmp_path / "store"
    command = [sys.executable, "-m", "pipelines", "convert", "tartanair", "--raw", folder, "--store", store]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: no sequence in") and "pose_left.txt" in done.stderr
    assert not store.exists()


def test_the_real_tartanair_sequence(tmp_path):
    real = Path(__file__).parent.parent.parent / "shared" / "data" / "tartanair_v1"
    if not real.is_dir():
        pytest.skip(f"the real TartanAir sequence is not at {real}")
    convert(
        "tartanair", raw=str(real), store=str(tmp_path), **SMALL | {"split": "train", "frames": 16, "strides": (1, 3)}
    )
    store = ClipStore(str(tmp_path))
    assert len(store) == 3 and store.info["counts"]["failed"] == 0
    queries = store[0].all_queries()
    assert (queries["valid"] & VALID_BITS["xyz"] > 0).mean() > 0.95
    assert (queries["valid"] & VALID_BITS["visible"] > 0).mean() > 0.95
