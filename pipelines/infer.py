"""`python -m pipelines infer --model M --video V --out OUT`: videos to tracks, depth, point clouds and cameras.

A Ray job, one row per video, the model in an actor per GPU (without GPUs: in one actor). OUT/NAME/ holds the results
of a video and appears whole; `pipelines/results/files.py` has the table of its files. OUT/index.html leads to their
pages. What can be known to be wrong is said before a cluster is up: at once what no model is needed for, then the rest.
Running the job again does what is missing: a video is known by its content, wherever it lies. One that fails is listed
with its reason, the others go on.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from model.command_line import loading
from pipelines.datasets import DatasetKey, HeldOutKey
from pipelines.log import say, shown
from pipelines.problems import Problems, alike, counted
from pipelines.raw.place import absolute, lasting
from pipelines.results.asked import Asked
from pipelines.results.files import RESULT, TASKS, USUAL_TASKS, claim_of, digest_told, is_answered
from pipelines.results.finding import find_sources
from pipelines.results.given import read_intrinsics, read_points, read_poses
from pipelines.results.selection import Selection, check_windows
from pipelines.results.sources import Source, check_video, video_digest
from pipelines.whole import listed, require_new, require_writable

# Ray and PyTorch take seconds to import and are not needed to print help or refuse a typing error: see below.

READERS = 8  # videos that are looked at together, before the work
VIDEOS_AT_ONCE = 2  # of a model: while one is read or written, it answers for the other


def infer(
    *,
    model: str,
    video: list[str],
    out: str,
    tasks: str = ",".join(USUAL_TASKS),
    dataset: DatasetKey | HeldOutKey | None = None,
    start: int = 0,
    step: int = 1,
    fps: float | None = None,
    num_frames: int | None = None,
    grid: int = 16,
    query_frame: int = 0,
    points: str | None = None,
    dense_grid: int = 64,
    depth_size: int | None = None,
    native: bool = False,
    shared_focal: bool = False,
    intrinsics: str | None = None,
    poses: str | None = None,
    loops: bool = False,
    forecast: int = 0,
    window: int | None = None,
    common: int | None = None,
    memory_gb: float | None = None,
    dry_run: bool = False,
) -> None:
    """Reconstruct videos with a trained model. Run again after an interruption, it goes on where it was.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/..., or a checkpoint folder.
        video: Video files, folders of images or of videos, lists of them (.txt, .parquet), or the images of one video;
            with --dataset, raw folders, of which every sequence is taken.
        out: Folder or s3:// URI; each video's results go into a folder of its name in it.
        tasks: Which of tracks, depth, points, cameras, dense_tracks, flow, uncertainty; separated by commas.
        dataset: Whose official layout the raw folders have.
        start: First frame to take, counted from 0.
        step: Take every so many-th frame.
        fps: Or take so many frames per second, by the times at which they are shown; of files that tell them.
        num_frames: Take so many frames; by default all.
        grid: Points to track along each side of a frame: 256 are nearly all its pixels.
        query_frame: That frame, counted from 0 among those taken; points are tracked from it to both ends.
        points: File of points to track instead: .csv with the columns u,v,t (u and v from 0 to 1), .json or .npz.
        dense_grid: Cells along the long side of each frame, all of which dense_tracks pass through.
        depth_size: Pixels along the long side of depth and flow maps; by default the model's, or native.
        native: Cut what is asked of depth, flow and points out of the frames as they are, which sharpens edges.
        shared_focal: Give all frames one focal length: of a camera that does not zoom.
        intrinsics: Known ones, fx,fy,cx,cy in pixels of the video, or a .json or .npz file.
        poses: Known camera poses, .txt as cameras.txt (TUM) or .npz: results are in their world and their unit.
        loops: Look where the camera comes back to, and correct what drifted until then.
        forecast: Continue tracks for so many frames after the last, at a constant velocity: no answer of the model.
        window: Frames that are looked at together; by default, and at most, as many as the model takes.
        common: Frames that a window has in common with the next; by default a third, but at least 2.
        memory_gb: How much memory of its device the model may take to answer; by default what is free.
        dry_run: Only check that model, videos and OUT are as they must be, and say what is to be done.
    """
    problems = Problems()
    asked, sources = None, []
    with problems.noted():
        asked = Asked(
            tasks=_parse_tasks(tasks),
            grid=grid,
            query_frame=query_frame,
            points=None if points is None else read_points(points),
            dense_grid=dense_grid,
            depth_size=depth_size,
            native=native,
            shared_focal=shared_focal,
            intrinsics=None if intrinsics is None else read_intrinsics(intrinsics),
            poses=None if poses is None else read_poses(poses),
            loops=loops,
            forecast=forecast,
        )
    if memory_gb is not None and not 0 < memory_gb < math.inf:
        problems.reasons.append(
            f"--memory-gb {memory_gb:g} must be a number above 0, or left out: what is free is taken"
        )
    with problems.noted():
        check_windows(window, common)
    with problems.noted():
        out = lasting(out, "--out")
        require_writable(out, "--out")
    with problems.noted():
        sources = find_sources([absolute(uri) for uri in video], dataset)
    with problems.noted():
        selection = Selection(start=start, step=step, fps=fps, num_frames=num_frames)
        unread, looked_at = Problems(), sources[:READERS]
        for source in looked_at:
            with unread.noted():
                check_video(source, selection, least=2)
        if len(unread.reasons) == len(looked_at):  # else it is no reason to leave the others
            problems.reasons += unread.reasons
    problems.refuse()

    loading("PyTorch", "MLflow", "Ray")
    from model.chunks import least_memory
    from model.recipes import plan_windows
    from pipelines import jobs
    from pipelines.models import load_model, model_digest, model_version, tracking_uri
    from pipelines.results.page.job_page import write_index
    from pipelines.results.reconstruct import Reconstruct

    version = model_version(model)
    loaded = load_model(version)
    options = {"start": start, "step": step, "fps": fps, "num_frames": num_frames}
    plan_windows(2, loaded.config.clip_frames, length=window, common=common)  # refuses what is no plan
    if memory_gb is not None and 1e9 * memory_gb < (least := least_memory(loaded.config)):
        raise ValueError(f"--memory-gb {memory_gb:g} is too little for this model: at least {least / 1e9:.2g}")

    digest = model_digest(loaded)
    request = {"model_digest": digest, **asked.told(), **options, "window": window, "common": common}
    about = {
        "request": request,
        "model": {"uri": model, "version": version, "digest": digest, "config": loaded.config.to_dict()},
    }
    del loaded
    todo, failed = _undone(sources, selection, asked, out, about)
    if before := len(sources) - len(todo) - len(failed):
        say(f"{before} of {len(sources)} videos were done before")
    if failed and (dry_run or not todo):
        raise ValueError(_list_of(failed, sources, out))
    for name, reason in sorted(failed.items()):
        say(f"left out {name}: {reason}", video=name)
    if dry_run:
        say(f"ready: {len(todo)} of {len(sources)} videos to do with {version}, into {out}")
        return

    arguments = {"model": version, "registry": tracking_uri(), "selection": selection, "asked": asked}
    arguments |= {"out": out, "about": about, "memory_gb": memory_gb}
    noted = {}
    rows = [asdict(source) for source in todo]
    for outcome in jobs.run_models(Reconstruct, arguments, rows, label="infer", unit="video", at_once=VIDEOS_AT_ONCE):
        source = Source(**outcome.row)
        if outcome.failed:
            failed[source.name] = outcome.reason
            say(f"failed {source.name}: {outcome.reason}", video=source.name)
            continue
        say(f"{out}/{source.name}", video=source.name)
        if outcome.result:
            noted[str(source)] = "; ".join(outcome.result)
    write_index(out, failed)
    for line in alike(noted):
        say(f"noted {line}")
    say(f"{out}: results of {counted(len(sources) - len(failed), 'video')}; to look at: {out}/index.html")
    if failed:
        raise ValueError(_list_of(failed, sources, out))


def _parse_tasks(tasks: str) -> tuple[str, ...]:
    """In the order of `TASKS`, whatever was asked first; then those that there are not."""
    chosen = list(dict.fromkeys(task.strip() for task in tasks.split(",")))
    return tuple(sorted(chosen, key=lambda task: TASKS.index(task) if task in TASKS else len(TASKS)))


def _list_of(failed: dict[str, str], sources: list[Source], out: str) -> str:
    listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failed.items()))
    others = f", the others are in {out}" if len(failed) < len(sources) else ""
    return f"{len(failed)} of {len(sources)} videos failed{others}\n{listed}"


def _undone(
    sources: list[Source], selection: Selection, asked: Asked, out: str, about: dict[str, Any]
) -> tuple[list[Source], dict[str, str]]:
    """Those without results of this request; and of which, by name, that cannot be answered, and why.

    ValueError, for all of them at once, where OUT has results of another request.
    """
    problems, failed = Problems(), {}

    def is_done(source: Source) -> bool:
        uri = f"{out}/{source.name}"
        there = listed(uri)
        done = RESULT in there
        try:
            if not done:
                asked.check(*check_video(source, selection, asked.least), str(source))
            if not there:
                return False
            known = digest_told(uri, source.uri) if done else None
            claim = about["request"] | {"video": known or video_digest(source, selection)}
        except ValueError as error:
            failed[source.name] = str(error)
            return True
        with problems.noted():
            if done:
                is_answered(uri, claim, about["model"])
            else:
                require_new(uri, claim_of(claim))
        return done

    with ThreadPoolExecutor(READERS) as pool:
        answers = shown(pool.map(is_done, sources), len(sources), "check", "video", delay=2)
        todo = [source for source, done in zip(sources, answers, strict=True) if not done]
    problems.refuse()
    return todo, failed
