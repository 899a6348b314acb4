"""Of several commands on one run, one trains it, and one that lost it can do no harm."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipelines.whole import listed, read_file, write_file
from train import lease, run_folder
from train.lease import Lease, Owner, owned
from train.run_folder import Position

OWN = """
import sys, time
from train.lease import owned
with owned(sys.argv[1]):
    print("owned", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "SILENT_SECONDS", 2.0)
    return str(tmp_path / "run [1]*") if request.param == "local" else request.getfixturevalue("s3_uri") + "/run [1]*"


def test_of_several_at_once_one_owns_the_run(run):
    begun, over = threading.Barrier(4), threading.Event()

    def try_it() -> int:
        begun.wait()
        try:
            with owned(run) as held:
                over.wait()
                return held.number
        except ValueError as error:
            assert "is being trained by process" in str(error) or "has just been taken" in str(error)
            return 0

    with ThreadPoolExecutor() as pool:
        tries = [pool.submit(try_it) for _ in range(4)]
        while sum(done.done() for done in tries) < 3:
            time.sleep(0.05)
        over.set()
        assert sorted(done.result() for done in tries) == [0, 0, 0, 1]
    with owned(run) as held:  # at once: the first one said that it ended
        assert held.number == 2


def test_one_that_was_killed_is_followed_and_one_that_is_alive_is_not(run, monkeypatch):
    command = [sys.executable, "-c", OWN, run]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "owned\n"
        monkeypatch.setattr(lease, "SILENT_SECONDS", 30.0)  # it gives a sign every ten seconds
        with pytest.raises(ValueError, match=f"is being trained by process {process.pid} on "), owned(run):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with owned(run) as held:
            assert held.number == 2 and time.monotonic() - began < 5


def test_a_zombie_from_another_machine_writes_no_checkpoint_and_is_told(run):
    zombie = Lease(run, 1)
    write_file(f"{run}/commands/0001.json", json.dumps(asdict(Owner("gone", 7, "then", None, None))).encode())
    zombie.give_sign(b"41")
    zombie.require_held()
    with owned(run) as held:
        assert held.number == 2
        with pytest.raises(ValueError, match="is now trained by another command"):
            zombie.require_held()
        files = {run_folder.POSITION: Position(step=20).write}
        fs, folder = run_folder.open_folder(run)
        with pytest.raises(ValueError, match="is now trained by another command"):
            run_folder.store(files, f"{run}/{run_folder.checkpoint_name(20, zombie.number)}", zombie)
        assert run_folder.newest(fs, folder) is None
        run_folder.store(files, f"{run}/{run_folder.checkpoint_name(20, held.number)}", held)
        assert run_folder.newest(fs, folder) == f"{folder}/step_0000020-2"
        zombie.give_sign(b"42")
        held.require_held()
    assert read_file(f"{run}/commands/0002.alive") == b"ended"
    assert [name for name in listed(f"{run}/commands") if name.endswith("json")] == ["0001.json", "0002.json"]


def test_whether_a_process_is_gone_does_not_hang_on_the_clock_or_on_the_name_of_its_host(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        here = Owner.this_process()
        running = replace(here, pid=child.pid, start=lease._start(child.pid))
        assert not here.is_gone() and not running.is_gone()
        assert replace(running, start=running.start + 1).is_gone()  # its number was used again
        elsewhere = replace(running, world="another container on the same host", pid=2**22 + 1)
        monkeypatch.setattr(time, "time", lambda: 0.0)  # the clock was set
        assert not running.is_gone() and not elsewhere.is_gone()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert running.is_gone()
    assert running.is_gone()
    assert replace(here, world=None, start=None).is_gone() is False  # no /proc there


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"pid": "7"}', "[" * 100_000])
def test_a_command_that_cannot_be_read_is_named_and_other_files_are_no_commands(content, tmp_path):
    write_file(f"{tmp_path}/commands/abc.json", b"")
    with owned(str(tmp_path)) as held:
        assert held.number == 1
    write_file(f"{tmp_path}/commands/0001.json", content.encode())
    with (
        pytest.raises(ValueError, match=r"commands/0001\.json is damaged \(.*delete it if nobody"),
        owned(str(tmp_path)),
    ):
        pass
