"""Which clips come when, which stores go together, and that a clip is read as it is stored."""

import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from plane_store import write_plane_store

from model import ModelConfig
from pipelines.query_table import VALID_BITS
from pipelines.store.reader import open_different
from train.augment import Look
from train.clips import TIMES, batch_dtype, check_asked, check_target, find_clip, read_clip
from train.config import DataConfig, LossConfig
from train.mixture import CYCLE, MixturePlan, permuted
from train.stores import check_labels, open_mixture

MODEL = ModelConfig.preset("tiny")


def plan(weights=(5.0, 3.0, 1.0), lengths=(40, 7, 300), samples=(2, 3, 1), seed=0) -> MixturePlan:
    stores = tuple("abcdef"[: len(weights)])
    return MixturePlan(stores=stores, weights=weights, lengths=lengths, samples=samples, seed=seed)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_every_cycle_has_the_exact_shares():
    for cycle in (0, 3):
        drawn = Counter(plan().clip(cycle * CYCLE + i)[0] for i in range(CYCLE))
        assert drawn == {0: 556, 1: 333, 2: 111}  # 555.6, 333.3, 111.1: largest remainder


def test_an_epoch_sees_each_clip_once_and_the_next_takes_another_sample():
    visits = {store: [] for store in range(3)}
    for index in range(4 * CYCLE):
        store, clip, sample = plan().clip(index)
        visits[store].append((clip, sample))
    for store, (length, samples) in enumerate(zip((40, 7, 300), (2, 3, 1), strict=True)):
        epochs = [visits[store][i : i + length] for i in range(0, len(visits[store]) - length + 1, length)]
        for number, epoch in enumerate(epochs):
            assert sorted(clip for clip, _ in epoch) == list(range(length))
            assert {sample for _, sample in epoch} == {number % samples}
        orders = [[clip for clip, _ in epoch] for epoch in epochs]
        assert orders[0] != sorted(orders[0])
        assert all(a != b for a, b in pairwise(orders))


def test_the_plan_is_a_pure_function_of_seed_and_index():
    forward = [plan().clip(i) for i in range(500)]
    other = plan()
    assert [other.clip(i) for i in reversed(range(500))] == forward[::-1]
    assert [plan(seed=1).clip(i) for i in range(500)] != forward


def test_a_far_index_costs_no_more_than_a_near_one():
    huge = plan(lengths=(10**12, 7, 300))
    store, clip, _ = huge.clip(10**15)
    assert 0 <= clip < huge.lengths[store]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_permutation_is_one(length):
    images = [permuted(i, length, (1, 2, 3, 4, 5, 6)) for i in range(length)]
    assert sorted(images) == list(range(length))


def test_permutation_spreads_evenly():
    """Where clip 0 of 8 goes, over 4000 keys: every place about 500 times."""
    rng = np.random.default_rng(0)
    places = Counter(permuted(0, 8, tuple(rng.integers(0, 2**63, 6).tolist())) for _ in range(4000))
    assert all(abs(places[place] - 500) < 5 * np.sqrt(500) for place in range(8))


def test_unusable_weights_are_refused():
    with pytest.raises(ValueError, match=r"weight of b is below 1/1000"):
        plan(weights=(1.0, 1e-6, 1.0))
    with pytest.raises(ValueError, match=r"store b has no clips"):
        plan(lengths=(4, 0, 4))
    with pytest.raises(ValueError, match=r"weight of a \(-1.0\) must be positive"):
        DataConfig(mixture={"a": -1.0})


# --- stores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("stores")
    first = write_plane_store(folder / "first", clips=8, dataset="kubric", seed=1, video="zstd")
    return {first: 2.0, write_plane_store(folder / "second", clips=5, dataset="scannet", seed=2, video="zstd"): 1.0}


def data(stores, **changes) -> DataConfig:
    return DataConfig(**{"mixture": stores, "queries": 100, "clips_per_worker": 3, "augment": False} | changes)


