"""Files and folders that appear whole or not at all, whatever their names, and whoever else writes at the same time."""

import os
import threading

import pytest

from pipelines.whole import create_if_absent, delete_folder, listed, read_file, write_file

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
    monkeypatch.setattr("pipelines.whole.open", lambda *_: full("/dev/full", "wb", buffering=0), raising=False)
    for write in (write_file, create_if_absent):
        with pytest.raises(ValueError, match=rf"{tmp_path}/mark: the disk is full"):
            write(f"{tmp_path}/mark", b"content")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/mark: .*give another place|file/mark: .*give a path of folders"):
        create_if_absent(f"{tmp_path}/file/mark", b"")
