"""Files and folders that appear whole or not at all, whatever their names, and whoever else writes at the same time."""

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.partial import partial_folder
from pipelines.whole import (
    CLAIM,
    ExistsAlready,
    create_if_absent,
    delete_folder,
    listed,
    read_file,
    remade_folder,
    require_new,
    require_writable,
    result_folder,
    write_file,
    written,
)

ROOT = Path(__file__).parent.parent

ODD = "room[12] *?{a,b} #1 %41 ü"


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> str:
    return f"{tmp_path if request.param == 'local' else request.getfixturevalue('s3_uri')}/{ODD}"


def test_the_first_to_create_a_file_wins(folder):
    assert create_if_absent(f"{folder}/mark", b"first")
    assert not create_if_absent(f"{folder}/mark", b"second")
    assert read_file(f"{folder}/mark") == b"first"
    write_file(f"{folder}/mark", b"third")
    assert read_file(f"{folder}/mark") == b"third" and listed(folder) == ["mark"]
    assert read_file(f"{folder}/nothing") is None and listed(f"{folder}/nothing") == []


def test_a_request_that_nfs_makes_again_finds_what_the_first_one_did(tmp_path, monkeypatch):
    link = os.link

    def twice(*arguments):
        link(*arguments)
        link(*arguments)

    monkeypatch.setattr("os.link", twice)
    assert create_if_absent(f"{tmp_path}/mark", b"first")
    assert not create_if_absent(f"{tmp_path}/mark", b"second")


def test_of_many_at_once_one_wins(folder):
    won = []

    def create(number: int) -> None:
        if create_if_absent(f"{folder}/mark", b"%d" % number * 1000):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and read_file(f"{folder}/mark") == b"%d" % won[0] * 1000


def test_deleting_takes_names_literally(folder):
    """A pattern would take `room1`, `room2` and their like along."""
    beside = folder.replace(ODD, "room1"), folder.replace(ODD, "room2"), f"{folder}x"
    for place in (folder, *beside):
        write_file(f"{place}/a/b", b"b")
        write_file(f"{place}/c[1]", b"c")
    delete_folder(folder)
    delete_folder(f"{folder}/never was")
    assert read_file(f"{folder}/a/b") is None and read_file(f"{folder}/c[1]") is None
    assert all(read_file(f"{place}/a/b") == b"b" and read_file(f"{place}/c[1]") == b"c" for place in beside)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """/dev/full is a disk without room."""
    full = open  # which the line below hides
    monkeypatch.setattr("pipelines.partial.open", lambda *_: full("/dev/full", "wb", buffering=0), raising=False)
    for write in (write_file, create_if_absent):
        with pytest.raises(ValueError, match=rf"{tmp_path}/mark: the disk is full"):
            write(f"{tmp_path}/mark", b"content")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/mark: .*give another place|file/mark: .*give a path of folders"):
        create_if_absent(f"{tmp_path}/file/mark", b"")


def test_whether_a_place_can_be_written_is_known_before_the_work(folder, tmp_path):
    require_writable(f"{folder}/out", "--out")
    assert listed(f"{folder}/out") == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out .*/file/out cannot be a folder, because .*/file is a file: give"):
        require_writable(f"{tmp_path}/file/out", "--out")
    with pytest.raises(ValueError, match=r"--out /proc: "):
        require_writable("/proc/out", "--out")


# --- what a process that was killed leaves ---


def test_what_was_left_half_is_swept_and_what_somebody_writes_is_not(tmp_path):
    """As it lies there after kill -9: under such a name, held by nobody."""
    hour_ago = time.time() - 3600
    with result_folder(f"{tmp_path}/video", last="result.json") as folder, written(f"{tmp_path}/mark") as file:
        fill(folder, "good")
        left = shutil.copytree(folder, tmp_path / f".{'0' * 32}.partial")
        left_file = Path(shutil.copy(file.name, tmp_path / f"mark.{'0' * 32}.partial"))
        (tmp_path / "mine.partial").touch()
        for path in (folder, Path(file.name), left, left_file):
            os.utime(path, (hour_ago, hour_ago))
        with result_folder(f"{tmp_path}/other", last="result.json"):
            assert not left.exists() and not left_file.exists()
            assert (folder / "result.json").exists() and Path(file.name).exists()
    assert listed(str(tmp_path)) == ["mark", "mine.partial", "other", "video"]


