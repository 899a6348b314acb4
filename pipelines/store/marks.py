"""Marks: which groups of a store are published, and what each was made from. `store/layout.py` has the protocol."""

import hashlib
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines import documents
from pipelines.documents import Kind
from pipelines.raw.folder import RawFolder
from pipelines.store.document import find_document
from pipelines.store.layout import CONVERSION, StoreSettings, escaped
from pipelines.whole import create_if_absent, delete_folder, listed, read_file, sweep_left

ABANDONED_SECONDS = 24 * 3600  # after which nobody works any more on a group that was never published
SWEEPERS = 32  # sequences that are looked at together: S3 takes as long for one as a disk for a hundred


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a group is made from: its name follows from this and the settings."""

    sequence: str
    first: int
    """Place of its first clip among those of the sequence."""
    frames: tuple[tuple[int, ...], ...]
    """Of each clip, counted within the sequence."""
    labels: dict[str, Any]
    """What else decides the labels: facts of the catalog."""
    files: dict[str, str]
    """Every raw file that was read, or looked for, and its `RawFolder.version` before that."""

    def name(self, settings: StoreSettings) -> str:
        """Like "hospital_2FEasy_2FP037/000008-1f0e..."."""
        told = json.dumps([CONVERSION, asdict(settings), asdict(self)], sort_keys=True)
        source = hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
        return f"{escaped(self.sequence)}/{self.first:06d}-{source}"

    def is_of(self, other: "Origin") -> bool:
        """Whether both are of the same clips with the same labels, whatever became of the raw files."""
        return replace(self, files={}) == replace(other, files={})

    def is_unchanged(self, raw: RawFolder) -> bool:
        return all(raw.version(path) == version for path, version in self.files.items())


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A published group."""

    origin: Origin
    group: str
    """NAME-ID below data/, without .zarr."""
    rows: list[dict[str, Any]]
    """Of the index."""


def begin(store: str, settings: StoreSettings) -> None:
    """Say what the store will hold, or see that it says the same. ValueError if it does not, or cannot be written."""
    find_document(store)
    content = json.dumps(asdict(settings), indent=1).encode()
    if create_if_absent(f"{store}/settings.json", content):
        if create_if_absent(f"{store}/settings.json", content):
            raise ValueError(
                f"{store}: this server replaces files where it was told to create them only if they are absent, so "
                "that two jobs could damage each other's clips; use a server with conditional writes (If-None-Match)"
            )
        return

    there = _read(f"{store}/settings.json", dict)
    if differences := settings.differences(there):
        raise ValueError(
            f"store {store} was begun with other settings ({'; '.join(differences)}): "
            "use the same settings to go on with it, or another --store"
        )


def published(store: str, sequence: str) -> dict[str, Mark]:
    """Name -> mark of all groups of a sequence, also of those whose raw files have changed since."""
    folder = escaped(sequence)
    return {f"{folder}/{name}": load(store, f"{folder}/{name}") for name in names(store, folder)}


def names(store: str, folder: str) -> list[str]:
    """Of the published groups of a sequence, whose escaped name is `folder`: not what a writer that was killed left."""
    found = listed(f"{store}/groups/{folder}")
    return [file.removesuffix(".json") for file in found if file.endswith(".json")]


def is_published(store: str, name: str) -> bool:
    return read_file(f"{store}/groups/{name}.json") is not None


def load(store: str, name: str) -> Mark:
    """The mark of a group. ValueError if it is not there, or damaged."""
    return _read(f"{store}/groups/{name}.json", Mark)


def new_group(name: str) -> str:
    """A name below data/ for a writer's own folder; it tells when it was begun."""
    return f"{name}-{int(time.time()):x}{uuid.uuid4().hex[:8]}"


def publish(store: str, name: str, mark: Mark) -> bool:
    """Create the mark, which makes the group one of the store.

    False if another writer published it, whose folder counts: this one's is then deleted.
    """
    content = json.dumps({"group": mark.group, "origin": asdict(mark.origin), "rows": mark.rows}).encode()
    if create_if_absent(f"{store}/groups/{name}.json", content):
        return True
    delete_folder(f"{store}/data/{mark.group}.zarr")
    return False


def sweep(store: str, sequences: list[str]) -> None:
    """Delete what will never count: folders of groups which another writer published, abandoned ones, half a mark."""
    sweep_left(store)
    with ThreadPoolExecutor(SWEEPERS) as pool:
        for _ in pool.map(lambda sequence: _sweep_sequence(store, escaped(sequence)), sequences):
            pass  # but whatever it raises


def _sweep_sequence(store: str, folder: str) -> None:
    sweep_left(f"{store}/groups/{folder}")
    marked = set(names(store, folder))
    writers: dict[str, list[str]] = {}
    for entry in listed(f"{store}/data/{folder}"):
        writers.setdefault(entry.rpartition("-")[0], []).append(entry.removesuffix(".zarr"))

    for name, groups in writers.items():
        if name not in marked:
            last = time.time() - ABANDONED_SECONDS
            lost = [group for group in groups if int(group.rpartition("-")[2][:-8], 16) < last]
        elif len(groups) > 1:
            counts = load(store, f"{folder}/{name}").group
            lost = [group for group in groups if f"{folder}/{group}" != counts]
        else:  # the one that counts: its mark, which may be far away, need not be read
            lost = []
        for group in lost:
            delete_folder(f"{store}/data/{folder}/{group}.zarr")


def _read(file: str, kind: type[Kind]) -> Kind:
    remedy = "delete it and run convert again"
    found = documents.read(file, kind, remedy)
    if found is None:
        raise ValueError(f"{file} is missing: {remedy}")
    return found
