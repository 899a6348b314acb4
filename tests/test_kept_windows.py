"""What windows said lies on disk: as it was said, whole or not at all, and joined from there as from memory."""

import errno
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Faults, Oracle

from model import recipes
from model.recipes.identity import MEMORY_FRAMES
from pipelines.raw.place import NoRoom
from pipelines.results.across import Across, ask_across
from pipelines.results.arrays import Rows, mapped, write_npz
from pipelines.results.asked import Asked
from pipelines.results.files import TASKS
from pipelines.results.given import Points
from pipelines.results.kept import KINDS, Kept
from pipelines.results.nearby import Nearby
from pipelines.results.questions import Questions
from pipelines.results.reconstruct import in_one_world, new_frames
from pipelines.results.sources import Video
from pipelines.results.windowed import ask_window, window_report
from pipelines.synthesize.staged import hidden_balls

FRAMES, WINDOW, GRID = 40, 16, 4
NOTHING = Across({}, {}, [])
LOOKS = torch.eye(4)[[0, 1, 2, 0]]  # of the windows: the last is like the first


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(hidden_balls(FRAMES), Faults(scale=0.2, turn=0.03, shift=0.05), clip_frames=WINDOW)


@pytest.fixture(scope="module")
def video(oracle) -> Video:
    frames = oracle.video.numpy()
    told = {"frame_numbers": np.arange(FRAMES), "fps": 10.0, "digest": "", "notes": ()}
    return Video(name="balls", clip=frames, frames=frames, size=(oracle.scene.height, oracle.scene.width), **told)


def ask_all(oracle, video, before=None, first=0):
    plan = recipes.plan_windows(FRAMES, WINDOW)
    questions = Questions.of(video, oracle.config.image_size, Asked(tasks=TASKS, grid=GRID, dense_grid=8))
    answers = []
    for number in range(first, len(plan)):
        answers.append(before := ask_window(oracle, video, plan, number, questions, before))
    return plan, questions, answers


@pytest.fixture(scope="module")
def asked(oracle, video):
    return ask_all(oracle, video)


def whole(results) -> dict:
    return {
        (task, key): x.whole() if isinstance(x, Rows) else x
        for task, arrays in results.items()
        for key, x in arrays.items()
    }


def arrays_of(said) -> dict:
    return {name: np.asarray(value) for name, value in vars(said).items()}


def require_equal(some: dict, others: dict) -> None:
    assert some.keys() == others.keys()
    for name in some:
        np.testing.assert_array_equal(some[name], others[name], err_msg=str(name))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_windows_are_kept_as_they_were_said_and_joined_from_there(place, asked, tmp_path, request):
    plan, questions, answers = asked
    out = str(tmp_path) if place == "local" else request.getfixturevalue("s3_uri")
    kept = Kept(out, "v", {"video": "a"})
    assert kept.done() == 0
    for number, said in enumerate(answers):
        kept.write(number, said)
        assert kept.done() == number + 1
    windows = kept.windows(len(plan))
    require_equal(
        whole(in_one_world(plan, windows, questions, NOTHING)[0]),
        whole(in_one_world(plan, answers, questions, NOTHING)[0]),
    )
    assert window_report(plan, windows) == window_report(plan, answers)
    assert Kept(out, "v", {"video": "b"}).done() == 0  # of another video nothing is done
    assert Kept(out, "w", {"video": "a"}).done() == 0  # nor of the same one that is there twice
    kept.sweep()
    assert kept.done() == 0


def test_going_on_from_disk_is_as_if_nothing_had_happened(oracle, video, asked, tmp_path):
    plan, questions, answers = asked
    kept = Kept(str(tmp_path), "v", {})
    for number in range(2):
        kept.write(number, answers[number])
    encoded = oracle.encoded
    _, _, rest = ask_all(oracle, video, before=kept.window(1), first=2)
    assert 0 < oracle.encoded - encoded < 2 * len(plan)
    require_equal(
        whole(in_one_world(plan, [*answers[:2], *rest], questions, NOTHING)[0]),
        whole(in_one_world(plan, answers, questions, NOTHING)[0]),
    )


