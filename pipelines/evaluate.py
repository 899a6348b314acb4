"""`python -m pipelines evaluate BENCHMARK --model M --data DIR --out OUT`: a model scored on what it has not seen.

The field's benchmarks are in `pipelines/evaluation/benchmarks/`; `report.py` there has the table of what is written.
`clips` scores held-out clips of clip stores by their own queries. Three answer: the model, an untrained model of its
config (seed 0), and a guess that needs no model:
every pixel lies at one constant depth on its ray, and neither it nor the camera moves.

The scores are defined at the top of `pipelines/evaluation/scores.py`.

| file         | holds                                                                                          |
|--------------|------------------------------------------------------------------------------------------------|
| metrics.json | the scores over all stores and per store, the model, the stores' digests; `consistency`: does  |
|              | the model give one answer however it is asked (`pipelines/evaluation/clip_consistency.py`)     |
| NN_KEY.png   | of each of the first nine stores the middle one, by its error, of its first clips: where       |
|              | points should be and are, depth, their layout from above, depth against depth                  |
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

from model.command_line import loading
from pipelines.evaluation.benchmarks import BenchmarkKey
from pipelines.log import say
from pipelines.problems import counted
from pipelines.raw.place import absolute, lasting
from pipelines.results.selection import check_windows
from pipelines.status import CHECKPOINT, POSITION
from pipelines.store.reader import ClipStore, evenly, open_different
from pipelines.whole import listed, require_new, require_writable, result_folder

# Ray and PyTorch take seconds to import and are not needed to print help or refuse a typing error: see below.

METRICS = "metrics.json"
PICTURES = 9  # drawn at most, one of a store
CLIPS_PER_ROW = 8  # scored between two steps of the progress bar


def evaluate(
    benchmark: Literal["clips"] | BenchmarkKey,
    /,
    *,
    data: list[str],
    out: str,
    model: str | None = None,
    predictions: str | None = None,
    clips: int | None = None,
    known_intrinsics: bool = False,
    window: int | None = None,
    common: int | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Score a model, or stored predictions, on a benchmark. Returns the content of metrics.json.

    Args:
        benchmark: clips: clip stores by their own queries, beside an untrained model and a guess. The others: of the
            field, by their own definitions, beside published numbers.
        data: Folders or s3:// URIs of the benchmark's files as its authors ship them; for clips, clip stores of scenes
            the model was not trained on.
        out: Folder or s3:// URI to write, which must be new; it may have predictions/ of a job that was interrupted.
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/..., or a checkpoint folder; models:/NAME/* for all
            versions, or RUN/* for all checkpoints of a run's folder, each into a folder of its name, with a leaderboard
            beside them.
        predictions: Or a folder of stored predictions, scored without a model.
        clips: Of clips, how many to score per store, spread evenly over it; by default all.
        known_intrinsics: The model is told the true intrinsics.
        window: Frames that are looked at together; by default, and at most, as many as the model takes.
        common: Frames that a window has in common with the next; by default a third, but at least 2.
        allow_missing: Report although clips failed or have no prediction; they are listed.
    """
    if (model is None) == (predictions is None):
        raise ValueError("give either --model or --predictions: what is to be scored")
    if not data:
        raise ValueError("no data given: name at least one folder or clip store after --data")
    if benchmark == "clips":
        if model is None or known_intrinsics or allow_missing or (window, common) != (None, None):
            raise ValueError("clips needs --model, and takes none of the options of the field's benchmarks")
        return evaluate_clips(model=model, data=data, out=out, clips=clips)
    if clips is not None:
        raise ValueError(f"--clips is of clips: {benchmark} is scored whole, or its numbers are not comparable")
    check_windows(window, common)
    out = lasting(out, "--out")
    require_writable(out, "--out")

    loading("PyTorch", "MLflow", "Ray")
    from pipelines.evaluation.benchmarks.job import run_benchmark

    options = {"data": data, "known_intrinsics": known_intrinsics, "window": window, "common": common}
    options |= {"allow_missing": allow_missing}
    if model is None:
        return run_benchmark(benchmark, model=None, predictions=absolute(predictions), out=out, **options)
    if model.endswith("/*"):
        return evaluate_all(benchmark, model, out, options)
    return run_benchmark(benchmark, model=model, predictions=None, out=out, **options)


