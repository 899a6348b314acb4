"""`python -m pipelines convert DATASET --raw RAW --store STORE`: raw dataset to clip store, as a Ray Data job.

Two pipes. The first opens every sequence, says where its clips lie, and which groups of them (a sequence, or a part of
a long one) are published already, made from the raw files as they are now; the second makes the others. Then the index
is written. How a group is published, so that any number of jobs may convert into one store, stands in
`pipelines/store/layout.py`. A sequence that fails is listed with its reason.
"""

from functools import partial
from shlex import quote
from typing import Literal

from model.command_line import loading
from pipelines.catalog import Catalog
from pipelines.conversion import Conversion, Plan, convert_group, plan_sequence
from pipelines.datasets import DatasetKey, HeldOutKey, reader
from pipelines.log import say
from pipelines.problems import alike
from pipelines.raw.folder import RawFolder
from pipelines.raw.place import absolute, lasting
from pipelines.store import marks
from pipelines.store.index import digest_of, finish
from pipelines.store.layout import StoreSettings
from pipelines.store.reader import ClipStore

# Ray takes a second to import and is not needed to print help or refuse a typing error: see below.

TASK_MEMORY = 3 << 29  # bytes reserved per task; 48 frames of 640 x 480 take 1.0 GB with Python and all it imports


def convert(
    dataset: DatasetKey | HeldOutKey,
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
        dataset: Whose official layout the raw folder has. What benchmarks are made of (bonn, sintel, ...) is all of
            split test: to look at and to evaluate on, `train` refuses such a store.
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
    if not 0 <= max_failed_share <= 1:
        raise ValueError(f"--max-failed-share {max_failed_share} must be from 0 to 1")
    catalog = Catalog.load(dataset)
    settings = StoreSettings(
        dataset=dataset,
        split=split,
        frames=frames,
        image_size=image_size,
        strides=strides or catalog.strides,
        hop=frames if hop is None else hop,
        samples=samples,
        queries=queries,
        video=video,
        seed=seed,
        crops=crops,
    )
    raw, store = absolute(raw), lasting(store, "--store")

    loading("Ray")
    from pipelines import jobs

    layout = reader(dataset)
    names = [name for name in layout.find(RawFolder(raw)) if split in ("all", catalog.split_of(layout.scene_of(name)))]
    if not names:
        raise ValueError(
            f"no sequence of split {split!r} of {dataset} in {raw}: check --split and the catalog's splits"
        )
    marks.begin(store, settings)
    conversion = Conversion(raw=raw, store=store, settings=settings, catalog=catalog, allow_misfit=allow_misfit)

    plans, failed = plan_all(names, conversion)
    done = {name: list(plan.done) for name, plan in plans.items()}
    if not failed and not any(plan.todo for plan in plans.values()) and is_finished(store, in_order(done), names):
        say(f"{store} is complete: nothing to do", store=store)
        return
    made, failures = convert_all(plans, conversion)
    failed |= failures
    for name, groups in made.items():
        done[name] += groups

    skipped = {name: plan.skipped for name, plan in plans.items() if plan.skipped}
    noted = {name: plan.notes for name, plan in plans.items() if plan.notes}
    for line in alike(noted):
        say(f"noted {line}", store=store)
    for name, reason in sorted(failed.items()):
        say(f"failed {name}: {reason}", store=store, sequence=name)
    for line in alike(skipped):
        say(f"skipped {line}", store=store)
    groups = in_order(done)
    left = f"{store} is left unfinished. Mend or remove what is listed above and run again"
    if not groups:
        raise ValueError(f"0 clips were written, {len(failed)} of {len(names)} sequences failed; {left}")
    jobs.require_few_failures(
        len(failed), len(names), "sequences", max_failed_share, f"{left}, or raise --max-failed-share"
    )

    counts = {"sequences": len(names), "failed": len(failed), "skipped": len(skipped)}
    facts = {"catalog": catalog.facts(), "counts": counts, "sequences": names}
    facts |= {"failed": failed, "skipped": skipped, "noted": noted}
    document = finish(store, settings, groups, facts)
    counted = ", ".join(f"{value} {key}" for key, value in document["counts"].items())
    say(f"{store}: {counted}; digest {document['digest']}", store=store)
    say(f"next: python -m pipelines inspect {quote(store)}", store=store)


def plan_all(names: list[str], conversion: Conversion) -> tuple[dict[str, Plan], dict[str, str]]:
    """Plans by sequence, and why others have none."""
    from pipelines import jobs

    rows = [{"sequence": name} for name in names]
    plans, failed = {}, {}
    work = partial(plan_sequence, conversion=conversion)
    for outcome in jobs.run_tasks(work, rows, label=f"plan {conversion.catalog.key}", unit="sequence"):
        name = outcome.row["sequence"]
        if outcome.failed:
            failed[name] = outcome.reason
        else:
            plans[name] = outcome.result
    return plans, failed


def convert_all(plans: dict[str, Plan], conversion: Conversion) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Names of the groups that are published now, by sequence, and why sequences failed."""
    from pipelines import jobs

    rows = [
        {"sequence": name, "group": place, "audit": plan.audit}
        for name, plan in sorted(plans.items())
        for place in plan.todo
    ]
    made: dict[str, list[str]] = {}
    failed = {}
    work = partial(convert_group, conversion=conversion)
    label = f"convert {conversion.catalog.key}"
    for outcome in jobs.run_tasks(work, rows, label=label, unit="group", memory=TASK_MEMORY):
        name = outcome.row["sequence"]
        if outcome.failed:
            failed[name] = outcome.reason
        else:
            made.setdefault(name, []).append(outcome.result)
    return made, failed


def in_order(groups: dict[str, list[str]]) -> list[str]:
    """Names of groups, by sequence, in the order that the index has them."""
    return [group for name in sorted(groups) for group in sorted(groups[name])]


def is_finished(store: str, groups: list[str], names: list[str]) -> bool:
    """Whether there is a readable store of just these groups and sequences, none of which failed."""
    try:
        info = ClipStore(store).info
    except ValueError:
        return False
    return info["groups"] == digest_of(groups) and set(info["sequences"]) == set(names) and not info["failed"]
