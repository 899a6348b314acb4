"""What every command has in common: help at once and complete, and an end in words whatever happens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.command_line import exit_code, loading
from train.errors import RunFailed, RunStopped

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "mlflow", "matplotlib", "timm")

OPTIONS = {
    "pipelines": ["synthesize", "audit", "convert", "status", "inspect", "infer", "evaluate", "serve"],
    "pipelines status": ["convert --store"],
    "pipelines synthesize": ["--out", "--scenes", "--frames", "--size", "--seed"],
    "pipelines audit": ["--raw", "--out", "--sequences"],
    "pipelines convert": ["--raw", "--store", "--split", "--frames", "--image-size", "--queries", "--max-failed-share"],
    "pipelines inspect": ["--out", "--clips"],
    "pipelines infer": ["--model", "--video", "--out", "--tasks", "--dataset", "--num-frames", "--grid"],
    "pipelines serve": ["--model", "--host", "--port", "--replicas", "--memory-gb"],
    "pipelines evaluate": ["--model", "--data", "--out", "--clips"],
    "train": ["tiny", "giant", "register", "promote", "adapt", "diagnose", "--dry-run"],
    "train adapt": ["--model", "--video", "--labels", "--teacher", "--truth", "--out", "--num-frames", "--dry-run"],
    "train tiny": ["--dry-run", "--mixture", "--stores", "--data.mixture", "--steps", "--init", "--validation.stores"],
    "train promote": ["--name", "--version", "--alias", "--because"],
    "train register": ["--checkpoint", "--opend4rt", "--name", "--alias"],
    "train diagnose": ["--model", "--data", "--clips"],
    "model": ["describe", "export"],
    "model describe": ["--frames", "--queries"],
    "model export": ["--out", "--to", "--frames"],
    "demo": ["demo-output"],
    "benchmarks": ["benchmarks/results", "learning"],
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_comes_at_once_and_is_complete(command):
    """Within a second and 150 MB, of which Python itself takes 10; what is heavy is not even imported."""
    script = f"""
import runpy, sys, time
sys.argv = {["-m", *command.split()[1:], "--help"]!r}
try:
    runpy.run_module({command.split()[0]!r}, run_name="__main__", alter_sys=True)
finally:
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print(time.process_time(), status["VmHWM"].split()[0], heavy, file=sys.stderr)
"""
    done = run([sys.executable, "-c", script], env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    for option in OPTIONS[command]:
        assert option in done.stdout
    seconds, kilobytes, heavy = done.stderr.split(maxsplit=2)
    assert heavy.strip() == "[]"
    assert float(seconds) < 1.5 and int(kilobytes) < 150_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pipelines convort", "unknown command 'convort': did you mean 'convert'?"),
        ("train tyni", "unknown preset 'tyni': did you mean 'tiny'?"),
        ("train diagnos", "did you mean 'diagnose'?"),
        ("model describe gaint", "unknown model preset 'gaint': did you mean 'giant'?"),
        ("demo --quick", "unrecognized arguments: --quick"),
        ("pipelines evaluate clips --model M --data nowhere --out scores", f"no store.json in {ROOT}/nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_words(words, message, tmp_path):
    done = run([sys.executable, "-m", *words.split()])
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_second_demo_deletes_nothing_of_the_first(tmp_path):
    """Which told its user to put results of his own there."""
    mine = tmp_path / "demo-output/mine/result.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    command = [sys.executable, "-m", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 2 and b"demo-output is there already" in done.stderr and mine.exists()


@pytest.mark.parametrize("command", ["pipelines --help", "pipelines convert --help", "train tiny --help"])
def test_a_reader_that_leaves_early_is_no_error(command):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_takes_seconds_is_said_before_it_is_waited_for(monkeypatch, capsys):
    """And nothing where it is there already: all commands of the demo share a process."""
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    loading("PyTorch", "MLflow", "Ray")
    assert capsys.readouterr().out == "loading MLflow and Ray\n"
    loading("PyTorch")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGINT)", "os.kill(os.getpid(), signal.SIGTERM)", "sys.exit(signal.SIGTERM)"]
)
def test_what_stops_a_command_ends_it_without_a_traceback(end):
    """The last is what Ray does at SIGTERM while it starts. What is half done is put away."""
    script = f"""
import os, signal, sys
from model.command_line import exit_code
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background may ignore it
def command():
    try:
        {end}
    finally:
        print("put away")
sys.exit(exit_code(command))
"""
    done = run([sys.executable, "-c", script])
    assert (done.returncode, done.stdout, done.stderr) == (130, "put away\n", "")


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_a_run_that_was_stopped_says_how_it_goes_on_and_ends_as_what_was_stopped(capsys):
    def stopped() -> None:
        raise RunStopped("run a was stopped at step 10: the same command goes on")

    assert exit_code(stopped, RunFailed) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_training_workers_start_without_mlflow():
    """Which takes a second to import, in each of them; only the one that writes the curves needs it."""
    assert run([sys.executable, "-c", "import sys, train.worker; sys.exit('mlflow' in sys.modules)"]).returncode == 0
