"""What every job shares: reasons, bounded tries, and the end of a job that cannot go on."""

import os
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from pipelines.jobs import DIED, MAX_TRIES, StopJob, require_few_failures, run_models, run_tasks

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
