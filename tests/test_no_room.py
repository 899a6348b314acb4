"""A disk without room is an error in words, whoever meets it."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from model.command_line import exit_code
from pipelines.partial import scratch_folder
from pipelines.raw.place import NoRoom
from pipelines.whole import result_folder


def full(path: str | None) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", path)


def test_a_result_folder_without_room_names_its_place_and_leaves_nothing(tmp_path):
    refused = pytest.raises(NoRoom, match=rf"{tmp_path}.*the disk is full.*free some of it")
    with refused, result_folder(str(tmp_path / "out"), last="result.json") as folder:
        (folder / "half").write_bytes(b"1")
        raise full(None)  # what a library says of a file it writes, without its name
    assert list(tmp_path.iterdir()) == []


SMALL_FILES = """
import resource, sys
from pathlib import Path
from pipelines.raw.place import NoRoom
from pipelines.whole import result_folder, write_file
place = sys.argv[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    write_file(f"{place}/mark", bytes(10_000))
except NoRoom as error:
    print(error)
try:
    with result_folder(f"{place}/out", last="result.json") as folder:
        (folder / "half").write_bytes(bytes(10_000))
except NoRoom as error:
    print(error)
"""


def test_a_file_that_may_not_get_so_large_leaves_nothing(tmp_path):
    """In a process of its own: the limit would be one for what tells of tests, too."""
    words = [sys.executable, "-c", SMALL_FILES, str(tmp_path)]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert not done.stderr
    first, second = done.stdout.splitlines()
    assert "mark: a file gets larger than it may" in first and "raise ulimit -f" in first and "ulimit" in second
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_meanwhile_is_not_blamed_on_the_place(tmp_path):
    with pytest.raises(FileNotFoundError), result_folder(str(tmp_path / "out"), last="result.json"):
        (tmp_path / "missing").read_bytes()


def test_a_name_as_long_as_a_file_system_takes_is_a_name_for_results(tmp_path):
    name = "v" * 255
    with result_folder(str(tmp_path / name), last="result.json") as folder:
        (folder / "result.json").write_text("{}")
    assert (tmp_path / name / "result.json").exists()


def test_no_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"TMPDIR.*no such file, folder"), scratch_folder():
        pass


def test_a_command_that_meets_a_full_disk_ends_with_words(capsys, tmp_path):
    def command() -> None:
        raise full(str(tmp_path / "x"))

    assert exit_code(command) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/x: the disk is full; make room\n"


COMMAND = """
import sys
from model.command_line import exit_code
sys.exit(exit_code(lambda: print("\\u00fc")))
"""


@pytest.mark.parametrize("output", ["closed", "full", "ascii"])
def test_wherever_the_output_goes(output):
    """Closed, to a device that is full, or to a terminal that lacks a letter."""
    command = f"{sys.executable} -c '{COMMAND}'"
    ending = {"closed": ">&-", "full": "> /dev/full", "ascii": ""}[output]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["sh", "-c", f"{command} {ending}"], env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if output == "full" else 0), done.stderr
    if output == "ascii":
        assert done.stdout == "\\xfc\n"
