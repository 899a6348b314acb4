"""What is asked of a video when all its windows have answered: the way back of tracks, and loops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

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


def anew(number: int, name: str, ask: Callable[[], Any]) -> Any:
    """Asks, each time. `Kept.once` is one that remembers."""
    return ask()


@torch.inference_mode()
def ask_across(
    model: AnsweringModel,
    video: Video,
    plan: WindowPlan,
    questions: Questions,
    answers: Sequence[WindowAnswers],
    once: Callable[[int, str, Callable[[], Any]], Any] = anew,
) -> Across:
    """Encodes again the windows before the last one in which a track begins, and whatever looks like a loop.

    `once`: called with a window, what is asked of it and how, gives the answer.
    """
    model, aspect = questions.model(model), video.size[1] / video.size[0]
    backwards: dict[int, Followed] = {}
    jitter: dict[int, Jitter] = {}
    latest = int(plan.owner[questions.t_src].max()) if "tracks" in questions.tasks else 0

    def look_back(number: int) -> None:
        origin = {}
        if number < latest:
            origin = {"before": backwards[number + 1], "seam": answers[number + 1].seam}
        encoded = cache(lambda: View.of(model, video.clip, plan.windows[number], aspect=aspect).memory)

        def ask() -> Followed:
            options = {"backwards": True, "aspect": aspect, "memory": encoded()}
            return follow(model, video.clip, plan, number, questions.points, questions.t_src, **origin, **options)

        backwards[number] = once(number, "backwards", ask)
        if "uncertainty" in questions.tasks:
            window, followed = plan.windows[number], backwards[number]
            jitter[number] = once(
                number, "backwards_jitter", lambda: jitter_of(model, encoded(), window, followed, questions)
            )

    for number in reversed(range(latest + 1) if latest else []):
        look_back(number)

    loops = []
    if questions.loops:
        geometry = [said.geometry for said in answers]
        for proposal in propose_loops(geometry):
            ask = partial(look_for_loop, model, video.clip, plan, geometry, *proposal, aspect=aspect)
            loops.append(once(proposal[1], "loop", ask))
    return Across(backwards, jitter, loops)
