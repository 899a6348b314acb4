"""What must hold after a soak: AssertionError if it does not, else the words that say what was looked at."""

import json
import os
from pathlib import Path

import mlflow

from pipelines.partial import sweep
from pipelines.raw.place import open_place
from pipelines.results.reading import find_results, read_result
from pipelines.store.reader import ClipStore
from pipelines.store.wholeness import require_whole
from pipelines.whole import read_file, sizes

CACHE = "torchinductor_"  # which PyTorch makes as soon as it is imported


def check_stores(stores: list[str], digest: str) -> str:
    for store in stores:
        opened = ClipStore(store)
        if opened.info["digest"] != digest:
            raise AssertionError(f"{store} is another store than the undisturbed one")
        groups = set(opened.column("group"))
        require_whole(store, groups)
        there = {"/".join(name.split("/")[:2]).removesuffix(".zarr") for name in sizes(f"{store}/data")}
        if there != groups:
            raise AssertionError(f"{store} has folders that are no groups: {sorted(there - groups)[:5]}")
    return f"{len(stores)} stores have the digest of the undisturbed one, and no file more than their groups'"


def check_runs(runs: list[str], steps: range) -> str:
    """`steps`: at which their curves have points."""
    client = mlflow.MlflowClient()
    for run in runs:
        record = json.loads(read_file(f"{run}/run.json"))
        points = client.get_metric_history(record["run_id"], "loss")
        if sorted(point.step for point in points) != list(steps):
            raise AssertionError(f"{run} has not each step of its curve once: {[point.step for point in points]}")
        status = client.get_run(record["run_id"]).info.status
        if status != "FINISHED" or record["model"] is None:
            raise AssertionError(f"{run} is {status}, its model {record['model']}")
        files = sorted(name for name in sizes(run) if name.startswith("step_"))  # S3 lists folders without files too
        if halves := [name for name in files if f"{name.split('/')[0]}/position.json" not in files]:
            raise AssertionError(f"{run} has halves of checkpoints: {halves}")
    return f"{len(runs)} training runs ended at their last step, each step of their curves is there once"


def check_results(places: list[str], videos: int) -> str:
    expected = {"index.html", *map(str, range(videos))}
    for place in places:
        if (there := {name.split("/")[0] for name in sizes(place)}) != expected:
            raise AssertionError(f"{place} has {sorted(there)}")
        for uri in find_results(place):
            result = read_result(uri)
            for task in result.tasks:
                result.arrays(task)
    return f"{videos} videos have whole results, {len(places)} times"


def check_nothing_is_left(place: str, scratch: Path) -> str:
    sweep(str(scratch))  # as the next command would
    if left := sorted(name for name in os.listdir(scratch) if not name.startswith(CACHE)):
        raise AssertionError(f"left in TMPDIR: {left}")
    fs, bucket = open_place(place)
    if uploads := fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads"):
        raise AssertionError(f"uploads that never ended: {[upload['Key'] for upload in uploads]}")
    return "nothing is left in TMPDIR, no upload on S3 without its end"
