"""What is asked of a video when all its windows have answered: the way back of tracks, and loops."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.recipes import AnsweringModel
from model.recipes.following import Followed, follow
from model.recipes.loops import Loop, look_for_loop, propose_loops
from model.recipes.views import View
from model.recipes.windows import WindowPlan
from pipelines.results.questions import Questions
from pipelines.results.sources import Video
from pipelines.results.windowed import Jitter, WindowAnswers, jitter_of


@dataclass(frozen=True)
class Across:
    backwards: dict[int, Followed]
    """By window: tracks that begin in a later one, followed towards the begin."""
    jitter: dict[int, Jitter]
    """Likewise, if it is asked for."""
    loops: list[Loop]
    """That were looked at, closed or not."""


@torch.inference_mode()
def ask_across(
    model: AnsweringModel, video: Video, plan: WindowPlan, questions: Questions, answers: Sequence[WindowAnswers]
) -> Across:
    """Encodes again the windows before the last one in which a track begins, and whatever looks like a loop."""
    model, aspect = questions.model(model), video.size[1] / video.size[0]
    backwards: dict[int, Followed] = {}
    jitter: dict[int, Jitter] = {}
    latest = int(plan.owner[questions.t_src].max()) if "tracks" in questions.tasks else 0
    for number in reversed(range(latest + 1) if latest else []):
        origin = {}
        if number < latest:
            origin = {"before": backwards[number + 1], "seam": answers[number + 1].seam}
        memory = View.of(model, video.clip, plan.windows[number], aspect=aspect).memory
        asked = (questions.points, questions.t_src)
        options = {"backwards": True, "aspect": aspect, "memory": memory}
        backwards[number] = follow(model, video.clip, plan, number, *asked, **origin, **options)
        if "uncertainty" in questions.tasks:
            jitter[number] = jitter_of(model, memory, plan.windows[number], backwards[number], questions)

    loops = []
    if questions.loops:
        geometry = [said.geometry for said in answers]
        for proposal in propose_loops(geometry):
            loops.append(look_for_loop(model, video.clip, plan, geometry, *proposal, aspect=aspect))
    return Across(backwards, jitter, loops)
