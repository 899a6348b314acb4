"""A model and a video to a folder of results. Needs PyTorch; `pipelines/infer.py` runs it.

While the model answers for one window of a video, other processes read the frames of the next and write what it said
of the last; then another one joins the windows and makes the files. So a GPU waits for neither a decoder nor a disk,
and what is in memory is some windows, however long the video.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from model import recipes
from model.chunks import ran_out
from model.precision import half_on_gpu
from model.recipes.asking import AnsweringModel
from model.recipes.windows import WindowPlan
from pipelines import jobs
from pipelines.models import load_model, model_digest
from pipelines.results.across import Across, ask_across
from pipelines.results.arrays import Arrays, Rows
from pipelines.results.files import RESULT, claim_of, is_answered
from pipelines.results.joined import joined
from pipelines.results.kept import Kept
from pipelines.results.nearby import Nearby
from pipelines.results.questions import Asked, Questions
from pipelines.results.room import require_room
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, Video, look_at
from pipelines.results.windowed import WindowAnswers, ask_window, notes_on, window_report
from pipelines.results.world import lay_out
from pipelines.results.writing import write_arrays, write_results
from pipelines.whole import ExistsAlready, require_new, result_folder

UNWRITTEN = 2  # windows whose answers are on their way to the disk, at most


def reconstruct(
    model: AnsweringModel, video: Video, asked: Asked, *, length: int | None = None, common: int | None = None
) -> tuple[dict[str, Arrays], dict[str, Any]]:
    """(task -> the arrays of its .npz file, see `results/files.py`; what result.json says of windows and world).

    Args:
        length, common: frames of a window, and those it shares with the next; None as `plan_windows` has it.
    """
    plan = recipes.plan_windows(len(video.clip), model.config.clip_frames, length=length, common=common)
    questions = Questions.of(video, model.config.image_size, asked)
    answers: list[WindowAnswers] = []
    for number in range(len(plan)):
        before = answers[-1] if answers else None
        answers.append(ask_window(model, video, plan, number, questions, before))
    across = ask_across(model, video, plan, questions, answers)
    results, report = in_one_world(plan, answers, questions, across)
    whole = {
        task: {key: x.whole() if isinstance(x, Rows) else x for key, x in arrays.items()}
        for task, arrays in results.items()
    }
    return whole, report


def in_one_world(
    plan: WindowPlan, answers: Sequence[WindowAnswers], questions: Questions, across: Across
) -> tuple[dict[str, Arrays], dict[str, Any]]:
    """All that windows said, joined, and what result.json says of how."""
    seams = [said.seam for said in answers[1:]]
    world = lay_out(plan, [said.geometry for said in answers], seams, across.loops, questions.poses)
    report = {"windows": window_report(plan, answers), **world.describe()}
    return joined(plan, answers, questions, across, world.world_from_window), report


class Reconstruct:
    """Loads the model once, then turns videos into folders, several at a time; gives notes on each.

    The model answers for one of them at a time.
    """

    def __init__(
        self,
        model: str,
        registry: str,
        selection: Selection,
        asked: Asked,
        out: str,
        about: dict[str, Any],
        memory_gb: float | None = None,
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(model, self.device, registry=registry)
        if model_digest(self.model) != about["model"]["digest"]:  # others may write to where it lies
            raise ValueError(f"model {model} was replaced since the job began: run it again")
        self.memory_bytes = None if memory_gb is None else int(memory_gb * 1e9)
        if memory_gb is not None:
            self.model.memory_bytes = self.memory_bytes
        self.selection, self.asked, self.out, self.about = selection, asked, out, about
        self.progress: dict[str, str] = {}
        """Of each video that is being worked on, what is done of it."""
        self._answering = threading.Lock()

    def __call__(self, row: dict[str, Any]) -> tuple[str, ...]:
        source = Source(**row)
        try:
            return self._reconstruct(source, row)
        finally:
            self.progress.pop(source.name, None)

    def _reconstruct(self, source: Source, row: dict[str, Any]) -> tuple[str, ...]:
        config = self.model.config
        video = jobs.aside(look_at, source, self.selection, config.image_size)()
        request = self.about["request"] | {"video": video.digest}
        about = self.about | {"request": request, "source": row, "source_version": video.version}
        try:
            require_new(f"{self.out}/{source.name}", claim_of(request))
        except ExistsAlready:  # this row was repeated, or another job did the same meanwhile
            if not is_answered(f"{self.out}/{source.name}", request, about["model"]):
                raise
            return ()
        plan = recipes.plan_windows(
            len(video.clip), config.clip_frames, length=request["window"], common=request["common"]
        )
        questions = Questions.of(video, config.image_size, self.asked)
        require_room(plan, questions, self.memory_bytes if self.device == "cpu" else None)
        kept = Kept(self.out, video.name, request)
        try:
            video = replace(video, notes=self._ask(video, plan, questions, kept))
            with self._answering, half_on_gpu(self.device):
                across = ask_across(self.model, video, plan, questions, kept.windows(len(plan)), kept.once)
            self.progress[video.name] = f"{video.name}: joining windows, drawing"
            return jobs.aside(publish, self.out, video, plan, questions, across, about)()
        except Exception:
            if not is_answered(f"{self.out}/{video.name}", request, about["model"]):
                raise
            kept.sweep()  # another job did the same meanwhile, and swept the windows under this one
            return ()

    def _ask(self, video: Video, plan: WindowPlan, questions: Questions, kept: Kept) -> tuple[str, ...]:
        """Ask all windows that are not kept, and keep them. Gives notes on the frames."""
        first = kept.done()
        if first == len(plan):
            return video.notes
        before = kept.window(first - 1) if first else None
        shown = range(max(0, first - 1), len(plan))  # the frames of the window before are looked at again
        parts = new_frames(plan, shown)
        nearby, writing, notes = Nearby(video.clip), deque(), ()
        for number, part, read in zip(shown, parts, jobs.ahead(video.clip.parts, parts), strict=True):
            pixels, notes = read
            nearby.add(part, pixels)
            if number < first:
                continue
            with self._answering, half_on_gpu(self.device):
                before = self._answers(replace(video, clip=nearby), plan, number, questions, before)
            self.progress[video.name] = f"{video.name}: {number + 1}/{len(plan)} windows"
            writing.append(jobs.aside(kept.write, number, before, cpus=0))
            if len(writing) > UNWRITTEN:
                writing.popleft()()
        for written in writing:
            written()
        return notes

    def _answers(
        self, video: Video, plan: WindowPlan, number: int, questions: Questions, before: WindowAnswers | None
    ) -> WindowAnswers:
        try:
            return ask_window(self.model, video, plan, number, questions, before)
        except RuntimeError as error:
            if not ran_out(error):
                raise
        raise ValueError(
            f"there is not enough memory on the {self.device} for a window of {len(plan.windows[number])} frames, "
            "however few questions are answered at a time: give a shorter --window, or a smaller model"
        )


def new_frames(plan: WindowPlan, numbers: range) -> list[range]:
    """Of each of these windows, the frames that the one before does not have; of the first one all."""
    ends = [plan.windows[numbers.start].start, *(plan.windows[number].stop for number in numbers)]
    return [range(begin, end) for begin, end in pairwise(ends)]


def publish(
    out: str, video: Video, plan: WindowPlan, questions: Questions, across: Across, about: dict[str, Any]
) -> tuple[str, ...]:
    """Join the windows that are kept and write the folder of results; gives notes on it."""
    uri, request = f"{out}/{video.name}", about["request"]
    kept = Kept(out, video.name, request)
    results, report = in_one_world(plan, kept.windows(len(plan)), questions, across)
    try:
        with result_folder(uri, last=RESULT, claim=claim_of(request)) as folder:
            arrays = write_arrays(folder, results)
            notes = (*video.notes, *notes_on(arrays, report["windows"]))
            write_results(folder, replace(video, notes=notes), arrays, about | report)
    except ExistsAlready:  # another job did the same meanwhile
        if not is_answered(uri, request, about["model"]):
            raise
        notes = video.notes
    kept.sweep()
    return notes
