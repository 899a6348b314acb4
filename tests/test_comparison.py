"""Two evaluations clip by clip: the interval of a difference is that of statistics, and unlike things are refused."""

import io
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines.compare import compare
from pipelines.evaluate import checkpoints_of
from pipelines.evaluation.benchmarks.comparison import difference
from pipelines.evaluation.benchmarks.job import require_same_request
from pipelines.store.reader import ClipStore
from tests.plane_store import write_plane_store
from train.stores import refuse_benchmarks


def evaluation(folder: Path, scores: dict[str, list[float]], name: str, **other: object) -> str:
    """What `evaluate pose` would have written, as far as it is compared."""
    rows = [
        {"subset": subset, "clip": f"clip_{i}", "digest": f"{subset}{i}", "sim3.ate": value}
        for subset, values in scores.items()
        for i, value in enumerate(values)
    ]
    metrics = {"benchmark": "pose", "title": "Camera pose", "known_intrinsics": False, "predictions": name} | other
    folder.mkdir()
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), content)
    (folder / "clips.parquet").write_bytes(content.getvalue())
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def test_the_interval_is_that_of_the_mean_of_many_differences() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(1, 0.5, 400)
    d = rng.normal(0.05, 0.2, 400)
    mean, low, high = difference([(first, first + d)])
    assert mean == pytest.approx(d.mean())
    half = 1.96 * d.std() / 20  # by the central limit theorem
    assert (low, high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.1 * half)
    # Two subsets weigh the same, whatever their sizes.
    mean, low, high = difference([(np.zeros(3), np.ones(3)), (np.zeros(300), np.zeros(300))])
    assert (mean, low, high) == (0.5, 0.5, 0.5)


def test_the_best_comes_first(tmp_path: Path) -> None:
    base = {"sintel": [0.2, 0.3, 0.4], "tum": [0.1, 0.2]}
    a = evaluation(tmp_path / "a", base, "a")
    b = evaluation(tmp_path / "b", {key: [x - 0.05 for x in values] for key, values in base.items()}, "b")
    rows = compare([a, b], out=str(tmp_path / "out"))
    assert [row["name"] for row in rows] == ["b", "a"]
    assert rows[0]["difference"] == pytest.approx(-0.05)
    assert rows[0]["interval"] == pytest.approx([-0.05, -0.05])
    assert rows[0]["clips"] == 5
    assert "| b | 0.1750 | -0.0500 [-0.0500, -0.0500] | 5 |" in (tmp_path / "out/leaderboard.md").read_text()


def test_unlike_things_are_not_compared(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", {"sintel": [0.2]}, "a")
    with pytest.raises(ValueError, match="name two"):
        compare([a], out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="holds no evaluation"):
        compare([a, str(tmp_path)], out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="depth, pose have nothing in common"):
        compare([a, evaluation(tmp_path / "d", {"sintel": [0.2]}, "d", benchmark="depth")], out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"no clip in common that has the score sim3.ate"):
        compare([a, evaluation(tmp_path / "t", {"tum": [0.2]}, "t")], out=str(tmp_path / "out"))
    c = evaluation(tmp_path / "c", {"sintel": [0.2]}, "c")
    table = pyarrow.parquet.read_table(tmp_path / "c/clips.parquet").to_pylist()
    pyarrow.parquet.write_table(
        pa.Table.from_pylist([row | {"digest": "?"} for row in table]), tmp_path / "c/clips.parquet"
    )
    with pytest.raises(ValueError, match="differ in content"):
        compare([a, c], out=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("dataset", "sequence", "benchmark"),
    [
        ("scannet", "scans_test/scene0750_00", "depth"),
        ("point_odyssey", "test/room_1", "worldtrack"),
        ("dynamic_replica", "test/abc-3_obj/left", "worldtrack"),
        ("co3d", "kite/400_51925_100234", "pose"),
        ("co3d", "apple/110_13051_23361", None),
        ("scannet", "scans/scene0100_00", None),
        ("point_odyssey", "train/room_1", None),
    ],
)
def test_what_benchmarks_are_made_of_is_not_trained_on(tmp_path: Path, dataset: str, sequence: str, benchmark) -> None:
    store = ClipStore(write_plane_store(tmp_path / "s", clips=1, dataset=dataset, facts={"sequences": [sequence]}))
    if benchmark is None:
        refuse_benchmarks(store)
        return
    with pytest.raises(ValueError, match=rf"holds {sequence} of {dataset}, which the benchmark {benchmark} is made of"):
        refuse_benchmarks(store)


def test_all_checkpoints_of_a_run_are_found_and_none_that_is_half_written(tmp_path: Path) -> None:
    for name, whole in (
        ("step_0000100", True),
        ("step_0000200", True),
        ("step_0000200-2", True),
        ("step_0000300", False),
    ):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "position.json").touch()
    (tmp_path / "runs.json").touch()
    found = checkpoints_of(str(tmp_path))
    assert [Path(uri).name for uri in found] == ["step_0000100", "step_0000200", "step_0000200-2"]
    with pytest.raises(ValueError, match="has no whole checkpoints"):
        checkpoints_of(str(tmp_path / "step_0000100"))


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({}, None),
        ({"known_intrinsics": True}, "another known_intrinsics"),
        ({"window": 8}, "another window"),
        ({"data": ["/other"]}, "another data"),
    ],
)
def test_an_evaluation_that_is_there_is_taken_only_if_it_was_made_the_same_way(
    other: dict, differs: str | None, tmp_path: Path
) -> None:
    asked = {"data": ["/data"], "window": None, "common": None}
    model = {"version": "models:/rooms/1"}
    evaluation(tmp_path / "1", {"tum": [0.1]}, "a", model=model, asked=asked)
    options = {"known_intrinsics": False, **asked} | other
    with pytest.raises(ValueError, match=differs) if differs else nullcontext():
        require_same_request(str(tmp_path / "1"), "pose", "models:/rooms/1", options)
    with pytest.raises(ValueError, match="another model"):
        require_same_request(
            str(tmp_path / "1"), "pose", "models:/rooms/2", options | asked | {"known_intrinsics": False}
        )
