"""The job of every benchmark: predictions of a model or of files, one row of scores per clip, one report."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import jobs
from pipelines.catalog import FOLDER
from pipelines.evaluation.benchmarks import BenchmarkKey, load_benchmark
from pipelines.evaluation.benchmarks.asking import Ask
from pipelines.evaluation.benchmarks.benchmark import Benchmark, ClipName, Scores
from pipelines.evaluation.benchmarks.predictions import read_prediction
from pipelines.evaluation.benchmarks.report import FILES, METRICS, write_report
from pipelines.log import say
from pipelines.models import load_model, model_digest, model_version, tag_version, tracking_uri
from pipelines.problems import counted
from pipelines.raw.place import absolute, open_place, reachable
from pipelines.whole import ExistsAlready, listed, read_file

PREDICTIONS = "predictions"
SOURCES = ("pipelines/evaluation", "pipelines/results", "pipelines/datasets", "pipelines/raw", "model")
"""By which numbers are made; and the catalogs of the benchmarks."""


def run_benchmark(
    key: BenchmarkKey,
    *,
    model: str | None,
    predictions: str | None,
    data: Sequence[str],
    out: str,
    known_intrinsics: bool,
    window: int | None,
    common: int | None,
    allow_missing: bool,
) -> dict[str, Any]:
    """The content of metrics.json. ValueError for what is wrong, before the model is asked where it can be known."""
    bench = load_benchmark(key)
    there = set(listed(out))
    if METRICS in there or there - {PREDICTIONS, *FILES}:  # what was left half done is gone on with
        raise ExistsAlready(out)
    given = [absolute(place) for place in data]
    require_folders("--data", given)
    found = bench.find(given)
    require_different(found.clips)
    if predictions is not None:
        require_folders("--predictions", [predictions])
    say(f"{bench.title}: {counted(len(found.clips), 'clip')}; {found.title}")
    if found.missing:
        more = ", ..." if len(found.missing) > 5 else ""
        say(f"missing of it: {counted(len(found.missing), 'clip')}, {', '.join(found.missing[:5])}{more}")

    about: dict[str, Any] = {"predictions": predictions} if model is None else {}
    failed: dict[str, str] = {}
    request = None
    if model is not None:
        about, failed, request = ask_model(
            bench, model, found.clips, f"{out}/{PREDICTIONS}", known_intrinsics, window, common
        )
    rows = [{"clip": clip} for clip in found.clips if str(clip) not in failed]
    work = partial(score_clip, key=key, predictions=predictions or f"{out}/{PREDICTIONS}", request=request)
    scored: dict[ClipName, Scores] = {}
    for outcome in jobs.run_tasks(work, rows, label=f"score {key}", unit="clip"):
        if outcome.failed:
            failed[str(outcome.row["clip"])] = outcome.reason
        else:
            scored[outcome.row["clip"]] = outcome.result
    refuse_failed(failed, allow_missing, len(found.clips))

    about |= {"benchmark": key, "known_intrinsics": known_intrinsics, "code": code_version()}
    about["asked"] = {"data": sorted(given), "window": window, "common": common}
    metrics = write_report(bench, found, scored, failed, about, predictions or f"{out}/{PREDICTIONS}", out)
    if model is not None:
        tag_version(about["model"]["version"], version_tags(bench, metrics, out))
    return metrics


def require_folders(option: str, places: Sequence[str]) -> None:
    """ValueError naming the one that is none."""
    for place in places:
        fs, path = open_place(place)
        with reachable(place):
            if not fs.isdir(path):
                raise ValueError(f"{option} {place} is no folder: give the one that holds the files")


def require_different(clips: Sequence[ClipName]) -> None:
    """ValueError for a clip that is there twice: it would count twice, with one prediction."""
    there: dict[str, ClipName] = {}
    for clip in clips:
        other = there.setdefault(clip.file, clip)
        if other is not clip:
            raise ValueError(
                f"{clip} is there twice, in {other.data} and in {clip.data}: give one of them after --data"
            )


def require_same_request(out: str, key: BenchmarkKey, model: str, options: dict[str, Any]) -> None:
    """ValueError if the evaluation at `out` is of another benchmark, model or data, or was asked otherwise."""
    there = json.loads(read_file(f"{out}/{METRICS}") or b"{}")
    wanted = {
        "benchmark": key,
        "model": model,
        "known_intrinsics": options["known_intrinsics"],
        "data": sorted(absolute(place) for place in options["data"]),
        "window": options["window"],
        "common": options["common"],
    }
    found = {name: there.get(name, there.get("asked", {}).get(name)) for name in wanted}
    found |= {"model": there.get("model", {}).get("version"), "data": there.get("asked", {}).get("data")}
    if differ := [name for name in wanted if found[name] != wanted[name]]:
        raise ValueError(
            f"{out} has an evaluation with another {' and '.join(differ)} "
            f"({found[differ[0]]}, now {wanted[differ[0]]}): choose another --out"
        )


def version_tags(bench: Benchmark, metrics: dict[str, Any], out: str) -> dict[str, str]:
    """What a registered version says of this benchmark: its headline by subset, of which clips, where the rest is."""
    settings = ".known_intrinsics" if metrics["known_intrinsics"] else ""
    name = f"benchmark/{bench.key}{settings}"
    groups = metrics["scores"] | ({"overall": metrics["overall"]} if metrics["overall"] else {})
    scores = {f"{name}/{subset}/{bench.headline}": str(scores.get(bench.headline)) for subset, scores in groups.items()}
    told = {"title": metrics["title"], "data": metrics["data"]["digest"], "code": metrics["code"]["digest"], "out": out}
    return scores | {f"{name}/about": json.dumps(told)}


def ask_model(
    bench: Benchmark,
    model: str,
    clips: Sequence[ClipName],
    out: str,
    known_intrinsics: bool,
    window: int | None,
    common: int | None,
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """What is to be told of the model and how it was asked; the clips for which there is no prediction, with why; and
    what predictions say that they are the answer to.

    A prediction that is there, of this model for this clip, is not made again.
    """
    from model.recipes import plan_windows

    version = model_version(model)
    loaded = load_model(version)
    config = loaded.config
    plan = plan_windows(1 << 20, config.clip_frames, length=window, common=common)  # refuses what is no plan
    digest = model_digest(loaded)
    request = {"benchmark": bench.key, "model_digest": digest, "known_intrinsics": known_intrinsics}
    request |= {"window": window, "common": common}
    del loaded

    arguments = {"model": version, "registry": tracking_uri(), "key": bench.key, "out": out, "request": request}
    rows, failed = [{"clip": clip} for clip in clips], {}
    for outcome in jobs.run_models(Ask, arguments, rows, label=f"ask {bench.key}", unit="clip"):
        if outcome.failed:
            failed[str(outcome.row["clip"])] = outcome.reason
    rule = (
        f"clips up to {plan.length} frames whole; longer ones in windows of {plan.length}, each with {plan.common} "
        "frames in common with the next, joined by a robust similarity of the points in them, as infer does"
    )
    told = {
        "model": {"uri": model, "version": version, "digest": digest, "config": config.to_dict()},
        "window_rule": rule,
        "resolution": f"{config.image_size} x {config.image_size}, resized without cropping, with the raw aspect told",
        "precision": "bfloat16 autocast on CUDA, float32 on a CPU; scores in float64",
    }
    return told, failed, request


def score_clip(
    row: dict[str, Any], *, key: BenchmarkKey, predictions: str, request: dict[str, Any] | None = None
) -> Scores:
    """Its row of clips.parquet. ValueError for damaged files and for a prediction that is missing or does not fit.

    `request`: what the prediction must be the answer to, if a model was asked.
    """
    bench, clip = load_benchmark(key), row["clip"]
    found = read_prediction(predictions, clip)
    if found is None:
        raise ValueError(f"no prediction {clip.file} in {predictions}")
    truth = bench.open(clip)
    prediction, about = found
    if request is not None and about.get("request") != request | {"clip": truth.digest}:
        raise ValueError(f"{clip.file} in {predictions} is by another model now: another job writes there; run again")
    windows = about.get("windows") or [{}]
    seams = [window["seam"] for window in windows[1:]]
    told = {"windows": len(windows), "unjoined": sum(not seam["joined"] for seam in seams)}
    scales = [seam["scale"] for seam in seams if seam["joined"] and seam["scale"] > 0]
    told["seam_scale"] = max((max(scale, 1 / scale) for scale in scales), default=1.0)
    return {"digest": truth.digest, **told, **bench.scores(truth, prediction)}


def refuse_failed(failed: dict[str, str], allowed: bool, total: int) -> None:
    """ValueError with all of them, unless they are allowed to be missing."""
    if not failed:
        return
    lines = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failed.items()))
    if not allowed or len(failed) == total:
        raise ValueError(
            f"{len(failed)} of {counted(total, 'clip')} have no scores; mend them and run again, it goes on where "
            f"it was, or give --allow-missing, which lists them in the report and ends with that\n{lines}"
        )
    say(f"{len(failed)} of {counted(total, 'clip')} have no scores:\n{lines}")


def code_version() -> dict[str, str]:
    """The version of this project, and a digest of the code by which the numbers are made."""
    root, digest = Path(__file__).parents[3], hashlib.blake2b(digest_size=16)
    code = sorted(file for folder in SOURCES for file in (root / folder).rglob("*.py"))
    for file in (*code, *sorted((FOLDER / "benchmarks").iterdir())):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return {"version": importlib.metadata.version("d4rt"), "digest": digest.hexdigest()}
