"""Reading clip stores by clip number. The layout is told in `pipelines/store/layout.py`."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from jaxtyping import Float32, Int64, UInt8

from pipelines.query_table import unpack_queries
from pipelines.raw.place import absolute, open_place, reachable
from pipelines.store.document import REMEDY, STORE, read_document
from pipelines.store.groups import Group, open_group
from pipelines.store.layout import StoreSettings, clip_id

UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, MemoryError, OverflowError)  # a group's file
OFFSET = np.dtype("<i8")  # of a frame in its clip's JPEG files
# What a reader keeps of the index for every clip, in less than 100 bytes; the rest is read when it is asked for.
KEPT = {
    "group": pa.dictionary(pa.int32(), pa.string()),
    "sequence": pa.dictionary(pa.int32(), pa.string()),
    "row": pa.int32(),
    "start": pa.int32(),
    "stride": pa.int32(),
    "crop_number": pa.int16(),
    "aspect": pa.float64(),
    "is_metric": pa.bool_(),
}
COUNTS = {"row": 0, "start": 0, "stride": 0, "crop_number": 0}  # and the least that each can be


def evenly(total: int, count: int | None) -> list[int]:
    """`count` of the numbers below `total`, at even distances from the first to the last; all if that is fewer."""
    places = np.linspace(0, total - 1, total if count is None else min(count, total))
    return np.unique(places.round().astype(int)).tolist()


def decode_jpeg(blob: UInt8[np.ndarray, "bytes"], num_frames: int) -> UInt8[np.ndarray, "T S S 3"]:
    """The inverse of `encode_jpeg`, up to JPEG's loss. ValueError if a file does not decode."""
    offsets = blob[: OFFSET.itemsize * (num_frames + 1)].view(OFFSET)
    video = None
    for t, (start, end) in enumerate(pairwise(offsets.tolist())):
        if not 0 < start < end <= blob.size or (frame := cv2.imdecode(blob[start:end], cv2.IMREAD_COLOR_RGB)) is None:
            raise ValueError(f"frame {t} is not a JPEG file")
        if video is None:
            video = np.empty((num_frames, *frame.shape), np.uint8)
        video[t] = frame  # copied while it is still in the cache
    return video


