"""Which clips come when, and that they arrive as stored: the plan by itself, then through the real Ray Data."""

import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from plane_store import cut_chunks, write_plane_store
from train.batches import check_labels, open_mixture, read_clip, worker_batches

from model import ModelConfig
from pipelines.query_table import FLAG_BITS, VALID_BITS
from pipelines.store.reader import ClipStore
from train import batches
from train.augment import Look
from train.config import DataConfig, LossConfig
from train.mixture import CYCLE, MixturePlan, permuted

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
    refused(f"{first} holds 128 queries per sample, data.queries asks for 129", queries=129)
    short = write_plane_store(tmp_path / "short", clips=1, frames=2)
    refused(f"{short} has clips of 2 frames, store {first} of 4", mixture={first: 1.0, short: 1.0})


def test_a_clip_arrives_as_stored(stores):
    plan, opened = open_mixture(data(stores), MODEL, 0)
    number, clip_number, sample = plan.clip(7)
    clip = opened[number][clip_number]
    got, stored = read_clip(plan, 7, 128), clip.queries(sample)
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
    first, again = (read_clip(plan, 7, 100) for _ in range(2))
    np.testing.assert_array_equal(first["uv_norm"], again["uv_norm"])
    drawn = {tuple(uv) for uv in first["uv_norm"]}
    assert len(drawn) == 100 and drawn < stored


def test_augmented_pixels_and_drawn_queries_follow_from_seed_and_clip_number_alone(stores):
    plan, opened = open_mixture(data(stores), MODEL, 0)
    looks = set()
    for index in (7, 8, 3):
        got, again = (read_clip(plan, index, 100, augment=True) for _ in range(2))
        plain = read_clip(plan, index, 100)
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
    batches.check_target("uv_tgt", inside, "kubric")
    with pytest.raises(ValueError, match=r"dataset kubric.*uv_tgt runs from 0 to 64 .* must lie in \[0, 1\]"):
        batches.check_target("uv_tgt", inside * 64, "dataset kubric")
    with pytest.raises(ValueError, match="dataset kubric: xyz is not finite"):
        batches.check_target("xyz", np.full((2, 3), np.nan), "dataset kubric")
    with pytest.raises(ValueError, match="dataset kubric: normal is not of unit length"):
        batches.check_target("normal", np.full((2, 3), 0.7), "dataset kubric")


# --- Ray Data --------------------------------------------------------------------------------------------------------


def read_stream(config, steps, rank=0, world=1, first_clip=0):
    plan, opened = open_mixture(config, MODEL, 0)
    place = {"steps": steps, "first_clip": first_clip, "rank": rank, "world": world}
    return list(worker_batches(config, plan, opened, **place, reader_cpus=0.5))


def assert_equal(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, field.name


def test_stream_follows_the_plan(stores, ray_cluster, recwarn, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_BYTES", 4 * 60_000)  # a block and a step do not end together,
    monkeypatch.setattr(batches, "SEGMENT_BYTES", 0)  # and several segments are chained
    config = data(stores, augment=True)
    plan, opened = open_mixture(config, MODEL, 0)
    found = {rank: read_stream(config, range(9), rank, world=2) for rank in (0, 1)}
    assert not [w for w in recwarn if "writable" in str(w.message)]
    for rank, batch_list in found.items():
        assert len(batch_list) == 9
        for step, batch in enumerate(batch_list):
            for slot in range(3):
                index = (step * 2 + rank) * 3 + slot
                number, clip_number, _ = plan.clip(index)
                clip, expected = opened[number][clip_number], read_clip(plan, index, 100, augment=True)
                assert batch.datasets[batch.dataset[slot]] == clip.dataset
                np.testing.assert_array_equal(batch.video[slot], expected["video"])
                for name in ("uv_norm", "t_src", "t_tgt", "t_cam", "xyz", "uv_tgt", "visible", "normal"):
                    np.testing.assert_array_equal(getattr(batch, name)[slot], expected[name], err_msg=name)
                for name, bit in VALID_BITS.items():
                    known = expected["valid"] & bit > 0
                    np.testing.assert_array_equal(getattr(batch, f"{name}_valid")[slot], known)
                np.testing.assert_array_equal(batch.edge[slot], expected["flags"] & FLAG_BITS["edge"] > 0)
                assert not batch.dynamic[slot].any()
    # Starting at a later step gives what would have come there.
    for resumed, straight in zip(read_stream(config, range(4, 9), 1, 2, first_clip=24), found[1][4:], strict=True):
        assert_equal(resumed, straight)
    # Alone from there on, a worker gets what both would have got, one after the other.
    for number, batch in enumerate(read_stream(config, range(4, 7), first_clip=24)):
        assert_equal(batch, found[number % 2][4 + number // 2])


def test_stream_of_a_damaged_store_says_which_clip(stores, ray_cluster, tmp_path):
    broken = write_plane_store(tmp_path / "broken", clips=2, video="zstd")
    cut_chunks(broken, "video")
    assert len(ClipStore(broken)) == 2
    with pytest.raises(Exception, match=r"video of clip plane000\d@0x1 in .*broken.* cannot be read"):
        read_stream(data({broken: 1.0}), range(1))
