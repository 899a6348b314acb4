"""What the confidences of a model stand for, counted on clips that it has not learnt from."""

import torch

from model.confidence import Calibration
from pipelines.evaluation.calibration import FEWEST
from pipelines.evaluation.scores import ask, measure, require_fit
from pipelines.evaluation.tally import Tally
from pipelines.log import shown
from pipelines.models import load_model
from pipelines.store.reader import evenly, open_different

MOST_CLIPS = 256  # of a store: a quantile of 95 % gets no better with more of them


def calibrate(model: str, data: list[str]) -> Calibration:
    """Ask the model of that name about clips of these stores. Whatever calibration it has is left out.

    Raises ValueError for a store that the model was trained on, that does not fit it, or with too few known points.
    """
    loaded = load_model(model, "cuda" if torch.cuda.is_available() else "cpu")
    loaded.calibration = None
    stores = open_different(data)
    for store in stores:
        require_fit(store, loaded.config)
        if store.info["digest"] in loaded.trained_on:
            raise ValueError(
                f"{store.uri} is among the stores that {model} was trained on, where its errors are smaller than "
                "elsewhere: calibrate on a store of another split"
            )
    clips = [(store, number) for store in stores for number in evenly(len(store), MOST_CLIPS)]
    tally = Tally()
    for store, number in shown(clips, len(clips), "calibrate", "clip"):
        clip = store[int(number)]
        truth = clip.all_queries()
        answers = ask(loaded, clip.video, clip.aspect, truth)
        tally.add(measure(truth, answers, clip.world_from_cam, is_metric=clip.is_metric))
    found = tally.calibration()
    if found is None:
        raise ValueError(f"{', '.join(data)}: fewer than {FEWEST} points are known there, too few to calibrate by")
    return found
