"""The clip store: one URI, one dataset, one split, one clip geometry. What lies where, and how it gets there.

    STORE/
      settings.json         settings of the conversion; written first, by whoever begins the store
      groups/SEQUENCE/NAME.json
                            the mark of a published group: where its clips lie, their index rows, and what they were
                            made from (`store/marks.py`)
      data/SEQUENCE/NAME-ID.zarr
                            a group: clips of one sequence, as first axis; Zarr v3
        video               jpeg: uint8 (clips, bytes), for each clip T + 1 int64 offsets and then its T JPEG files, end
                            to end, each from its offset to the next; padded with zeros
                            zstd: uint8 (clips, T, S, S, 3), exact pixels
        queries             uint8 (clips, samples, Q * bytes per query): the fields of `pipelines/query_table.py`, each
                            for all Q queries, end to end
        intrinsics          float32 (clips, T, 3, 3), pixels of the stored S x S frame
        world_from_cam      float32 (clips, T, 4, 4)
        frame_index         int64 (clips, T), what the raw files call the frames
      clips.parquet         the index, one row per clip (`INDEX_SCHEMA`)
      store.json            schema, settings, catalog facts, counts, what was skipped and failed and why, the name of
                            the index; written last: no store.json, no store

Publish, never replace. A writer fills a folder of its own (ID is random) and then creates the mark, only if there is
none: that write alone counts, and the first one wins. What is published is neither changed nor deleted by anyone. So
any number of jobs may convert into one store, also such as are believed dead; folders of groups that another one
published are swept when the store is finished. If the raw data changed since, their groups have other names, and an
index of other clips has the name clips-DIGEST.parquet: only store.json is ever written again.

`video` and `queries` are one shard per group, a chunk per clip or per sample. The attribute `byte_ranges` of the group
says where in it each chunk lies, as the index of the shard itself does. Every chunk is written and carries a CRC-32C:
one that is missing is damage, and never zeros.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8

SCHEMA = 2
ARRAYS = ("video", "queries", "intrinsics", "world_from_cam", "frame_index")
CONVERSION = 1  # grows when the same raw files and settings give other clips than before
INDEX_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "dataset": pa.string(),
        "sequence": pa.string(),
        "start": pa.int64(),  # first frame, counted within the sequence
        "stride": pa.int64(),
        "crop_number": pa.int64(),  # 0: the whole frame
        "crop": pa.list_(pa.int64()),  # left, top, width, height in raw pixels; null: the whole frame
        "frame_numbers": pa.list_(pa.int64()),
        "group": pa.string(),  # SEQUENCE/NAME-ID of data/SEQUENCE/NAME-ID.zarr
        "row": pa.int64(),
        "aspect": pa.float64(),  # W / H of the raw frame
        "is_metric": pa.bool_(),
        "share_valid": pa.float64(),  # of queries with a known xyz
        "share_dynamic": pa.float64(),  # of queries on something that moves
        "share_visible": pa.float64(),  # of the queries whose visibility is known
        "median_depth": pa.float64(),
        "audit": pa.string(),  # outcome for the sequence: fits, unclear, undecidable, misfit
        "audit_error": pa.float64(),  # median relative error of depth, moved from frame to frame; null: no overlap
        "audit_margin": pa.float64(),  # that of the next best reading of the raw files, as a multiple of it
        "seen_through": pa.float64(),  # share of its points that lie before the surface found: something moves
        "psnr": pa.float64(),  # dB of the middle frame as stored against the resized one; null if exact
        "digest": pa.string(),  # of everything stored for this clip
    }
)
LIMITS = {  # of the numbers in `StoreSettings`
    "frames": (1, 65535),
    "image_size": (8, 4096),
    "hop": (1, None),
    "samples": (1, 255),
    "queries": (1, 1 << 20),
    "seed": (0, None),
    "crops": (0, 255),
}


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """What decides the content of a store. Two runs with equal settings on equal raw data give equal stores.

    ValueError, naming the option of `convert`, for a number that cannot be.
    """

    dataset: str
    split: str
    frames: int
    image_size: int
    strides: tuple[int, int]
    hop: int
    samples: int
    queries: int
    video: Literal["jpeg", "zstd"]
    seed: int
    crops: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                words = f"at least {low}" if high is None else f"from {low} to {high}"
                raise ValueError(f"--{name.replace('_', '-')} {value} must be {words}")
        if not 1 <= self.strides[0] <= self.strides[1]:
            raise ValueError(
                f"--strides {self.strides[0]} {self.strides[1]} must be the smallest, from 1, and the largest"
            )

    def differences(self, other: dict[str, Any]) -> list[str]:
        mine = json.loads(json.dumps(asdict(self)))
        return [
            f"{key}: {other.get(key)!r} there, {mine.get(key)!r} asked"
            for key in sorted(mine.keys() | other.keys())
            if mine.get(key) != other.get(key)
        ]


@dataclass(frozen=True, kw_only=True)
class ClipData:
    """A clip about to be written; see the module's table for shapes. `queries` is (samples, Q) of `query_dtype`."""

    video: UInt8[np.ndarray, "T S S 3"]
    queries: np.ndarray
    intrinsics: Float32[np.ndarray, "T 3 3"]
    world_from_cam: Float32[np.ndarray, "T 4 4"]
    frame_index: Int64[np.ndarray, "T"]
    row: dict[str, Any]
    """Index columns the store cannot know: sequence, start, stride, crop, aspect, is_metric, shares, audit, ..."""


def clip_id(sequence: str, start: int, stride: int, crop_number: int) -> str:
    """What a clip is called, like "hospital/Easy/P037@96x2#1"."""
    return f"{sequence}@{start}x{stride}" + (f"#{crop_number}" if crop_number else "")


def escaped(name: str) -> str:
    """A name of any characters as one of [A-Za-z0-9._-], different for different names; no path, not hidden."""
    text = "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in ".-") else f"_{byte:02X}"
        for byte in name.encode("utf-8", "surrogateescape")
    )
    if text.startswith("."):
        text = f"_2E{text[1:]}"
    if len(text) > 150:  # file systems take 255 bytes
        text = f"{text[:110]}_{hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()}"
    return text