def test_stores_that_do_not_fit_are_refused_by_name(stores, tmp_path):
    first = next(iter(stores))

    def refused(match, model=MODEL, **changes):
        with pytest.raises(ValueError, match=match):
            open_mixture(data(stores, **changes), model, 0)

    refused("data.mixture is empty", mixture={})
    refused(f"no store.json in {tmp_path}/none", mixture={f"{tmp_path}/none": 1.0})
    refused(f"{first} has frames of 64 pixels, the model takes 128", dataclasses.replace(MODEL, image_size=128))
    refused(f"{first} has clips of 4 frames, the model takes at most 2", dataclasses.replace(MODEL, clip_frames=2))
    refused(f"{first} holds 128 queries per sample, --data.queries asks for 129", queries=129)
    short = write_plane_store(tmp_path / "short", clips=1, frames=2)
    refused(f"{short} has clips of 2 frames, store {first} of 4", mixture={first: 1.0, short: 1.0})


def test_a_clip_arrives_as_stored(stores):
    plan, opened = open_mixture(data(stores), MODEL, 0)
    number, clip_number, sample = plan.clip(7)
    clip = opened[number][clip_number]
    got, stored = read_clip(find_clip(plan, 7), 128), clip.queries(sample)
    np.testing.assert_array_equal(got["video"], clip.video)
    assert (got["store"], got["aspect"]) == (number, 1.5)
    for name, values in stored.items():
        if name != "uv_tgt":
            np.testing.assert_array_equal(got[name], values, err_msg=name)
    known = stored["valid"] & VALID_BITS["uv_tgt"] > 0
    np.testing.assert_array_equal(got["uv_tgt"][known], stored["uv_tgt"][known])
    assert not known.all() and not got["uv_tgt"][~known].any()  # unknown targets are 0


def test_a_subset_of_the_queries_is_drawn_at_random_and_repeatably(stores):
    plan, opened = open_mixture(data(stores), MODEL, 0)
    number, clip_number, sample = plan.clip(7)
    stored = {tuple(uv) for uv in opened[number][clip_number].queries(sample)["uv_norm"]}
    first, again = (read_clip(find_clip(plan, 7), 100) for _ in range(2))
    np.testing.assert_array_equal(first["uv_norm"], again["uv_norm"])
    drawn = {tuple(uv) for uv in first["uv_norm"]}
    assert len(drawn) == 100 and drawn < stored


def test_augmented_pixels_and_drawn_queries_follow_from_seed_and_clip_number_alone(stores):
    plan, opened = open_mixture(data(stores), MODEL, 0)
    looks = set()
    for index in (7, 8, 3):
        got, again = (read_clip(find_clip(plan, index), 100, augment=True) for _ in range(2))
        plain = read_clip(find_clip(plan, index), 100)
        number, clip_number, _ = plan.clip(index)
        rng = np.random.default_rng([plan.seed, index])
        rng.choice(128, 100, replace=False)
        look = Look.random(rng)
        looks.add(look)
        np.testing.assert_array_equal(got["video"], look.apply(opened[number][clip_number].video))
        np.testing.assert_array_equal(got["video"], again["video"])
        assert (got["video"] != plain["video"]).any()
        for name in plain.keys() - {"video"}:
            np.testing.assert_array_equal(got[name], plain[name], err_msg=name)
    assert len(looks) == 3


def test_a_store_without_a_useful_label_is_refused_by_name(stores, tmp_path):
    def check(loss=LossConfig(), queries=100, **known_of):  # noqa: B008
        made = {}
        for dataset, known in known_of.items():
            uri = tmp_path / f"{dataset}_{'_'.join(known)}"
            if not uri.exists():
                write_plane_store(uri, clips=3, dataset=dataset, known=known)
            made[str(uri)] = 1.0
        config = data({**stores, **made}, queries=queries)
        check_labels(open_mixture(config, MODEL, 0)[1], config, loss)

    for label in VALID_BITS:
        if label != "displacement":
            check(tartanair=(label,))
    check(tartanair=("displacement",), loss=LossConfig(displacement_norm="metric"))
    with pytest.raises(
        ValueError, match=r"tartanair has no label that loss.* at most 0 points .* nothing of uv_tgt, vis"
    ):
        check(tartanair=("displacement",))  # in units of a scale that points would give
    with pytest.raises(
        ValueError, match=r"dataset tartanair has no label .* in 3 clips nothing of uv_tgt, visible, normal"
    ):
        check(tartanair=())
    with pytest.raises(ValueError, match=r"dataset co3d has no label .* nothing of visible, normal; leave it out"):
        check(tartanair=("xyz",), co3d=("uv_tgt",), loss=LossConfig(l2d=0.0))
    check(co3d=("xyz",), loss=LossConfig(l3d=0.0, ldepth=1.0))
    check(co3d=("xyz", "displacement"), loss=LossConfig(l3d=0.0))
    with pytest.raises(
        ValueError, match=r"co3d has no label .* at most 100 points .* nothing of uv_tgt, visible, disp"
    ):
        check(co3d=("xyz",), loss=LossConfig(l3d=0.0))
    check(co3d=("xyz",), queries=16)


