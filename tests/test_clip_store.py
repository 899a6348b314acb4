"""The clip store: what is written is what is read, locally and on S3; what is damaged or unfinished is refused."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr
from s3fs import S3FileSystem

from pipelines.query_table import query_dtype
from pipelines.store.groups import open_group
from pipelines.store.index import finish
from pipelines.store.layout import INDEX_SCHEMA, ClipData, StoreSettings, escaped
from pipelines.store.marks import Origin, begin
from pipelines.store.reader import ClipStore
from pipelines.store.writer import write_group
from pipelines.whole import delete_folder, listed

FRAMES, SIZE, SAMPLES, QUERIES = 6, 32, 2, 40
SEQUENCE = "env [1]/Easy*/P000"
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
            "sequence": SEQUENCE,
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


def origin(first: int = 0) -> Origin:
    return Origin(sequence=SEQUENCE, first=first, frames=((first,),), labels={}, files={"a.png": "1-2"})


def write(uri: str, settings: StoreSettings = SETTINGS, clips: list[ClipData] | None = None) -> list[ClipData]:
    clips = clips or [clip(number) for number in range(3)]
    begin(uri, settings)
    names = [write_group(uri, origin(0), settings, clips[:2]), write_group(uri, origin(2), settings, clips[2:])]
    finish(uri, settings, names, {})
    return clips


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path) -> str:
    where = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_uri")
    return f"{where}/store[1] *?{{a,b}}"


@pytest.mark.parametrize("video", ["jpeg", "zstd"])
def test_what_is_written_is_read(uri, video):
    clips = write(f"{uri}-{video}", replace(SETTINGS, video=video))
    store = ClipStore(f"{uri}-{video}")
    assert len(store) == 3
    for number, (written, read) in enumerate(zip(clips, store, strict=True)):
        assert read.id == f"{SEQUENCE}@{number}x1"
        assert (read.dataset, read.sequence, read.is_metric) == ("tartanair", SEQUENCE, True)
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


@pytest.mark.parametrize("video", ["jpeg", "zstd"])
def test_our_reader_reads_what_zarr_reads(tmp_path, video):
    """Every array of every group; also chunks of nothing but zeros, which Zarr would not write by itself."""
    empty = replace(
        clip(1),
        video=np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8),
        queries=np.zeros((SAMPLES, QUERIES), query_dtype(FRAMES)),
        intrinsics=np.zeros((FRAMES, 3, 3), np.float32),
        frame_index=np.zeros(FRAMES, int),
    )
    write(
        str(tmp_path),
        replace(SETTINGS, video=video),
        [clip(0), empty, replace(empty, world_from_cam=np.zeros((FRAMES, 4, 4), np.float32))],
    )
    folders = list(tmp_path.glob("data/*/*.zarr"))
    assert len(folders) == 2
    for folder in folders:
        ours, theirs = open_group(str(folder)), zarr.open_group(folder, mode="r")
        for name in ("intrinsics", "world_from_cam", "frame_index"):
            np.testing.assert_array_equal(ours.small(name), theirs[name][...])
        for number in range(theirs["video"].shape[0]):
            np.testing.assert_array_equal(ours.chunk("video", number), theirs["video"][number])
            for sample in range(SAMPLES):
                np.testing.assert_array_equal(ours.chunk("queries", number, sample), theirs["queries"][number, sample])


def test_requests_on_s3(s3_uri, monkeypatch):
    """The first sample of a group takes three, the next ones one for the frames and one for the queries."""
    write(s3_uri)
    clips = list(ClipStore(s3_uri))
    asked, call = [], S3FileSystem._call_s3

    async def counted(self, method, *arguments, **options):
        asked.append(method)
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    counts = []
    for read in clips:
        asked.clear()
        assert read.video.shape[0] == FRAMES and read.queries(1)
        counts.append(len(asked))
    assert counts == [2, 2, 3]  # of the first group, opening the store asked one; the third clip lies in another


MEMORY = """
import sys, psutil
from pipelines.store.reader import ClipStore
ClipStore(sys.argv[1])
before = psutil.Process().memory_info().rss
store = ClipStore(sys.argv[2])
assert store[len(store) - 1].sequence
print((psutil.Process().memory_info().rss - before) / len(store))
"""


def test_memory_per_clip(tmp_path):
    """A reader holds at most 100 bytes for a clip, so that ten million are a gigabyte."""
    write(str(tmp_path / "small"))
    shutil.copytree(tmp_path / "small", tmp_path / "large")
    count = 1_000_000
    number = np.arange(count)
    columns = {
        "sequence": [f"environment{n // 200:05}/Easy/P{n // 200 % 1000:03}" for n in number],
        "group": [f"environment{n // 200:05}_2FEasy/{n // 8 * 8:06}-{'0' * 24}-{n // 8:016x}" for n in number],
        "row": number % 8,
        "start": number,
        "stride": np.ones(count, int),
        "crop_number": np.zeros(count, int),
        "aspect": np.ones(count),
        "is_metric": np.ones(count, bool),
        "digest": [f"{n:032x}" for n in number],
    }  # fmt: skip
    columns["group"][0] = ClipStore(str(tmp_path / "small"))[0]._group  # which is looked at when the store is opened
    table = pa.table({name: pa.array(values, INDEX_SCHEMA.field(name).type) for name, values in columns.items()})
    for name in INDEX_SCHEMA.names:
        if name not in columns:
            table = table.append_column(name, pa.nulls(count, INDEX_SCHEMA.field(name).type))
    pa.parquet.write_table(table, tmp_path / "large/clips.parquet")
    document = json.loads((tmp_path / "large/store.json").read_text()) | {"num_clips": count}
    (tmp_path / "large/store.json").write_text(json.dumps(document))
    command = [sys.executable, "-c", MEMORY, tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


def test_long_clips_have_wider_times():
    assert query_dtype(255)["t_src"] == np.uint8 and query_dtype(256)["t_src"] == np.uint16


def test_jpeg_loss_is_reported(tmp_path):
    write(str(tmp_path))
    assert all(30 < value < 60 for value in ClipStore(str(tmp_path)).column("psnr"))


def test_same_content_same_digest(tmp_path):
    for name in ("a", "b", "c"):
        write(str(tmp_path / name), clips=[clip(number + (name == "c")) for number in range(3)])
    digests = [ClipStore(str(tmp_path / name)).info["digest"] for name in ("a", "b", "c")]
    assert digests[0] == digests[1] != digests[2]


# --- what is not there, or damaged ------------------------------------------------------------------------------------


def test_no_store_json_no_store(uri):
    with pytest.raises(ValueError, match=r"no store\.json.*run convert"):
        ClipStore(uri)


DAMAGED = {
    "cut": (lambda text: text[:20], r"store\.json is damaged"),
    "a list": (lambda text: "[]", r"store\.json is damaged"),
    "deep": (lambda text: '{"schema": ' + "[" * 100_000, r"store\.json is damaged"),
    "schema": (lambda text: text.replace('"schema": 2', '"schema": 99'), "has schema 99, this code reads 2"),
    "unknown key": (lambda text: text.replace('"digest"', '"extra": 1, "digest"', 1), r"damaged \(extra: "),
    "missing key": (lambda text: text.replace('"digest"', '"digets"', 1), r"damaged \(digest: Field required"),
    "wrong kind": (lambda text: text.replace('"num_clips": 3', '"num_clips": "3"'), r"damaged \(num_clips: "),
    "settings": (lambda text: text.replace('"frames": 6', '"frames": 0', 1), r"\(settings: --frames 0 must be"),
    "unknown setting": (lambda text: text.replace('"hop"', '"hope"'), r"damaged \(settings\.hop"),
    "three strides": (lambda text: re.sub(r'"strides": \[', '"strides": [1, ', text), r"damaged \(settings\.strides: "),
    "video": (lambda text: re.sub(r'"video": "\w+"', '"video": "foo"', text), r"settings\.video: .*'jpeg' or 'zstd'"),
    "other samples": (
        lambda text: text.replace(f'"samples": {SAMPLES}', '"samples": 200'),
        "samples: 2 there, 200 asked",
    ),
    "other queries": (lambda text: text.replace(f'"queries": {QUERIES}', '"queries": 511'), "queries: 40 there, 511"),
    "other dataset": (
        lambda text: re.sub(r'"dataset": "\w+"', '"dataset": "nosuch"', text),
        "dataset: .* 'nosuch'",
    ),
    "another index": (lambda text: text.replace("clips.parquet", "../clips.parquet"), "is not in the store"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_store_json(tmp_path, damage):
    write(str(tmp_path))
    change, words = DAMAGED[damage]
    file = tmp_path / "store.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=words):
        ClipStore(str(tmp_path))
    if damage in ("cut", "deep"):
        with pytest.raises(ValueError, match=r"delete store\.json and run convert again"):  # what inspect says too
            begin(str(tmp_path), SETTINGS)


@pytest.mark.parametrize("value", [1 << 40, -1, None, "seven"])
def test_an_index_with_a_row_that_cannot_be(tmp_path, value):
    write(str(tmp_path))
    index = tmp_path / "clips.parquet"
    table = pa.parquet.read_table(index)
    place = table.column_names.index("row")
    index.unlink()
    pa.parquet.write_table(table.set_column(place, "row", pa.array([value] * 3)), index)
    with pytest.raises(ValueError, match=r"clips\.parquet: it is damaged \(.*delete store\.json and run convert again"):
        ClipStore(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "empty", "absent", "other", "shorter"])
def test_damaged_index(tmp_path, damage):
    write(str(tmp_path))
    index = tmp_path / "clips.parquet"
    table = pa.parquet.read_table(index)
    content = index.read_bytes()
    index.unlink()
    if damage in ("cut", "empty"):
        index.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    elif damage != "absent":
        pa.parquet.write_table(table.drop_columns("row") if damage == "other" else table.slice(1), index)
    with pytest.raises(
        ValueError, match=r"clips\.parquet: .*delete store\.json and run convert again|clips\.parquet: there is no such"
    ):
        ClipStore(str(tmp_path))


@pytest.mark.parametrize("array", ["video", "queries", "intrinsics"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_or_missing_chunk_is_refused(tmp_path, array, damage):
    write(str(tmp_path))
    for path in [path for path in tmp_path.glob(f"data/*/*.zarr/{array}/c/**/*") if path.is_file()]:
        content = bytearray(path.read_bytes())
        content[10] ^= 0xFF
        path.unlink()
        if damage != "remove":
            path.write_bytes(content if damage == "flip" else content[:10])
    damaged = ClipStore(str(tmp_path))[0]
    with pytest.raises(
        ValueError, match=rf"{array} of clip .* cannot be read .*delete groups/\S+\.json and store\.json"
    ):
        damaged.queries(0) if array == "queries" else getattr(damaged, array)


def test_a_group_that_is_gone(tmp_path):
    write(str(tmp_path))
    for folder in tmp_path.glob("data/*/*.zarr"):
        delete_folder(str(folder))
    with pytest.raises(ValueError, match=r"\.zarr cannot be read .*the store is damaged; delete groups/"):
        ClipStore(str(tmp_path))


def test_sample_and_clip_out_of_range(tmp_path):
    write(str(tmp_path))
    store = ClipStore(str(tmp_path))
    with pytest.raises(ValueError, match="sample 2 asked of a store with 2"):
        store[0].queries(2)
    with pytest.raises(IndexError, match="clip 3 of a store with 3"):
        store[3]


# --- settings and names -----------------------------------------------------------------------------------------------


def test_settings_survive_the_store(tmp_path):
    write(str(tmp_path))
    assert ClipStore(str(tmp_path)).settings == SETTINGS


def test_other_settings_are_refused(uri):
    begin(uri, SETTINGS)
    begin(uri, SETTINGS)
    with pytest.raises(ValueError, match=r"other settings \(queries: 40 there, 50 asked\).*another --store"):
        begin(uri, replace(SETTINGS, queries=50))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 0}, "--frames 0 must be from 1"),
        ({"image_size": 0}, "--image-size 0 must be from 8"),
        ({"strides": (4, 1)}, "--strides 4 1 must be"),
        ({"strides": (0, 1)}, "--strides 0 1 must be"),
        ({"hop": -4}, "--hop -4 must be at least 1"),
        ({"samples": 0}, "--samples 0 must be from 1"),
        ({"queries": 0}, "--queries 0 must be from 1"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
        ({"crops": -1}, "--crops -1 must be from 0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SETTINGS, **change)


def test_names_are_escaped_and_stay_apart():
    names = [
        "a/b",
        "a_b",
        "a__b",
        "a b",
        "A/b",
        ".",
        "..",
        ".a",
        "a.b",
        "ä",
        "a\udcff",
        "[*]",
        "x" * 300,
        "x" * 299 + "y",
    ]
    found = [escaped(name) for name in names]
    assert len(set(found)) == len(names)
    for name in found:
        assert 0 < len(name) < 160 and not name.startswith(".")
        assert all(character.isascii() and (character.isalnum() or character in "._-") for character in name)


def test_what_lies_in_a_store(tmp_path):
    """The documented names; nothing is left over."""
    write(str(tmp_path))
    assert listed(str(tmp_path)) == ["clips.parquet", "data", "groups", "settings.json", "store.json"]
    (folder,) = listed(f"{tmp_path}/groups")
    assert listed(f"{tmp_path}/data") == [folder] == [escaped(SEQUENCE)]
