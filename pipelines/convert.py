"""`python -m pipelines convert DATASET --raw RAW --store STORE`: raw dataset to clip store, as a Ray Data job.

Two pipes. The first opens every sequence, says where its clips lie, and which groups of them (a sequence, or a part of
a long one) are published already, made from the raw files as they are now; the second makes the others. Then the index
is written. How a group is published, so that any number of jobs may convert into one store, stands in
`pipelines/store/layout.py`. A sequence that fails is listed with its reason.
"""

from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

from tqdm import tqdm

from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS, DatasetKey
from pipelines.raw.folder import RawFolder
from pipelines.raw.place import absolute, lasting
from pipelines.sequence import Excluded, Sequence
from pipelines.store import marks
from pipelines.store.index import digest_of, finish
from pipelines.store.layout import StoreSettings
from pipelines.store.marks import Mark, Origin
from pipelines.store.reader import ClipStore
from pipelines.store.wholeness import require_whole
from pipelines.store.writer import write_group
from pipelines.truth.clips import Span, build_clips, spans
from pipelines.truth.verdict import judge

# Ray takes a second to import and is not needed to print help or refuse a typing error: see below.

CLIPS_PER_GROUP = 8  # what one task holds in memory, compressed
TASK_MEMORY = 3 << 29  # bytes reserved per task; 48 frames of 640 x 480 take 1.0 GB with Python and all it imports

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What every task is told."""

    raw: str
    store: str
    settings: StoreSettings
    catalog: Catalog
    allow_misfit: bool

    def open(self, name: str) -> Sequence:
        """The sequence, through a `RawFolder` of its own, which then knows every file that was read for it."""
        return DATASETS[self.settings.dataset].open(RawFolder(self.raw), name)

    def groups(self, sequence: Sequence) -> list[list[Span]]:
        """Its clips, without their crops, by the group they are written in."""
        found = spans(sequence, self.settings)
        size = max(1, CLIPS_PER_GROUP // (1 + self.settings.crops))
        return [found[first : first + size] for first in range(0, len(found), size)]

    def origin(self, sequence: Sequence, first: int, group: Items[Span]) -> Origin:
        """What a group is made from, as far as that is known before its frames are read."""
        return Origin(
            sequence=sequence.name,
            first=first,
            frames=tuple(span.frames for span in group),
            labels={"depth_tolerance": asdict(self.catalog.depth_tolerance), "is_metric": self.catalog.is_metric},
            files={},
        )

    def done(self, origin: Origin, published: dict[str, Mark], raw: RawFolder) -> str | None:
        """The name of a published group of these clips whose raw files are as they were when it was made."""
        for name, mark in published.items():
            if mark.origin.is_of(origin) and mark.origin.name(self.settings) == name and mark.origin.is_unchanged(raw):
                return name
        return None


@dataclass(kw_only=True)
class Plan:
    """What is to be done about a sequence."""

    done: list[str] = field(default_factory=list)
    """Names of its published groups."""
    todo: list[int] = field(default_factory=list)
    """Places of the other ones among its groups."""
    audit: dict[str, Any] = field(default_factory=dict)
    """Columns of the index; empty where all is done."""
    skipped: str = ""
    """Why it has no clips, if that is as it should be."""
    notes: str = ""


def plan_sequence(row: Row, *, conversion: Conversion) -> Plan:
    """{"sequence"} to its plan. ValueError for one that cannot be read or is a misfit. What is done is not audited."""
    name = row["sequence"]
    catalog, settings = conversion.catalog, conversion.settings
    if reason := catalog.exclusion_of(name):
        return Plan(skipped=f"excluded by catalogs/{catalog.key}.yaml: {reason}")
    try:
        sequence = conversion.open(name)
        groups = conversion.groups(sequence)
        unposed = int((~sequence.cameras.known).sum())
        notes = "; ".join([*sequence.notes, *([f"{unposed} frames without pose"] if unposed else [])])
        if not groups:
            few = f"no {settings.frames} frames in a row with known pose: it has {len(sequence)} frames"
            return Plan(skipped=few, notes=notes)

        plan = Plan(notes=notes)
        published, raw, first = marks.published(conversion.store, name), RawFolder(conversion.raw), 0
        for place, group in enumerate(groups):
            found = conversion.done(conversion.origin(sequence, first, group), published, raw)
            if found:
                plan.done.append(found)
            else:
                plan.todo.append(place)
            first += len(group)
        require_whole(conversion.store, [published[found].group for found in plan.done])
        if plan.todo:
            verdict = judge(sequence)
            if verdict.outcome == "misfit" and not conversion.allow_misfit:
                raise ValueError(f"{verdict.reason}; look at it with `audit`, mend it, or use --allow-misfit")
            plan.audit = verdict.index_columns()
        return plan
    except Excluded as error:
        return Plan(skipped=str(error))


def convert_group(row: Row, *, conversion: Conversion) -> str:
    """{"sequence", "group", "audit"} to the name of the published group. StopJob if the store cannot be written."""
    name, place = row["sequence"], row["group"]
    sequence = conversion.open(name)
    groups = conversion.groups(sequence)
    group = groups[place]
    origin = conversion.origin(sequence, sum(map(len, groups[:place])), group)
    published = marks.published(conversion.store, name)
    found = conversion.done(origin, published, RawFolder(conversion.raw))
    if found:  # another job made it meanwhile
        return found

    clips = [clip for span in group for clip in build_clips(sequence, span, conversion.catalog, conversion.settings)]
    for clip in clips:
        clip.row.update(row["audit"])
    origin = replace(origin, files=dict(sorted(sequence.raw.used.items())))
    try:
        return write_group(conversion.store, origin, conversion.settings, clips)
    except ValueError as error:
        from pipelines.jobs import StopJob

        raise StopJob(f"{error}. What is published stays; run the same command again to go on") from error


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

    from pipelines import jobs

    layout = DATASETS[dataset]
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
        print(f"{store} is complete: nothing to do")
        return
    made, failures = convert_all(plans, conversion)
    failed |= failures
    for name, groups in made.items():
        done[name] += groups

    skipped = {name: plan.skipped for name, plan in plans.items() if plan.skipped}
    noted = {name: plan.notes for name, plan in plans.items() if plan.notes}
    for kind, told in (("noted", noted), ("failed", failed), ("skipped", skipped)):
        for name, reason in sorted(told.items()):
            tqdm.write(f"{kind} {name}: {reason}")
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
    marks.sweep(store, names)
    counted = ", ".join(f"{value} {key}" for key, value in document["counts"].items())
    print(f"{store}: {counted}; digest {document['digest']}")


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
