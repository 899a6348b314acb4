"""`python -m pipelines infer --model M --video V --out OUT`: videos to tracks, depth, point clouds and cameras.

A Ray Data job, one row per video, the model in an actor per GPU (without GPUs: in one actor). OUT/NAME/ holds the
results of a video and appears whole; `pipelines/results/files.py` has the table of its files. Running the job again
does what is missing. A video that fails is listed with its reason, the others go on.
"""

import json
from dataclasses import asdict
from typing import Any

import fsspec
from tqdm import tqdm

from pipelines.datasets import DatasetKey
from pipelines.results.files import RESULT, TASKS
from pipelines.results.sources import Selection, Source, find_sources
from pipelines.whole import require_new

# Ray and PyTorch take seconds to import and are not needed to print help or refuse a typing error: see below.


def infer(
    *,
    model: str,
    video: list[str],
    out: str,
    tasks: str = "tracks,depth,cameras",
    dataset: DatasetKey | None = None,
    start: int = 0,
    step: int = 1,
    num_frames: int | None = None,
    grid: int = 16,
) -> None:
    """Reconstruct videos with a trained model. Run again after an interruption, it goes on where it was.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/..., or a checkpoint folder.
        video: Video files or folders of images; with --dataset, raw folders, of which every sequence is taken.
        out: Folder or s3:// URI; each video's results go into a folder of its name in it.
        tasks: Which of tracks, depth, points, cameras; separated by commas.
        dataset: Whose official layout the raw folders have.
        start: First frame to take, counted from 0.
        step: Take every so many-th frame.
        num_frames: Take so many frames; by default all, which the model must be able to take at once.
        grid: Points to track along each side of the first frame.
    """
    chosen = _parse_tasks(tasks)
    if grid < 1:
        raise ValueError(f"--grid {grid} must be at least 1")

    from pipelines import jobs
    from pipelines.models import load_model, model_digest, model_version, tracking_uri
    from pipelines.results.reconstruct import Reconstruct

    version = model_version(model)
    loaded = load_model(version)
    selection = Selection(start=start, step=step, num_frames=num_frames, longest=loaded.config.clip_frames)
    sources = find_sources(video, dataset)
    digest = model_digest(loaded)
    about = {
        "request": {
            "model_digest": digest,
            "tasks": chosen,
            "start": start,
            "step": step,
            "num_frames": num_frames,
            "grid": grid,
        },
        "model": {"uri": model, "version": version, "digest": digest, "config": loaded.config.to_dict()},
    }
    del loaded
    out = out.rstrip("/")
    todo = [source for source in sources if not _is_done(f"{out}/{source.name}", source, about["request"])]
    if len(todo) < len(sources):
        print(f"{len(sources) - len(todo)} of {len(sources)} videos were done before")

    work = {"model": version, "registry": tracking_uri(), "selection": selection, "out": out, "about": about}
    rows = [{"source": source} for source in todo]
    failed = {}
    for outcome in jobs.run_models(Reconstruct, work, rows, label="infer", unit="video"):
        name = outcome.row["source"].name
        if outcome.failed:
            failed[name] = outcome.reason
        else:
            tqdm.write(f"{out}/{name}")
    if failed:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failed.items()))
        raise ValueError(f"{len(failed)} of {len(sources)} videos failed, the others are in {out}\n{listed}")


def _parse_tasks(tasks: str) -> list[str]:
    chosen = [task.strip() for task in tasks.split(",")]
    if unknown := sorted(set(chosen) - set(TASKS)):
        raise ValueError(f"--tasks has {', '.join(map(repr, unknown))}: choose from {', '.join(TASKS)}")
    return [task for task in TASKS if task in chosen]


def _is_done(uri: str, source: Source, request: dict[str, Any]) -> bool:
    """Whether this very request was answered there. ValueError if there is anything else."""
    fs, path = fsspec.core.url_to_fs(uri)
    fs.invalidate_cache()
    if not fs.exists(f"{path}/{RESULT}"):
        require_new(uri)
        return False
    there = json.loads(fs.cat_file(f"{path}/{RESULT}"))
    there = there.get("request", {}) | {"source": there.get("source")}
    asked = request | {"source": asdict(source)}
    if differences := [
        f"{key} was {there.get(key)!r}, now {asked[key]!r}" for key in asked if there.get(key) != asked[key]
    ]:
        raise ValueError(
            f"{uri} holds results of another request ({'; '.join(differences)}): remove it, or use another --out"
        )
    return True
