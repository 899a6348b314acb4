"""What `diagnose` says: its numbers against closed forms, and its words on models that were spoilt on purpose."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from plane_store import write_plane_store

from model import D4RT, ModelConfig, checkpoints
from model.confidence import Calibration
from pipelines.evaluation.tally import WITHIN
from pipelines.query_table import VALID_BITS
from pipelines.store.reader import ClipStore
from train.__main__ import main
from train.diagnose import numbers, rows

MODEL = replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1)
QUERIES = 80


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ClipStore:
    """One sample per clip, so that all its queries are asked."""
    place = tmp_path_factory.mktemp("diagnose") / "planes"
    return ClipStore(write_plane_store(place, clips=3, queries=QUERIES, samples=1, dataset="walls"))


def fresh() -> D4RT:
    torch.manual_seed(0)
    return D4RT(MODEL).eval()


@torch.no_grad()
def constant(xyz, confidence_logit: float) -> D4RT:
    """Answers the same to everything: this point, uv_tgt (0.2, 0.6), visible with one half, no motion, normal +x."""
    model = fresh()
    model.heads.weight.zero_()
    model.heads.bias.copy_(torch.tensor([*xyz, 0.2, 0.6, 0.0, 0, 0, 0, 1, 0, 0, confidence_logit]))
    return model


def truths(store: ClipStore) -> list[dict[str, np.ndarray]]:
    return [{name: values.astype(float) for name, values in store[i].all_queries().items()} for i in range(len(store))]


def signed_log(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.log1p(np.abs(x))


def words(table) -> dict[str, str]:
    return {name: bad for name, _, bad in table}


def test_errors_are_those_of_the_formulas(store):
    """Of a constant answer, (1, 2, 4): its mean |z| is 4. Every number once more, from the stored queries."""
    found = numbers(constant((1.0, 2.0, 4.0), 0.0), store.uri, count=3)
    position, projection, visibility, normal = [], [], [], []
    for truth in truths(store):
        g = truth["xyz"] / np.abs(truth["xyz"][:, 2]).mean()
        position.append(np.abs(signed_log(np.array([0.25, 0.5, 1])) - signed_log(g)).mean(1))
        inside = truth["valid"].astype(int) & VALID_BITS["uv_tgt"] > 0
        projection.append(np.abs(np.array([0.2, 0.6]) - truth["uv_tgt"])[inside].mean(1))
        visibility.append(np.full(QUERIES, np.log(2)))
        normal.append(1 - truth["normal"][:, 0])
    for term, values in (("l3d", position), ("l2d", projection), ("lvis", visibility), ("lnormal", normal)):
        assert found[f"error/{term}"] == pytest.approx(np.concatenate(values).mean(), rel=1e-4), term
    assert found["error/ldisp"] == 0
    assert found["confidence"] == pytest.approx(0.5)
    assert found["masked/l2d"] == pytest.approx(1 - len(np.concatenate(projection)) / (3 * QUERIES))
    assert found["masked/l3d"] == found["masked/lnormal"] == 0


def test_trivial_answers_are_those_of_the_formulas(store):
    """Depth 1 on the ray of a camera whose focal length is one image width; and what needs no camera."""
    found = numbers(fresh(), store.uri, count=3)
    position, projection, normal, seen = [], [], [], []
    for truth in truths(store):
        g = truth["xyz"] / np.abs(truth["xyz"][:, 2]).mean()
        ray = np.concatenate([truth["uv_norm"] - 0.5, np.ones((QUERIES, 1))], axis=1)
        position.append(np.abs(signed_log(ray) - signed_log(g)).mean(1))
        inside = truth["valid"].astype(int) & VALID_BITS["uv_tgt"] > 0
        projection.append(np.abs(truth["uv_norm"] - truth["uv_tgt"])[inside].mean(1))
        normal.append(1 + truth["normal"][:, 2])
        seen.append(truth["visible"])
    for term, values in (("l3d", position), ("l2d", projection), ("lnormal", normal)):
        assert found[f"trivial/{term}"] == pytest.approx(np.concatenate(values).mean(), rel=1e-3), term
    p = np.mean(seen)
    assert 0 < p < 1
    assert found["trivial/lvis"] == pytest.approx(-p * np.log(p) - (1 - p) * np.log(1 - p), rel=1e-3)
    assert found["trivial/ldisp"] == 0


def test_a_collapsed_model_is_found(store):
    bad = words(rows(numbers(constant((0.0, 0.0, 1.0), -8.0), store.uri, count=3)))
    assert bad["spread"] == bad["depth"] == "variance collapse: the answers hardly differ"
    assert bad["confidence"] == "confidence collapse: no answer is trusted"
    assert bad["gradient"] == "nothing to learn from in encoder, aspect_proj, query_embedder, decoder"
    assert bad["projection"] == bad["normal"] == "no better than the trivial answer"
    assert bad["displacement"] == ""  # nothing moves here, and that is what it says


def test_a_model_that_is_not_collapsed_is_not_blamed_for_it(store):
    bad = words(rows(numbers(fresh(), store.uri, count=3)))
    assert "collapse" not in "".join(bad.values())
    assert bad["gradient"] == "" and bad["loss"] == ""
    assert bad["position"] == "no better than the trivial answer"  # it has learnt nothing yet
    assert bad["confidence"] == "says nothing about the error"


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        (("xyz", "uv_tgt", "visible", "displacement"), {"normal"}),
        (("uv_tgt", "visible"), {"position", "displacement", "normal"}),
    ],
)
def test_a_term_without_valid_entries_is_named(tmp_path, known, missing):
    place = write_plane_store(tmp_path / "planes", clips=2, queries=QUERIES, known=known)
    table = rows(numbers(fresh(), place, count=2))
    assert {name for name, bad in words(table).items() if bad.startswith("no valid entries")} == missing
    assert {name for name, values, _ in table if "masked 100.0%" in values} == missing
    if "position" in missing:  # nothing is said about what nothing is known of
        assert {words(table)[name] for name in ("spread", "depth", "confidence")} == {""}


def test_answers_that_are_no_numbers_are_no_good(store):
    bad = words(rows(numbers(constant((float("nan"), 0.0, 1.0), 0.0), store.uri, count=1)))
    assert bad["position"] == "no better than the trivial answer"
    assert bad["gradient"].startswith("nothing to learn from in")


def test_gradients_of_all_clips_are_added(store):
    """The heads' bias by finite differences of the loss, here only of visibility: one number out of thirteen."""
    model = constant((1.0, 2.0, 4.0), 0.0)
    numbers(model, store.uri, count=3)
    p = np.mean([truth["visible"] for truth in truths(store)])
    assert model.heads.bias.grad[5].item() == pytest.approx(0.1 * (0.5 - p), rel=1e-3)  # d/dx of 0.1 BCE(x) at 0