class Clip:
    """One clip of a store. Arrays are read when asked for; ValueError if what is stored is damaged.

    Cheap to send to another process, which then reads it without the index of the store.
    """

    def __init__(self, store: str, settings: StoreSettings, row: dict[str, Any]) -> None:
        self.store, self._settings = store, settings
        self._group: str = row["group"]
        self._row: int = row["row"]
        self.id = clip_id(row["sequence"], row["start"], row["stride"], row["crop_number"])
        self.dataset = settings.dataset
        self.sequence: str = row["sequence"]
        self.aspect: float = row["aspect"]
        self.is_metric: bool = row["is_metric"]
        self.num_samples = settings.samples
        self.num_frames = settings.frames

    def _open(self) -> Group:
        return open_group(f"{self.store}/data/{self._group}.zarr")

    def _damaged(self, name: str, error: Exception) -> ValueError:
        mark = f"groups/{self._group.rpartition('-')[0]}.json"
        return ValueError(
            f"{name} of clip {self.id} in {self.store}/data/{self._group}.zarr cannot be read ({error}): the "
            f"store is damaged; delete {mark} and store.json in it and run convert again, which makes only that anew"
        )

    def _chunk(self, name: str, sample: int = 0) -> np.ndarray:
        try:
            return self._open().chunk(name, self._row, sample)
        except UNREADABLE as error:
            raise self._damaged(name, error) from error

    def _small(self, name: str) -> np.ndarray:
        try:
            return self._open().small(name)[self._row]
        except UNREADABLE as error:
            raise self._damaged(name, error) from error

    @property
    def video(self) -> UInt8[np.ndarray, "T S S 3"]:
        """RGB frames."""
        stored = self._chunk("video")
        if self._settings.video == "zstd":
            return stored
        try:
            return decode_jpeg(stored, self.num_frames)
        except (ValueError, cv2.error) as error:
            raise self._damaged("video", error) from error

    @property
    def intrinsics(self) -> Float32[np.ndarray, "T 3 3"]:
        """Pixels of the stored square frame."""
        return self._small("intrinsics")

    @property
    def world_from_cam(self) -> Float32[np.ndarray, "T 4 4"]:
        return self._small("world_from_cam")

    @property
    def frame_index(self) -> Int64[np.ndarray, "T"]:
        """What the raw files call the frames."""
        return self._small("frame_index")

    def queries(self, sample: int) -> dict[str, np.ndarray]:
        """One query sample: field -> array with Q rows, as in the table of `pipelines/query_table.py`."""
        if not 0 <= sample < self.num_samples:
            raise ValueError(f"query sample {sample} asked of a store with {self.num_samples} samples per clip")
        return unpack_queries(self._chunk("queries", sample), self.num_frames)

    def all_queries(self) -> dict[str, np.ndarray]:
        """All query samples of the clip, end to end."""
        parts = [self.queries(sample) for sample in range(self.num_samples)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class ClipStore:
    """Read access by clip number: `len(store)`, `store[i]`. Cheap to open, cheap to send to another process."""

    def __init__(self, uri: str) -> None:
        """ValueError if there is no finished store at `uri`, it is damaged, of another schema, or not of its clips."""
        self.uri = str(uri).rstrip("/")
        document = read_document(self.uri)
        self.info = {field.name: getattr(document, field.name) for field in fields(document)}
        self.info["settings"] = asdict(document.settings)
        self.settings = document.settings

        self._kept = self._index()
        pa.default_memory_pool().release_unused()
        if self._kept.num_rows != document.num_clips:
            raise self._broken(f"{self._kept.num_rows} clips, store.json says {document.num_clips}")
        if len(self):
            self._require_settings_of(self._kept["group"][0].as_py())

    def _require_settings_of(self, group: str) -> None:
        """That the store was made as store.json says: each of its groups says it too."""
        folder = f"{self.uri}/data/{group}.zarr"
        try:
            there = open_group(folder).settings
        except UNREADABLE as error:
            raise ValueError(
                f"{folder} cannot be read ({error!r}): the store is damaged; delete groups/{group.rpartition('-')[0]}"
                ".json and store.json in it and run convert again, which makes only that anew"
            ) from error
        if differences := self.settings.differences(there):
            raise ValueError(
                f"{self.uri}/{STORE} says other settings than {folder} ({'; '.join(differences)}): {REMEDY}"
            )

    def _broken(self, why: str) -> ValueError:
        return ValueError(f"{self.uri}/{self.info['index']}: {why}; {REMEDY}")

    def _index(self) -> pa.Table:
        """What is kept of it (`KEPT`)."""
        table = self._columns(list(KEPT))
        try:
            kept = table.cast(pa.schema(KEPT)).unify_dictionaries().combine_chunks()
        except pa.ArrowException as error:
            raise self._broken(f"it is damaged ({error})") from None
        for name, column in zip(kept.column_names, kept.columns, strict=True):
            if column.null_count or (name in COUNTS and len(column) and pa.compute.min(column).as_py() < COUNTS[name]):
                raise self._broken(f"it is damaged ({name} cannot be null or below {COUNTS.get(name)})")
        return kept

    def _columns(self, names: list[str]) -> pa.Table:
        fs, path = open_place(self.uri)
        index = self.info["index"]
        dictionaries = [name for name in names if name in KEPT and pa.types.is_dictionary(KEPT[name])]
        try:
            with reachable(f"{self.uri}/{index}"), fs.open(f"{path}/{index}", "rb") as file:
                return pyarrow.parquet.ParquetFile(file, read_dictionary=dictionaries).read(names).select(names)
        except (pa.ArrowException, KeyError) as error:
            raise self._broken(f"it is damaged ({error})") from None

    def column(self, name: str) -> np.ndarray:
        """A column of the index (`INDEX_SCHEMA`), read for this call; objects where it has text or nulls."""
        return self._columns([name])[name].to_numpy()

    def __len__(self) -> int:
        return self._kept.num_rows

    def __getitem__(self, i: int) -> Clip:
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of a store with {len(self)} clips")
        return Clip(self.uri, self.settings, self._kept.slice(i, 1).to_pylist()[0])

    def __reduce__(self) -> tuple:
        return open_store, (self.uri,)


@lru_cache(maxsize=64)
def open_store(uri: str) -> ClipStore:
    """A ClipStore, opened once per process."""
    return ClipStore(uri)


def open_different(uris: Iterable[str]) -> list[ClipStore]:
    """Stores that are to count once each. ValueError if two of them hold the same clips, however they are spelt."""
    stores = [open_store(absolute(uri)) for uri in uris]
    for number, store in enumerate(stores):
        for other in stores[:number]:
            if store.info["digest"] == other.info["digest"]:
                raise ValueError(f"store {store.uri} holds the same clips as {other.uri}: name them once")
    return stores
