"""Writing clip stores: groups by parallel tasks, then the index. The layout is told in `pipelines/store/layout.py`."""

import hashlib
import json
import posixpath
import warnings
from dataclasses import asdict
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import zarr
from jaxtyping import UInt8
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipelines.query_table import FLAG_BITS, VALID_BITS, pack_queries, query_dtype
from pipelines.store.layout import INDEX_SCHEMA, SCHEMA, ClipData, StoreSettings
from pipelines.store.reader import decode_jpeg
from pipelines.whole import json_value, write_file

JPEG_QUALITY = 95  # 4:2:0: about a tenth of the bytes, 40 dB, and three times faster to read than 4:4:4
FRAMES_PER_CHUNK = 8  # of exact-pixel video; one shard per clip


def encode_jpeg(frames: UInt8[np.ndarray, "T S S 3"]) -> tuple[bytes, np.ndarray]:
    """JPEG files end to end, and (T + 1,) int64 offsets."""
    files = [
        cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
        for frame in frames
    ]
    return b"".join(file.tobytes() for file in files), np.cumsum([0] + [file.size for file in files])


def _jpeg_psnr(frame: UInt8[np.ndarray, "S S 3"]) -> float | None:
    """Loss of the stored form, in dB; None if there is none."""
    blob, offsets = encode_jpeg(frame[None])
    error = np.square(decode_jpeg(np.frombuffer(blob, np.uint8), offsets)[0] - frame.astype(np.float32)).mean()
    return float(10 * np.log10(255**2 / error)) if error else None


def _array(
    group: zarr.Group, name: str, data: np.ndarray, *, chunks: tuple[int, ...], codec: Any, **extra: Any
) -> None:
    array = group.create_array(
        name, shape=data.shape, dtype=data.dtype, chunks=chunks, compressors=[codec, Crc32cCodec()], **extra
    )
    array[...] = data


def write_group(store: str, name: str, settings: StoreSettings, clips: list[ClipData]) -> list[dict[str, Any]]:
    """Write data/NAME.zarr from scratch and return its index rows. What an interrupted run left there is removed."""
    uri = f"{store}/data/{name}.zarr"
    fs, path = fsspec.core.url_to_fs(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)
        fs.invalidate_cache()
    group = zarr.open_group(uri, mode="w", zarr_format=3)
    rows, zstd = [], ZstdCodec(level=1)
    if settings.video == "jpeg":
        encoded = [encode_jpeg(clip.video) for clip in clips]
        video = np.zeros((len(clips), max(len(blob) for blob, _ in encoded)), np.uint8)
        for i, (blob, _) in enumerate(encoded):
            video[i, : len(blob)] = np.frombuffer(blob, np.uint8)
        offsets = np.stack([offsets for _, offsets in encoded])
        _array(group, "video", video, chunks=(1, video.shape[1]), codec=zstd)
        _array(group, "video_offsets", offsets, chunks=offsets.shape, codec=zstd)
    else:
        video = np.stack([clip.video for clip in clips])
        chunk = (1, min(FRAMES_PER_CHUNK, settings.frames), *video.shape[2:])
        shard = (1, -(-settings.frames // chunk[1]) * chunk[1], *video.shape[2:])
        exact = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
        _array(group, "video", video, chunks=chunk, shards=shard, codec=exact)
    queries = np.stack([[pack_queries(sample) for sample in clip.queries] for clip in clips])
    _array(
        group,
        "queries",
        queries,
        chunks=(1, 1, queries.shape[2]),
        codec=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=4),
    )
    for key in ("intrinsics", "world_from_cam", "frame_index"):
        data = np.stack([getattr(clip, key) for clip in clips])
        _array(group, key, data, chunks=data.shape, codec=zstd)
    for i, clip in enumerate(clips):
        digest = hashlib.blake2b(digest_size=16)
        for part in (video[i], queries[i], clip.intrinsics, clip.world_from_cam, clip.frame_index):
            digest.update(np.ascontiguousarray(part))
        rows.append(
            json_value(clip.row)
            | {
                "dataset": settings.dataset,
                "frame_numbers": clip.frame_index.tolist(),
                "group": name,
                "row": i,
                "psnr": _jpeg_psnr(clip.video[settings.frames // 2]) if settings.video == "jpeg" else None,
                "digest": digest.hexdigest(),
            }
        )
    group.update_attributes({"complete": True, "settings": asdict(settings), "rows": rows})
    with warnings.catch_warnings():  # Zarr v3 has no word on consolidated metadata yet; readers that lack it ignore it
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(group.store)
    return rows


def finished_groups(store: str, settings: StoreSettings) -> dict[str, list[dict[str, Any]]]:
    """Name -> index rows of the groups that an earlier run completed. ValueError if it ran with other settings."""
    fs, path = fsspec.core.url_to_fs(store)
    fs.invalidate_cache()
    finished = {}
    files = [f"{folder}/zarr.json" for folder in _groups(fs, path)]
    documents = fs.cat(files, on_error="omit") if files else {}
    for file, content in documents.items():
        attributes = json.loads(content).get("attributes", {})
        if not attributes.get("complete"):
            continue
        if differences := settings.differences(attributes["settings"]):
            raise ValueError(
                f"store {store} was begun with other settings ({'; '.join(differences)}): "
                "use the same settings to go on with it, or another --store"
            )
        name = posixpath.basename(posixpath.dirname(file)).removesuffix(".zarr")
        finished[name] = attributes["rows"]
    return finished


def _groups(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    try:
        return [folder for folder in fs.ls(f"{path}/data", detail=False) if folder.endswith(".zarr")]
    except FileNotFoundError:
        return []


def write_index(
    store: str, settings: StoreSettings, rows: list[dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write clips.parquet and then store.json, which makes the store readable. Returns the content of store.json.

    `facts` are the remaining keys of store.json: catalog, counts, sequences, failed, skipped, noted.
    """
    rows = sorted(rows, key=lambda row: (row["group"], row["row"]))
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    write_file(f"{store}/clips.parquet", sink.getvalue().to_pybytes())
    document = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "query_fields": {
            name: [str(field.base), field.shape[0] if field.shape else 1, offset]
            for name, (field, offset) in query_dtype(settings.frames).fields.items()
        },
        "valid_bits": VALID_BITS,
        "flag_bits": FLAG_BITS,
        "num_clips": len(rows),
        "digest": hashlib.blake2b("".join(row["digest"] for row in rows).encode(), digest_size=16).hexdigest(),
        **facts,
    }
    write_file(f"{store}/store.json", json.dumps(document, indent=1).encode())
    return document
