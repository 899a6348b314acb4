"""A model and a video to a folder of results. Needs PyTorch; `pipelines/infer.py` runs it."""

from dataclasses import replace
from typing import Any

import torch

from model import recipes
from model.precision import half_on_gpu
from model.recipes.asking import AnsweringModel
from pipelines.models import load_model, model_digest
from pipelines.results.arrays import Arrays, Rows
from pipelines.results.files import RESULT, claim_of, is_answered, write_results
from pipelines.results.sources import Selection, Source, Video, read_video
from pipelines.results.windowed import Questions, WindowAnswers, ask_window, joined, notes_on, window_report
from pipelines.whole import ExistsAlready, result_folder


def reconstruct(
    model: AnsweringModel, video: Video, tasks: tuple[str, ...], grid: int, *, length: int | None, common: int | None
) -> tuple[dict[str, Arrays], list[dict[str, Any]]]:
    """(task -> the arrays of its .npz file, see `results/files.py`; what result.json says of the windows).

    Args:
        grid: points tracked along each side of the first frame.
        length, common: frames of a window, and those it shares with the next; None as `plan_windows` has it.
    """
    plan = recipes.plan_windows(len(video.clip), model.config.clip_frames, length=length, common=common)
    questions = Questions.of(video, model.config.image_size, tasks, grid)
    answers: list[WindowAnswers] = []
    for number in range(len(plan)):
        before = answers[-1] if answers else None
        answers.append(ask_window(model, video, plan, number, questions, before))
    results = joined(plan, answers, questions)
    whole = {
        task: {key: x.whole() if isinstance(x, Rows) else x for key, x in arrays.items()}
        for task, arrays in results.items()
    }
    return whole, window_report(plan, answers)


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
            results, windows = reconstruct(
                self.model,
                video,
                tuple(request["tasks"]),
                request["grid"],
                length=request["window"],
                common=request["common"],
            )
        video = replace(video, notes=(*video.notes, *notes_on(results, windows)))
        try:
            with result_folder(uri, last=RESULT, claim=claim_of(request)) as folder:
                about = self.about | {"request": request, "source": row, "windows": windows}
                write_results(folder, video, results, about)
        except ExistsAlready:  # this row was repeated, or another job did the same meanwhile
            if not is_answered(uri, request):
                raise
        return video.notes
