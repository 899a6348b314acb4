"""What every job shares: reasons, bounded tries, and the end of a job that cannot go on."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from pipelines.jobs import DIED, MAX_TRIES, READY, StopJob, ahead, aside, require_few_failures, run_models, run_tasks
from pipelines.raw.place import NoRoom

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import tests


def halve(row):
    """Even numbers only; 7 ends its process, as a crash in C does; 9 ends the job."""
    with Path(row["log"]).open("a") as log:
        log.write(f"{row['number']}\n")
    if row["number"] == 7:
        os._exit(1)
    if row["number"] == 9:
        raise StopJob("the disk is full")
    if row["number"] % 2:
        raise ValueError(f"{row['number']} is odd: give an even number")
    return row["number"] // 2, {"any": {1, 2}}


class Halve:
    def __init__(self, wanted: str) -> None:
        if wanted != "halves":
            raise RuntimeError("no such model")

    def __call__(self, row):
        return halve(row)


def run(kind: str, rows: list[dict]) -> list:
    words = {"label": "halve", "unit": "number"}
    if kind == "tasks":
        return list(run_tasks(halve, rows, **words))
    return list(run_models(Halve, {"wanted": "halves"}, rows, **words))


@pytest.mark.parametrize("kind", ["tasks", "actors"])
def test_every_row_has_an_outcome_also_one_whose_process_dies(kind, ray_cluster, tmp_path, capfd):
    log = tmp_path / "log"
    rows = [{"number": number, "log": str(log)} for number in (0, 1, 2, 7, 4)]
    outcomes = {outcome.row["number"]: outcome for outcome in run(kind, rows)}
    assert {number: outcome.result for number, outcome in outcomes.items() if not outcome.failed} == {
        number: (number // 2, {"any": {1, 2}}) for number in (0, 2, 4)
    }
    assert outcomes[1].reason == "1 is odd: give an even number"
    assert outcomes[7].reason == DIED
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err and "Deprecation" not in said.err
    assert "\r" not in said.out + said.err and "halve: 5 of 5 numbers, 2 failed\n" in said.out
    begun = log.read_text().split()
    assert begun.count("7") == MAX_TRIES and all(begun.count(number) == 1 for number in "0124")


@pytest.mark.parametrize("kind", ["tasks", "actors"])
def test_a_row_can_stop_the_job(kind, ray_cluster, tmp_path):
    with pytest.raises(StopJob, match=r"^the disk is full$"):
        run(kind, [{"number": 9, "log": str(tmp_path / "log")}])


def test_a_model_that_cannot_be_loaded_stops_the_job(ray_cluster, capfd):
    with pytest.raises(StopJob, match="no such model"):
        list(run_models(Halve, {"wanted": "quarters"}, [{"number": 2}], label="halve", unit="number"))
    assert "constructor arguments" not in capfd.readouterr().err


def no_room():
    raise NoRoom("the disk is full")


def test_work_aside_gives_what_it_returns_and_raises_what_it_raises(ray_cluster):
    both = [aside(lambda x: x + 1, 2), aside(lambda x: x + 1, 3, cpus=0)]
    assert [each() for each in both] == [3, 4]
    with pytest.raises(NoRoom, match=r"^the disk is full$"):
        aside(no_room)()
    with pytest.raises(ValueError, match="died 3 times"):
        aside(os._exit, 1)()


def three():
    for number in range(3):
        yield number + 1


def test_what_models_wait_for_does_not_wait_for_their_cpus(ray_cluster):
    """Models of two jobs may hold all CPUs of a cluster without GPUs, and each waits for a process aside."""
    holder = ray.remote(Halve).options(num_cpus=ray.cluster_resources()["CPU"]).remote("halves")
    ray.get(holder.__ray_ready__.remote())
    try:
        with ThreadPoolExecutor() as pool:
            assert pool.submit(aside(abs, -1)).result(timeout=60) == 1
            assert pool.submit(aside(lambda: list(ahead(three)), cpus=0)).result(timeout=60) == [1, 2, 3]
    finally:
        ray.kill(holder)


def parts(folder):
    for number in range(8):
        Path(folder, str(number)).touch()
        yield number
    raise ValueError("damaged")


def consume(folder):
    """How many parts were made when the first one was taken, and all of them with the error at their end."""
    coming = ahead(parts, folder)
    found = [next(coming)]
    time.sleep(0.3)
    made = len(list(Path(folder).iterdir()))
    try:
        found.extend(coming)
    except ValueError as error:
        return made, found, str(error)


def test_work_ahead_is_a_little_ahead(ray_cluster, tmp_path):
    made, found, error = aside(consume, str(tmp_path), cpus=0)()
    assert made <= 1 + READY + 1  # one taken, some ready, one under way
    assert (found, error) == (list(range(8)), "damaged")


def leave(folder):
    """Take one part, and no more."""
    coming = ahead(parts, folder)
    next(coming)
    coming.close()
    time.sleep(1)


def wait_for_all_cpus() -> None:
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < end, "what was stopped still holds CPUs"
        time.sleep(0.1)


def test_what_is_stopped_gives_back_its_cpus_at_once(ray_cluster, tmp_path):
    """Others wait for them, also while the error, and with it all that was going on, is still looked at."""
    rows = [{"number": 9, "log": str(tmp_path / "log")}]
    with pytest.raises(StopJob) as stopped:
        list(run_models(Halve, {"wanted": "halves"}, rows, label="halve", unit="number"))
    wait_for_all_cpus()
    assert stopped.value.__traceback__ is not None

    (tmp_path / "parts").mkdir()
    aside(leave, str(tmp_path / "parts"), cpus=0)()
    wait_for_all_cpus()


class Slow:
    """Two rows at once, of which each waits for the other."""

    def __init__(self) -> None:
        self.progress = {}

    def __call__(self, row):
        self.progress[row["number"]] = f"row {row['number']}: half"
        while len(self.progress) < 2:
            time.sleep(0.01)
        time.sleep(2 * row["seconds"])
        return row["number"]


def test_rows_at_once_and_what_is_done_of_them(ray_cluster, monkeypatch, capfd):
    monkeypatch.setattr("pipelines.jobs.PROGRESS_SECONDS", 0.2)
    monkeypatch.setattr("pipelines.log.LOG_SECONDS", 0)
    rows = [{"number": number, "seconds": 0.4} for number in range(2)]
    outcomes = list(run_models(Slow, {}, rows, label="wait", unit="row", at_once=2))
    assert sorted(outcome.result for outcome in outcomes) == [0, 1]
    assert "wait: 0 of 2 rows: row 0: half, row 1: half\n" in capfd.readouterr().out


def test_too_large_a_share_of_failures():
    require_few_failures(1, 20, "rows", 0.05, "look at them")
    with pytest.raises(ValueError, match=r"2 of 20 rows failed, see above .*0\.05.* look at them"):
        require_few_failures(2, 20, "rows", 0.05, "look at them")


def test_other_pipelines_of_the_process_still_fail_where_a_block_does(ray_cluster, tmp_path):
    """That a row's failure is an answer concerns the job alone: training, in the same process, must not lose clips."""
    import ray.data

    run("tasks", [{"number": 2, "log": str(tmp_path / "log")}])
    with pytest.raises(Exception, match="3 is odd"):
        ray.data.from_items([{"number": 3, "log": str(tmp_path / "log")}]).map(halve).take_all()