def test_a_killed_process_holds_nothing(tmp_path):
    """A process that is killed while it fills a folder, and what the next one in its place does."""
    code = f"""
import os
from pipelines.partial import partial_folder
with partial_folder({str(tmp_path / "video")!r}) as folder:
    os.utime(folder, (0, 0))
    os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -9 and len(listed(str(tmp_path))) == 1
    with partial_folder(str(tmp_path / "video")) as folder:
        assert listed(str(tmp_path)) == [folder.name]


# --- folders of results ---


def fill(folder: Path, value: str) -> None:
    (folder / "arrays.npz").write_text(f"arrays of {value}")
    (folder / "result.json").write_text(value)


def test_a_folder_appears_whole_or_not_at_all(folder):
    with pytest.raises(RuntimeError), result_folder(folder, last="result.json") as filled:
        fill(filled, "broken")
        raise RuntimeError
    assert listed(folder) == []
    with result_folder(folder, last="result.json") as filled:
        fill(filled, "good")
        assert listed(folder) == []
    assert set(listed(folder)) - {CLAIM} == {"arrays.npz", "result.json"}
    with pytest.raises(ExistsAlready, match="exists already and is not overwritten"), result_folder(folder, last=""):
        raise AssertionError("nothing is to be done")


def test_the_second_of_two_at_once_changes_nothing(folder):
    with pytest.raises(ExistsAlready), result_folder(folder, last="result.json") as slow:
        fill(slow, "slow")
        with result_folder(folder, last="result.json") as fast:
            fill(fast, "fast")
    assert (read_file(f"{folder}/arrays.npz"), read_file(f"{folder}/result.json")) == (b"arrays of fast", b"fast")


def test_half_an_upload_is_no_result(s3_uri):
    """Only the same results may take its place."""
    write_file(f"{s3_uri}/video/{CLAIM}", b"good")
    write_file(f"{s3_uri}/video/arrays.npz", b"of one that was killed")
    for other in (None, b"better"):
        with pytest.raises(ExistsAlready):
            require_new(f"{s3_uri}/video", claim=other)
    with result_folder(f"{s3_uri}/video", last="result.json", claim=b"good") as folder:
        fill(folder, "good")
    assert read_file(f"{s3_uri}/video/arrays.npz") == b"arrays of good"
    write_file(f"{s3_uri}/other/diary.txt", b"mine")
    with pytest.raises(ExistsAlready):
        require_new(f"{s3_uri}/other", claim=b"good")


def test_the_second_of_two_at_once_stops_before_it_overwrites_anything(s3_uri, monkeypatch):
    """Both are on their way: the second one ends while the first has uploaded its arrays, and not yet the last file."""
    place = f"{s3_uri}/video"

    def create(uri: str, content: bytes) -> bool:
        if uri.endswith("result.json"):
            monkeypatch.undo()
            slow.__exit__(None, None, None)
        return create_if_absent(uri, content)

    slow, fast = (result_folder(place, last="result.json", claim=claim) for claim in (b"slow", b"fast"))
    fill(slow.__enter__(), "slow")
    fill(fast.__enter__(), "fast")
    monkeypatch.setattr("pipelines.whole.create_if_absent", create)
    with pytest.raises(ExistsAlready):
        fast.__exit__(None, None, None)
    assert (read_file(f"{place}/arrays.npz"), read_file(f"{place}/result.json")) == (b"arrays of fast", None)
    with result_folder(place, last="result.json", claim=b"fast") as folder:
        fill(folder, "fast")
    assert read_file(f"{place}/result.json") == b"fast"


def test_what_was_there_locally_is_never_touched(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "arrays.npz").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(ExistsAlready):
            require_new(f"{tmp_path}/{name}", claim=b"good")
    (tmp_path / "empty").mkdir()
    with result_folder(f"{tmp_path}/empty", last="result.json") as folder:
        fill(folder, "good")
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "folder"]


def test_what_several_make_anew_at_the_same_time_is_there_in_the_end(tmp_path):
    def make(_: int) -> None:
        for _ in range(10):
            with remade_folder(f"{tmp_path}/made") as folder:
                (folder / "file").write_text("the same")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(4)))
    assert os.listdir(tmp_path) == ["made"] and (tmp_path / "made/file").read_text() == "the same"