def evaluate_all(benchmark: BenchmarkKey, pattern: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    """All models that `pattern` names, each into a folder of its name, and a leaderboard. What is there is not done
    again. ValueError, before anything is asked, for an evaluation that was made otherwise."""
    from pipelines.compare import write_leaderboard
    from pipelines.evaluation.benchmarks.job import require_same_request, run_benchmark
    from pipelines.models import model_versions

    versions = model_versions(pattern) if pattern.startswith("models:/") else checkpoints_of(absolute(pattern[:-2]))
    places = {version: f"{out}/{version.rpartition('/')[2]}" for version in versions}
    done = {version for version, place in places.items() if METRICS in listed(place)}
    for version in sorted(done):
        require_same_request(places[version], benchmark, version, options)
    for version, place in places.items():
        if version not in done:
            print(f"{version}: {len(done)} of {len(places)} are done")
            run_benchmark(benchmark, model=version, predictions=None, out=place, **options)
            done.add(version)
    best = write_leaderboard(list(places.values()), out)[0]["name"]
    if pattern.startswith("models:/"):
        name, _, number = best.removeprefix("models:/").rpartition("/")
        print(f"make the best one the champion: python -m train promote --name {name} --version {number} --because ...")
    else:
        print(f"register the best one: python -m train register --checkpoint {best}")
    return {"leaderboard": places}


def checkpoints_of(run: str) -> list[str]:
    """The whole ones in a run's folder, the oldest first. ValueError if there are none."""
    found = [name for name in listed(run) if CHECKPOINT.fullmatch(name) and POSITION in listed(f"{run}/{name}")]
    if not found:
        raise ValueError(f"{run} has no whole checkpoints step_N: give the folder of a run, RUN/*")
    return [f"{run}/{name}" for name in found]


def evaluate_clips(*, model: str, data: list[str], out: str, clips: int | None) -> dict[str, Any]:
    """Score a model on held-out clips, beside an untrained one and a guess. Returns the content of metrics.json."""
    if clips is not None and clips < 1:
        raise ValueError(f"--clips {clips} must be at least 1")
    out = lasting(out, "--out")
    require_new(out)
    require_writable(out, "--out")
    stores = open_different(data)

    loading("PyTorch", "MLflow", "Ray")
    from pipelines import jobs
    from pipelines.evaluation.clip_consistency import Consistency
    from pipelines.evaluation.clip_scorer import METHODS, ClipScorer
    from pipelines.evaluation.scores import require_fit, score_table
    from pipelines.evaluation.tally import Tally
    from pipelines.models import load_model, model_digest, model_version, tracking_uri

    version = model_version(model)
    loaded = load_model(version)
    for store in stores:
        require_fit(store, loaded.config)
    if seen := [store.uri for store in stores if store.info["digest"] in loaded.trained_on]:
        say(f"warning: the model was trained on {', '.join(seen)}: these scores say nothing about other scenes")
    about = {"uri": model, "version": version, "digest": model_digest(loaded), "config": loaded.config.to_dict()}
    del loaded

    def nothing() -> dict[str, Tally]:
        return {method: Tally() for method in METHODS}

    agreement = Consistency()
    overall, by_store = nothing(), {store.uri: nothing() for store in stores}
    pictures: dict[str, bytes] = {}
    scorer = {"model": version, "registry": tracking_uri()}
    rows = list(parts(stores, clips))
    for outcome in jobs.run_models(
        ClipScorer, scorer, rows, label=f"evaluate clips, {CLIPS_PER_ROW} at a time", unit="part"
    ):
        if outcome.failed:
            raise ValueError(outcome.reason)  # a damaged store
        for method, tally in outcome.result["tallies"].items():
            overall[method].merge(tally)
            by_store[outcome.row["store"]][method].merge(tally)
        agreement.merge(outcome.result["consistency"])
        if name := outcome.row["picture"]:
            pictures[name] = outcome.result["picture"]

    metrics = {
        "schema": 1,
        "benchmark": "clips",
        "model": about,
        "data": {store.uri: store.info["digest"] for store in stores},
        "trained_on": seen,
        "clips": sum(len(row["clips"]) for row in rows),
        "scores": {method: tally.scores() for method, tally in overall.items()},
        "consistency": agreement.scores(),
        "stores": {
            uri: {method: tally.scores() for method, tally in tallies.items()} for uri, tallies in by_store.items()
        },
    }
    with result_folder(out, last=METRICS) as folder:
        for name, png in pictures.items():
            (folder / name).write_bytes(png)
        (folder / METRICS).write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    print(f"{score_table(metrics['scores'])}\n{out}: {METRICS} and {counted(len(pictures), 'picture')}")
    return metrics


def parts(stores: list[ClipStore], clips: int | None) -> Iterator[dict[str, Any]]:
    """What is scored, some clips of a store at a time: {"store", "clips", "picture"}.

    `picture`: the file for a picture of one of them, or empty.
    """
    for place, store in enumerate(stores):
        chosen = [int(number) for number in evenly(len(store), clips)]
        picture = f"{place:02}_{store.settings.dataset}.png" if place < PICTURES else ""
        for begin in range(0, len(chosen), CLIPS_PER_ROW):
            part = chosen[begin : begin + CLIPS_PER_ROW]
            yield {"store": store.uri, "clips": part, "picture": picture if begin == 0 else ""}
