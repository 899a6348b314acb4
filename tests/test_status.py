"""What is done of a store, a run, or results, while it is being written and afterwards."""

import json
import os
import socket

import pytest
from plane_store import write_plane_store

from pipelines.inspect import inspect
from pipelines.results.files import is_answered
from pipelines.status import status
from pipelines.store.layout import ARRAYS
from train.lease import owned


def said(place, capsys) -> str:
    status(str(place))
    return capsys.readouterr().out


def test_a_store(tmp_path, capsys):
    store = tmp_path / "store[1]"
    write_plane_store(store, clips=3)
    told = said(store, capsys)
    assert (
        "published  1 groups of 1 sequences\nfinished   3 clips, 12 frames; digest " in told and "damaged" not in told
    )
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
            (tmp_path / name / "result.json").write_text('{"request": {}, "all_files": []}')
    assert said(tmp_path, capsys).splitlines()[1:] == ["done       a", "not done   b"]


def test_windows_of_a_job_that_was_killed(tmp_path, capsys):
    (tmp_path / ".0f.windows").mkdir()
    for name in ("00000.depth.npz", "00000.geometry.npz", "00001.depth.npz"):
        (tmp_path / ".0f.windows" / name).touch()
    (said_of_windows,) = said(tmp_path, capsys).splitlines()[1:]
    assert said_of_windows.startswith("begun      1 windows of a video, kept in .0f.windows: the same infer goes on")


def test_what_is_damaged_is_no_result(tmp_path, capsys):
    contents = {"empty": "", "list": "[1]", "null": '{"request": null, "all_files": []}', "deep": "[" * 100_000}
    contents["part"] = '{"request": {}, "all_files": ["depth.npz", "tracks.npz"]}'
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(content)
    (tmp_path / "part/tracks.npz").touch()
    told = said(tmp_path, capsys).splitlines()
    assert told[0].endswith("results of 0 videos") and len(told) == 6
    assert all(line.startswith("damaged ") and str(tmp_path) in line and "remove" in line for line in told[1:])
    assert "part lacks depth.npz, which its result.json lists" in "".join(told)
    with pytest.raises(ValueError, match=r"null/result\.json is damaged \(request: "):
        is_answered(str(tmp_path / "null"), {})


@pytest.mark.parametrize("file", ["run.json", "step_0000020/position.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"foo": 1}', '{"step": "1"}', '{"step": -1}', "9" * 5000])
def test_a_damaged_run(file, content, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"steps": 60}, "run_id": "abc"}))
    for name in ("step_0000020", "step_abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "position.json").write_text('{"step": 20}' if name == "step_0000020" else "")
    status(str(tmp_path))
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file} is damaged \("):
        status(str(tmp_path))


@pytest.mark.parametrize("array", [*ARRAYS, "zarr.json"])
def test_a_store_that_lacks_files(array, tmp_path, capsys):
    write_plane_store(tmp_path / "store", clips=3)
    (group,) = tmp_path.glob("store/data/*/*.zarr")
    shard = (
        group / "zarr.json" if array == "zarr.json" else next(f for f in group.glob(f"{array}/c/**/*") if f.is_file())
    )
    shard.unlink()
    mark = next(tmp_path.glob("store/groups/*/*.json")).relative_to(tmp_path / "store")
    if array == "zarr.json":
        with pytest.raises(ValueError, match=f"the store is damaged; delete {mark}"):
            status(str(tmp_path / "store"))
    else:
        assert f"it lacks {array} of planes/{group.stem}; delete store.json and" in (
            told := said(tmp_path / "store", capsys)
        )
        assert f"like {mark}, and run convert again" in told
        with pytest.raises(ValueError, match=f"it lacks {array} of "):
            inspect(str(tmp_path / "store"))


def test_anything_else(tmp_path):
    with pytest.raises(ValueError, match="nothing at "):
        status(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="holds no clip store, training run or results"):
        status(str(tmp_path))