def test_reweighting_an_unknown_dataset_is_refused(stores):
    opened = open_mixture(data(stores), MODEL, 0)[1]
    check_labels(opened, data(stores), LossConfig(dynamic_reweight={"kubric": "median"}))
    with pytest.raises(ValueError, match=r"names kubrik, but the stores of data.mixture hold kubric, scannet"):
        check_labels(opened, data(stores), LossConfig(dynamic_reweight={"kubrik": "median"}))


def test_targets_that_cannot_be_true_are_refused():
    inside = np.array([[0.0, 0.5], [1.0, 0.2]], np.float32)
    check_target("uv_tgt", inside, "kubric")
    with pytest.raises(ValueError, match=r"dataset kubric.*uv_tgt runs from 0 to 64 .* must lie in \[0, 1\]"):
        check_target("uv_tgt", inside * 64, "dataset kubric")
    with pytest.raises(ValueError, match="dataset kubric: xyz is not finite"):
        check_target("xyz", np.full((2, 3), np.nan), "dataset kubric")
    with pytest.raises(ValueError, match="dataset kubric: normal is not of unit length"):
        check_target("normal", np.full((2, 3), 0.7), "dataset kubric")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("uv_norm", 1.01, r"uv_norm runs from 0.5 to 1.01; it must lie in \[0, 1\]"),
        ("uv_norm", -0.01, r"uv_norm runs from -0.01 to 0.5"),
        ("uv_norm", np.nan, r"uv_norm runs from nan"),
        ("t_src", 4, "t_src has 4, but the clip has 4 frames: times run from 0 to 3"),
        ("t_tgt", 200, "t_tgt has 200"),
        ("t_cam", 4, "t_cam has 4"),
    ],
)
def test_a_question_about_no_frame_of_the_clip_is_refused(name, value, words):
    """The model is not asked again: it would answer, about another frame."""
    queries = {"uv_norm": np.full((3, 2), 0.5, np.float32)} | {t: np.arange(1, 4, dtype=np.uint8) for t in TIMES}
    check_asked(queries, 4, "clip 7")
    queries[name][-1:] = value
    with pytest.raises(ValueError, match=f"clip 7: {words}"):
        check_asked(queries, 4, "clip 7")


@pytest.mark.parametrize("frames", [4, 300])
def test_a_batch_in_memory_has_room_for_what_a_clip_is(tmp_path, frames):
    store = write_plane_store(tmp_path / "planes", clips=1, frames=frames, size=16, queries=16, samples=1)
    long = dataclasses.replace(MODEL, image_size=16, patch_size=8, clip_frames=frames)
    plan, (opened,) = open_mixture(data({store: 1.0}, queries=16), long, 0)
    clip = read_clip(find_clip(plan, 0), 16)
    (place,) = np.zeros(1, batch_dtype(1, 16, opened.settings))
    assert set(place.dtype.names) == set(clip)
    for name, values in clip.items():
        assert place[name].shape[1:] == np.shape(values)
        assert place[name].dtype == np.asarray(values).dtype or name == "store"


def test_the_same_store_counts_once_however_it_is_spelt(tmp_path):
    write_plane_store(tmp_path / "a", clips=2, queries=64)
    write_plane_store(tmp_path / "b", clips=2, queries=64, seed=1)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert len(open_different([f"{tmp_path}/a/", f"{tmp_path}/b"])) == 2
    for other in (f"{tmp_path}/a/", f"{tmp_path}/b/../a", f"{tmp_path}/link", f"{tmp_path}/a"):
        with pytest.raises(ValueError, match=r"holds the same clips as .*: name them once"):
            open_different([f"{tmp_path}/a", f"{tmp_path}/b", other])
