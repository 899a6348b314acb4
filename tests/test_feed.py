"""What a training worker is fed, by real processes: the right clips in order, whoever of those that read them dies."""

import dataclasses
import os
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from plane_store import cut_chunks, write_plane_store

from model import ModelConfig
from pipelines.query_table import FLAG_BITS, VALID_BITS
from train.clips import find_clip, read_clip
from train.config import DataConfig
from train.feed import AHEAD, IN_USE, TRIES, Feed
from train.query_batch import QueryBatch
from train.resources import largest_share
from train.stores import open_mixture

MODEL = ModelConfig.preset("tiny")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("stores")
    first = write_plane_store(folder / "first", clips=8, dataset="kubric", seed=1, video="zstd")
    return {first: 2.0, write_plane_store(folder / "second", clips=5, dataset="scannet", seed=2, video="zstd"): 1.0}


def data(stores, **changes) -> DataConfig:
    return DataConfig(**{"mixture": stores, "queries": 100, "clips_per_worker": 3} | changes)


def open_feed(config: DataConfig, readers=1, **changes) -> Feed:
    plan, opened = open_mixture(config, MODEL, 0)
    return Feed(config, plan, opened, readers=readers, **changes)


def copied(batches) -> list[QueryBatch]:
    """What is given is written over later."""
    return [batch.map(torch.clone) for batch in batches]


def read(config, steps, rank=0, world=1, first_clip=0, **changes) -> list[QueryBatch]:
    with open_feed(config, **changes) as feed:
        return copied(feed.batches(steps=steps, first_clip=first_clip, rank=rank, world=world))


