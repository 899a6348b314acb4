"""The `clips` benchmark: its definitions on arrays with known answers, and the job on stores with known answers."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from plane_store import write_plane_store

from model import D4RT, ModelConfig, Queries, checkpoints, recipes
from pipelines.evaluate import evaluate, parts
from pipelines.evaluation.scores import Answers, ask, constant_depth, measure
from pipelines.evaluation.tally import WITHIN, Tally
from pipelines.query_table import FLAG_BITS, VALID_BITS, query_dtype
from pipelines.store.reader import ClipStore

ALL = sum(VALID_BITS.values())


def truth_of(xyz, **fields) -> dict[str, np.ndarray]:
    """Queries with these answers: known, visible, static, t_src = t_tgt = t_cam = 0 unless given."""
    records = np.zeros(len(xyz), query_dtype(4))
    for name, values in {"xyz": xyz, "visible": True, "valid": ALL, **fields}.items():
        records[name] = values
    return {name: np.ascontiguousarray(records[name]) for name in records.dtype.names}


STILL = np.tile(np.eye(4, dtype=np.float32), (4, 1, 1))  # cameras that do not move


def answers(xyz, visible=True, world_from_cam=STILL) -> Answers:
    xyz = np.asarray(xyz, np.float32)
    visible = np.broadcast_to(np.asarray(visible, bool), len(xyz)).copy()
    unsaid = np.zeros(len(xyz), np.float32), np.full((3, len(xyz)), np.nan, np.float32)
    return Answers(xyz, visible, *unsaid, np.asarray(world_from_cam, np.float32))


def along_z(depths) -> np.ndarray:
    return np.array([[0, 0, depth] for depth in depths], np.float32)


def errors(truth, given, world_from_cam=STILL, is_metric=True) -> dict[str, np.ndarray]:
    return measure(truth, given, np.asarray(world_from_cam, np.float32), is_metric=is_metric)


def score(truth, given, world_from_cam=STILL, is_metric=True) -> dict:
    return Tally.of([errors(truth, given, world_from_cam, is_metric)]).scores()


def test_perfect_answers_have_no_error_at_any_scale():
    xyz = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32) + np.float32([0, 0, 5])
    truth = truth_of(xyz, flags=FLAG_BITS["dynamic"], t_tgt=1, t_cam=np.arange(200) % 2, t_src=np.arange(200) % 2)
    for factor in (1, 7, 0.01):
        found = score(truth, answers(factor * truth["xyz"]))
        for name in ("median_relative_error", "apd", "epe"):
            for value in found[name].values():
                assert value == pytest.approx(float(name == "apd"), abs=1e-6)
        assert found["depth_abs_rel"] == pytest.approx(0, abs=1e-6)
        assert found["visibility_accuracy"] == 1
        assert found["queries"] == {"all": 200, "moving": 100}


def test_known_offsets_give_known_errors():
    """Five points at depth 4 to 8; the medians of both sides are 6, so the scale is 1."""
    truth = truth_of(along_z([4, 5, 6, 7, 8]))
    wrong = truth["xyz"].copy()
    wrong[0, 2] -= 0.4  # beyond 0.1 and 0.3 m only
    wrong[3, 0] += 2.0  # beyond all four
    wrong[4, 2] += 0.05  # beyond none
    found = errors(truth, answers(wrong))
    np.testing.assert_allclose(found["relative"], [0.1, 0, 0, 2 / 7, 0.05 / 8], atol=1e-6)
    np.testing.assert_allclose(found["hits"], [0.5, 1, 1, 0, 1])
    np.testing.assert_allclose(found["depth"], [0.1, 0, 0, 0, 0.05 / 8], atol=1e-6)
    np.testing.assert_allclose(found["distance"], [0.4, 0, 0, 2, 0.05], atol=1e-6)
    found = Tally.of([found]).scores()
    assert found["median_relative_error"]["all"] == pytest.approx(0.05 / 8, abs=1e-6)
    assert found["apd"] == {"all": pytest.approx(0.7), "moving": None}
    assert found["epe"] == {"all": pytest.approx(2.45 / 5), "moving": None}


def test_thresholds_count_in_clip_distances_where_nothing_is_metric():
    truth = truth_of(along_z([40, 50, 60, 70, 80]))
    wrong = truth["xyz"].copy()
    wrong[3, 0] += 24.0  # 0.4 of the median distance, 60
    np.testing.assert_allclose(errors(truth, answers(wrong), is_metric=False)["hits"], [1, 1, 1, 0.5, 1])
    np.testing.assert_allclose(errors(truth, answers(wrong))["hits"], [1, 1, 1, 0, 1])
    assert score(truth, answers(wrong), is_metric=False)["epe"]["all"] == pytest.approx(0.4 / 5)
    assert score(truth, answers(wrong))["epe"]["all"] == pytest.approx(24 / 5)


def test_one_scale_for_all_points_of_a_clip():
    """The moving ones are not aligned again by themselves."""
    truth = truth_of(along_z([2, 2, 2, 4]), flags=[0, 0, 0, FLAG_BITS["dynamic"]], t_tgt=[0, 0, 0, 1])
    found = score(truth, answers(along_z([1, 1, 1, 3])))
    assert found["median_relative_error"] == {"all": 0, "moving": pytest.approx(0.5)}  # 2 x 3 against 4
    assert found["queries"]["moving"] == 1


def test_moving_needs_another_time():
    truth = truth_of(along_z([2, 2]), flags=FLAG_BITS["dynamic"], t_src=1, t_tgt=[1, 2])
    assert errors(truth, answers(truth["xyz"]))["moving"].tolist() == [0, 1]


def test_unknown_targets_are_not_scored():
    truth = truth_of(along_z([2, 3, 900]), valid=[ALL, ALL, 0], visible=[True, False, False])
    found = errors(truth, answers(along_z([2, 3, 1]), visible=[True, True, True]))
    assert found["relative"].tolist() == [0, 0]
    assert found["visible"].tolist() == [1, 0]
    found = score(truth_of(along_z([1]), valid=0), answers(along_z([1])))
    assert found["median_relative_error"] == {"all": None, "moving": None} and found["visibility_accuracy"] is None


def test_answers_that_are_not_finite_are_misses():
    truth = truth_of(along_z([2, 2, 2, 2]))
    given = along_z([2, 2, 2, np.nan])
    found = score(truth, answers(given))
    assert found["apd"]["all"] == pytest.approx(0.75) and found["not_finite"] == 1
    assert found["median_relative_error"]["all"] == 0
    assert score(truth, answers(np.full((4, 3), np.nan)))["apd"]["all"] == 0


def test_the_guess_is_exact_for_a_still_wall():
    """A wall at depth 3 before a camera that stands still: one constant depth is the truth."""
    rng = np.random.default_rng(0)
    uv = rng.random((300, 2)).astype(np.float32)
    intrinsics = np.tile([[1.2, 0, 0.45], [0, 1.6, 0.55], [0, 0, 1]], (4, 1, 1))
    xyz = 3 * np.stack([(uv[:, 0] - 0.45) / 1.2, (uv[:, 1] - 0.55) / 1.6, np.ones(300)], -1)
    truth = truth_of(xyz, uv_norm=uv, t_src=rng.integers(0, 4, 300), t_cam=rng.integers(0, 4, 300))
    found = score(truth, constant_depth(truth, intrinsics, size=1))
    assert found["median_relative_error"]["all"] == pytest.approx(0, abs=1e-6)
    assert found["apd"]["all"] == 1


def turned(axis: int, degrees: float) -> np.ndarray:
    """4x4, a turn about a coordinate axis."""
    a, b = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(4)
    turn[a, a] = turn[b, b] = np.cos(np.radians(degrees))
    turn[b, a] = np.sin(np.radians(degrees))
    turn[a, b] = -turn[b, a]
    return turn


def moved(*offset: float) -> np.ndarray:
    return np.block([[np.eye(3), np.array(offset)[:, None]], [np.zeros((1, 3)), 1]])


def test_cameras_are_compared_from_camera_0_in_the_scale_of_the_points():
    """Camera t travels along x and turns; the answer is half as large, turned 2 t degrees too far and 0.3 too high."""
    path = [moved(t, 0, 0) @ turned(1, 10 * t) for t in range(4)]
    elsewhere = [moved(5, -3, 2) @ turned(0, 70) @ turned(2, 20) @ pose for pose in path]
    given = [moved(t / 2, -0.15 * (t > 0), 0) @ turned(1, 10 * t) @ turned(2, 2 * t) for t in range(4)]
    truth = truth_of(along_z([6, 6]))
    found = errors(truth, answers(along_z([3, 3]), world_from_cam=given), elsewhere)
    np.testing.assert_allclose(found["rotation"], [2, 4, 6], atol=1e-3)
    np.testing.assert_allclose(found["translation"], 0.3, atol=1e-5)
    found = score(truth, answers(along_z([3, 3]), world_from_cam=given), elsewhere, is_metric=False)
    assert found["pose"] == {
        "rotation_degrees": pytest.approx(4, abs=1e-3),
        "translation": pytest.approx(0.3 / 6, abs=1e-5),  # in distances of the clip
    }


def test_confidence_is_judged_by_the_order_and_the_sizes_of_the_errors_it_tells():
    """Off by 10, 20, 40 and 80 %, where half are told to be within 15 %, 80 % within 30 % and 95 % within 60 %."""
    depths = np.float32([1, 1, 1, 1, 1, 1.1, 1.2, 1.4, 1.8])
    truth = truth_of(along_z(np.ones(9)), flags=np.where(np.arange(9) > 5, FLAG_BITS["dynamic"], 0), t_tgt=1)
    given = answers(along_z(depths))
    within = np.tile(np.float32([[0.15], [0.3], [0.6]]), 9)
    given = replace(given, confidence_logit=-depths, within=within)
    found = score(truth, given)["confidence"]
    assert found["rank_correlation"] == {"all": pytest.approx(-1, abs=1e-6), "moving": pytest.approx(-1, abs=1e-6)}
    assert found["coverage"] == {"within_50": 6 / 9, "within_80": 7 / 9, "within_95": 8 / 9}
    assert score(truth, answers(along_z(depths)))["confidence"] == {
        "rank_correlation": {"all": None, "moving": None},
        "coverage": dict.fromkeys(WITHIN),
        "calibration": None,
    }


def test_a_camera_that_is_not_found_is_infinitely_wrong():
    lost = STILL.copy()
    lost[2] = np.nan
    found = errors(truth_of(along_z([2])), answers(along_z([2]), world_from_cam=lost))
    assert found["rotation"].tolist() == found["translation"].tolist() == [0, np.inf, 0]


def test_without_a_known_point_cameras_have_no_scale():
    found = score(truth_of(along_z([1]), valid=0), answers(along_z([1])))
    assert found["pose"] == {"rotation_degrees": 0, "translation": None}


def errors_of(rng: np.random.Generator, queries: int) -> dict[str, np.ndarray]:
    """Errors such as `measure` gives, of all sizes, some of them 0 or infinite."""
    drawn = {name: rng.lognormal(-2, 2, queries) for name in ("relative", "distance", "depth")}
    drawn |= {name: rng.lognormal(0, 1, 5) for name in ("rotation", "translation")}
    drawn |= {name: (rng.random(queries) < 0.3).astype(float) for name in ("hits", "moving", "visible")}
    drawn |= {name: (rng.random(queries) < 0.8).astype(float) for name in WITHIN}
    drawn["logit"] = rng.normal(0, 2, queries)
    drawn["relative"][:2] = 0, np.inf
    return drawn


def test_a_tally_has_the_scores_of_all_queries_together():
    rng = np.random.default_rng(0)
    clips = [errors_of(rng, 700) for _ in range(30)]
    every = {name: np.concatenate([clip[name] for clip in clips]) for name in clips[0]}
    moving = every["moving"] > 0
    found = Tally.of(clips).scores()
    assert found["median_relative_error"] == {
        "all": pytest.approx(np.median(every["relative"]), rel=1e-3),
        "moving": pytest.approx(np.median(every["relative"][moving]), rel=1e-3),
    }
    assert found["pose"] == {
        "rotation_degrees": pytest.approx(np.median(every["rotation"]), rel=1e-3),
        "translation": pytest.approx(np.median(every["translation"]), rel=1e-3),
    }
    assert found["epe"]["moving"] == pytest.approx(every["distance"][moving].mean(), rel=1e-12)
    assert found["depth_abs_rel"] == pytest.approx(every["depth"].mean(), rel=1e-12)
    assert found["queries"] == {"all": 30 * 700, "moving": moving.sum()} and found["not_finite"] == 30


def test_the_order_and_the_grouping_of_clips_do_not_show():
    """Not in the last bit: tasks end in any order."""
    rng = np.random.default_rng(1)
    clips = [errors_of(rng, 300) for _ in range(20)]
    expected = Tally.of(clips).scores()
    for _ in range(5):
        rng.shuffle(clips)
        parts = [Tally.of(clips[begin : begin + 3]) for begin in range(0, 20, 3)]
        merged = Tally()
        for part in parts:
            merged.merge(part)
        assert merged.scores() == expected


def test_a_tally_does_not_grow_with_the_clips_it_has_seen():
    rng = np.random.default_rng(2)
    tally, sizes = Tally(), []
    for _ in range(400):
        tally.add(errors_of(rng, 2048))
        sizes.append(len(pickle.dumps(tally)))
    assert sizes[-1] < 1.3 * sizes[len(sizes) // 4] and sizes[-1] < 1.1e6


# --- the job ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ClipStore:
    return ClipStore(write_plane_store(tmp_path_factory.mktemp("evaluate") / "planes", clips=3, queries=150))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """The very model that counts as untrained: seed 0."""
    torch.manual_seed(0)
    return str(checkpoints.save(D4RT(ModelConfig.preset("tiny")), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def metrics(ray_cluster, store, checkpoint, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("scores") / "out"
    returned = evaluate("clips", model=checkpoint, data=[store.uri], out=str(out))
    written = json.loads((out / "metrics.json").read_text())
    assert written == json.loads(json.dumps(returned))
    (picture,) = out.glob("*.png")
    width, height = Image.open(picture).size
    assert width > 1500 and height > 700
    return returned


def test_every_store_has_a_picture_until_there_are_nine(store):
    """Also where one store has more clips than fit into a row, and where others are of the same dataset."""
    rows = list(parts([store] * 11, clips=None))
    drawn = [row["picture"] for row in rows if row["picture"]]
    assert drawn == [f"{number:02}_{store.settings.dataset}.png" for number in range(9)]
    assert [len(row["clips"]) for row in rows] == [3] * 11


def test_the_guess_scores_what_follows_from_the_rays(metrics, store):
    """Of the planes, seen with a focal length of one image width by cameras that move: worked out here again."""
    relative, hits = [], []
    for i in range(len(store)):
        truth = store[i].all_queries()
        ray = np.concatenate([truth["uv_norm"].astype(float) - 0.5, np.ones((300, 1))], axis=1)
        g = truth["xyz"].astype(float)
        s = np.median(np.linalg.norm(g, axis=1)) / np.median(np.linalg.norm(ray, axis=1))
        error = np.linalg.norm(s * ray - g, axis=1)
        relative.append(error / np.linalg.norm(g, axis=1))
        hits.append([(error <= threshold).mean() for threshold in (0.1, 0.3, 0.5, 1.0)])
    guess = metrics["scores"]["guess"]
    assert guess["median_relative_error"]["all"] == pytest.approx(np.median(relative), rel=1e-3)
    assert guess["apd"]["all"] == pytest.approx(np.mean(hits), abs=1e-3)
    visible = np.mean([store[i].all_queries()["visible"].mean() for i in range(len(store))])
    assert guess["visibility_accuracy"] == pytest.approx(visible)
    assert guess["queries"] == {"all": 900, "moving": 0}
    steps = [
        np.linalg.norm(np.diff(store[i].world_from_cam[[0, t], :3, 3], axis=0)) for i in range(3) for t in (1, 2, 3)
    ]
    assert guess["pose"] == {"rotation_degrees": 0, "translation": pytest.approx(np.median(steps), rel=1e-4)}


def test_an_untrained_model_scores_as_the_untrained_one(metrics):
    assert metrics["scores"]["trained"] == metrics["scores"]["untrained"]
    assert metrics["scores"]["trained"] != metrics["scores"]["guess"]


def test_the_model_is_asked_the_stored_questions(store, checkpoint):
    model, clip = checkpoints.load(checkpoint), store[1]
    truth = clip.all_queries()
    times = (torch.tensor(truth[name].astype(int))[None] for name in ("t_src", "t_tgt", "t_cam"))
    queries = Queries(torch.tensor(truth["uv_norm"])[None], *times)
    with torch.no_grad():
        expected = model(torch.tensor(clip.video)[None], torch.tensor([1.5]), queries)
    found = ask(model, clip.video, clip.aspect, truth)
    np.testing.assert_allclose(found.xyz, expected.xyz[0], atol=1e-5)
    np.testing.assert_array_equal(found.visible, expected.visible[0])
    path = recipes.cameras(model, torch.tensor(clip.video), aspect=1.5, reference=0).world_from_cam
    np.testing.assert_allclose(found.world_from_cam, path, atol=1e-4)


def test_several_stores_are_scored_together_and_apart(metrics, store, checkpoint, tmp_path):
    other = write_plane_store(tmp_path / "others", clips=4, queries=100, seed=5)
    found = evaluate("clips", model=checkpoint, data=[store.uri, other], out=str(tmp_path / "out"), clips=3)
    assert found["clips"] == 6
    assert found["stores"][store.uri] == metrics["scores"]
    assert found["scores"]["guess"]["queries"]["all"] == 3 * 300 + 3 * 200
    assert set(found["data"]) == {store.uri, other}


def test_scores_on_clips_of_training_come_with_a_warning(metrics, ray_cluster, store, tmp_path, capsys):
    assert metrics["trained_on"] == []
    held_out = write_plane_store(tmp_path / "held-out", clips=1, queries=100, seed=5)
    model = D4RT(ModelConfig.preset("tiny"))
    model.trained_on = frozenset({store.info["digest"]})
    checkpoint = str(checkpoints.save(model, tmp_path / "model"))
    found = evaluate("clips", model=checkpoint, data=[held_out, store.uri], out=str(tmp_path / "out"), clips=1)
    assert found["trained_on"] == [store.uri]
    assert f"warning: the model was trained on {store.uri}: these scores" in capsys.readouterr().out


def test_what_cannot_be_scored_is_refused(ray_cluster, store, checkpoint, tmp_path):
    long = write_plane_store(tmp_path / "long", clips=1, frames=6, queries=32)
    for data, options, message in (
        ([long], {}, r"6 frames, 64 x 64; this model takes up to 4, 64 x 64: convert with --frames 4"),
        ([str(tmp_path / "nothing")], {}, r"no store\.json in"),
        ([store.uri], {"clips": 0}, "--clips 0 must be at least 1"),
        ([], {}, "name at least one"),
        ([store.uri], {"out": str(tmp_path)}, "exists already and is not overwritten"),
        ([store.uri], {"model": str(tmp_path / "gone")}, r"config\.json does not exist"),
    ):
        request = {"model": checkpoint, "data": data, "out": str(tmp_path / "out")} | options
        with pytest.raises(ValueError, match=message):
            evaluate("clips", **request)
    assert not (tmp_path / "out").exists()
