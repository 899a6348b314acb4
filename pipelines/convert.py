"""`python -m pipelines convert DATASET --raw RAW --store STORE`: raw dataset to clip store, as a Ray Data job.

Two pipes. The first opens every sequence and says where its clips lie; the second writes them, one group (a sequence,
or a span of a long one) per row. A group is complete or it is redone, so running the job again finishes what an
interrupted one began. A sequence that fails becomes a row with its reason.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import fsspec
from tqdm import tqdm

from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS, DatasetKey, open_sequence
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Excluded
from pipelines.store.layout import StoreSettings
from pipelines.store.reader import ClipStore
from pipelines.store.writer import finished_groups, write_group, write_index
from pipelines.truth.clips import build_clips, spans
from pipelines.truth.verdict import judge

CLIPS_PER_GROUP = 8  # what one task holds in memory, compressed
TASK_MEMORY = 3 << 29  # bytes reserved per task; 48 frames of 640 x 480 take 1.0 GB with Python and all it imports

Row = dict[str, Any]


def plan_sequence(
    row: Row,
    *,
    raw: str,
    settings: StoreSettings,
    catalog: Catalog,
    finished: frozenset[str] = frozenset(),
    allow_misfit: bool = False,
) -> Iterator[Row]:
    """One sequence name to the groups to write: {"sequence", "group", "first", "last", "reason", "audit", "notes"}.

    `first:last` are places in `spans(sequence)`. A sequence that cannot be opened, is too short, is a misfit or is
    excluded by the catalog or by its reader yields one row with a reason and no group. What is finished is not audited
    again.
    """
    name = row["sequence"]
    nothing = {"sequence": name, "group": "", "first": 0, "last": 0, "audit": "", "notes": ""}
    if reason := catalog.exclusion_of(name):
        yield nothing | {"reason": f"excluded by catalogs/{catalog.key}.yaml: {reason}", "failed": False}
        return
    try:
        sequence = open_sequence(settings.dataset, raw, name)
        count = len(spans(sequence, settings))
        size = max(1, CLIPS_PER_GROUP // (1 + settings.crops))
        parts = [(first, min(first + size, count)) for first in range(0, count, size)]
        groups = [name.replace("/", "__") + (f"__{first:05d}" if count > size else "") for first, _ in parts]
        verdict = None if finished.issuperset(groups) else judge(sequence)
        unposed = int((~sequence.cameras.known).sum())
        notes = "; ".join([*sequence.notes, *([f"{unposed} frames without pose"] if unposed else [])])
    except Excluded as error:
        yield nothing | {"reason": str(error), "failed": False}
        return
    except Exception as error:  # whatever it is, it becomes this sequence's reason and counts as failed
        yield nothing | {"reason": _reason(error), "failed": True}
        return
    if count == 0:
        reason = f"no {settings.frames} frames in a row with known pose: it has {len(sequence)} frames"
        yield nothing | {"reason": reason, "failed": False, "notes": notes}
    elif verdict is not None and verdict.outcome == "misfit" and not allow_misfit:
        reason = f"{verdict.reason}; look at it with `audit`, mend it, or use --allow-misfit"
        yield nothing | {"reason": reason, "failed": True}
    else:
        figures = json.dumps(verdict.index_columns()) if verdict else ""
        for group, (first, last) in zip(groups, parts, strict=True):
            part = {"sequence": name, "group": group, "first": first, "last": last}
            yield part | {"reason": "", "failed": False, "audit": figures, "notes": notes}


def convert_group(row: Row, *, raw: str, store: str, settings: StoreSettings, catalog: Catalog) -> Row:
    """Write one group; its index rows come back as JSON, or the reason why it failed."""
    try:
        sequence = open_sequence(settings.dataset, raw, row["sequence"])
        chosen = spans(sequence, settings)[row["first"] : row["last"]]
        clips = [clip for span in chosen for clip in build_clips(sequence, span, catalog, settings)]
        for clip in clips:
            clip.row.update(json.loads(row["audit"]))
        rows = write_group(store, row["group"], settings, clips)
    except Exception as error:
        return row | {"rows": "[]", "reason": _reason(error), "failed": True}
    return row | {"rows": json.dumps(rows)}


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def convert(
    dataset: DatasetKey,
    /,
    *,
    raw: str,
    store: str,
    split: Literal["train", "val", "test", "all"] = "train",
    frames: int = 48,
    image_size: int = 256,
    strides: tuple[int, int] | None = None,
    hop: int | None = None,
    samples: int = 4,
    queries: int = 2048,
    crops: int = 0,
    video: Literal["jpeg", "zstd"] = "jpeg",
    seed: int = 0,
    max_failed_share: float = 0.05,
    allow_misfit: bool = False,
) -> None:
    """Convert a raw dataset into a clip store. Run again after an interruption, it goes on where it was.

    Args:
        dataset: Whose official layout the raw folder has.
        raw: Folder or s3:// URI of the raw files.
        store: Folder or s3:// URI of the clip store to write.
        split: Which scenes, by the catalog's splits.
        frames: Frames per clip.
        image_size: Clips are resized to squares of this size.
        strides: Smallest and largest temporal stride; by default the catalog's.
        hop: Frames from one clip's start to the next; by default as many as a clip has.
        samples: Query samples per clip; a training step reads one.
        queries: Queries per sample.
        crops: Random crops of every clip, cut from native frames, each a clip of its own (the paper's augmentation).
        video: jpeg (quality 95, a tenth of the bytes) or zstd (exact pixels).
        seed: Of strides and queries.
        max_failed_share: Fail, leaving no finished store, if a larger share of the sequences fails.
        allow_misfit: Also convert sequences whose depth and cameras fit together better when read in another way than
            the dataset's conventions say (see `audit`); otherwise they fail.
    """
    catalog = Catalog.load(dataset)
    settings = StoreSettings(
        dataset=dataset,
        split=split,
        frames=frames,
        image_size=image_size,
        strides=strides or catalog.strides,
        hop=hop or frames,
        samples=samples,
        queries=queries,
        video=video,
        seed=seed,
        crops=crops,
    )
    store = store.rstrip("/")
    adapter = DATASETS[dataset]
    names = [
        name for name in adapter.find(RawFolder(raw)) if split in ("all", catalog.split_of(adapter.scene_of(name)))
    ]
    if not names:
        raise ValueError(
            f"no sequence of split {split!r} of {dataset} in {raw}: check --split and the catalog's splits"
        )
    finished = finished_groups(store, settings)
    if _is_done(store, names):
        print(f"{store} is complete: nothing to do")
        return

    import ray.data  # which takes a second and is not needed to print help or refuse a typing error

    from pipelines.cluster import connect

    connect()
    plan = (
        ray.data.from_items([{"sequence": name} for name in names], override_num_blocks=min(len(names), 256))
        .flat_map(
            partial(
                plan_sequence,
                raw=raw,
                settings=settings,
                catalog=catalog,
                finished=frozenset(finished),
                allow_misfit=allow_misfit,
            )
        )
        .take_all()
    )
    groups = [row for row in plan if row["group"]]
    if len({row["group"] for row in groups}) < len(groups):
        raise ValueError("two sequences would share a group name: rename the folders that differ only in / and __")
    todo = [row for row in groups if row["group"] not in finished]
    rows = [row for group in groups for row in finished.get(group["group"], [])]
    failed = {row["sequence"]: row["reason"] for row in plan if row["failed"]}
    skipped = {row["sequence"]: row["reason"] for row in plan if row["reason"] and not row["failed"]}
    noted = {row["sequence"]: row["notes"] for row in plan if row["notes"]}
    if todo:
        results = ray.data.from_items(todo, override_num_blocks=min(len(todo), 1024)).map(
            partial(convert_group, raw=raw, store=store, settings=settings, catalog=catalog), memory=TASK_MEMORY
        )
        with tqdm(total=len(groups), initial=len(groups) - len(todo), desc=f"convert {dataset}", unit="group") as bar:
            for result in results.iter_rows():
                rows += json.loads(result["rows"])
                if result["failed"]:
                    failed[result["sequence"]] = result["reason"]
                bar.set_postfix(clips=len(rows), failed=len(failed), refresh=False)
                bar.update()
    for kind, listed in (("noted", noted), ("failed", failed), ("skipped", skipped)):
        for name, reason in sorted(listed.items()):
            tqdm.write(f"{kind} {name}: {reason}")
    if len(failed) > max_failed_share * len(names) or not rows:
        raise ValueError(
            f"{len(failed)} of {len(names)} sequences failed and {len(rows)} clips were written (allowed share of "
            f"failures: {max_failed_share:g}); {store} is left unfinished. Mend or remove what is listed above and run "
            "again, or raise --max-failed-share"
        )
    counts = {
        "sequences": len(names),
        "clips": len(rows),
        "frames": len(rows) * settings.frames,
        "failed": len(failed),
        "skipped": len(skipped),
    }
    facts = {"catalog": catalog.facts(), "counts": counts, "sequences": names}
    facts |= {"failed": failed, "skipped": skipped, "noted": noted}
    document = write_index(store, settings, rows, facts)
    print(f"{store}: {', '.join(f'{value} {key}' for key, value in counts.items())}; digest {document['digest']}")


def _is_done(store: str, names: list[str]) -> bool:
    """Whether a finished store holds all these sequences. Failed ones are tried again."""
    fs, path = fsspec.core.url_to_fs(store)
    if not fs.exists(f"{path}/store.json"):
        return False
    info = ClipStore(store).info
    return set(info["sequences"]) == set(names) and not info["failed"]
