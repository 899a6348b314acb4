"""Writing a group of clips: encoded in memory, put into a folder of its own, published. See `store/layout.py`."""

import hashlib
import warnings
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import zarr
from jaxtyping import UInt8
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pipelines.query_table import pack_queries
from pipelines.store.layout import ClipData, StoreSettings, clip_id
from pipelines.store.marks import Mark, Origin, is_published, new_group, publish
from pipelines.store.reader import OFFSET, decode_jpeg
from pipelines.whole import json_value, write_file

JPEG_QUALITY = 95  # 4:2:0: about a tenth of the bytes, 40 dB, and three times faster to read than 4:4:4


def encode_jpeg(frames: UInt8[np.ndarray, "T S S 3"]) -> UInt8[np.ndarray, "bytes"]:
    """T + 1 offsets, then the JPEG files end to end."""
    files = [
        cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
        for frame in frames
    ]
    offsets = np.cumsum([OFFSET.itemsize * (len(files) + 1), *(file.size for file in files)]).astype(OFFSET)
    return np.concatenate([offsets.view(np.uint8), *files])


def write_group(store: str, origin: Origin, settings: StoreSettings, clips: list[ClipData]) -> str:
    """Write and publish a group; its name. If another writer was first, its clips count: they are the same.

    ValueError, naming the place, if that cannot be written.
    """
    name = origin.name(settings)
    group = new_group(name)
    files, rows = encode_group(group, settings, clips)
    try:
        for path, content in files.items():
            write_file(f"{store}/data/{group}.zarr/{path}", content)
    except ValueError:
        if is_published(store, name):  # by another writer, whose job then swept what this one had written
            return name
        raise
    publish(store, name, Mark(origin=origin, group=group, rows=rows))
    return name


def encode_group(
    group: str, settings: StoreSettings, clips: list[ClipData]
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The files of a group by their path in it, zarr.json the last, and its index rows."""
    store = MemoryStore()
    root = zarr.create_group(store, zarr_format=3)
    video = _encode_video(root, settings, clips)
    queries = np.stack([[pack_queries(sample) for sample in clip.queries] for clip in clips])
    shuffled = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=4)
    _sharded(root, "queries", queries, chunk=(1, 1, queries.shape[2]), codec=shuffled)

    small = {
        key: np.stack([getattr(clip, key) for clip in clips]) for key in ("intrinsics", "world_from_cam", "frame_index")
    }
    for key, data in small.items():
        array = root.create_array(
            key, shape=data.shape, dtype=data.dtype, chunks=data.shape, compressors=[ZstdCodec(level=1), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )  # fmt: skip
        array[...] = data

    byte_ranges = {name: _byte_ranges(store, root[name]) for name in ("video", "queries")}
    root.update_attributes({"settings": asdict(settings), "byte_ranges": byte_ranges})
    with warnings.catch_warnings():  # Zarr v3 has no word on consolidated metadata yet; readers that lack it ignore it
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(store)

    rows = [_row(group, i, settings, clip, [video[i], queries[i]]) for i, clip in enumerate(clips)]
    files = {path: value.to_bytes() for path, value in store._store_dict.items()}
    return {path: files[path] for path in sorted(files, key=lambda path: path == "zarr.json")}, rows


def _encode_video(root: zarr.Group, settings: StoreSettings, clips: list[ClipData]) -> np.ndarray:
    if settings.video == "zstd":
        video = np.stack([clip.video for clip in clips])
        exact = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=1)
        _sharded(root, "video", video, chunk=(1, *video.shape[1:]), codec=exact)
        return video

    encoded = [encode_jpeg(clip.video) for clip in clips]
    video = np.zeros((len(clips), max(map(len, encoded))), np.uint8)
    for padded, blob in zip(video, encoded, strict=True):
        padded[: len(blob)] = blob
    _sharded(root, "video", video, chunk=(1, video.shape[1]), codec=ZstdCodec(level=1))  # which packs the zeros
    return video


def _sharded(root: zarr.Group, name: str, data: np.ndarray, *, chunk: tuple[int, ...], codec: Any) -> None:
    array = root.create_array(
        name, shape=data.shape, dtype=data.dtype, chunks=chunk, shards=data.shape, compressors=[codec, Crc32cCodec()],
        config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = data


def _byte_ranges(store: MemoryStore, array: zarr.Array) -> list[list[list[int]]]:
    """Of every clip, [start, length] of its chunks in the array's one shard.

    From the index at the shard's end: start and length of each chunk as uint64, and a CRC-32C of them.
    """
    shard = store._store_dict[f"{array.basename}/c/{'/'.join('0' * array.ndim)}"].to_bytes()
    count = np.prod([side // chunk for side, chunk in zip(array.shape, array.chunks, strict=True)])
    index = np.frombuffer(shard[-(16 * count + 4) : -4], "<u8")
    return index.reshape(array.shape[0], -1, 2).tolist()


def _row(group: str, row: int, settings: StoreSettings, clip: ClipData, stored: list[np.ndarray]) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for part in (*stored, clip.intrinsics, clip.world_from_cam, clip.frame_index):
        digest.update(np.ascontiguousarray(part))
    told = json_value(clip.row)
    return told | {
        "id": clip_id(told["sequence"], told["start"], told["stride"], told.get("crop_number", 0)),
        "crop_number": told.get("crop_number", 0),
        "dataset": settings.dataset,
        "frame_numbers": clip.frame_index.tolist(),
        "group": group,
        "row": row,
        "psnr": _jpeg_psnr(clip.video[settings.frames // 2]) if settings.video == "jpeg" else None,
        "digest": digest.hexdigest(),
    }


def _jpeg_psnr(frame: UInt8[np.ndarray, "S S 3"]) -> float | None:
    """Loss of the stored form, in dB; None if there is none."""
    error = np.square(decode_jpeg(encode_jpeg(frame[None]), 1)[0] - frame.astype(np.float32)).mean()
    return float(10 * np.log10(255**2 / error)) if error else None
