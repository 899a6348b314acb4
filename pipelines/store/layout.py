"""The clip store: one URI, one dataset, one split, one clip geometry. Layout and reader.

    STORE/
      store.json      schema, settings of the conversion, catalog facts, counts, what was skipped and failed and why;
                      written last: no store.json, no store
      clips.parquet   the index, one row per clip (`INDEX_SCHEMA`)
      data/NAME.zarr  one sequence, or one span of a long one; Zarr v3, the clips as first axis:
        video           jpeg: uint8 (clips, bytes), the JPEG files of a clip end to end, padded with zeros
                        zstd: uint8 (clips, T, S, S, 3), exact pixels
        video_offsets   jpeg only: int64 (clips, T + 1), where each frame starts
        queries         uint8 (clips, samples, Q * bytes per query), one chunk per sample: the fields of `query_dtype`,
                        each for all Q queries, end to end
        intrinsics      float32 (clips, T, 3, 3), pixels of the stored S x S frame
        world_from_cam  float32 (clips, T, 4, 4)
        frame_index     int64 (clips, T), what the raw files call the frames

Every chunk carries a CRC-32C. A group counts only if its attributes say `complete`; they are written last. Readers
follow the index alone. `pipelines/store/writer.py` writes all this.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8

SCHEMA = 1
INDEX_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "dataset": pa.string(),
        "sequence": pa.string(),
        "start": pa.int64(),  # first frame, counted within the sequence
        "stride": pa.int64(),
        "crop": pa.list_(pa.int64()),  # left, top, width, height in raw pixels; null: the whole frame
        "frame_numbers": pa.list_(pa.int64()),
        "group": pa.string(),  # NAME of data/NAME.zarr
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


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """What decides the content of a store. Two runs with equal settings on equal raw data give equal stores."""

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
    """Index columns the store cannot know: id, sequence, start, stride, crop, aspect, is_metric, shares, audit, ..."""
