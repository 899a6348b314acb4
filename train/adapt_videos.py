"""`python -m train adapt --model M --video V --labels L --out OUT`: a model for each video, adapted to it.

A Ray job, one row per video. OUT/NAME/ is a checkpoint, with adapt.json, which says what was asked and what came of it;
it appears whole. OUT/.labels/ keeps what a teacher said. Running the job again does what is missing.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from model import checkpoints
from model.recipes import plan_windows
from pipelines import jobs
from pipelines.log import say, shown
from pipelines.models import load_model, model_digest, model_version, tracking_uri
from pipelines.problems import Problems
from pipelines.raw.place import absolute, is_local, lasting, open_place
from pipelines.results.files import ADAPTED, claim_of, is_answered
from pipelines.results.finding import find_sources
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, check_video, video_digest
from pipelines.whole import listed, read_file, require_new, require_writable
from train.adapt_video import AdaptVideo, Task
from train.config import STEPS
from train.label_split import deal
from train.pseudo_labels import PseudoLabels, read_labels
from train.teacher import FUNCTION, function_digest

READERS = 8  # videos that are looked at together, before the work
HIGHEST_LR = 1.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command was asked for, apart from videos and places."""

    labels: str | None
    """A .npz file, or a folder with one per video; else there is a teacher."""
    teacher: str | None
    truth: str | None
    selection: Selection
    steps: int
    lr: float

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= STEPS[1]:
            raise ValueError(f"--steps {self.steps} must be from 1 to {STEPS[1]}")
        if not 0 < self.lr <= HIGHEST_LR:
            raise ValueError(f"--lr {self.lr:g} must be above 0, and at most {HIGHEST_LR:g}")


def adapt_videos(model: str, videos: list[str], out: str, asked: Asked, *, dry_run: bool) -> None:
    """ValueError with all that is wrong before the work, or with the videos that failed after it."""
    arguments, tasks = prepare(model, videos, out, asked)
    out, todo = arguments["out"], [task for task in tasks if not task.done]
    if len(todo) < len(tasks):
        say(f"{len(tasks) - len(todo)} of {len(tasks)} videos were done before")
    if dry_run:
        say(f"ready: {len(todo)} of {len(tasks)} videos to adapt {arguments['model']} to, into {out}")
        return

    failed = {}
    rows = [{"task": task} for task in todo]
    for outcome in jobs.run_models(AdaptVideo, arguments, rows, label="adapt", unit="video"):
        name = outcome.row["task"].source.name
        if outcome.failed:
            failed[name] = outcome.reason
        else:
            say(f"{out}/{name}: {outcome.result}", video=name)
    if failed:
        told = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failed.items()))
        raise ValueError(f"{len(failed)} of {len(tasks)} videos failed\n{told}")
    first = tasks[0].source
    folder = f"{out}/{first.name}"
    say(f"next: python -m pipelines infer --model {quote(folder)} --video {quote(first.uri)} --out RESULTS")


def prepare(model: str, videos: list[str], out: str, asked: Asked) -> tuple[dict[str, Any], list[Task]]:
    """(what `AdaptVideo` is made with, a task per video). ValueError with all that is wrong."""
    problems, sources, files = Problems(), [], {}
    with problems.noted():
        out = lasting(out, "--out")
        require_writable(out, "--out")
    with problems.noted():
        sources = find_sources([absolute(uri) for uri in videos], None)
    for option, given in (("--labels", asked.labels), ("--truth", asked.truth)):
        with problems.noted():
            files[option] = _files_of(option, given, sources)
    problems.refuse()

    version = model_version(model)
    loaded = load_model(version)
    clip_frames, size = loaded.config.clip_frames, 4 * sum(x.numel() for x in loaded.parameters())
    named = {"uri": model, "version": version, "digest": model_digest(loaded)}
    request = {"model_digest": named["digest"], **vars(asked.selection), "steps": asked.steps, "lr": asked.lr}
    teacher = None
    if asked.teacher is not None and asked.teacher.startswith(FUNCTION):
        teacher, request["teacher"] = asked.teacher, function_digest(asked.teacher)
    elif asked.teacher is not None:
        teacher = model_version(asked.teacher)
        loaded = load_model(teacher)
        if loaded.config.clip_frames < clip_frames:
            raise ValueError(
                f"--teacher {asked.teacher} takes {loaded.config.clip_frames} frames at once, the model {clip_frames}: "
                "it must take as many"
            )
        request["teacher"] = model_digest(loaded)
    del loaded

    def task_of(source: Source) -> Task | None:
        """None if something is wrong, which is noted."""
        with problems.noted():
            labels, truth = (files[option].get(source.name) for option in ("--labels", "--truth"))
            frames, (height, width) = check_video(source, asked.selection)
            found = request | {"video": video_digest(source, asked.selection)}
            clip, plan = (len(frames), height, width), plan_windows(len(frames), clip_frames)
            known = None if truth is None else _read("--truth", truth, clip, found["video"])
            if labels is not None:
                believed = _read("--labels", labels, clip, found["video"])
                deal(believed, plan, f"--labels {labels}", known)
                found["labels"] = believed.digest
            if known is not None:
                found["truth"] = known.digest
            return Task(source, labels, truth, found, named, done=_is_done(f"{out}/{source.name}", found, named))
        return None

    with ThreadPoolExecutor(READERS) as pool:
        tasks = list(shown(pool.map(task_of, sources), len(sources), "check", "video", delay=2))
    problems.refuse()
    _require_room(out, size * sum(not task.done for task in tasks))
    arguments = {"model": version, "teacher": teacher, "registry": tracking_uri(), "out": out}
    return arguments | {"selection": asked.selection, "steps": asked.steps, "lr": asked.lr}, tasks


def _files_of(option: str, given: str | None, sources: list[Source]) -> dict[str, str]:
    """The file of labels of each video, by its name."""
    if given is None:
        return {}
    place = absolute(given)
    if not place.lower().endswith(".npz"):
        return {source.name: f"{place}/{source.name}.npz" for source in sources}
    if len(sources) > 1:
        raise ValueError(f"{option} {given} is a file, and there are {len(sources)} videos: give a folder of NAME.npz")
    return {source.name: place for source in sources}


def _read(option: str, file: str, clip: tuple[int, int, int], video: str) -> PseudoLabels:
    labels = read_labels(file, option)
    labels.require_of(clip, video, f"{option} {file}")
    return labels


def _is_done(uri: str, request: dict[str, Any], model: dict[str, str]) -> bool:
    """ValueError if there is something else."""
    if read_file(f"{uri}/{checkpoints.CONFIG}") is not None:
        return is_answered(uri, request, model, ADAPTED)
    if listed(uri):
        require_new(uri, claim_of(request))
    return False


def _require_room(out: str, size: int) -> None:
    fs, path = open_place(out)
    if not is_local(fs):
        return
    place = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    if (free := shutil.disk_usage(place).free) < size:
        raise ValueError(
            f"--out {out}: the adapted models take {size / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB free: make "
            "room there, or give another --out"
        )
