"""A model and a video to a folder of results. Needs PyTorch; `pipelines/infer.py` runs it."""

from typing import Any

import torch

from model import D4RT, recipes
from model.precision import half_on_gpu
from pipelines.models import load_model, model_digest
from pipelines.results.files import FIELDS, RESULT, Arrays, claim_of, is_answered, write_results
from pipelines.results.sources import Selection, Source, Video, read_video
from pipelines.whole import ExistsAlready, result_folder

MAX_POINTS = 500_000  # of a cloud; beyond that every second, third, ... row and column of the frames is asked


def reconstruct(model: D4RT, video: Video, tasks: tuple[str, ...], grid: int) -> dict[str, Arrays]:
    """Task -> the arrays of its .npz file (see `results/files.py`). The video is encoded once for all tasks."""
    size = model.config.image_size
    height, width = video.size
    clip = torch.from_numpy(video.clip)
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
        shape = {"height": max(1, round(height * shrink)), "width": max(1, round(width * shrink))}
        results["depth"] = vars(recipes.depth(model, clip, **shape, **shared))
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
    """Loads the model once, then turns one video after the other into a folder; gives notes on the video."""

    def __init__(self, model: str, registry: str, selection: Selection, out: str, about: dict[str, Any]) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(model, self.device, registry=registry)
        if model_digest(self.model) != about["model"]["digest"]:  # others may write to where it lies
            raise ValueError(f"model {model} was replaced since the job began: run it again")
        self.selection, self.out, self.about = selection, out, about

    def __call__(self, row: dict[str, Any]) -> tuple[str, ...]:
        source = Source(**row)
        uri = f"{self.out}/{source.name}"
        video = read_video(source, self.selection, self.model.config.image_size)
        request = self.about["request"] | {"video": video.digest}
        with half_on_gpu(self.device):
            results = reconstruct(self.model, video, tuple(request["tasks"]), request["grid"])
        try:
            with result_folder(uri, last=RESULT, claim=claim_of(request)) as folder:
                write_results(folder, video, results, self.about | {"request": request, "source": row})
        except ExistsAlready:  # this row was repeated, or another job did the same meanwhile
            if not is_answered(uri, request):
                raise
        return video.notes
