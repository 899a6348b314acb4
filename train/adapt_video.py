"""One video, from pseudo-labels to an adapted checkpoint in a folder. `train/adapt_videos.py` runs it for many."""

import hashlib
import json
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from model import D4RT, checkpoints
from model.recipes import plan_windows
from model.recipes.windows import WindowPlan
from pipelines.models import load_model, model_digest
from pipelines.results.files import ADAPTED, SCHEMA, claim_of, is_answered
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, Video, read_video
from pipelines.whole import ExistsAlready, json_value, read_file, require_new, result_folder
from train.adapt import LabelledClip, Report, adapt, enough_memory, remember
from train.label_split import Part, deal
from train.pseudo_labels import PseudoLabels, read_labels, write_labels
from train.teacher import FUNCTION, ask, ask_function, function_digest

SCORES = {  # what is printed: name, factor, form
    "loss": ("loss", 1, ".4f"),
    "median_relative_error": ("position off by %", 100, ".1f"),
    "uv_error": ("projection off by % of the frame", 100, ".1f"),
    "visibility_accuracy": ("visibility right %", 100, ".1f"),
}


@dataclass(frozen=True)
class Task:
    """A video to adapt to."""

    source: Source
    labels: str | None
    """File of pseudo-labels; None: the teacher's."""
    truth: str | None
    request: dict[str, Any]
    """All that the adapted weights depend on, by digests."""
    model: dict[str, str]
    """How adapt.json names it: as the user does, its version, its digest."""
    done: bool = False


