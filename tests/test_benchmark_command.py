"""`evaluate BENCHMARK` as a whole, once, with a small model; its report and stored predictions without one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from model import D4RT, ModelConfig, checkpoints
from pipelines.evaluate import evaluate
from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.asking import Ask
from pipelines.evaluation.benchmarks.benchmark import ClipName
from pipelines.evaluation.benchmarks.job import refuse_failed, score_clip
from pipelines.evaluation.benchmarks.predictions import read_prediction, write_prediction
from pipelines.evaluation.benchmarks.report import write_report
from pipelines.evaluation.benchmarks.tables import Table, tables_of
from pipelines.synthesize import tapvid3d, worldtrack
from tests.benchmark_clips import Asked

FRAMES = 6


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Three clips of TAPVid-3D, one of each subset."""
    root = tmp_path_factory.mktemp("tapvid3d")
    for index in range(3):
        tapvid3d.write(tapvid3d.scene(index, num_frames=FRAMES, size="small"), root / tapvid3d.folder(index))
    return root


def exact(clip: ClipName) -> dict[str, np.ndarray]:
    truth = load_benchmark("tapvid3d").open(clip)
    return {"tracks_XYZ": truth.tracks, "visibility": truth.visible}


def test_a_model_is_scored_and_its_predictions_again_without_it(clips: Path, tmp_path: Path, ray_cluster) -> None:
    torch.manual_seed(0)
    config = replace(ModelConfig.preset("tiny"), clip_frames=4)
    checkpoints.save(D4RT(config), tmp_path / "model")
    out = tmp_path / "scores"
    metrics = evaluate("tapvid3d", model=str(tmp_path / "model"), data=[str(clips)], out=str(out))
    assert metrics["clips"] == {"found": 3, "scored": 3, "failed": {}}
    assert metrics["title"] == "TAPVid-3D: clips of no published list"
    assert "windows of 4, each with 2 frames in common" in metrics["window_rule"]
    assert set(metrics["scores"]) == {"adt", "drivetrack", "pstudio"}
    assert 0 <= metrics["overall"]["median.apd"] <= 1
    names = {
        "best.png",
        "clips.parquet",
        "index.html",
        "median.png",
        "metrics.json",
        "predictions",
        "table.md",
        "worst.png",
    }
    assert {path.name for path in out.iterdir()} == names
    rows = pyarrow.parquet.read_table(out / "clips.parquet").to_pylist()
    assert {row["windows"] for row in rows} == {2}
    table = (out / "table.md").read_text()
    assert "| D4RT | 0.257 | 0.345 | 0.875 |" in table
    assert "NOT" not in metrics["title"]

    again = evaluate("tapvid3d", predictions=str(out / "predictions"), data=[str(clips)], out=str(tmp_path / "again"))
    assert again["scores"] == metrics["scores"]
    assert again["data"]["digest"] == metrics["data"]["digest"]
    with pytest.raises(ValueError, match="exists already"):
        evaluate("tapvid3d", predictions=str(out / "predictions"), data=[str(clips)], out=str(out))


