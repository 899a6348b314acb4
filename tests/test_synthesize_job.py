"""Where synthetic raw data lies, and the job that writes it: what it writes, says and refuses."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import DATASETS
from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.raw.folder import RawFolder
from pipelines.synthesize import (
    blended_mvs,
    co3d,
    dynamic_replica,
    kubric,
    kubric_tfrecord,
    mvs_synth,
    point_odyssey,
    scannet,
    scannet_exported,
    scannet_iphone,
    tartanair,
    tartanair_v2,
    virtual_kitti2,
)
from pipelines.synthesize.begun import begun
from pipelines.synthesize.job import (
    ALL,
    BENCHMARKS_OF,
    LAYOUTS,
    TWINS,
    VARIANTS,
    scene_for,
    synthesize,
    write_sequence,
)


@pytest.mark.parametrize("layout", ALL.values(), ids=ALL)
def test_raw_worlds_are_right_handed_and_down_is_where_the_dataset_has_it(layout):
    rotation = layout.RAW_FROM_SCENE[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3))
    assert np.linalg.det(rotation) == pytest.approx(1)
    down = {
        blended_mvs: [0, 0, 1],  # any
        co3d: [0, -1, 0],
        dynamic_replica: [0, 0, -1],
        kubric: [0, 0, -1],
        kubric_tfrecord: [0, 0, -1],
        mvs_synth: [0, 0, 1],
        point_odyssey: [0, -1, 0],
        scannet: [0, 0, -1],
        scannet_exported: [0, 0, -1],
        scannet_iphone: [0, 0, -1],
        tartanair: [0, 0, 1],
        tartanair_v2: [0, 0, 1],
        virtual_kitti2: [0, 1, 0],
    }[layout]
    np.testing.assert_array_equal(rotation @ [0, 1, 0], down)


def test_tartanair_folders_have_gaps_and_one_doubled_environment():
    folders = [tartanair.folder(i) for i in range(6)]
    assert folders[:2] == ["room0000/Easy/P000", "room0000/Easy/P002"]
    assert folders[2] == "room0001/room0001/Easy/P000" and folders[4] == "room0002/Easy/P000"
    assert len(set(folders)) == 6


def test_blended_mvs_folders_are_pids_and_one_is_nested():
    first, nested, third = (blended_mvs.folder(i) for i in range(3))
    assert first == f"BlendedMVS/{0:024x}" and third == f"BlendedMVS/{2:024x}"
    assert nested == f"BlendedMVS/{1:024x}/{1:024x}"


def test_scannet_rooms_have_two_scans():
    folders = [scannet.folder(i) for i in range(4)]
    assert folders == [f"scans/{scan}" for scan in ("scene0000_00", "scene0000_01", "scene0001_00", "scene0001_01")]


def test_files_may_carry_the_name_of_their_folder(tmp_path):
    """Also though a sequence appears whole or not at all."""
    write_sequence({"dataset": "scannet", "root": str(tmp_path), "index": 2}, frames=1, size="small", seed=0)
    scans = tmp_path / "scans"
    assert [path.name for path in scans.iterdir()] == ["scene0001_00"]
    files = sorted((scans / "scene0001_00").iterdir())
    assert [path.name for path in files] == ["scene0001_00.sens", "scene0001_00.txt"]


def test_different_datasets_seeds_and_indices_give_different_scenes():
    rooms = [
        scene_for(dataset, seed, index, frames=1, size="small").solids[0].size
        for dataset in ALL
        for seed in (0, 1)
        for index in (0, 1, 2)
    ]
    assert len(set(rooms)) == 6 * len(ALL)


@pytest.mark.parametrize("dataset", ALL)
@pytest.mark.parametrize("num_frames", [1, 2])
def test_the_shortest_sequences_can_be_written(dataset, num_frames, tmp_path):
    scene = scene_for(dataset, 0, 0, frames=num_frames, size="small")
    ALL[dataset].write(scene, tmp_path / "sequence")
    assert len(scene) == num_frames


def test_job_writes_the_scenes_it_says(ray_cluster, tmp_path, capsys):
    synthesize("all", out=str(tmp_path / "raw"), scenes=3, frames=2, seed=5)
    said = capsys.readouterr().out
    for name, layout in ALL.items():
        key = name if name in LAYOUTS else name.rpartition("_")[0]
        assert f"python -m pipelines convert {key} --raw {tmp_path}/raw/{name} --store clips/{name} " in said
        assert all((tmp_path / "raw" / name / layout.folder(i)).exists() for i in range(3))
    assert not list(tmp_path.rglob("*.partial"))
    scene = scene_for("tartanair", 5, 2, frames=2, size="small")
    written = tmp_path / "raw/tartanair" / tartanair.folder(2) / "image_left/000001_left.png"
    np.testing.assert_array_equal(np.asarray(Image.open(written)), scene.render(1).image)


def test_job_goes_on_with_its_half_writes_variants_and_says_whose_they_are(ray_cluster, tmp_path, capsys):
    assert list(VARIANTS) == ["kubric_tfrecord", "scannet_exported", "scannet_iphone", "tartanair_v2"]
    out, request = str(tmp_path / "held-out"), {"dataset": "tartanair_v2", "scenes": 2, "frames": 2, "size": "small"}
    half = tmp_path / "held-out" / ".0.partial"
    with suppress(KeyboardInterrupt), begun(out, request | {"seed": 0}):
        with pytest.raises(ValueError, match="another synthesize writes to"):
            synthesize("tartanair_v2", out=out, scenes=2, frames=2)
        half.mkdir()
        (half / "image.png").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match=f"{out} is not whole: `synthesize` writes to it, or was interrupted"):
        DATASETS["tartanair"].find(RawFolder(out))
    with pytest.raises(ValueError, match=r"half of other scenes \(seed was 0, now 1\): the command that began them"):
        synthesize("tartanair_v2", out=out, scenes=2, frames=2, seed=1)
    synthesize("tartanair_v2", out=out, scenes=2, frames=2)
    assert {path.name for path in (tmp_path / "held-out").iterdir()} == {tartanair_v2.folder(0).partition("/")[0]}
    said = capsys.readouterr().out
    assert f"going on with {out}, where a command was interrupted" in said
    # the store is named after the raw folder, so that two of them do not share one
    assert f"python -m pipelines convert tartanair --raw {tmp_path}/held-out --store clips/held-out " in said
    assert all((tmp_path / "held-out" / tartanair_v2.folder(i) / "pose_lcam_front.txt").is_file() for i in range(2))


def test_job_refuses_to_mix_with_what_is_there(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="not an empty folder: choose a new folder"):
        synthesize("tartanair", out=str(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("bad", [{"scenes": 0}, {"frames": 0}, {"seed": -1}, {"out": "s3://bucket/raw"}])
def test_job_refuses_what_it_cannot_do(bad, tmp_path):
    with pytest.raises(ValueError, match=r"must be from|not a local path"):
        synthesize("tartanair", **({"out": str(tmp_path / "raw")} | bad))


@pytest.mark.parametrize("name", TWINS)
def test_a_benchmark_is_written_as_evaluate_finds_it(name: str, tmp_path: Path) -> None:
    """Every clip of it, none of a published list, and whole: nothing of the writing is left."""
    for index in range(2):
        row = {"dataset": name, "root": str(tmp_path), "index": index}
        write_sequence(row, frames=7, size="small", seed=0)
    for benchmark in BENCHMARKS_OF.get(name, [name]):
        found = load_benchmark(benchmark).find([str(tmp_path)])
        depth_too = name != "worldtrack" or benchmark != "cloud"  # of WorldTrack, every clip
        assert len(found.clips) == (2 if depth_too else 1)
        assert not found.missing
        assert all(len(load_benchmark(benchmark).open(clip)) >= 2 for clip in found.clips)
    assert not list(tmp_path.rglob("*.partial"))
