"""Validation while training: checkpoints scored on clips that are not trained on, beside the training workers.

On the way, Ray Train runs `Validation` in a task for every checkpoint reported with validation=True, one after the
other; what was not finished when a run stopped is done when it goes on. The last checkpoint is scored by the command,
when the workers have made room. The scores are those of `pipelines/evaluation/scores.py`.

    OUT/NAME/validation/step_0000200/   scores.json, over all clips and per dataset, written last; clip_N.jpg
    MLflow                              val/SCORE and val/DATASET/SCORE at that step; the same files as artifacts
"""

import hashlib
import io
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from PIL import Image

from model import D4RT, ModelConfig
from pipelines.evaluation.error_sheet import error_sheet
from pipelines.evaluation.scores import ask, measure, require_fit
from pipelines.evaluation.tally import Tally
from pipelines.models import load_model
from pipelines.pictures.drawing import Picture
from pipelines.store.reader import ClipStore, evenly, open_different, open_store
from pipelines.whole import listed, read_file, write_file
from train import curves, run_folder, tracking
from train.config import ValidationConfig
from train.state import MODEL

SCORES = "scores.json"
DEFINITION = 2  # raised when the same answers would get other scores
JPEG_QUALITY = 85  # a picture has about 300 kB


@dataclass(frozen=True)
class HeldOut:
    """The clips on which all checkpoints of a run are scored, and the champion with them."""

    clips: tuple[tuple[str, int], ...]
    """Store URI, clip number."""
    digest: str
    """Of the content of the stores, which clips, and how they are scored: equal digests, comparable scores."""

    @classmethod
    def open(cls, config: ValidationConfig, model: ModelConfig, trained: list[ClipStore]) -> "HeldOut":
        """ValueError, naming the store, if one does not fit the model or is among those that are `trained` on."""
        stores = open_different(config.stores)
        mixture = {store.info["digest"]: store.uri for store in trained}
        for store in stores:
            require_fit(store, model)
            if other := mixture.get(store.info["digest"]):
                raise ValueError(
                    f"--validation.stores: {store.uri} holds the same clips as {other} of data.mixture; a model is "
                    "judged on scenes it has not seen, so name a store of another split"
                )
        chosen = {store: evenly(len(store), config.clips) for store in stores}
        content = [DEFINITION, sorted((store.info["digest"], numbers) for store, numbers in chosen.items())]
        return cls(
            clips=tuple((store.uri, number) for store, numbers in chosen.items() for number in numbers),
            digest=hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest(),
        )

    def score(self, model: D4RT, pictures: int = 0) -> tuple[dict[str, Any], list[Picture]]:
        """(the scores of "all" clips and of each dataset, sheets of so many clips). ValueError for a damaged store."""
        drawn, sheets = evenly(len(self.clips), pictures), []
        tallies = {"all": Tally()}
        for number, (uri, index) in enumerate(self.clips):
            clip = open_store(uri)[index]
            video, truth = clip.video, clip.all_queries()
            answers = ask(model, video, clip.aspect, truth)
            errors = measure(truth, answers, clip.world_from_cam, is_metric=clip.is_metric)
            for name in ("all", clip.dataset):
                tallies.setdefault(name, Tally()).add(errors)
            if number in drawn:
                sheets.append(error_sheet(model, clip))
        return {name: tally.scores() for name, tally in tallies.items()}, sheets


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Of one run. Called again for a checkpoint that has its scores, it only makes sure that MLflow has them too."""

    held_out: HeldOut
    pictures: int
    run: str
    """URI of the run's folder."""
    tracking_uri: str
    run_id: str
    progress: ray.actor.ActorHandle

    def __call__(self, checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
        """What Ray Train calls. If it fails, training goes on and the reason is shown."""
        name = Path(checkpoint.path).name
        try:
            return self.scores(name)["all"]
        except Exception as error:
            self.progress.add.remote(f"validation of {name} failed: {error}")
            raise

    def scores(self, checkpoint: str) -> dict[str, Any]:
        """Of the checkpoint of that name, e.g. step_0000200: of all clips and of each dataset."""
        folder = f"{self.run}/validation/{checkpoint}"
        if read_file(f"{folder}/{SCORES}") is None:
            began = time.perf_counter()
            scores, sheets = self.held_out.score(
                load_model(f"{self.run}/{checkpoint}/{MODEL}", device()), self.pictures
            )
            for number, sheet in enumerate(sheets):
                write_file(f"{folder}/clip_{number}.jpg", jpeg(sheet))
            record = {"data": self.held_out.digest, "clips": len(self.held_out.clips), "scores": scores}
            write_file(f"{folder}/{SCORES}", json.dumps(record, indent=1, allow_nan=False).encode())
            seconds = time.perf_counter() - began
            self.progress.add.remote(f"validation of {checkpoint}: {words(scores['all'])} ({seconds:.0f} s)")
        try:
            self.send(folder)
        except tracking.UNREACHABLE as error:
            self.progress.add.remote(f"MLflow did not take the scores of {checkpoint} ({error}): sent again at the end")
        return json.loads(read_file(f"{folder}/{SCORES}"))["scores"]

    def send(self, folder: str) -> None:
        """The files of a scored checkpoint to MLflow, and its curves, once."""
        with tempfile.TemporaryDirectory() as scratch:
            for name in listed(folder):
                Path(scratch, name).write_bytes(read_file(f"{folder}/{name}"))
            record = json.loads(Path(scratch, SCORES).read_text())
            step = run_folder.step_of(folder.rpartition("/")[2])
            curves.log_validation(self.tracking_uri, self.run_id, step, record["scores"], Path(scratch))

    def send_all(self) -> None:
        """What MLflow did not take at its time."""
        for checkpoint in listed(f"{self.run}/validation"):
            folder = f"{self.run}/validation/{checkpoint}"
            if SCORES in listed(folder):
                self.send(folder)


def score_checkpoint(validation: Validation, checkpoint: str) -> dict[str, Any]:
    """`Validation.scores`, for a task."""
    return validation.scores(checkpoint)


def score_registered(held_out: HeldOut, model: str, registry: str) -> dict[str, Any]:
    """The scores of a registered model, for a task. ValueError if it cannot be loaded or asked about these clips."""
    loaded = load_model(model, device(), registry=registry)
    for uri in {uri for uri, _ in held_out.clips}:
        require_fit(open_store(uri), loaded.config)
    return held_out.score(loaded)[0]


def device() -> str:
    """Where this task's model runs, on as many threads as Ray gave it CPUs."""
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    return "cuda" if ray.get_gpu_ids() else "cpu"


def words(scores: dict[str, Any]) -> str:
    """The main scores in a line."""
    error, apd, degrees = scores["median_relative_error"], scores["apd"], scores["pose"]["rotation_degrees"]
    parts = [
        f"median relative error {percent(error['all'])}, moving {percent(error['moving'])}",
        f"APD {percent(apd['all'])}",
        f"depth {percent(scores['depth_abs_rel'])}",
        f"visibility {percent(scores['visibility_accuracy'])}",
        "cameras -" if degrees is None else f"cameras {degrees:.1f} degrees",
    ]
    return "; ".join(parts)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def jpeg(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=JPEG_QUALITY)
    return file.getvalue()