def test_the_report_of_exact_predictions(clips: Path, tmp_path: Path) -> None:
    bench = load_benchmark("tapvid3d")
    found = bench.find([str(clips)])
    seams = [None, {"joined": True, "scale": 0.5}, {"joined": True, "scale": 1.25}, {"joined": False, "scale": 9.0}]
    for clip in found.clips:
        windows = [{"seam": seam} for seam in seams]
        write_prediction(str(tmp_path), clip, exact(clip), {"request": {}, "windows": windows})
    rows = {clip: score_clip({"clip": clip}, key="tapvid3d", predictions=str(tmp_path)) for clip in found.clips}
    about = {"predictions": str(tmp_path), "known_intrinsics": False, "code": {"version": "1", "digest": "2"}}
    metrics = write_report(bench, found, rows, {}, about, str(tmp_path), str(tmp_path / "out"))
    assert metrics["overall"]["median.aj"] == pytest.approx(1)
    assert rows[found.clips[0]]["seam_scale"] == 2  # the unit of a window was twice that of the one before
    assert (rows[found.clips[0]]["windows"], rows[found.clips[0]]["unjoined"]) == (4, 1)
    stored = json.loads((tmp_path / "out/metrics.json").read_text())
    assert stored["overall"]["median.aj"] == metrics["overall"]["median.aj"]
    table = (tmp_path / "out/table.md").read_text()
    assert "| 1.000 | 1.000 | 1.000 | 1.000 |" in table
    assert "not run" in table  # with intrinsics
    assert 'src="worst.png"' in (tmp_path / "out/index.html").read_text()

    first, *others = found.clips
    some = write_report(
        bench,
        found,
        {clip: rows[clip] for clip in others},
        {str(first): "gone"},
        about,
        str(tmp_path),
        str(tmp_path / "b"),
    )
    assert some["scores"][first.subset]["median.oa"] == 0  # as the official script counts what is missing
    assert some["clips"]["failed"] == {str(first): "gone"}
    for file in ("table.md", "index.html"):
        assert "Missing: 1 clip" in (tmp_path / "b" / file).read_text()
        assert ", 1 of them without an answer): every variant" in (tmp_path / "b" / file).read_text()
        assert f"{first}: gone" in (tmp_path / "b" / file).read_text()
    with pytest.raises(ValueError, match="1 of 3 clips have no scores"):
        refuse_failed({str(first): "gone"}, False, 3)


def test_predictions_of_others_are_found_by_name(tmp_path: Path) -> None:
    clip = ClipName("po_mini", "room_1", "")
    tracks = np.arange(24.0).reshape(2, 4, 3)
    assert read_prediction(str(tmp_path), clip) is None
    (tmp_path / "room_10.json").write_text(json.dumps({"tracks_world": tracks.tolist()}))
    assert read_prediction(str(tmp_path), clip) is None  # not room_1
    (tmp_path / "room_1.json").write_text(json.dumps({"tracks_world": tracks.tolist()}))
    np.testing.assert_array_equal(read_prediction(str(tmp_path), clip)[0]["tracks_world"], tracks)
    (tmp_path / "po_mini").mkdir()
    np.savez(tmp_path / "po_mini/room_1.npz", tracks_world=tracks + 1)
    np.testing.assert_array_equal(read_prediction(str(tmp_path), clip)[0]["tracks_world"], tracks + 1)
    np.savez(tmp_path / "po_mini/room_1.npz", tracks_world=np.array([None]))
    with pytest.raises(ValueError, match=r"room_1.npz is damaged or holds Python objects"):
        read_prediction(str(tmp_path), clip)
    np.savez(tmp_path / "po_mini/room_1.npz", others=tracks)
    with pytest.raises(ValueError, match="has none of tracks_XYZ"):
        read_prediction(str(tmp_path), clip)


