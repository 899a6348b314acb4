"""What a confidence stands for: the loss that teaches it, and the calibration that counts it, against closed forms."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from plane_store import write_plane_store
from scipy.stats import norm, spearmanr
from test_losses import NO_WARMUP, random_batch, random_prediction

from model import D4RT, ModelConfig, Queries, checkpoints
from model.confidence import EVEN_ERROR, SHARES, Calibration
from pipelines.evaluation.calibration import fit, rank_correlation
from pipelines.evaluation.tally import WITHIN, Pairs
from pipelines.models import load_model, model_digest
from pipelines.store.reader import ClipStore
from train import losses
from train.__main__ import main
from train.config import PRESETS, LossConfig
from train.diagnose import numbers

PAPER = LossConfig(confidence="paper", confidence_warmup_steps=0)
TINY = dataclasses.replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1)
TABLE = Calibration((-2.0, 0.0, 1.0), ((0.4, 0.2, 0.05), (0.8, 0.3, 0.1), (1.6, 0.9, 0.1)))


# --- the loss --------------------------------------------------------------------------------------------------------


def test_relative_error_is_that_of_the_evaluation():
    """Distance by the true distance, after the clip's median scale; over known points, at any scale of the answers."""
    batch, prediction = random_batch(), random_prediction()
    batch.xyz[:] = torch.randn(batch.xyz.shape, generator=torch.Generator().manual_seed(2))
    batch.xyz_valid[:, :27] = True
    batch.xyz_valid[:, 27:] = False  # an odd number: one median
    for factor in (1.0, 40.0):
        found = losses.relative_error(dataclasses.replace(prediction, xyz=factor * prediction.xyz), batch)
        for i in range(len(found)):
            p, g = prediction.xyz[i, :27].double().numpy(), batch.xyz[i, :27].double().numpy()
            p = p * np.median(np.linalg.norm(g, axis=1)) / np.median(np.linalg.norm(p, axis=1))
            expected = np.linalg.norm(p - g, axis=1) / np.linalg.norm(g, axis=1)
            np.testing.assert_allclose(found[i, :27].numpy(), expected, rtol=1e-4)


def test_the_term_is_smallest_where_confidence_stands_for_the_median_error():
    """Errors of three sizes, lognormal about 0.02, 0.2 and 2, and one logit for each: c = 0.1 / (0.1 + median)."""
    rng, medians = np.random.default_rng(0), np.array([0.02, 0.2, 2.0])
    size = rng.integers(3, size=3000)
    errors = torch.tensor(medians[size] * np.exp(0.7 * rng.normal(size=3000)), dtype=torch.float32)[None]
    logits = torch.zeros(3, requires_grad=True)
    prediction, batch = random_prediction(clips=1, queries=3000), random_batch(clips=1, queries=3000)

    def term() -> torch.Tensor:
        said = dataclasses.replace(prediction, confidence_logit=logits[size][None])
        return losses.doubt_error(said, batch).mean()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "relative_error", lambda *_: errors)
        optimiser = torch.optim.Adam([logits], lr=0.05)
        for _ in range(300):
            optimiser.zero_grad()
            term().backward()
            optimiser.step()
    np.testing.assert_allclose(logits.detach().sigmoid(), EVEN_ERROR / (EVEN_ERROR + medians), rtol=0.1)


def test_confidence_changes_nothing_about_how_positions_are_learnt():
    batch, prediction = random_batch(), random_prediction()
    prediction.xyz.requires_grad_(), prediction.confidence_logit.requires_grad_()
    terms = losses.loss_terms(prediction, batch, NO_WARMUP, 10_000)
    error = losses.point_error(prediction, batch, losses.clip_scales(prediction, batch, NO_WARMUP), NO_WARMUP)
    assert torch.equal(terms["l3d"][0], error)
    (of_position,) = torch.autograd.grad(terms["lconf"][0].sum(), prediction.xyz, allow_unused=True)
    assert of_position is None
    (of_logit,) = torch.autograd.grad(terms["lconf"][0][terms["lconf"][1]].sum(), prediction.confidence_logit)
    assert of_logit.abs().max() == 1


