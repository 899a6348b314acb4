"""What every job asks of S3, while every few requests fail in one way: all comes out as if nothing had been."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from plane_store import write_plane_store
from proxy import FAULTS, Proxy
from ray.train import Checkpoint
from s3fs import S3FileSystem

from model import D4RT, ModelConfig, checkpoints
from pipelines.models import load_model, model_digest
from pipelines.raw.folder import RawFolder
from pipelines.raw.npz import Npz
from pipelines.store import groups
from pipelines.store.reader import ClipStore
from pipelines.store.wholeness import require_whole
from pipelines.whole import create_if_absent, listed, read_file, result_folder, write_file
from train import run_folder
from train.clips import Planned, read_clip
from train.lease import owned
from train.run_folder import Position

EVERY, UNDISTURBED = 8, 10**9  # requests, one of which fails
CLIPS = 2


@pytest.fixture(scope="module")
def model() -> D4RT:
    torch.manual_seed(0)
    return D4RT(replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1))


@pytest.fixture(scope="module", params=FAULTS)
def disturbed(request, s3_server):
    """S3 behind a proxy that disturbs; clients ask again soon, also where there is no answer yet."""
    port = int(re.search(r":(\d+)$", os.environ["AWS_ENDPOINT_URL"])[1])
    with Proxy(port) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        patch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
        if request.param == "slow":
            patch.setattr(S3FileSystem, "read_timeout", 0.25)
        S3FileSystem.clear_instance_cache()
        proxy.disturb(request.param, every=EVERY)
        yield proxy
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(disturbed):
    """The same, from its first request; faults must come of it."""
    disturbed.every, disturbed.requests, disturbed.faults = EVERY, 0, 0
    yield disturbed
    assert disturbed.faults
    groups.open_group.cache_clear()


def test_convert_publishes_the_same_store(proxy, s3_uri, tmp_path):
    digest = ClipStore(write_plane_store(tmp_path / "undisturbed", clips=CLIPS)).info["digest"]
    store = ClipStore(write_plane_store(f"{s3_uri}/store", clips=CLIPS))
    assert store.info["digest"] == digest
    require_whole(store.uri, set(store.column("group")))
    assert len(listed(f"{store.uri}/data/planes")) == 1


def test_training_reads_the_same_clips(proxy, s3_uri):
    proxy.every = UNDISTURBED
    store = write_plane_store(f"{s3_uri}/store", clips=CLIPS)
    undisturbed = clips_of(ClipStore(store))
    groups.open_group.cache_clear()

    proxy.every = EVERY
    for clip, before in zip(clips_of(ClipStore(store)), undisturbed, strict=True):
        assert all(np.array_equal(clip[name], before[name]) for name in before)


def clips_of(store: ClipStore) -> list[dict[str, np.ndarray]]:
    return [
        read_clip(Planned(index=i, seed=0, store=0, clip=store[i], sample=sample), num_queries=64)
        for i in range(len(store))
        for sample in range(store.settings.samples)
    ]


def test_one_command_owns_a_run_and_finds_its_checkpoint(proxy, s3_uri, tmp_path):
    weights = os.urandom(1 << 20)
    files = {"weights": lambda file: file.write(weights), "position.json": Position(step=20).write}
    with owned(f"{s3_uri}/run") as held:
        assert held.number == 1
        run_folder.store(files, f"{held.run}/step_0000020", held)
    with owned(f"{s3_uri}/run") as held:
        assert held.number == 2
    fs, path = run_folder.open_folder(f"{s3_uri}/run")
    checkpoint = Checkpoint(run_folder.newest(fs, path), fs)
    with run_folder.downloaded(checkpoint, "a" * 32) as folder:
        assert Position.load(folder).step == 20 and (folder / "weights").read_bytes() == weights


def test_infer_and_evaluate_read_and_publish_the_same(proxy, s3_uri, tmp_path, model):
    checkpoints.save(model, tmp_path)
    for name in (checkpoints.CONFIG, checkpoints.WEIGHTS):
        write_file(f"{s3_uri}/model/{name}", (tmp_path / name).read_bytes())
    assert model_digest(load_model(f"{s3_uri}/model")) == model_digest(model)

    rows = np.random.default_rng(0).integers(255, size=(8, 1 << 16), dtype=np.uint8)
    np.savez(tmp_path / "clip.npz", rows=rows)
    write_file(f"{s3_uri}/raw/clip.npz", (tmp_path / "clip.npz").read_bytes())
    read = Npz(RawFolder(f"{s3_uri}/raw"), "clip.npz")
    assert np.array_equal(read.rows("rows", np.arange(8)), rows)

    with result_folder(f"{s3_uri}/result", last="result.json") as folder:
        contents = {f"{number}.npz": os.urandom(1 << 18) for number in range(4)} | {"result.json": b"{}"}
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    assert {name: read_file(f"{s3_uri}/result/{name}") for name in contents} == contents


def test_who_creates_a_file_learns_that_it_did(proxy, s3_uri):
    """Also if the server's word of it was lost: whoever asks again finds a file, which is its own."""
    made = [create_if_absent(f"{s3_uri}/{number}", b"mark") for number in range(2 * EVERY)]
    assert made == [True] * len(made)
    assert not create_if_absent(f"{s3_uri}/0", b"mark")
