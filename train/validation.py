"""Validation: checkpoints scored on clips that are not trained on, by the training workers themselves.

At a checkpoint to be scored, the last one among them, each worker asks the model about its share of the clips, on its
own device. The scores are those of `pipelines/evaluation/scores.py`; they are written once the checkpoint is, so that a
checkpoint without them is one that is still to be scored: a run that goes on from it begins with that.

    OUT/NAME/validation/step_0000200/   clip_N.jpg; scores.json, over all clips and per dataset, written last
    MLflow                              val/SCORE and val/DATASET/SCORE at that step; the same files as artifacts
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist
from PIL import Image

from model import D4RT, ModelConfig
from pipelines import documents
from pipelines.evaluation.scores import ask, measure, require_fit
from pipelines.evaluation.tally import Tally
from pipelines.models import load_model
from pipelines.partial import scratch_folder
from pipelines.pictures.drawing import Picture
from pipelines.store.reader import ClipStore, evenly, open_different, open_store
from pipelines.whole import listed, read_file, write_file
from train import run_folder
from train.config import ValidationConfig

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

    def tally(self, model: D4RT, share: slice = slice(None)) -> dict[str, Tally]:
        """The errors about a share of the clips: of "all", and of each dataset. ValueError for a damaged store."""
        tallies = {"all": Tally()}
        for uri, index in self.clips[share]:
            clip = open_store(uri)[index]
            truth = clip.all_queries()
            answers = ask(model, clip.video, clip.aspect, truth)
            errors = measure(truth, answers, clip.world_from_cam, is_metric=clip.is_metric)
            for name in ("all", clip.dataset):
                tallies.setdefault(name, Tally()).add(errors)
        return tallies


@dataclass(frozen=True)
class Scored:
    """What scores.json holds of a checkpoint."""

    data: str
    """`HeldOut.digest`."""
    clips: int
    scores: dict[str, Any]
    """Of "all" clips, and of each dataset."""


def read_scored(folder: str) -> Scored | None:
    """What scores.json in a folder holds; None if there is none. ValueError if it is damaged."""
    remedy = "remove it, and the checkpoint is scored again when the run goes on"
    return documents.read(f"{folder}/{SCORES}", Scored, remedy)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Of one run."""

    held_out: HeldOut
    pictures: int
    run: str
    """URI of the run's folder."""
    tracking_uri: str
    run_id: str
    progress: ray.actor.ActorHandle

    def folder(self, checkpoint: str) -> str:
        """Where the scores of a checkpoint are, by its name, e.g. step_0000200."""
        return f"{self.run}/validation/{checkpoint}"

    def scores(self, checkpoint: str) -> dict[str, Any] | None:
        """Of all clips and of each dataset; None if it has not been scored. ValueError if scores.json is damaged."""
        found = read_scored(self.folder(checkpoint))
        return None if found is None else found.scores

    def measure(self, model: D4RT, checkpoint: str) -> tuple[dict[str, Any], str | None]:
        """(scores, None), or if they cannot be had ({}, why not): then nobody is to fail over it.

        All training workers must call this, with the same weights. Leaves the model, and random numbers, as they were.
        """
        rank, world, training = dist.get_rank(), dist.get_world_size(), model.training
        # Compiled layers would be compiled once more, for other numbers of queries.
        with torch.compiler.set_stance("force_eager"):
            try:
                model.eval()
                share = self.held_out.tally(model, slice(rank, None, world))
                self.draw(model, checkpoint, slice(rank, None, world))
            except Exception as error:
                share = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
            finally:
                model.train(training)

        shares = [None] * world
        dist.all_gather_object(shares, share)
        for failed in shares:
            if isinstance(failed, str):
                return {}, failed
        tallies = shares[0]
        for other in shares[1:]:
            for name, tally in other.items():
                tallies.setdefault(name, Tally()).merge(tally)
        return {name: tally.scores() for name, tally in tallies.items()}, None

    def draw(self, model: D4RT, checkpoint: str, share: slice) -> None:
        """Sheets of those clips to be drawn that are among this share."""
        from pipelines.evaluation.error_sheet import error_sheet  # and Matplotlib, which takes a while

        mine = self.held_out.clips[share]
        for number, chosen in enumerate(evenly(len(self.held_out.clips), self.pictures)):
            uri, index = self.held_out.clips[chosen]
            if (uri, index) in mine:
                sheet = error_sheet(model, open_store(uri)[index])
                write_file(f"{self.folder(checkpoint)}/clip_{number}.jpg", jpeg(sheet))

    def publish(self, checkpoint: str, scores: dict[str, Any], seconds: float) -> None:
        """Write what `measure` found, and send it to MLflow. If that fails, the reason is shown."""
        scored = Scored(data=self.held_out.digest, clips=len(self.held_out.clips), scores=scores)
        content = json.dumps(asdict(scored), indent=1, allow_nan=False).encode()
        try:
            write_file(f"{self.folder(checkpoint)}/{SCORES}", content)
        except ValueError as error:
            self.progress.add.remote(f"the scores of {checkpoint} could not be written: {error}")
            return
        self.progress.add.remote(f"validation of {checkpoint}: {words(scores['all'])} ({seconds:.0f} s)")
        from train import tracking  # and MLflow, to which worker 0 alone speaks

        try:
            self.send(checkpoint)
        except tracking.UNREACHABLE as error:
            self.progress.add.remote(f"MLflow did not take the scores of {checkpoint} ({error}): sent again at the end")

    def send(self, checkpoint: str) -> None:
        """The files of a scored checkpoint to MLflow, and its curves, once."""
        from train import curves

        folder = self.folder(checkpoint)
        scores, step = self.scores(checkpoint), run_folder.step_of(checkpoint)
        with scratch_folder() as scratch:
            for name in listed(folder):
                (scratch / name).write_bytes(read_file(f"{folder}/{name}"))
            curves.log_validation(self.tracking_uri, self.run_id, step, scores, scratch)

    def send_all(self) -> None:
        """What MLflow did not take at its time."""
        for checkpoint in listed(f"{self.run}/validation"):
            if SCORES in listed(self.folder(checkpoint)):
                self.send(checkpoint)


def score_registered(held_out: HeldOut, model: str, registry: str) -> dict[str, Any]:
    """The scores of a registered model, for a task. ValueError if it cannot be loaded or asked about these clips."""
    loaded = load_model(model, device(), registry=registry)
    for uri in {uri for uri, _ in held_out.clips}:
        require_fit(open_store(uri), loaded.config)
    return {name: tally.scores() for name, tally in held_out.tally(loaded).items()}


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
