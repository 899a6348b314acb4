"""What is done of a store, a run, or results, while it is being written and afterwards."""

import json
import os
import socket

import pytest
from plane_store import write_plane_store

from pipelines.status import status
from train.lease import owned


def said(place, capsys) -> str:
    status(str(place))
    return capsys.readouterr().out


def test_a_store(tmp_path, capsys):
    store = tmp_path / "store[1]"
    write_plane_store(store, clips=3)
    told = said(store, capsys)
    assert "published  1 groups of 1 sequences\nfinished   3 clips, 12 frames; digest " in told
    (store / "store.json").unlink()
    assert "published  1 groups of 1 sequences\nfinished   no: run convert" in said(store, capsys)


def test_a_run(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"steps": 60}, "run_id": "abc", "model": None}))
    for step, whole in ((20, True), (40, False)):
        folder = tmp_path / f"step_{step:07d}"
        folder.mkdir()
        if whole:
            (folder / "position.json").write_text(json.dumps({"step": step}))
    told = said(tmp_path, capsys)
    assert "trained    20 of 60 steps" in told and "finished   no: the same command" in told
    assert "held by" not in told
    with owned(str(tmp_path)):
        assert f"held by    process {os.getpid()} on {socket.gethostname()}, begun 2" in said(tmp_path, capsys)
    assert f"held by    nobody; last by process {os.getpid()}" in said(tmp_path, capsys)


def test_results(tmp_path, capsys):
    for name, whole in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "result.json").write_text("{}")
    assert said(tmp_path, capsys).splitlines()[1:] == ["done       a", "not done   b"]


def test_anything_else(tmp_path):
    with pytest.raises(ValueError, match="nothing at "):
        status(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="holds no clip store, training run or results"):
        status(str(tmp_path))
