"""The work of `evaluate clips`: a model, an untrained one and a guess asked about clips, their errors tallied."""

import io
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from model import D4RT
from pipelines.evaluation.clip_consistency import Consistency, measure_consistency
from pipelines.evaluation.error_sheet import error_sheet
from pipelines.evaluation.scores import ask, constant_depth, measure
from pipelines.evaluation.tally import Tally
from pipelines.models import load_model
from pipelines.store.reader import Clip, open_store

METHODS = ("trained", "untrained", "guess")


class ClipScorer:
    """For an actor, which keeps the models: {"store", "clips", "picture"} to {"tallies", "consistency", "picture"}.

    `clips` are numbers in the store; a tally of each method comes back, how the trained one agrees with itself, and, if
    `picture` is true, a PNG of the clip that is neither among the best nor among the worst of them.
    """

    def __init__(self, model: str, registry: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        trained = load_model(model, device, registry=registry)
        torch.manual_seed(0)
        self.models = {"trained": trained, "untrained": D4RT(trained.config).to(device).eval()}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        store = open_store(row["store"])
        tallies, errors = {method: Tally() for method in METHODS}, {}
        agreement = Consistency()
        for number in row["clips"]:
            clip = store[number]
            video, truth = clip.video, clip.all_queries()
            answers = {name: ask(model, video, clip.aspect, truth) for name, model in self.models.items()}
            answers["guess"] = constant_depth(truth, clip.intrinsics, video.shape[1])
            agreement.merge(measure_consistency(self.models["trained"], clip))
            for method, given in answers.items():
                measured = measure(truth, given, clip.world_from_cam, is_metric=clip.is_metric)
                tallies[method].add(measured)
                if method == "trained":
                    errors[number] = _median(measured["relative"])
        picture = self.picture(store[sorted(errors, key=errors.get)[len(errors) // 2]]) if row["picture"] else None
        return {"tallies": tallies, "consistency": agreement, "picture": picture}

    def picture(self, clip: Clip) -> bytes:
        png = io.BytesIO()
        Image.fromarray(error_sheet(self.models["trained"], clip)).save(png, "png")
        return png.getvalue()


def _median(errors: Float[np.ndarray, "n"]) -> float:
    """Infinite if nothing is known."""
    return float(np.median(errors)) if len(errors) else math.inf
