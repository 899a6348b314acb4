"""`python -m pipelines infer --model M --video V --out OUT`: videos to tracks, depth, point clouds and cameras.

A Ray job, one row per video, the model in an actor per GPU (without GPUs: in one actor). OUT/NAME/ holds the results
of a video and appears whole; `pipelines/results/files.py` has the table of its files. What can be known to be wrong is
said before a cluster is up: at once what no model is needed for, then the rest. Running the job again does what is
missing: a video is known by its content, wherever it lies. One that fails is listed with its reason, the others go on.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from model.command_line import loading
from pipelines.datasets import DatasetKey
from pipelines.problems import Problems, alike
from pipelines.raw.place import absolute, lasting, open_place, reachable
from pipelines.results.files import RESULT, TASKS, claim_of, is_answered
from pipelines.results.finding import find_sources
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, check_video, video_digest
from pipelines.whole import listed, read_file, require_new

# Ray and PyTorch take seconds to import and are not needed to print help or refuse a typing error: see below.

MAX_GRID = 1024  # a million tracks
READERS = 8  # videos that are looked at together, before the work
VIDEOS_AT_ONCE = 2  # of a model: while one is read or written, it answers for the other


def infer(
    *,
    model: str,
    video: list[str],
    out: str,
    tasks: str = ",".join(TASKS),
    dataset: DatasetKey | None = None,
    start: int = 0,
    step: int = 1,
    fps: float | None = None,
    num_frames: int | None = None,
    grid: int = 16,
    window: int | None = None,
    common: int | None = None,
    dry_run: bool = False,
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
        fps: Or take so many frames per second, by the times at which they are shown; of files that tell them.
        num_frames: Take so many frames; by default all.
        grid: Points to track along each side of the first frame.
        window: Frames that are looked at together; by default, and at most, as many as the model takes.
        common: Frames that a window has in common with the next; by default a third.
        dry_run: Only check that model, videos and OUT are as they must be, and say what is to be done.
    """
    problems = Problems()
    chosen, sources = [], []
    with problems.noted():
        chosen = _parse_tasks(tasks)
    if not 1 <= grid <= MAX_GRID:
        problems.reasons.append(f"--grid {grid} must be from 1 to {MAX_GRID}: so many points to a side")
    with problems.noted():
        out = lasting(out, "--out")
        _require_folder(out)
    with problems.noted():
        sources = find_sources([absolute(uri) for uri in video], dataset)
    with problems.noted():
        least = max(2, num_frames or 0)
        selection = Selection(start=start, step=step, fps=fps, num_frames=least)
        for source in sources[:READERS]:
            with problems.noted():
                check_video(source, selection)
    problems.refuse()

    loading("PyTorch", "MLflow", "Ray")
    from model.recipes import plan_windows
    from pipelines import jobs
    from pipelines.models import load_model, model_digest, model_version, tracking_uri
    from pipelines.results.reconstruct import Reconstruct

    version = model_version(model)
    loaded = load_model(version)
    options = {"start": start, "step": step, "fps": fps, "num_frames": num_frames}
    selection = Selection(**options)
    plan_windows(2, loaded.config.clip_frames, length=window, common=common)  # refuses what is no plan

    digest = model_digest(loaded)
    request = {"model_digest": digest, "tasks": chosen, **options, "grid": grid, "window": window, "common": common}
    about = {
        "request": request,
        "model": {"uri": model, "version": version, "digest": digest, "config": loaded.config.to_dict()},
    }
    del loaded
    todo = _undone(sources, selection, out, request)
    if len(todo) < len(sources):
        print(f"{len(sources) - len(todo)} of {len(sources)} videos were done before")
    if dry_run:
        print(f"ready: {len(todo)} of {len(sources)} videos to do with {version}, into {out}")
        return

    arguments = {"model": version, "registry": tracking_uri(), "selection": selection, "out": out, "about": about}
    failed, noted = {}, {}
    rows = [asdict(source) for source in todo]
    for outcome in jobs.run_models(Reconstruct, arguments, rows, label="infer", unit="video", at_once=VIDEOS_AT_ONCE):
        source = Source(**outcome.row)
        if outcome.failed:
            failed[source.name] = outcome.reason
            continue
        tqdm.write(f"{out}/{source.name}")
        if outcome.result:
            noted[str(source)] = "; ".join(outcome.result)
    for line in alike(noted):
        print(f"noted {line}")
    if failed:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failed.items()))
        others = f", the others are in {out}" if len(failed) < len(sources) else ""
        raise ValueError(f"{len(failed)} of {len(sources)} videos failed{others}\n{listed}")


def _parse_tasks(tasks: str) -> list[str]:
    chosen = [task.strip() for task in tasks.split(",")]
    if unknown := sorted(set(chosen) - set(TASKS)):
        raise ValueError(f"--tasks has {', '.join(map(repr, unknown))}: choose from {', '.join(TASKS)}")
    return [task for task in TASKS if task in chosen]


def _require_folder(out: str) -> None:
    """ValueError if there is a file where the folder of all results would be."""
    fs, path = open_place(out)
    with reachable(f"--out {out}"):
        if fs.exists(path) and not fs.isdir(path):
            raise ValueError(f"--out {out} is a file: give a folder")


def _undone(sources: list[Source], selection: Selection, out: str, request: dict[str, Any]) -> list[Source]:
    """Those without results of this request. ValueError, for all of them at once, where that cannot be answered."""
    problems = Problems()

    def is_done(source: Source) -> bool:
        uri = f"{out}/{source.name}"
        done = True
        with problems.noted():
            if read_file(f"{uri}/{RESULT}") is None:
                done = False
                check_video(source, selection)
                if listed(uri):
                    require_new(uri, claim_of(request | {"video": video_digest(source, selection)}))
            else:
                is_answered(uri, request | {"video": video_digest(source, selection)})
        return done

    with ThreadPoolExecutor(READERS) as pool:
        answers = tqdm(pool.map(is_done, sources), total=len(sources), desc="check", unit="video", delay=2)
        todo = [source for source, done in zip(sources, answers, strict=True) if not done]
    problems.refuse()
    return todo