def test_the_papers_term_is_an_option_and_openD4RTs():
    batch, prediction = random_batch(), random_prediction()
    terms = losses.loss_terms(prediction, batch, PAPER, 0)
    error = losses.point_error(prediction, batch, losses.clip_scales(prediction, batch, PAPER), PAPER)
    torch.testing.assert_close(terms["l3d"][0], prediction.confidence * error)
    torch.testing.assert_close(terms["lconf"][0], -prediction.confidence.log())
    assert {name: config.loss.confidence for name, (_, config) in PRESETS.items()} == {
        **dict.fromkeys(("tiny", "small", "base", "large", "huge", "giant"), "error"),
        "opend4rt-refine": "paper",
    }


def test_a_moving_point_keeps_its_confidence_under_dynamic_reweight():
    batch, prediction = random_batch(queries=128), random_prediction(queries=128)
    config = LossConfig(dynamic_reweight={"kubric": "median"}, max_weight=3.0)
    reweighted, plain = (losses.loss_terms(prediction, batch, c, 0) for c in (config, LossConfig()))
    ratio = reweighted["l3d"][0] / plain["l3d"][0]
    assert set(ratio.round(decimals=4).unique().tolist()) == {1.0, 3.0}
    assert torch.equal(reweighted["lconf"][0], plain["lconf"][0])


# --- the table -------------------------------------------------------------------------------------------------------


def test_between_two_logits_the_logarithm_of_the_error_is_interpolated():
    applied = TABLE.apply(torch.tensor([[-9.0, -2.0, -1.0, 0.0, 1.0, 9.0]]))
    b = np.array([[0.4, 0.4, np.sqrt(0.08), 0.2, 0.05, 0.05]])
    np.testing.assert_allclose(applied.sigmoid(), EVEN_ERROR / (EVEN_ERROR + b), rtol=1e-5)
    np.testing.assert_allclose(TABLE.error(applied, 0.5), b, rtol=1e-5)
    np.testing.assert_allclose(TABLE.error(applied, 0.8), [[0.8, 0.8, np.sqrt(0.24), 0.3, 0.1, 0.1]], rtol=1e-5)
    assert TABLE.apply(torch.tensor(float("nan"))).isnan()
    one = Calibration((0.5,), ((0.1,), (0.2,), (0.3,)))
    np.testing.assert_allclose(one.error(one.apply(torch.tensor([-3.0, 4.0])), 0.95), [0.3, 0.3], rtol=1e-6)


def test_coverage_of_answers_of_known_noise_is_exact():
    """Errors b * |z|, z normal, b known from the logit up to a power and a factor that the calibration has to find."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        logits = rng.normal(size=count)
        return logits, 0.3 * np.exp(-0.6 * logits) * np.abs(rng.normal(size=count))

    logits, errors = draw(60_000)
    table = fit(logits, errors)
    unseen, true = draw(60_000)
    applied = table.apply(torch.tensor(unseen, dtype=torch.float32))
    for share in SHARES:
        told = table.error(applied, share).numpy()
        for part in (slice(None), unseen > 1, unseen < -1):
            assert (true <= told)[part].mean() == pytest.approx(share, abs=0.02)
        inner = np.abs(unseen) < 1.5
        expected = 0.3 * np.exp(-0.6 * unseen) * norm.ppf((1 + share) / 2)
        np.testing.assert_allclose(told[inner], expected[inner], rtol=0.2)


def test_confidences_that_do_not_rank_become_one():
    """Where more confident answers are worse, the best that can be said of them is the same."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    errors = 0.1 * np.exp(0.5 * logits + 0.3 * rng.normal(size=20_000))
    table = fit(logits, errors)
    assert len(table.logits) == 1
    assert table.errors[0][0] == pytest.approx(0.1, rel=0.05)
    constant = fit(np.zeros(500), errors[:500])
    assert len(constant.logits) == 1
    assert fit(logits[:50], errors[:50]) is None


