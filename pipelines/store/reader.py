"""Reading clip stores. The layout is told in `pipelines/store/layout.py`."""

import json
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import zarr
from jaxtyping import Float32, Int64, UInt8

from pipelines.query_table import unpack_queries
from pipelines.store.layout import INDEX_SCHEMA, SCHEMA, StoreSettings

zarr.config.set({"async.timeout": 300})  # seconds; a request that never answers becomes an error


def evenly(total: int, count: int | None) -> list[int]:
    """`count` of the numbers below `total`, at even distances from the first to the last; all if that is fewer."""
    places = np.linspace(0, total - 1, total if count is None else min(count, total))
    return np.unique(places.round().astype(int)).tolist()


def decode_jpeg(blob: UInt8[np.ndarray, "bytes"], offsets: Int64[np.ndarray, "T1"]) -> UInt8[np.ndarray, "T S S 3"]:
    """The inverse of `encode_jpeg`, up to JPEG's loss. ValueError if a file does not decode."""
    video = None
    for t, (start, end) in enumerate(pairwise(offsets)):
        if (frame := cv2.imdecode(blob[start:end], cv2.IMREAD_COLOR_RGB)) is None:
            raise ValueError(f"frame {t} is not a JPEG file")
        if video is None:
            video = np.empty((len(offsets) - 1, *frame.shape), np.uint8)
        video[t] = frame  # copied while it is still in the cache
    return video


@lru_cache(maxsize=1024)
def _open_group(uri: str) -> zarr.Group:
    return zarr.open_group(uri, mode="r", zarr_format=3, use_consolidated=True)


@lru_cache(maxsize=4096)
def _open_array(uri: str, name: str) -> zarr.Array:
    return _open_group(uri)[name]


@lru_cache(maxsize=4096)
def _small_array(uri: str, name: str) -> np.ndarray:
    """An array that holds little for every clip of a group: read once, kept."""
    return _open_array(uri, name)[...]


class Clip:
    """One clip of a store. Arrays are read from the store when asked for; ValueError if a chunk is corrupt."""

    def __init__(self, store: "ClipStore", row: dict[str, Any]) -> None:
        self._store, self._row = store, row
        self._uri = f"{store.uri}/data/{row['group']}.zarr"
        self.id: str = row["id"]
        self.dataset: str = row["dataset"]
        self.sequence: str = row["sequence"]
        self.aspect: float = row["aspect"]
        self.is_metric: bool = row["is_metric"]
        self.num_samples = store.settings.samples

    def _read(self, name: str, *selection: int) -> np.ndarray:
        try:
            if not selection:
                return _small_array(self._uri, name)[self._row["row"]]
            return _open_array(self._uri, name)[selection]
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"{name} of clip {self.id} in {self._uri} cannot be read ({error}): the store is damaged; delete this "
                ".zarr folder and store.json and run convert again, which redoes only what is missing"
            ) from error

    @property
    def video(self) -> UInt8[np.ndarray, "T S S 3"]:
        """RGB frames."""
        data = self._read("video", self._row["row"])
        if self._store.settings.video == "zstd":
            return data
        try:
            return decode_jpeg(data, self._read("video_offsets"))
        except (ValueError, cv2.error) as error:
            raise ValueError(f"video of clip {self.id} in {self._uri} is damaged: {error}") from error

    @property
    def intrinsics(self) -> Float32[np.ndarray, "T 3 3"]:
        """Pixels of the stored square frame."""
        return self._read("intrinsics")

    @property
    def world_from_cam(self) -> Float32[np.ndarray, "T 4 4"]:
        return self._read("world_from_cam")

    @property
    def frame_index(self) -> Int64[np.ndarray, "T"]:
        """What the raw files call the frames."""
        return self._read("frame_index")

    def queries(self, sample: int) -> dict[str, np.ndarray]:
        """One query sample: field -> array with Q rows, as in the table of DESIGN."""
        if not 0 <= sample < self.num_samples:
            raise ValueError(f"query sample {sample} asked of a store with {self.num_samples} samples per clip")
        return unpack_queries(self._read("queries", self._row["row"], sample), self._store.settings.frames)

    def all_queries(self) -> dict[str, np.ndarray]:
        """All query samples of the clip, end to end."""
        parts = [self.queries(sample) for sample in range(self.num_samples)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class ClipStore:
    """Read access by clip number: `len(store)`, `store[i]`. Cheap to open, cheap to send to another process."""

    def __init__(self, uri: str) -> None:
        """ValueError if there is no finished store at `uri`, or it was written by a newer schema."""
        self.uri = str(uri).rstrip("/")
        self.info = self._document()
        if self.info["schema"] != SCHEMA:
            raise ValueError(
                f"store {self.uri} has schema {self.info['schema']}, this code reads {SCHEMA}: convert it again"
            )
        settings = self.info["settings"]
        self.settings = StoreSettings(**settings | {"strides": tuple(settings["strides"])})  # JSON has lists only
        with fsspec.open(f"{self.uri}/clips.parquet", "rb") as file:
            self.index: pa.Table = pa.parquet.read_table(file, schema=INDEX_SCHEMA)
        if self.index.num_rows != self.info["num_clips"]:
            raise ValueError(
                f"{self.uri}/clips.parquet has {self.index.num_rows} clips, store.json says {self.info['num_clips']}: "
                "delete store.json and run convert again"
            )

    def _document(self) -> dict[str, Any]:
        try:
            with fsspec.open(f"{self.uri}/store.json", "rb") as file:
                return json.load(file)
        except FileNotFoundError:
            raise ValueError(
                f"no store.json in {self.uri}: not a clip store, or its conversion did not finish; run convert (again)"
            ) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.uri}/store.json is damaged ({error}): run convert again") from None

    def __len__(self) -> int:
        return self.index.num_rows

    def __getitem__(self, i: int) -> Clip:
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of a store with {len(self)} clips")
        return Clip(self, self.index.slice(i, 1).to_pylist()[0])

    def __reduce__(self) -> tuple:
        return open_store, (self.uri,)


@lru_cache(maxsize=64)
def open_store(uri: str) -> ClipStore:
    """A ClipStore, opened once per process."""
    return ClipStore(uri)