def test_calibration_is_judged_by_the_share_of_points_within_the_errors_it_tells(store):
    """One answer to everything, (0, 0, 4): its errors are known, and so how many are below 0.1, 0.3 and 0.9."""
    model = constant((0.0, 0.0, 4.0), 0.0)
    assert "none; see" in dict(row[:2] for row in rows(numbers(model, store.uri, count=3)))["calibration"]
    model.calibration = Calibration((0.0,), ((0.1,), (0.3,), (0.9,)))
    found = numbers(model, store.uri, count=3)
    errors = []
    for truth in truths(store):
        answer = np.array([0, 0, np.median(np.linalg.norm(truth["xyz"], axis=1))])
        errors.append(np.linalg.norm(answer - truth["xyz"], axis=1) / np.linalg.norm(truth["xyz"], axis=1))
    shares = [(np.concatenate(errors) <= bound).mean() for bound in (0.1, 0.3, 0.9)]
    assert [found[name] for name in WITHIN] == pytest.approx(shares)
    off = max(abs(np.array(shares) - [0.5, 0.8, 0.95])) > 0.1
    assert (words(rows(found))["calibration"] != "") == off
    assert found["confidence"] == pytest.approx(0.5, abs=1e-4)  # 0.1 / (0.1 + 0.1)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_per_store(store, tmp_path, capsys):
    folder = checkpoints.save(constant((0.0, 0.0, 1.0), -8.0), tmp_path / "collapsed")
    other = write_plane_store(tmp_path / "others", clips=1, queries=QUERIES)
    assert main(["diagnose", "--model", str(folder), "--data", store.uri, other, "--clips", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.index(store.uri) < printed.index("!! variance collapse") < printed.index(other)
    assert printed.count("!! variance collapse") == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model {tmp}/gone --data {store}", "config.json does not exist"),
        ("--model {tmp}/model --data {tmp}/gone", "no store.json in"),
        ("--model {tmp}/model --data {tmp}/long", "6 frames, 64 x 64; this model takes up to 4, 64 x 64"),
        ("--model {tmp}/model --data {store} --clips 0", "--clips 0 must be at least 1"),
    ],
)
def test_bad_input_is_refused_with_advice(words, message, store, tmp_path, capsys):
    checkpoints.save(fresh(), tmp_path / "model")
    write_plane_store(tmp_path / "long", clips=1, frames=6, queries=32)
    assert main(["diagnose", *words.format(tmp=tmp_path, store=store.uri).split()]) == 2
    assert message in capsys.readouterr().err
