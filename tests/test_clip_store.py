"""The clip store: what is written is what is read, locally and on S3; what is damaged or unfinished is refused."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

from pipelines.query_table import query_dtype
from pipelines.store.layout import ClipData, StoreSettings
from pipelines.store.reader import ClipStore
from pipelines.store.writer import finished_groups, write_group, write_index

FRAMES, SIZE, SAMPLES, QUERIES = 6, 32, 2, 40
SETTINGS = StoreSettings(
    dataset="tartanair",
    split="train",
    frames=FRAMES,
    image_size=SIZE,
    strides=(1, 2),
    hop=FRAMES,
    samples=SAMPLES,
    queries=QUERIES,
    video="jpeg",
    seed=0,
)


def clip(number: int) -> ClipData:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (FRAMES, 4, 4, 3), dtype=np.uint8)
    queries = np.zeros((SAMPLES, QUERIES), query_dtype(FRAMES))
    for name in queries.dtype.names:
        queries[name] = rng.integers(0, 2 if name == "visible" else 6, queries[name].shape)
    return ClipData(
        video=np.stack([cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for frame in coarse]),
        queries=queries,
        intrinsics=rng.random((FRAMES, 3, 3), np.float32),
        world_from_cam=rng.random((FRAMES, 4, 4), np.float32),
        frame_index=rng.integers(0, 1000, FRAMES),
        row={
            "id": f"env/Easy/P000@{number}x1",
            "sequence": "env/Easy/P000",
            "start": number,
            "stride": 1,
            "aspect": 4 / 3,
            "is_metric": True,
            "share_valid": 1.0,
            "share_dynamic": 0.0,
            "share_visible": 0.5,
            "median_depth": 2.0,
        },
    )


def write(uri: str, settings: StoreSettings = SETTINGS) -> list[ClipData]:
    clips = [clip(number) for number in range(3)]
    rows = write_group(uri, "b", settings, clips[:2]) + write_group(uri, "c", settings, clips[2:])
    write_index(uri, settings, rows, {"counts": {}})
    return clips


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path) -> str:
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_uri")


@pytest.mark.parametrize("video", ["jpeg", "zstd"])
def test_what_is_written_is_read(uri, video):
    clips = write(f"{uri}-{video}", replace(SETTINGS, video=video))
    store = ClipStore(f"{uri}-{video}")
    assert len(store) == 3
    for number, (written, read) in enumerate(zip(clips, store, strict=True)):
        assert read.id == f"env/Easy/P000@{number}x1"
        assert (read.dataset, read.sequence, read.is_metric) == ("tartanair", "env/Easy/P000", True)
        assert read.aspect == 4 / 3 and read.num_samples == SAMPLES
        np.testing.assert_array_equal(read.intrinsics, written.intrinsics)
        np.testing.assert_array_equal(read.world_from_cam, written.world_from_cam)
        np.testing.assert_array_equal(read.frame_index, written.frame_index)
        for sample in range(SAMPLES):
            queries = read.queries(sample)
            assert queries.keys() == set(query_dtype(FRAMES).names)
            for name, values in queries.items():
                np.testing.assert_array_equal(values, written.queries[name][sample])
        error = np.abs(read.video.astype(int) - written.video)
        assert error.max() == 0 if video == "zstd" else error.mean() < 4
        assert read.video.shape == (FRAMES, SIZE, SIZE, 3) and read.video.dtype == np.uint8


def test_long_clips_have_wider_times():
    assert query_dtype(255)["t_src"] == np.uint8 and query_dtype(256)["t_src"] == np.uint16


def test_jpeg_loss_is_reported(tmp_path):
    write(str(tmp_path))
    psnr = ClipStore(str(tmp_path)).index["psnr"].to_pylist()
    assert all(30 < value < 60 for value in psnr)


def test_same_content_same_digest(tmp_path):
    digests = []
    for name in ("a", "b"):
        write(str(tmp_path / name))
        digests.append(ClipStore(str(tmp_path / name)).info["digest"])
    assert digests[0] == digests[1]
    rows = write_group(str(tmp_path / "c"), "b", SETTINGS, [clip(5)])
    assert write_index(str(tmp_path / "c"), SETTINGS, rows, {})["digest"] != digests[0]


def test_no_store_json_no_store(uri):
    write(uri)
    fs, path = fsspec.core.url_to_fs(uri)
    fs.rm(f"{path}/store.json")
    with pytest.raises(ValueError, match=r"no store\.json.*run convert"):
        ClipStore(uri)


def test_damaged_store_json(tmp_path):
    write(str(tmp_path))
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(ValueError, match=r"store\.json is damaged"):
        ClipStore(str(tmp_path))


def test_other_schema_is_refused(tmp_path):
    write(str(tmp_path))
    document = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps(document | {"schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        ClipStore(str(tmp_path))


def chunks(store: Path, array: str) -> list[Path]:
    return [path for path in (store / "data" / "b.zarr" / array / "c").rglob("*") if path.is_file()]


@pytest.mark.parametrize("array", ["video", "queries", "intrinsics"])
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_corrupt_chunk_is_refused(tmp_path, array, damage):
    write(str(tmp_path))
    for path in chunks(tmp_path, array):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    damaged = ClipStore(str(tmp_path))[0]
    with pytest.raises(ValueError, match=f"{array} of clip env/Easy/P000@0x1 .*convert again"):
        damaged.queries(0) if array == "queries" else getattr(damaged, array)


def test_an_interrupted_group_does_not_count(uri):
    write_group(uri, "b", SETTINGS, [clip(0)])
    write_group(uri, "c", SETTINGS, [clip(1)])
    fs, path = fsspec.core.url_to_fs(uri)
    with fs.open(f"{path}/data/c.zarr/zarr.json") as file:
        document = json.load(file)
    document["attributes"] = {}  # as it is until the last write
    fs.pipe_file(f"{path}/data/c.zarr/zarr.json", json.dumps(document).encode())
    finished = finished_groups(uri, SETTINGS)
    assert list(finished) == ["b"] and len(finished["b"]) == 1
    write_group(uri, "c", SETTINGS, [clip(1)])
    assert sorted(finished_groups(uri, SETTINGS)) == ["b", "c"]


def test_other_settings_are_refused(uri):
    write(uri)
    with pytest.raises(ValueError, match=r"other settings \(queries: 40 there, 50 asked\).*another --store"):
        finished_groups(uri, replace(SETTINGS, queries=50))


def test_an_empty_place_has_no_groups(uri):
    assert finished_groups(f"{uri}/nothing", SETTINGS) == {}


def test_sample_and_clip_out_of_range(tmp_path):
    write(str(tmp_path))
    store = ClipStore(str(tmp_path))
    with pytest.raises(ValueError, match="sample 2 asked of a store with 2"):
        store[0].queries(2)
    with pytest.raises(IndexError, match="clip 3 of a store with 3"):
        store[3]


def test_settings_survive_the_store(tmp_path):
    write(str(tmp_path))
    assert ClipStore(str(tmp_path)).settings == SETTINGS