def test_points_of_all_pixels_are_gathered_as_st4rtrack_does(tmp_path: Path) -> None:
    scene = worldtrack.scene(1, num_frames=FRAMES, size="small")
    path = tmp_path / worldtrack.folder(0)
    worldtrack.write(scene, path)
    (clip,) = load_benchmark("worldtrack").find([str(tmp_path)]).clips
    asked = Asked("worldtrack", clip, scene)
    shape = (48, 64)
    uv = (np.stack(np.meshgrid(np.arange(64), np.arange(48)), axis=-1) + 0.5).reshape(-1, 2) / [64, 48]
    hits = scene.trace(uv * [scene.width, scene.height], np.zeros(len(uv), int))
    frames = [scene.position(hits, np.full(len(uv), t)) for t in range(FRAMES)]
    first = scene.cameras.world_from_cam[0]
    folder = tmp_path / "said/po_mini/room_000000"
    folder.mkdir(parents=True)
    for t, points in enumerate(frames):
        local = (points - first[:3, 3]) @ first[:3, :3]
        np.save(folder / f"pts3d1_p{t}.npy", np.concatenate([local, np.zeros_like(local)], axis=1).reshape(*shape, 6))
    prediction, _ = read_prediction(str(tmp_path / "said"), clip)
    row = asked.scores(prediction)
    assert row["st4rtrack.global.all.apd"] > 0.85  # what is asked beside a silhouette is on something else
    assert (
        asked.scores({"dense_world": np.roll(prediction["dense_world"], 8, axis=2)})["st4rtrack.global.all.apd"] < 0.8
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "give either --model or --predictions"),
        ({"model": "m", "predictions": "p"}, "give either --model or --predictions"),
        ({"model": "m", "data": []}, "name at least one"),
        ({"model": "m", "clips": 3}, "--clips is of clips"),
    ],
)
def test_requests_that_are_wrong_are_refused_at_once(options: dict, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        evaluate("tapvid3d", **{"data": ["d"], "out": str(tmp_path / "out")} | options)


def test_what_would_count_twice_or_score_nothing_is_refused_at_once(clips: Path, tmp_path: Path) -> None:
    """Before Ray starts."""
    twice = tmp_path / "copy"
    shutil.copytree(clips / "adt", twice / "adt")
    options = {"predictions": str(clips), "out": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=r"adt/Lite_000001 is there twice, in .*copy"):
        evaluate("tapvid3d", data=[str(clips), str(twice)], **options)
    with pytest.raises(ValueError, match=r"--predictions .*nothing is no folder"):
        evaluate("tapvid3d", data=[str(clips)], **options | {"predictions": str(tmp_path / "nothing")})
    for wrong in (tmp_path / "nothing", clips / "adt/Lite_000001.npz"):
        with pytest.raises(ValueError, match=r"--data .* is no folder"):
            evaluate("tapvid3d", data=[str(wrong)], **options)


def test_a_prediction_that_is_damaged_is_made_again_and_one_of_another_model_is_not_scored(
    clips: Path, tmp_path: Path
) -> None:
    clip = next(iter(load_benchmark("tapvid3d").find([str(clips)]).clips))
    place = tmp_path / clip.file
    place.parent.mkdir()
    torch.manual_seed(0)
    model = tmp_path / "model"
    checkpoints.save(D4RT(ModelConfig.preset("tiny")), model)
    request = {"known_intrinsics": False, "window": None, "common": None}
    ask = Ask(str(model), f"sqlite:///{tmp_path}/mlflow.db", "tapvid3d", str(tmp_path), request)
    ask({"clip": clip})
    options = {"key": "tapvid3d", "predictions": str(tmp_path)}
    assert score_clip({"clip": clip}, request=request, **options)["frames"] == FRAMES
    with pytest.raises(ValueError, match="is by another model now: another job writes there"):
        score_clip({"clip": clip}, request=request | {"window": 3}, **options)
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    ask({"clip": clip})
    assert read_prediction(str(tmp_path), clip)[0]["tracks_XYZ"].shape == exact(clip)["tracks_XYZ"].shape


def test_a_table_reads_like_a_papers(tmp_path: Path) -> None:
    """Metrics with their unit and direction; variants with other metrics apart; of how many clips a mean is."""
    pose = load_benchmark("pose")
    rows = [{"alignable": 1, "sim3.ate": 0.5, "pairs.auc_30": 0.25}, {"alignable": 0, "pairs.auc_30": 0.75}]
    metrics = {"scores": {"tum": pose.summary(rows)}, "overall": None, "subsets": {"tum": "2 of 8 sequences"}}
    metrics |= {"title": "Camera pose", "predictions": "ours"}
    ate, auc = (table.markdown() for table in tables_of(pose, metrics))
    assert "tum (2 of 8 sequences)" in ate
    assert "| variant | ATE, m ↓ |" in ate
    assert "| sim3 | 0.5000 (1) |" in ate
    assert "In brackets: how many clips" in ate
    assert "| variant | AUC@30 ↑ |" in auc
    assert "| pairs | 0.5000 |" in auc  # none of the published tables is about TUM


def test_ours_stands_out_in_both_kinds_of_table() -> None:
    table = Table("title", "", ["method", "score"], [["theirs", "1"], ["<ours>", "2"]], ours="<ours>")
    assert "| **<ours>** | 2 |" in table.markdown()
    assert '<tr class="ours"><td>&lt;ours&gt;</td><td>2</td></tr>' in table.html()
    assert "**" not in table.html()
