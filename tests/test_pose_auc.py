"""AUC@30 where the field prints it, on RealEstate10K and CO3D: frames belong to cameras by name, exact answers score
perfectly, and CO3D's score is one of categories."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets import reader
from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.sequence_clip import protocol
from pipelines.evaluation.benchmarks.tables import published, published_tables
from pipelines.geometry import inverse
from pipelines.raw.folder import RawFolder
from pipelines.synthesize import co3d, realestate10k
from pipelines.synthesize.scene import Scene
from pipelines.truth.verdict import judge
from tests.benchmark_clips import Asked, only_clip

FRAMES = 12
LOST = FRAMES // 2  # has no image


@pytest.fixture
def walk(tmp_path: Path) -> Scene:
    scene = realestate10k.scene(3, num_frames=FRAMES, size="small")
    realestate10k.write_tree(scene, tmp_path, 0)
    return scene


def test_frames_belong_to_cameras_by_their_times(walk: Scene, tmp_path: Path) -> None:
    raw = RawFolder(str(tmp_path))
    (name,) = reader("realestate10k").find(raw)
    assert name == "test/0000000000000000"
    sequence = reader("realestate10k").open(raw, name)
    frames = np.delete(np.arange(FRAMES), LOST)
    assert sequence.notes == ("1 of 12 frames have no image: left out",)
    for place, t in enumerate(frames.tolist()):
        np.testing.assert_array_equal(sequence.image(place), walk.render(t).image)
    expected = walk.cameras.world_from_cam[frames].copy()
    expected[:, :3, 3] *= realestate10k.PER_METRE
    np.testing.assert_allclose(sequence.cameras.world_from_cam, expected, atol=1e-6)
    np.testing.assert_allclose(sequence.cameras.intrinsics, walk.cameras.intrinsics[frames], rtol=1e-6)
    with pytest.raises(ValueError, match="has no depth"):
        judge(sequence)


def test_exact_paths_score_perfectly_and_faults_cost(walk: Scene, tmp_path: Path) -> None:
    asked = Asked("pose", only_clip("pose", tmp_path), walk)
    right = asked.truth.world_from_cam
    turned = inverse(right[3]) @ right
    turned[:, :3, 3] *= 7
    row = asked.scores({"world_from_cam": turned})
    assert row["ten_frames.auc_30"] > 0.95
    assert row["sim3.ate"] < 1e-6
    assert asked.scores({"world_from_cam": inverse(right)})["ten_frames.auc_30"] < row["ten_frames.auc_30"] - 0.05
    late = np.delete(walk.cameras.world_from_cam, FRAMES - 1, axis=0)  # as if the lost image were not lost
    assert asked.scores({"world_from_cam": late})["sim3.ate"] > 1e-3

    found = load_benchmark("pose").find([str(tmp_path)])
    assert found.title == "realestate10k, NOT the published subset"
    summary = asked.benchmark.summary([row])
    metrics = {"scores": {"realestate10k": summary}, "overall": None, "title": found.title, "predictions": "mine"}
    (table,) = [table for table in published_tables("pose") if list(table["columns"]) == ["Re10K"]]
    assert float(published(table, metrics).rows[-1][1]) == pytest.approx(100 * row["ten_frames.auc_30"], abs=0.06)


def test_the_oracle_is_asked_through_the_recipes(walk: Scene, tmp_path: Path) -> None:
    images = tmp_path / realestate10k.folder(0)
    there, lost = (images / f"{realestate10k.BEGIN + t * realestate10k.STEP}.png" for t in (0, LOST))
    shutil.copy(there, lost)
    asked = Asked("pose", only_clip("pose", tmp_path), walk)
    assert asked.scores(asked.answers())["ten_frames.auc_30"] > 0.95
    assert asked.scores(asked.answers(known_intrinsics=True))["sim3.ate"] < 1e-3


def test_without_images_stored_paths_are_scored(walk: Scene, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / realestate10k.folder(0))
    asked = Asked("pose", only_clip("pose", tmp_path), walk)
    assert asked.scores({"world_from_cam": walk.cameras.world_from_cam})["sim3.ate"] < 1e-6
    with pytest.raises(ValueError, match=r"has no images .* stored predictions can be scored"):
        asked.truth.video("clip", 8)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("67433 0.5 0.5 0.5 0.5 0 0 1 0 0", "number of columns|19"),
        ("1 " + " ".join(["0.5"] * 18), "whose times ascend"),
        ("999999999 " + " ".join(["nan"] * 18), "a line of numbers"),
    ],
)
def test_a_bad_line_is_named_by_its_file(walk: Scene, tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / f"{realestate10k.folder(0)}.txt"
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(ValueError, match=rf"0000000000000000.txt in .*({said})"):
        load_benchmark("pose").open(only_clip("pose", tmp_path))


def test_co3d_is_scored_by_category_on_what_is_not_trained_on(tmp_path: Path, monkeypatch) -> None:
    """Long enough sequences of held-out categories; where there is none, all that is there, and the report says so."""
    assert protocol("pose")["co3d"] == {"least": 50}
    monkeypatch.setitem(protocol("pose")["co3d"], "least", 4)
    for index, (category, frames) in enumerate([("kite", 4), ("remote", 4), ("remote", 3), ("apple", 4)]):
        scene = co3d.scene(3 * index, num_frames=frames, size="small")
        co3d.write(scene, tmp_path / f"room{index}/apple")
        _rename(tmp_path / f"room{index}", category)
    found = load_benchmark("pose").find([str(tmp_path)])
    assert [clip.name.split("/")[1] for clip in found.clips] == ["kite", "remote"]
    assert found.subsets == {"co3d": "2 sequences of the test split with at least 4 frames"}
    only_trained_on = load_benchmark("pose").find([str(tmp_path / "room3")])
    assert only_trained_on.subsets["co3d"].startswith("1 sequence, none")

    bench = load_benchmark("pose")
    truth = bench.open(found.clips[0])
    row = bench.scores(truth, {"world_from_cam": truth.world_from_cam})
    assert row["category"] == "kite"
    assert row["ten_frames.auc_30"] > 0.95
    bad = [row | {"category": "remote", "ten_frames.auc_30": value} for value in (0.2, 0.3, 0.4)]
    means = bench.summary([row, *bad])
    assert means["ten_frames.auc_30"] == pytest.approx((row["ten_frames.auc_30"] + 0.3) / 2)
    assert (means["clips"], means["categories"]) == (4, 2)


def _rename(root: Path, category: str) -> None:
    """Make of the writer's category another one."""
    if category == co3d.CATEGORY:
        return
    folder = (root / co3d.CATEGORY).rename(root / category)
    old, new = f"{co3d.CATEGORY}/".encode(), f"{category}/".encode()
    for path in folder.glob("*.jgz"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(old, new)))
    for path in folder.glob("set_lists/*.json"):
        path.write_bytes(path.read_bytes().replace(old, new))
