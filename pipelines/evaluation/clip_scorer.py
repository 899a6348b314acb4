"""The work of `evaluate clips`: a model, an untrained one and a guess asked about clips, their errors tallied."""

import io
from typing import Any

import torch
from PIL import Image

from model import D4RT
from pipelines.evaluation.error_sheet import error_sheet
from pipelines.evaluation.scores import ask, constant_depth, measure
from pipelines.evaluation.tally import Tally
from pipelines.models import load_model
from pipelines.store.reader import Clip, open_store

METHODS = ("trained", "untrained", "guess")


class ClipScorer:
    """For an actor, which keeps the models: {"store", "clips", "pictures"} to {"tallies", "pictures"}.

    `clips` are numbers in the store; of the first so many, `pictures`, a PNG comes back. A tally of each method.
    """

    def __init__(self, model: str, registry: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        trained = load_model(model, device, registry=registry)
        torch.manual_seed(0)
        self.models = {"trained": trained, "untrained": D4RT(trained.config).to(device).eval()}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        store = open_store(row["store"])
        tallies, pictures = {method: Tally() for method in METHODS}, []
        for number in row["clips"]:
            clip = store[number]
            video, truth = clip.video, clip.all_queries()
            answers = {name: ask(model, video, clip.aspect, truth) for name, model in self.models.items()}
            answers["guess"] = constant_depth(truth, clip.intrinsics, video.shape[1])
            for method, given in answers.items():
                tallies[method].add(measure(truth, given, clip.world_from_cam, is_metric=clip.is_metric))
            if len(pictures) < row["pictures"]:
                pictures.append(self.picture(clip))
        return {"tallies": tallies, "pictures": pictures}

    def picture(self, clip: Clip) -> bytes:
        png = io.BytesIO()
        Image.fromarray(error_sheet(self.models["trained"], clip)).save(png, "png")
        return png.getvalue()