def test_what_is_asked_when_all_windows_are_done_is_kept_too(oracle, video, asked, tmp_path):
    plan, _, answers = asked
    late = Points(recipes.pixel_centres(2, 2).numpy(), np.array([33, 0, 17, 33]))
    questions = Questions.of(
        video, oracle.config.image_size, Asked(tasks=("tracks", "uncertainty"), points=late, loops=True)
    )
    alike = [
        replace(said, geometry=replace(said.geometry, appearance=looks))
        for said, looks in zip(answers, LOOKS, strict=True)
    ]
    kept = Kept(str(tmp_path), "v", {})
    expected = ask_across(oracle, video, plan, questions, alike)
    first = ask_across(oracle, video, plan, questions, alike, kept.once)
    encoded = oracle.encoded
    again = ask_across(oracle, video, plan, questions, alike, kept.once)
    assert oracle.encoded == encoded and encoded > 0
    assert len(expected.loops) == 1 and sorted(expected.backwards) == sorted(expected.jitter) == list(range(len(plan)))
    for found in (first, again):
        for kind in ("backwards", "jitter"):
            for number, said in getattr(expected, kind).items():
                require_equal(arrays_of(said), arrays_of(getattr(found, kind)[number]))
        require_equal(arrays_of(expected.loops[0]), arrays_of(found.loops[0]))
    kept.sweep()
    assert not list(tmp_path.iterdir())


class OnDisk:
    """A clip whose frames cost something."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.read = frames, []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, frames: list[int], /) -> np.ndarray:
        self.read += frames
        return self.frames[frames]


@pytest.mark.parametrize("first", [0, 2])
def test_frames_are_held_as_long_as_they_are_asked_for(first, oracle, video, asked, tmp_path):
    """Those of a window and of the one before, and those that saw what is hidden now."""
    plan, questions, answers = asked
    disk = OnDisk(video.clip)
    nearby = Nearby(disk)
    said, held = list(answers[:first]), []
    shown = range(max(0, first - 1), len(plan))
    for number, part in zip(shown, new_frames(plan, shown), strict=True):
        nearby.add(part, video.clip[list(part)])
        if number >= first:
            before = said[-1] if said else None
            said.append(ask_window(oracle, replace(video, clip=nearby), plan, number, questions, before))
            held.append(len(nearby._held))
    found, expected = (in_one_world(plan, those, questions, NOTHING)[0] for those in (said, answers))
    require_equal(whole(found), whole(expected))
    assert max(held) <= 2 * WINDOW + MEMORY_FRAMES
    # Read again is only what windows saw that another job asked.
    assert set(disk.read) <= set(range(plan.windows[shown.start].start))


def test_a_window_counts_when_all_of_it_is_there(asked, tmp_path):
    kept = Kept(str(tmp_path), "v", {})
    kept.write(0, asked[2][0])
    files = sorted(path.name for path in tmp_path.glob("*/*"))
    assert files == [f"00000.{name}.npz" for name in sorted(KINDS) if getattr(asked[2][0], name) is not None]
    (next(tmp_path.glob("*/00000.geometry.npz"))).unlink()
    assert kept.done() == 0


def test_a_disk_that_gets_full_is_named_and_keeps_what_is_whole(asked, tmp_path, monkeypatch):
    """As it stops the job (`test_jobs.py`), which goes on behind it when there is room."""
    kept = Kept(str(tmp_path), "v", {})
    kept.write(0, asked[2][0])

    def full(file) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipelines.whole._to_disk", full)
    with pytest.raises(NoRoom, match=rf"{tmp_path}.*the disk is full.*free some of it"):
        kept.write(1, asked[2][1])
    assert kept.done() == 1 and not list(tmp_path.glob("*/*.partial"))


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b""])
def test_a_damaged_window_is_named_and_executes_nothing(damage, asked, tmp_path):
    kept = Kept(str(tmp_path), "v", {})
    kept.write(0, asked[2][0])
    file = next(tmp_path.glob("*/00000.depth.npz"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"00000\.depth\.npz cannot be read .*delete .*its windows are asked again"):
        _ = kept.window(0).depth
    np.savez(file, depth=np.array([{}], dtype=object), normal=torch.zeros(1), confidence=torch.zeros(1))
    with pytest.raises(ValueError, match=r"00000\.depth\.npz cannot be read .*allow_pickle"):
        _ = kept.window(0).depth


def test_arrays_written_in_parts_are_what_numpy_reads(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3, 2)).astype(np.float32) for n in (4, 1, 2)]
    arrays = {
        "rows": Rows(7, lambda: iter(parts)),
        "plain": rng.integers(0, 9, (5, 2)).T,
        "one": np.float32(0.25),
        "none": np.zeros((0, 3), np.uint8),
        "flags": np.array([True, False]),
    }
    write_npz(tmp_path / "x.npz", arrays)
    expected = arrays | {"rows": np.concatenate(parts)}
    maps = mapped(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as read:
        for key, array in expected.items():
            for found in (read[key], maps[key]):
                np.testing.assert_array_equal(found, array)
                assert found.dtype == array.dtype and found.shape == array.shape
    with pytest.raises(ValueError, match="rows has 7 rows, not 8"):
        write_npz(tmp_path / "y.npz", {"rows": Rows(8, lambda: iter(parts))})
