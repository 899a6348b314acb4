"""Finishing a store: the index of all its clips, and store.json, which makes it one."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pipelines.partial import scratch_folder
from pipelines.query_table import FLAG_BITS, VALID_BITS, query_dtype
from pipelines.store.layout import INDEX_SCHEMA, SCHEMA, StoreSettings
from pipelines.store.marks import load, sweep
from pipelines.whole import create_if_absent, read_file, write_file

INDEX = "clips.parquet"
GROUPS_AT_ONCE = 512  # whose rows are held in memory
READERS = 32  # of their marks: S3 takes as long for one as a disk for a hundred


def finish(store: str, settings: StoreSettings, names: list[str], facts: dict[str, Any]) -> dict[str, Any]:
    """Write the index of these groups, in this order, and then store.json. Returns the content of store.json.

    `facts` may have what else is known: catalog, counts, sequences, failed, skipped, noted. What of the sequences will
    never count is deleted before: nobody looks for it in a store that is finished.
    """
    sweep(store, facts.get("sequences", []))
    digest, places = (hashlib.blake2b(digest_size=16) for _ in range(2))
    num_clips = 0
    with scratch_folder() as scratch:
        file = scratch / INDEX
        with pyarrow.parquet.ParquetWriter(file, INDEX_SCHEMA) as writer, ThreadPoolExecutor(READERS) as pool:
            for first in range(0, len(names), GROUPS_AT_ONCE):
                marks = pool.map(partial(load, store), names[first : first + GROUPS_AT_ONCE])
                rows = [row for mark in marks for row in mark.rows]
                for row in rows:
                    digest.update(row["digest"].encode())
                    places.update(f"{row['group']}/{row['row']}\n".encode())
                num_clips += len(rows)
                writer.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
        index = _publish_index(store, file.read_bytes(), digest.hexdigest() + places.hexdigest())

    facts = {"catalog": {}, "sequences": [], "failed": {}, "skipped": {}, "noted": {}} | facts
    facts["counts"] = facts.get("counts", {}) | {"clips": num_clips, "frames": num_clips * settings.frames}
    document = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "index": index,
        "groups": digest_of(names),
        "num_clips": num_clips,
        "digest": digest.hexdigest(),
        "query_fields": {
            name: [str(field.base), field.shape[0] if field.shape else 1, offset]
            for name, (field, offset) in query_dtype(settings.frames).fields.items()
        },
        "valid_bits": VALID_BITS,
        "flag_bits": FLAG_BITS,
        **facts,
    }
    write_file(f"{store}/store.json", json.dumps(document, indent=1).encode())
    return document


def digest_of(names: list[str]) -> str:
    """Of the names of groups, in their order."""
    return hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()


def _publish_index(store: str, content: bytes, identity: str) -> str:
    """Its name: clips.parquet, or, if an index of other clips has that already, one of its own."""
    for name in (INDEX, f"clips-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.parquet"):
        if create_if_absent(f"{store}/{name}", content) or read_file(f"{store}/{name}") == content:
            return name
    # Of the same clips, but written by another version of Parquet, or damaged since.
    write_file(f"{store}/{name}", content)
    return name
