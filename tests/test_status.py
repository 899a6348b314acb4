"""What is done of a store, a run, or results, while it is being written and afterwards."""

import json
import os
import re
import socket

import pytest
from plane_store import write_plane_store

from pipelines.inspect import inspect
from pipelines.results.files import is_answered
from pipelines.results.reading import read_result
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
    assert "published  1 group of 1 sequence\nfinished   3 clips, 12 frames; digest " in told and "damaged" not in told
    (store / "store.json").unlink()
    (mark,) = store.glob("groups/*/*.json")
    mark.with_name(f"{mark.name}.{'0' * 32}.partial").touch()  # of a writer that was killed: no group
    assert "published  1 group of 1 sequence\nfinished   no: run convert" in said(store, capsys)


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


VIDEO = {"name": "a", "frame_numbers": [0, 1], "fps": 10.0, "width": 64, "height": 36, "notes": []}
DOCUMENT = {"schema": 1, "request": {}, "all_files": [], "video": VIDEO, "unit": "", "world": ""}


def write_result(folder, **changed) -> None:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(DOCUMENT | changed))


def test_results(tmp_path, capsys):
    write_result(tmp_path / "a")
    for name in ("b", ".labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.npz").touch()
    for name in ("notes.txt", "index.html"):
        (tmp_path / name).touch()
    assert said(tmp_path, capsys) == f"{tmp_path}: results of 1 video\ndone       a\nnot done   b\n"
    assert said(tmp_path / "a", capsys) == f"{tmp_path}/a: results of one video\ndone       a\n"


def test_what_a_killed_job_left_half_is_told(tmp_path, capsys):
    (tmp_path / f".{'0f' * 16}.partial").mkdir()
    assert said(tmp_path, capsys).splitlines()[1].startswith(f"half       .{'0f' * 16}.partial: ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"schema": 7}, "has schema 7, this program reads 1"), ({"video": VIDEO | {"fps": "10"}}, r"video\.fps")],
)
def test_results_of_another_kind_are_not_done(changed, message, tmp_path, capsys):
    write_result(tmp_path / "a", **changed)
    with pytest.raises(ValueError, match="is damaged: what to do stands above"):
        status(str(tmp_path))
    assert re.search(f"damaged    a: .*{message}.*infer|damaged    a: .*{message}.*remove", capsys.readouterr().out)
    with pytest.raises(ValueError, match=message):
        read_result(str(tmp_path / "a"))


def test_windows_of_a_job_that_was_killed(tmp_path, capsys):
    (tmp_path / ".0f.windows").mkdir()
    for name in ("00000.depth.npz", "00000.geometry.npz", "00001.depth.npz"):
        (tmp_path / ".0f.windows" / name).touch()
    (said_of_windows,) = said(tmp_path, capsys).splitlines()[1:]
    assert said_of_windows.startswith("begun      1 window of a video, kept in .0f.windows: the same infer goes on")


def test_what_is_damaged_is_no_result(tmp_path, capsys):
    contents = {"empty": "", "list": "[1]", "deep": "[" * 100_000}
    contents["null"] = json.dumps(DOCUMENT | {"request": None})
    contents["part"] = json.dumps(DOCUMENT | {"all_files": ["depth.npz", "tracks.npz"]})
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(content)
    (tmp_path / "part/tracks.npz").touch()
    with pytest.raises(ValueError, match="is damaged: what to do stands above"):
        status(str(tmp_path))
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("results of 0 videos") and len(told) == 6
    assert all(line.startswith("damaged ") and str(tmp_path) in line and "remove" in line for line in told[1:])
    assert "part lacks depth.npz, which its result.json lists" in "".join(told)
    with pytest.raises(ValueError, match=r"null/result\.json is damaged \(request: "):
        is_answered(str(tmp_path / "null"), {}, {})


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
        with pytest.raises(ValueError, match="store is damaged: what to do stands above"):
            status(str(tmp_path / "store"))
        told = capsys.readouterr().out
        assert f"it lacks {array} of planes/{group.stem}; delete store.json and" in told
        assert f"like {mark}, and run convert again" in told
        with pytest.raises(ValueError, match=f"it lacks {array} of "):
            inspect(str(tmp_path / "store"))


def test_anything_else(tmp_path):
    with pytest.raises(ValueError, match="nothing at "):
        status(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="holds no clip store, training run or results"):
        status(str(tmp_path))
    with pytest.raises(ValueError, match="file is a file: give a folder"):
        status(str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="it is empty"):
        status(str(tmp_path / "empty"))
