"""Reading clip stores by clip number. The layout is told in `pipelines/store/layout.py`."""

import json
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float32, Int64, UInt8

from pipelines.query_table import unpack_queries
from pipelines.raw.place import open_place, reachable
from pipelines.store.groups import Damaged, Group, open_group
from pipelines.store.layout import SCHEMA, StoreSettings, clip_id
from pipelines.whole import read_file

OFFSET = np.dtype("<i8")  # of a frame in its clip's JPEG files
DOCUMENT = {  # keys of store.json, and what each must be
    "schema": int,
    "settings": dict,
    "index": str,
    "groups": str,
    "num_clips": int,
    "digest": str,
    "query_fields": dict,
    "valid_bits": dict,
    "flag_bits": dict,
    "catalog": dict,
    "counts": dict,
    "sequences": list,
    "failed": dict,
    "skipped": dict,
    "noted": dict,
}
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
    """One clip of a store. Arrays are read when asked for; ValueError if what is stored is damaged."""

    def __init__(self, store: "ClipStore", row: dict[str, Any]) -> None:
        self._store, self._row = store, row["row"]
        self._group: str = row["group"]
        self.id = clip_id(row["sequence"], row["start"], row["stride"], row["crop_number"])
        self.dataset = store.settings.dataset
        self.sequence: str = row["sequence"]
        self.aspect: float = row["aspect"]
        self.is_metric: bool = row["is_metric"]
        self.num_samples = store.settings.samples

    def _open(self) -> Group:
        return open_group(f"{self._store.uri}/data/{self._group}.zarr")

    def _damaged(self, name: str, error: Exception) -> ValueError:
        mark = f"groups/{self._group.rpartition('-')[0]}.json"
        return ValueError(
            f"{name} of clip {self.id} in {self._store.uri}/data/{self._group}.zarr cannot be read ({error}): the "
            f"store is damaged; delete {mark} and store.json in it and run convert again, which makes only that anew"
        )

    def _chunk(self, name: str, sample: int = 0) -> np.ndarray:
        try:
            return self._open().chunk(name, self._row, sample)
        except (Damaged, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
            raise self._damaged(name, error) from error

    def _small(self, name: str) -> np.ndarray:
        try:
            return self._open().small(name)[self._row]
        except (Damaged, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
            raise self._damaged(name, error) from error

    @property
    def video(self) -> UInt8[np.ndarray, "T S S 3"]:
        """RGB frames."""
        stored = self._chunk("video")
        if self._store.settings.video == "zstd":
            return stored
        try:
            return decode_jpeg(stored, self._store.settings.frames)
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
        return unpack_queries(self._chunk("queries", sample), self._store.settings.frames)

    def all_queries(self) -> dict[str, np.ndarray]:
        """All query samples of the clip, end to end."""
        parts = [self.queries(sample) for sample in range(self.num_samples)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class ClipStore:
    """Read access by clip number: `len(store)`, `store[i]`. Cheap to open, cheap to send to another process."""

    def __init__(self, uri: str) -> None:
        """ValueError if there is no finished store at `uri`, it is damaged, or of another schema."""
        self.uri = str(uri).rstrip("/")
        self.info = self._document()
        settings = self.info["settings"]
        try:
            self.settings = StoreSettings(**settings | {"strides": tuple(settings["strides"])})  # JSON has lists only
        except (TypeError, KeyError, ValueError) as error:
            raise self._broken("store.json", f"its settings cannot be: {error}") from None

        self._kept = self._columns(list(KEPT)).cast(pa.schema(KEPT)).unify_dictionaries().combine_chunks()
        pa.default_memory_pool().release_unused()
        if self._kept.num_rows != self.info["num_clips"]:
            found = f"{self._kept.num_rows} clips, store.json says {self.info['num_clips']}"
            raise self._broken(self.info["index"], found)

    def _document(self) -> dict[str, Any]:
        content = read_file(f"{self.uri}/store.json")
        if content is None:
            raise ValueError(
                f"no store.json in {self.uri}: not a clip store, or its conversion did not finish; run convert (again)"
            )
        try:
            document = dict(json.loads(content))
        except (ValueError, TypeError) as error:
            raise self._broken("store.json", f"it is damaged ({error})") from None
        if document.get("schema") != SCHEMA:
            raise ValueError(
                f"store {self.uri} has schema {document.get('schema')}, this code reads {SCHEMA}: convert it again, "
                "into another place"
            )
        if unknown := sorted(document.keys() - DOCUMENT.keys()):
            raise self._broken("store.json", f"it has an unknown key {unknown[0]!r}")
        for key, kind in DOCUMENT.items():
            if not isinstance(document.get(key), kind):
                raise self._broken("store.json", f"its {key} is {document.get(key)!r}")
        return document

    def _broken(self, file: str, why: str) -> ValueError:
        return ValueError(f"{self.uri}/{file}: {why}; delete store.json and run convert again, which makes both anew")

    def _columns(self, names: list[str]) -> pa.Table:
        fs, path = open_place(self.uri)
        index = self.info["index"]
        if "/" in index:
            raise self._broken("store.json", f"its index {index!r} is not in the store")
        dictionaries = [name for name in names if name in KEPT and pa.types.is_dictionary(KEPT[name])]
        try:
            with reachable(f"{self.uri}/{index}"), fs.open(f"{path}/{index}", "rb") as file:
                return pyarrow.parquet.ParquetFile(file, read_dictionary=dictionaries).read(names).select(names)
        except (pa.ArrowException, KeyError) as error:
            raise self._broken(index, f"it is damaged ({error})") from None

    def column(self, name: str) -> np.ndarray:
        """A column of the index (`INDEX_SCHEMA`), read for this call; objects where it has text or nulls."""
        return self._columns([name])[name].to_numpy()

    def __len__(self) -> int:
        return self._kept.num_rows

    def __getitem__(self, i: int) -> Clip:
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of a store with {len(self)} clips")
        return Clip(self, self._kept.slice(i, 1).to_pylist()[0])

    def __reduce__(self) -> tuple:
        return open_store, (self.uri,)


@lru_cache(maxsize=64)
def open_store(uri: str) -> ClipStore:
    """A ClipStore, opened once per process."""
    return ClipStore(uri)
