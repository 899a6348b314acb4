"""What the tasks of `convert` do with a sequence: plan its groups, and make one of them."""

from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipelines.catalog import Catalog
from pipelines.datasets import reader
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Excluded, Sequence
from pipelines.store import marks
from pipelines.store.layout import StoreSettings
from pipelines.store.marks import Mark, Origin
from pipelines.store.wholeness import require_whole
from pipelines.store.writer import write_group
from pipelines.truth.clips import Span, build_clips, spans
from pipelines.truth.verdict import judge

# Ray takes a second to import and is not needed to print help or refuse a typing error: see below.

CLIPS_PER_GROUP = 8  # what one task holds in memory, compressed

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
        sequence = reader(self.settings.dataset).open(RawFolder(self.raw), name)
        if sequence.lacks:
            raise ValueError(
                f"{name} in {self.raw} can be evaluated on, but is without {' and '.join(sorted(sequence.lacks))}: "
                "convert the dataset as it is shipped, if that has more"
            )
        return sequence

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
        require_undamaged(conversion.store, [published[found].group for found in plan.done])
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


def require_undamaged(store: str, groups: list[str]) -> None:
    """StopJob if one of them lacks files: a store that was whole is not to be finished without them."""
    try:
        require_whole(store, groups)
    except ValueError as error:
        from pipelines.jobs import StopJob

        raise StopJob(str(error)) from error