def test_rank_correlation_is_spearmans_and_a_sample_of_many_answers_is_fair():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=50_000).round(1)
    errors = np.exp(-logits + rng.normal(size=50_000))
    errors[:4] = 0, np.inf, 1e-12, 1e12
    expected = spearmanr(logits, errors).statistic
    assert rank_correlation(logits, errors) == pytest.approx(expected, abs=1e-9)
    assert rank_correlation(np.zeros(9), errors[:9]) is rank_correlation(errors[:0], errors[:0]) is None

    def sample(order: np.ndarray) -> Pairs:
        pairs = Pairs()
        for part in np.array_split(order, 7):
            pairs.add(logits[part], errors[part])
        return pairs

    pairs = sample(np.arange(50_000))
    assert len(pairs.mixed) == 1 << 13
    assert np.array_equal(sample(rng.permutation(50_000)).mixed, pairs.mixed)
    assert rank_correlation(*pairs.values()) == pytest.approx(expected, abs=0.02)
    few = Pairs()
    few.add(logits[:100], errors[:100])
    for kept, given in zip(few.values(), (logits, errors), strict=True):
        assert np.array_equal(np.sort(kept), np.sort(given[:100].astype(np.float32)))


# --- kept with the weights --------------------------------------------------------------------------------------------


def fresh() -> D4RT:
    torch.manual_seed(0)
    return D4RT(TINY).eval()


def ask(model: D4RT):
    times = torch.zeros(1, 5, dtype=torch.int64)
    video = torch.zeros(1, 4, 64, 64, 3, dtype=torch.uint8)
    with torch.no_grad():
        return model(video, torch.ones(1), Queries(torch.rand(1, 5, 2), times, times, times))


def test_a_checkpoint_keeps_it_and_answers_have_it(tmp_path):
    model = fresh()
    torch.manual_seed(1)
    raw = ask(model)
    before = model_digest(model)
    model.calibration = TABLE
    loaded = checkpoints.load(checkpoints.save(model, tmp_path))
    assert loaded.calibration == TABLE and checkpoints.calibration(tmp_path) == TABLE
    assert model_digest(loaded) == model_digest(model) != before
    torch.manual_seed(1)
    calibrated = ask(loaded)
    torch.testing.assert_close(calibrated.confidence_logit, TABLE.apply(raw.confidence_logit))
    assert torch.equal(calibrated.xyz, raw.xyz)
    checkpoints.save(fresh(), tmp_path)
    assert checkpoints.load(tmp_path).calibration is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1, 2]",
        json.dumps({"logits": [0]}),
        json.dumps({"logits": [], "errors": [[], [], []]}),
        json.dumps({"logits": [0, 0], "errors": [[0.2, 0.1]] * 3}),
        json.dumps({"logits": [0, 1], "errors": [[0.2, 0.1]] * 2}),
        json.dumps({"logits": [0, 1], "errors": [[0.1, 0.2]] * 3}),
        json.dumps({"logits": [0, 1], "errors": [[0.2, 0.1], [0.1, 0.1], [0.3, 0.3]]}),
        json.dumps({"logits": [0, 1], "errors": [[0.2, 0.0]] * 3}),
        '{"logits": [NaN], "errors": [[1], [1], [1]]}',
        json.dumps({"logits": list(range(2000)), "errors": [list(range(2000, 0, -1))] * 3}),
        "[" * 100_000,
    ],
)
def test_a_damaged_one_is_refused(text, tmp_path, monkeypatch):
    model = fresh()
    model.calibration = TABLE
    monkeypatch.setattr(Calibration, "to_json", lambda self: text)
    checkpoints.save(model, tmp_path)
    with pytest.raises(ValueError, match=r"weights\.safetensors: "):
        checkpoints.load(tmp_path)


def test_register_counts_it_on_other_scenes_and_the_registered_model_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COLUMNS", "300")
    place = write_plane_store(tmp_path / "planes", clips=6, queries=80, samples=1, dataset="walls")
    checkpoints.save(fresh(), tmp_path / "model")
    words = f"register --checkpoint {tmp_path}/model --calibrate-on {place}"
    assert main(words.split()) == 0
    model = load_model("models:/d4rt@champion")
    assert model.calibration is not None
    found = numbers(model, place, count=6)
    assert [found[name] for name in WITHIN] == pytest.approx(SHARES, abs=0.03)
    assert main(f"{words} --calibrate-on {tmp_path}/gone".split()) == 2
    learnt = fresh()
    learnt.trained_on = frozenset({ClipStore(place).info["digest"]})
    checkpoints.save(learnt, tmp_path / "model")
    capsys.readouterr()
    assert main(words.split()) == 2
    assert "is among the stores that" in capsys.readouterr().err
    assert main(f"register --opend4rt a --config b --calibrate-on {place}".split()) == 2
    assert "register it first" in capsys.readouterr().err
