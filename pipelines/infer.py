"""`python -m pipelines infer --model M --video V --out OUT`: videos to tracks, depth, point clouds and cameras.

A Ray Data job, one row per video, the model in an actor per GPU (without GPUs: in one actor). OUT/NAME/ holds the
results of a video and appears whole; `pipelines/results/files.py` has the table of its files. Running the job again
does what is missing. A video that fails is listed with its reason, the others go on.
"""

import json
from dataclasses import asdict
from typing import Any

import fsspec
import numpy as np
import ray.data
import torch
from tqdm import tqdm

from model import D4RT, recipes
from pipelines.cluster import connect
from pipelines.datasets import DatasetKey
from pipelines.models import actor_options, load_model, model_digest, model_version, tracking_uri
from pipelines.results.files import FIELDS, TASKS, Arrays, write_results
from pipelines.results.sources import Selection, Source, Video, find_sources, read_video
from pipelines.truth.clips import resize
from pipelines.whole import require_new, result_folder

RESULT = "result.json"
MAX_POINTS = 500_000  # of a cloud; beyond that every second, third, ... row and column of the frames is asked

Row = dict[str, Any]


def reconstruct(model: D4RT, video: Video, tasks: tuple[str, ...], grid: int) -> dict[str, Arrays]:
    """Task -> the arrays of its .npz file (see the table above). The video is encoded once for all tasks."""
    size = model.config.image_size
    height, width = video.frames.shape[1:3]
    clip = torch.from_numpy(np.stack([resize(frame, size) for frame in video.frames]))
    with torch.inference_mode():
        aspect = torch.tensor([width / height], device=model.device)
        memory = model.encode(clip[None].to(model.device), aspect)
    shared: dict[str, Any] = {"memory": memory}
    results = {}
    if "tracks" in tasks:
        points = recipes.pixel_centres(grid, grid)
        t_src = torch.zeros(len(points), dtype=torch.int64)
        own = recipes.tracks(model, clip, points, t_src, t_cam="target", **shared)
        world = recipes.tracks(model, clip, points, t_src, t_cam=0, **shared)
        results["tracks"] = {
            "points": points,
            "t_src": t_src,
            "xyz": world.xyz,
            "xyz_cam": own.xyz,
            "uv_norm": own.uv_norm,
            "visible": own.visible,
            "confidence": own.confidence,
        }
    if "depth" in tasks:
        shrink = size / max(height, width)
        results["depth"] = vars(
            recipes.depth(model, clip, height=round(height * shrink), width=round(width * shrink), **shared)
        )
    if "points" in tasks:
        stride = 1
        while len(clip) * (size // stride) ** 2 > MAX_POINTS:
            stride += 1
        results["points"] = vars(recipes.point_cloud(model, clip, stride=stride, **shared))
    if "cameras" in tasks:
        path = recipes.cameras(model, clip, height=height, width=width, **shared)
        results["cameras"] = {name: getattr(path, name) for name in FIELDS["cameras.npz"]}
    return {task: {key: value.numpy() for key, value in arrays.items()} for task, arrays in results.items()}


class Reconstruct:
    """The actor: loads the model once, then turns one video after the other into a folder."""

    def __init__(self, model: str, registry: str, selection: Selection, out: str, about: dict[str, Any]) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(model, self.device, registry=registry)
        self.selection, self.out, self.about = selection, out, about

    def __call__(self, row: Row) -> Row:
        source = Source(row["uri"], row["dataset"], row["sequence"])
        request = self.about["request"]
        try:
            video = read_video(source, self.selection)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                results = reconstruct(self.model, video, tuple(request["tasks"]), request["grid"])
            with result_folder(f"{self.out}/{source.name}", last=RESULT) as folder:
                write_results(folder, video, results, self.about | {"source": asdict(source)})
        except Exception as error:  # whatever it is, it becomes this video's reason
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return {"name": source.name, "reason": reason}
        return {"name": source.name, "reason": ""}


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
    failed = {}
    if todo:
        connect()
        results = ray.data.from_items([asdict(source) for source in todo], override_num_blocks=len(todo)).map(
            Reconstruct,
            fn_constructor_kwargs={
                "model": version,
                "registry": tracking_uri(),
                "selection": selection,
                "out": out,
                "about": about,
            },
            **actor_options(len(todo)),
        )
        with tqdm(total=len(todo), desc="infer", unit="video") as bar:
            for result in results.iter_rows():
                if result["reason"]:
                    failed[result["name"]] = result["reason"]
                else:
                    tqdm.write(f"{out}/{result['name']}")
                bar.update()
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
