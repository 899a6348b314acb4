"""Any number of converters, killed anywhere, then one more run: the store of one undisturbed run, never a wrong one.

Without Ray: what the tasks of `convert` do, one after the other. Every call that writes a file is a point to be killed
at; a kill is an exception that nobody catches.
"""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import partial, whole
from pipelines.catalog import Catalog
from pipelines.conversion import Conversion, convert_group, plan_sequence
from pipelines.convert import in_order, is_finished
from pipelines.datasets import DATASETS
from pipelines.jobs import StopJob
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Sequence
from pipelines.store import index, marks, writer
from pipelines.store.layout import StoreSettings
from pipelines.store.marks import begin
from pipelines.store.reader import ClipStore
from pipelines.synthesize.job import write_sequence
from pipelines.truth.verdict import Verdict, judge

SETTINGS = StoreSettings(
    dataset="tartanair",
    split="all",
    frames=4,
    image_size=32,
    strides=(1, 1),
    hop=4,
    samples=1,
    queries=64,
    video="jpeg",
    seed=0,
)


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "rooms[12] *"
    for number in range(2):
        row = {"dataset": "tartanair", "root": str(folder), "index": number}
        write_sequence(row, frames=8, size="small", seed=3)
    return folder


def convert(raw: Path, store: str, settings: StoreSettings = SETTINGS) -> bool:
    """What `pipelines.convert` does; whether there was anything to do."""
    adapter = DATASETS[settings.dataset]
    names = adapter.find(RawFolder(str(raw)))
    conversion = Conversion(
        raw=str(raw), store=store, settings=settings, catalog=Catalog.load(settings.dataset), allow_misfit=False
    )
    begin(store, settings)
    plans = {name: plan_sequence({"sequence": name}, conversion=conversion) for name in names}
    groups = {name: list(plan.done) for name, plan in plans.items()}
    if not any(plan.todo for plan in plans.values()) and is_finished(store, in_order(groups), names):
        return False
    for name, plan in plans.items():
        for place in plan.todo:
            row = {"sequence": name, "group": place, "audit": plan.audit}
            groups[name].append(convert_group(row, conversion=conversion))
    index.finish(store, settings, in_order(groups), {"sequences": names})
    return True


def content(store: str) -> dict[str, tuple]:
    """Everything a reader gets, by clip; ValueError where the store cannot be read."""
    found = {}
    for clip in ClipStore(store):
        arrays = [clip.video, clip.world_from_cam, *clip.all_queries().values()]
        found[clip.id] = tuple(array.tobytes() for array in arrays)
    return found


class KilledAt:
    """Counts the writes of this process, and raises Killed instead of number `at`."""

    def __init__(self, monkeypatch, at: int) -> None:
        self.count = 0
        for module, name in (
            (writer, "write_file"), (index, "write_file"), (index, "create_if_absent"),
            (marks, "create_if_absent"), (marks, "delete_folder"),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, self._wrapped(getattr(whole, name), at))

    def _wrapped(self, write, at: int):
        def wrapped(*arguments):
            self.count += 1
            if self.count == at:
                raise Killed
            return write(*arguments)

        return wrapped


def writes(raw: Path, store: str, monkeypatch) -> int:
    """How many an undisturbed run makes."""
    with monkeypatch.context() as patched:
        counter = KilledAt(patched, 0)
        assert convert(raw, store)
    return counter.count


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory) -> str:
    store = str(tmp_path_factory.mktemp("undisturbed") / "store")
    convert(raw, store)
    return store


@pytest.mark.slow
def test_killed_at_every_write(raw, undisturbed, tmp_path, monkeypatch):
    verdicts: dict[str, Verdict] = {}  # the audit is most of the work, and writes nothing: once for each sequence

    def told_before(sequence: Sequence) -> Verdict:
        if sequence.name not in verdicts:
            verdicts[sequence.name] = judge(sequence)
        return verdicts[sequence.name]

    monkeypatch.setattr("pipelines.conversion.judge", told_before)
    true, digest = content(undisturbed), ClipStore(undisturbed).info["digest"]
    total = writes(raw, f"{tmp_path}/counted", monkeypatch)
    assert total > 20
    for at in range(1, total + 1):
        store = f"{tmp_path}/{at}"
        with monkeypatch.context() as patched, pytest.raises(Killed):
            KilledAt(patched, at)
            convert(raw, store)
        if os.path.exists(f"{store}/store.json"):
            assert content(store) == true
        convert(raw, store)
        assert content(store) == true and ClipStore(store).info["digest"] == digest
        assert not convert(raw, store)
        assert left_over(store) == []
        shutil.rmtree(store)


def test_killed_while_it_sweeps(raw, undisturbed, tmp_path, monkeypatch):
    """What is left over goes before the store is finished: the next run would find nothing to do."""

    def killed(*_: object) -> None:
        raise Killed

    store = f"{tmp_path}/store"
    for module, last in ((writer, "publish"), (marks, "delete_folder")):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(module, last, killed)
            convert(raw, store)
    convert(raw, store)
    assert content(store) == content(undisturbed) and left_over(store) == []


def left_over(store: str) -> list[str]:
    """Folders of clips that no mark names."""
    folders = {path.relative_to(f"{store}/data").as_posix() for path in Path(store).glob("data/*/*.zarr")}
    return sorted(folders - {f"{clip._group}.zarr" for clip in ClipStore(store)})