class AdaptVideo:
    """Loads the model once, then adapts a copy of it to one video after the other; gives a line about each."""

    def __init__(
        self,
        model: str,
        teacher: str | None,
        registry: str,
        out: str,
        selection: Selection,
        steps: int,
        lr: float,
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name, self.registry = model, registry
        self.model = load_model(model, self.device, registry=registry)
        self.digest = model_digest(self.model)
        self.teacher_name, self.teacher = teacher, None
        self.out, self.selection, self.steps, self.lr = out, selection, steps, lr
        self.progress: dict[str, str] = {}
        """Of the video that is being worked on, what is done of it."""

    def __call__(self, row: dict[str, Any]) -> str:
        task, uri = row["task"], f"{self.out}/{row['task'].source.name}"
        if self.digest != task.request["model_digest"]:
            raise ValueError(f"model {self.name} was replaced since the job began: run it again")
        try:
            require_new(uri, claim_of(task.request))
        except ExistsAlready:  # this row was repeated, or another job did the same meanwhile
            if not is_answered(uri, task.request, task.model, ADAPTED):
                raise
            return "was done by another job"
        try:
            return self._adapt(task, uri)
        finally:
            self.progress.clear()

    def _adapt(self, task: Task, uri: str) -> str:
        config = self.model.config
        video = read_video(task.source, self.selection, config.image_size)
        if video.digest != task.request["video"]:
            raise ValueError(f"{task.source} has changed since it was looked at: run it again")
        plan = plan_windows(len(video.clip), config.clip_frames)
        labels = self._labels(task, video, plan)
        truth = None if task.truth is None else _unchanged("--truth", task.truth, task.request["truth"])
        parts = deal(labels, plan, task.labels or "what the teacher said", truth)

        model = deepcopy(self.model)
        with enough_memory():
            clips = [labelled(model, video, part) for part in parts]

        def say(text: str) -> None:
            self.progress[video.name] = f"{video.name}: {text}"

        report = adapt(model, clips, steps=self.steps, lr=self.lr, say=say)
        about = self._about(task, video, labels, parts)
        publish(uri, model, report, about)
        lost = about["labels"]["out_of_reach"]
        noted = f"; {lost} of {len(labels)} labels are of frames that are never looked at together" if lost else ""
        return in_words(report) + noted

    def _labels(self, task: Task, video: Video, plan: WindowPlan) -> PseudoLabels:
        """From the file, or of the teacher, who is asked once about a video: what it said is kept."""
        if task.labels is not None:
            return _unchanged("--labels", task.labels, task.request["labels"])
        told = {"teacher": task.request["teacher"], "video": video.digest, "windows": str(plan), "schema": SCHEMA}
        kept = f"{self.out}/.labels/{hashlib.blake2b(claim_of(told), digest_size=16).hexdigest()}.npz"
        if read_file(kept) is not None:
            return read_labels(kept, "what the teacher said,")
        if self.teacher_name.startswith(FUNCTION):
            if function_digest(self.teacher_name) != task.request["teacher"]:
                raise ValueError(f"teacher {self.teacher_name} was changed since the job began: run it again")
            write_labels(kept, ask_function(self.teacher_name, np.stack(list(video.frames)), video.size, video.digest))
            return read_labels(kept, "what the teacher said,")
        if self.teacher is None:
            self.teacher = load_model(self.teacher_name, self.device, registry=self.registry)
            if model_digest(self.teacher) != task.request["teacher"]:
                raise ValueError(f"teacher {self.teacher_name} was replaced since the job began: run it again")
        own = read_video(task.source, self.selection, self.teacher.config.image_size)
        write_labels(kept, ask(self.teacher, own.clip, video.size, plan, video.digest))
        return read_labels(kept, "what the teacher said,")

    def _about(self, task: Task, video: Video, labels: PseudoLabels, parts: list[Part]) -> dict[str, Any]:
        learnt, held_out = (sum(len(getattr(p, kind)["t_src"]) for p in parts) for kind in ("learnt", "held_out"))
        height, width = video.size
        return {
            "schema": SCHEMA,
            "request": task.request,
            "model": task.model,
            "source": asdict(task.source),
            "labels": {
                "from": task.labels or self.teacher_name,
                "learnt": learnt,
                "held_out": held_out,
                "out_of_reach": len(labels) - learnt - held_out,
            },
            "video": {
                "name": video.name,
                "frame_numbers": video.frame_numbers.tolist(),
                "width": width,
                "height": height,
                "windows": [[part.window.start, part.window.stop] for part in parts],
            },
        }


def labelled(model: D4RT, video: Video, part: Part) -> LabelledClip:
    height, width = video.size
    memory = remember(model, video.clip[part.window.start : part.window.stop], width / height)
    return LabelledClip(memory, part.learnt, part.held_out, part.truth)


def _unchanged(option: str, file: str, digest: str) -> PseudoLabels:
    labels = read_labels(file, option)
    if labels.digest != digest:
        raise ValueError(f"{option} {file} has changed since it was looked at: run it again")
    return labels


def publish(uri: str, model: D4RT, report: Report, about: dict[str, Any]) -> None:
    """The folder of the adapted model, whole; config.json is the last of its files, as in any checkpoint."""
    request = about["request"]
    document = about | {
        "adapted_digest": model_digest(model),
        "report": asdict(report),
        "all_files": [ADAPTED, checkpoints.CONFIG, checkpoints.WEIGHTS],
    }
    try:
        with result_folder(uri, last=checkpoints.CONFIG, claim=claim_of(request)) as folder:
            checkpoints.save(model, folder)
            (folder / ADAPTED).write_text(json.dumps(json_value(document), indent=1) + "\n")
    except ExistsAlready:  # another job did the same meanwhile
        if not is_answered(uri, request, about["model"], ADAPTED):
            raise


def in_words(report: Report) -> str:
    """A line: what is better on labels that were not learnt from, and on the truth."""
    if not report.best_step:
        return f"no step made it better on held-out labels: the weights stay as they were ({report.ended})"
    parts = []
    for kind, before in report.before.items():
        after, changes = report.after[kind], []
        for name, (title, factor, form) in SCORES.items():
            was, now = getattr(before, name), getattr(after, name)
            if was is not None:
                changes.append(f"{title} {factor * was:{form}} -> {factor * now:{form}}")
        parts.append(f"{kind.replace('_', '-')}: {', '.join(changes)}")
    return f"{'; '.join(parts)} (step {report.best_step} of {report.steps}; {report.ended})"
