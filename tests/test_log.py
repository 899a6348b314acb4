"""What jobs say, as JSON for whoever collects logs: objects, with the run, sequence and step that they are about."""

import json
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import ray

from model.command_line import exit_code, loading
from pipelines import log
from pipelines.convert import convert
from pipelines.log import Bar, say, shown
from pipelines.synthesize.job import write_sequence
from train.progress import printed_progress


@pytest.fixture
def as_json(monkeypatch) -> None:
    monkeypatch.setenv("D4RT_LOG", "json")


def objects(text: str) -> list[dict]:
    told = [json.loads(line) for line in text.splitlines()]
    for each in told:
        written = datetime.fromisoformat(each.pop("time"))
        assert written.tzinfo and abs(datetime.now().astimezone() - written) < timedelta(minutes=5)
    return told


def test_people_are_told_the_words_alone(monkeypatch, capsys):
    monkeypatch.delenv("D4RT_LOG", raising=False)
    say("failed a: broken", sequence="a")
    assert capsys.readouterr().out == "failed a: broken\n"


def test_a_log_has_lines_and_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(log, "LOG_SECONDS", 0)
    with Bar(2, "convert", "sequence") as bar:
        bar.doing("room0: 3 of 9 frames")
        bar.add()
        bar.add(failed=True)
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "convert: 0 of 2 sequences: room0: 3 of 9 frames",
        "convert: 1 of 2 sequences",
        "convert: 2 of 2 sequences, 1 failed",
    ]
    assert told.err == ""


def test_a_log_is_not_told_of_every_row(capsys):
    assert list(shown(range(100), 100, "check", "video")) == list(range(100))
    assert list(shown(range(100), 100, "check", "video", delay=60)) == list(range(100))
    assert capsys.readouterr().out.splitlines() == ["check: 100 of 100 videos"]


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(shown("abc", 3, "check", "video")) == ["a", "b", "c"]
    told = capsys.readouterr()
    assert told.out == "" and "\rcheck: 100%" in told.err


def test_there_is_one_bar_for_the_whole_project():
    root = Path(__file__).parent.parent
    code = [file for part in ("model", "pipelines", "train", "benchmarks") for file in Path(root, part).rglob("*.py")]
    uses = [file for file in [*code, root / "demo.py"] if re.search(r"^\s*(from|import) tqdm", file.read_text(), re.M)]
    assert uses == [root / "pipelines/log.py"]


def test_an_error_is_an_object_too(as_json, monkeypatch, capsys):
    def refuse() -> None:
        raise ValueError("--clips -1\nmust be from 1")

    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    loading("MLflow")
    assert exit_code(refuse) == 2
    told = capsys.readouterr()
    assert objects(told.out) == [{"level": "INFO", "message": "loading MLflow"}]
    assert objects(told.err) == [{"level": "ERROR", "message": "error: --clips -1\nmust be from 1"}]


def test_another_kind_of_log_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("D4RT_LOG", "xml")
    assert exit_code(lambda: print("begun")) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: D4RT_LOG=xml is unknown: text, which is the default, or json")


def test_a_run_and_its_step(as_json, ray_cluster, capsys):
    with printed_progress("mine") as progress:
        ray.get(progress.add.remote("warning: step 7: odd", 7))
        ray.get(progress.add.remote("going on"))
    assert objects(capsys.readouterr().out) == [
        {"level": "WARNING", "message": "warning: step 7: odd", "run": "mine", "step": 7},
        {"level": "INFO", "message": "going on", "run": "mine"},
    ]


def test_sequences_and_how_far_a_job_is(as_json, ray_cluster, tmp_path, capsys, monkeypatch):
    raw = tmp_path / "raw"
    for index in range(2):
        write_sequence({"dataset": "tartanair", "root": str(raw), "index": index}, frames=4, size="small", seed=0)
    monkeypatch.setattr(log, "LOG_SECONDS", 0)
    broken = next(raw.rglob("pose_left.txt"))
    broken.write_text("no pose")
    store, options = f"{tmp_path}/store", {"split": "all", "frames": 4, "image_size": 64, "queries": 64}
    convert("tartanair", raw=str(raw), store=store, max_failed_share=0.5, **options)
    told = capsys.readouterr()
    assert told.err == ""  # no bar
    lines = objects(told.out)
    assert lines[0] == {
        "level": "INFO",
        "message": "plan tartanair: 1 of 2 sequences" + ", 1 failed" * lines[0]["failed"],
        "job": "plan tartanair",
        "done": 1,
        "waiting": 1,
        "failed": lines[0]["failed"],
    }
    (failed,) = (each for each in lines if each["level"] == "WARNING")
    assert failed["sequence"] in broken.parent.as_posix()
    assert failed["store"] == store and "pose_left.txt" in failed["message"]
    assert lines[-2]["message"].startswith(f"{store}: 2 sequences, 1 failed")