@pytest.mark.parametrize("place", ["local", "s3"])
def test_many_at_once(raw, undisturbed, tmp_path, request, place):
    """Four converters of one store: none of them sees anything wrong, and there is one store."""
    store = f"{tmp_path}/store" if place == "local" else request.getfixturevalue("s3_uri")
    errors = []

    def work() -> None:
        try:
            convert(raw, store)
            assert content(store) == content(undisturbed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not convert(raw, store)
    assert ClipStore(store).info["digest"] == ClipStore(undisturbed).info["digest"]


def test_a_zombie_beside_a_retry(raw, undisturbed, tmp_path, monkeypatch):
    """A writer that was believed dead goes on when its group has been published and the store is finished."""
    store = f"{tmp_path}/store"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        counter = KilledAt(patched, 4)
        convert(raw, store)
    assert counter.count == 4
    name = DATASETS["tartanair"].find(RawFolder(str(raw)))[0]
    conversion = Conversion(
        raw=str(raw), store=store, settings=SETTINGS, catalog=Catalog.load("tartanair"), allow_misfit=False
    )
    plan = plan_sequence({"sequence": name}, conversion=conversion)
    begun = []

    def write_then_finish(*arguments):
        """The other job does all, between this writer's last file and its mark."""
        if not begun:
            begun.append(True)
            with monkeypatch.context() as patched:
                patched.setattr(marks, "create_if_absent", whole.create_if_absent)
                convert(raw, store)
        return whole.create_if_absent(*arguments)

    monkeypatch.setattr(marks, "create_if_absent", write_then_finish)
    convert_group({"sequence": name, "group": plan.todo[0], "audit": plan.audit}, conversion=conversion)
    assert begun and content(store) == content(undisturbed) and left_over(store) == []


@pytest.mark.parametrize("change", ["grown", "replaced", "fewer", "touched"])
def test_raw_data_that_changed_since(raw, tmp_path, change):
    """The store becomes what a fresh one is; whoever reads the old index goes on reading the old clips."""
    copy, store = tmp_path / "raw", f"{tmp_path}/store"
    shutil.copytree(raw, copy)
    convert(copy, store)
    before, old = content(store), ClipStore(store)
    if change == "grown":
        write_sequence({"dataset": "tartanair", "root": str(copy), "index": 2}, frames=8, size="small", seed=3)
    elif change == "fewer":
        shutil.rmtree(sorted(path.parent for path in copy.rglob("pose_left.txt"))[0])
    else:
        image = sorted(copy.rglob("000002_left.png"))[0]
        if change == "replaced":
            shutil.copy(sorted(copy.rglob("000003_left.png"))[0], image)
        os.utime(image, (1, 1))

    assert convert(copy, store)
    convert(copy, f"{tmp_path}/fresh")
    assert content(store) == content(f"{tmp_path}/fresh")
    assert ClipStore(store).info["digest"] == ClipStore(f"{tmp_path}/fresh").info["digest"]
    assert (content(store) == before) == (change == "touched")
    assert [clip.video.tobytes() for clip in old] == [before[clip.id][0] for clip in old]
    assert not convert(copy, store)


def test_every_file_a_clip_is_made_from_is_in_its_mark(raw, undisturbed):
    """And nothing else: images and depth of its own frames, and the file of poses."""
    for mark in Path(undisturbed).glob("groups/*/*.json"):
        name = f"{mark.parent.name}/{mark.stem}"
        origin = marks.load(undisturbed, name).origin
        frames = {t for clip in origin.frames for t in clip}
        kinds = [Path(file).name for file in origin.files]
        assert {int(kind[:6]) for kind in kinds if kind.endswith("_left.png")} == frames
        assert {int(kind[:6]) for kind in kinds if kind.endswith("_left_depth.npy")} == frames
        assert kinds.count("pose_left.txt") == 1


@pytest.mark.parametrize("refusal", ["full", "read-only"])
def test_a_store_that_cannot_be_written_is_not_the_fault_of_the_data(raw, tmp_path, monkeypatch, refusal):
    """It is tried before any work; later it stops the job, and what is published stays."""
    store = f"{tmp_path}/store"
    if refusal == "read-only":
        Path(store).write_text("a file")
        with pytest.raises(ValueError, match=r"store/store\.json: a part of its path is a file"):
            convert(raw, store)
        return
    full = open
    room, count = 17, iter(range(1000))  # files; a group has twelve, the beginning two

    def filling(*given):
        return full("/dev/full", "wb", buffering=0) if next(count) >= room else full(*given)

    monkeypatch.setattr(partial, "open", filling, raising=False)
    with pytest.raises(StopJob, match=r"the disk is full.*What is published stays; run the same command again"):
        convert(raw, store)
    monkeypatch.undo()
    assert len(list(Path(store).glob("groups/*/*.json"))) == 1
    assert convert(raw, store) and np.all([clip.num_samples == 1 for clip in ClipStore(store)])


def test_clips_that_are_gone_are_not_complete(raw, tmp_path):
    store = str(tmp_path / "store")
    convert(raw, store)
    group = next(Path(store).glob("data/*/*.zarr"))
    mark = Path(store, "groups", group.parent.name, f"{group.stem.rpartition('-')[0]}.json")
    next(file for file in group.glob("intrinsics/c/**/*") if file.is_file()).unlink()
    with pytest.raises(StopJob, match=f"it lacks intrinsics of {group.parent.name}/{group.stem}; delete store"):
        convert(raw, store)
    mark.unlink()
    Path(store, "store.json").unlink()
    assert convert(raw, store) and content(store)
    assert not convert(raw, store)


def test_a_store_of_another_schema_is_left_alone(raw, tmp_path):
    (tmp_path / "store.json").write_text('{"schema": 1, "settings": {}}')
    with pytest.raises(ValueError, match="has schema 1, this code reads 2: convert it again, into another place"):
        convert(raw, str(tmp_path), replace(SETTINGS, queries=32))
    assert os.listdir(tmp_path) == ["store.json"]