def assert_equal(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, field.name


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=30)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_batches_follow_the_plan(stores):
    config = data(stores)
    plan, opened = open_mixture(config, MODEL, 0)
    found = {rank: read(config, range(9), rank, world=2, readers=1 + rank) for rank in (0, 1)}
    for rank, batches in found.items():
        assert len(batches) == 9
        for step, batch in enumerate(batches):
            for slot in range(3):
                index = (step * 2 + rank) * 3 + slot
                number, clip_number, _ = plan.clip(index)
                clip, expected = opened[number][clip_number], read_clip(find_clip(plan, index), 100, augment=True)
                assert batch.datasets[batch.dataset[slot]] == clip.dataset
                for name in ("video", "aspect", "uv_norm", "t_src", "t_tgt", "t_cam", "xyz", "uv_tgt", "visible"):
                    np.testing.assert_array_equal(getattr(batch, name)[slot], expected[name], err_msg=name)
                for name in ("displacement", "normal"):
                    np.testing.assert_array_equal(getattr(batch, name)[slot], expected[name], err_msg=name)
                for name, bit in VALID_BITS.items():
                    known = expected["valid"] & bit > 0
                    np.testing.assert_array_equal(getattr(batch, f"{name}_valid")[slot], known)
                np.testing.assert_array_equal(batch.edge[slot], expected["flags"] & FLAG_BITS["edge"] > 0)
                assert not batch.dynamic[slot].any()
    # Starting at a later step gives what would have come there.
    for resumed, straight in zip(read(config, range(4, 9), 1, 2, first_clip=24), found[1][4:], strict=True):
        assert_equal(resumed, straight)
    # Alone from there on, a worker gets what both would have got, one after the other.
    for number, batch in enumerate(read(config, range(4, 7), first_clip=24)):
        assert_equal(batch, found[number % 2][4 + number // 2])


def test_who_reads_clips_needs_no_index(tmp_path):
    """It may have gigabytes, and each machine has many readers."""
    store = write_plane_store(tmp_path / "planes", clips=6, queries=100, video="zstd")
    expected = read(data({store: 1.0}), range(4))
    with open_feed(data({store: 1.0}), readers=2) as feed:
        for name in ("store.json", "clips.parquet"):
            (tmp_path / "planes" / name).unlink()
        batches = feed.batches(steps=range(4), first_clip=0, rank=0, world=1)
        for batch, same in zip(batches, expected, strict=True):
            assert_equal(batch, same)


def test_a_batch_is_not_written_over_while_it_is_used(stores):
    with open_feed(data(stores), readers=2) as feed:
        for batch in feed.batches(steps=range(6), first_clip=0, rank=0, world=1):
            before = batch.map(torch.clone)
            time.sleep(0.1)  # in which all that may be read ahead is
            assert_equal(batch, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_come_from_pinned_memory(stores):
    expected = read(data(stores), range(12))
    with open_feed(data(stores), readers=2, device="cuda") as feed:
        assert torch.from_numpy(feed.mapped).is_pinned()
        batches = feed.batches(steps=range(12), first_clip=0, rank=0, world=1)
        for batch, straight in zip(batches, expected, strict=True):
            assert batch.video.is_cuda and batch.dataset.is_cuda
            assert_equal(batch.map(torch.Tensor.cpu), straight)


def clip_readers() -> list[psutil.Process]:
    """Of this process, beside which other tests have servers of theirs."""
    return [child for child in psutil.Process().children() if "train.clip_reader" in child.cmdline()]


def test_readers_stay_as_far_ahead_as_they_may_and_the_memory_is_what_it_was(stores):
    with open_feed(data(stores, clips_per_worker=1), readers=3) as feed:
        (readers, size) = [psutil.Process(reader.process.pid) for reader in feed.readers], feed.mapped.nbytes
        assert feed.ahead == 3 and size == (3 + IN_USE) * feed.task.dtype.itemsize
        batches = feed.batches(steps=range(400), first_clip=0, rank=0, world=1)
        copied(islice(batches, 50))
        begun = sum(process.memory_info().rss for process in readers)
        descriptors = [process.num_fds() for process in [psutil.Process(), *readers]]
        assert len(copied(batches)) == 350
        assert sum(process.memory_info().rss for process in readers) < begun + 15e6 * len(readers)
        # A reader has one more open while it reads.
        for process, before in zip([psutil.Process(), *readers], descriptors, strict=True):
            assert process.num_fds() <= before + 1
    with open_feed(data(stores, clips_per_worker=3), readers=3) as feed:
        assert feed.ahead == AHEAD


def test_a_killed_reader_is_replaced_and_no_clip_is_lost(stores):
    said, expected = [], read(data(stores), range(12))
    with open_feed(data(stores), readers=2, say=said.append) as feed:
        begun = [psutil.Process(reader.process.pid) for reader in feed.readers]
        batches = feed.batches(steps=range(12), first_clip=0, rank=0, world=1)
        found = copied(islice(batches, 3))
        for process in begun:
            process.kill()
        found += copied(batches)
    for batch, straight in zip(found, expected, strict=True):
        assert_equal(batch, straight)
    assert len(said) == 2 and all("a process that reads clips was ended (signal 9)" in line for line in said)
    assert gone(begun) and not clip_readers()


def test_a_clip_that_kills_its_readers_ends_the_run_in_words(stores, monkeypatch):
    """Such as one for which there is not enough memory. Here all die at once: their interpreter is no Python."""
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        feed = open_feed(data(stores), say=said.append)
        words = r"a process that reads clips was ended \(exit code 1\) at clip 0 of the run, as were 2 before it"
        with feed, pytest.raises(RuntimeError, match=words):
            next(feed.batches(steps=range(5), first_clip=0, rank=0, world=1))
    assert len([line for line in said if "at clip 0 of the run" in line]) == TRIES - 1  # or before it was asked for any


def test_a_damaged_clip_is_said_by_name(stores, tmp_path):
    broken = write_plane_store(tmp_path / "broken", clips=2, video="zstd")
    cut_chunks(broken, "video")
    with pytest.raises(ValueError, match=r"video of clip plane000\d@0x1 in .*broken.* cannot be read .* run convert"):
        read(data({broken: 1.0}), range(1))
    assert not clip_readers()


# A worker that has got its first batch, and then is busy.
WORKER = """
import sys, time
import psutil
sys.path.insert(0, sys.argv[2])
from test_feed import data, open_feed
with open_feed(data({sys.argv[1]: 1.0}), readers=2) as feed:
    next(feed.batches(steps=range(99), first_clip=0, rank=0, world=1))
    print(*[child.pid for child in psutil.Process().children()], flush=True)
    time.sleep(600)
"""


def test_readers_end_with_a_worker_that_is_killed(stores):
    """Also what they share goes then: it is in no file system."""
    before = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-c", WORKER, next(iter(stores)), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        readers = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split()]
        assert len(readers) == 2
        worker.kill()
    try:
        assert gone(readers)
    finally:
        for reader in readers:
            with suppress(psutil.Error):
                reader.kill()
    assert {name for name in os.listdir("/dev/shm") if "clips" in name} <= before


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([(2, 0)], 2, 1.0),
        ([(2, 0)], 3, 2 / 3),
        ([(1, 0), (1, 0)], 2, 1.0),
        ([(4, 0), (2, 0)], 2, 2.0),  # 3 each would find no room
        ([(4, 0), (2, 0)], 1, 4.0),
        ([(128, 8)], 8, 16.0),
        ([(128, 8), (128, 8)], 16, 16.0),
        ([(128, 8), (64, 0)], 8, 16.0),  # a node without GPUs gives nothing
        ([(0, 0), (16, 1)], 1, 16.0),  # nor does one that only commands
        ([(128, 8)], 16, 16.0),  # until another node comes
        ([(0, 0)], 2, 1.0),
    ],
)
def test_a_worker_and_its_readers_find_room_on_a_node(nodes, workers, share):
    assert largest_share([{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes], workers) == share
