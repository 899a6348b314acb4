"""Test-time adaptation: a model learns from what others believe of one video, and is judged by what it has not seen.

The encoder rests, and all else that makes the memory of a clip; so that is computed once, and a step is only a decode.
Losses are those of training but for the confidence, which would learn how far the pseudo-labels are off; where no
positions are labelled, those of `track_terms.py` too. A part of the labelled points is held out: where their loss no
longer falls, it ends, and the best weights are kept; those of the start if none were better.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from model import D4RT, Memory, Prediction, Queries
from model.chunks import ran_out
from model.precision import half_on_gpu
from train import losses
from train.config import DataConfig, TrainConfig
from train.errors import TrainingDiverged
from train.label_split import SEED
from train.optim import freeze_memory
from train.parallel import computing
from train.pseudo_labels import Columns
from train.query_batch import QueryBatch
from train.recipe import LossConfig, OptimConfig
from train.state import TrainState
from train.step import train_step
from train.track_terms import Decode, Drawn, TrackLabels, track_loss

QUERIES = 2048  # of a step, at most
CHECK_EVERY = 10  # steps, after which the held-out loss is looked at
PATIENCE = 5  # looks without a better one, after which it ends
WARMUP_STEPS = 10
LOOKED_AT = 4  # times as many tracks of the held-out ones as are learnt from in a step
FINAL_SHARE = 0.8  # of the learning rate, at the last step (St4RTrack: 5e-5 to 4e-5)
DATASETS = ("video",)


@dataclass(frozen=True)
class LabelledClip:
    """Frames of a video that the model sees together, and what is believed of them; times count from the first."""

    memory: Memory
    learnt: Columns
    held_out: Columns
    truth: Columns | None = None
    """To report by, never to choose by."""

    @cached_property
    def tracks(self) -> TrackLabels:
        """Of what is learnt."""
        return TrackLabels.of(self.learnt)

    def batch(self, columns: Columns, rows: np.ndarray | None = None) -> QueryBatch:
        """The rows of these columns, or all, as a batch of one clip, on the model's device."""
        kept = {name: column for name, column in columns.items() if name not in ("weight", "depth")}
        asked = kept if rows is None else {name: column[rows] for name, column in kept.items()}
        tensors = {name: torch.from_numpy(column)[None] for name, column in asked.items()}
        tensors |= {"video": self.memory.video, "aspect": self.memory.aspect, "dataset": torch.zeros(1).long()}
        return QueryBatch.from_columns(tensors, DATASETS).to(self.memory.tokens.device)

    def track_loss(self, decode: Decode, columns: Columns, drawn: Drawn) -> Tensor:
        """() of rows drawn from these columns; `decode` answers about this clip."""
        return track_loss(decode, columns, drawn, self.memory.aspect.item(), self.memory.tokens.device)


@dataclass(frozen=True)
class Scores:
    """Of answers against labels; None where there are none of that kind."""

    loss: float
    """What is learnt from, by which the best weights are chosen."""
    median_relative_error: float | None
    """Of positions, as `evaluate clips` has it, each clip by its own scale."""
    uv_error: float | None
    """Mean distance in the frame, as a share of its sides."""
    visibility_accuracy: float | None


@dataclass(frozen=True)
class Report:
    """What came of it."""

    before: dict[str, Scores]
    """By what they are measured on: `held_out`, and `truth` if there is some."""
    after: dict[str, Scores]
    curve: list[dict[str, int | float]]
    """`step`, `held_out_loss`, and `loss`, the mean over the steps since the last."""
    best_step: int
    """0: no step made it better, and the weights are those of the start."""
    steps: int
    """Taken."""
    ended: str
    """Why."""


class FromMemory(nn.Module):
    """The model as a training step calls it; it looks at no video, but answers from what it remembers of one."""

    memory: Memory

    def __init__(self, model: D4RT) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, aspect: Tensor, queries: Queries, *, checked: bool) -> Prediction:
        return self.model.decode(self.memory, queries)


@torch.no_grad()
def remember(model: D4RT, video: np.ndarray, aspect: float) -> Memory:
    """Look at a clip, (T, S, S, 3) uint8, once."""
    with half_on_gpu(model.device):
        return model.encode(torch.from_numpy(video).to(model.device)[None], torch.tensor([aspect], device=model.device))


def adapt(
    model: D4RT,
    clips: Sequence[LabelledClip],
    *,
    steps: int,
    lr: float,
    say: Callable[[str], object] = lambda _: None,
) -> Report:
    """Let the model learn from clips that it remembers (`remember`); what it has learnt is in its weights then.

    `lr`: of AdamW, without decay. `say` hears how far it is. ValueError if there is not enough memory. The model ends
    with the weights whose held-out loss was lowest, which may be those of the start.
    """
    config = recipe(model, steps, lr)
    freeze_memory(model)
    state = TrainState.create(model, config.optim)
    state.network = FromMemory(model)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rng = np.random.default_rng(SEED)
    weight = np.array([clip.learnt["weight"].sum(dtype=np.float64) for clip in clips])
    chance = [clip.learnt["weight"] / clip.learnt["weight"].sum(dtype=np.float64) for clip in clips]

    with enough_memory():
        before = all_scores(model, clips, config.loss)
        best, best_step, kept = before["held_out"].loss, 0, [x.detach().clone() for x in learning]
        curve, taken, ended = [{"step": 0, "held_out_loss": best}], [], "all steps were taken"
        while state.step < steps:
            number = rng.choice(len(clips), p=weight / weight.sum())
            rows = rng.choice(len(chance[number]), min(QUERIES, len(chance[number])), p=chance[number])
            state.network.memory = clips[number].memory
            try:
                taken.append(learn(state, clips[number], rows, rng, config))
            except TrainingDiverged as error:
                ended = str(error)
                break
            if state.step % CHECK_EVERY and state.step < steps:
                continue
            loss = scores(model, clips, [clip.held_out for clip in clips], config.loss).loss
            curve.append({"step": state.step, "held_out_loss": loss, "loss": float(np.mean(taken))})
            taken.clear()
            say(f"step {state.step} of {steps}, held-out loss {loss:.4f}")
            if loss < best:
                best, best_step, kept = loss, state.step, [x.detach().clone() for x in learning]
            elif state.step >= best_step + PATIENCE * CHECK_EVERY:
                ended = f"the held-out loss had not fallen for {state.step - best_step} steps"
                break
        with torch.no_grad():
            for parameter, value in zip(learning, kept, strict=True):
                parameter.copy_(value)
        after = all_scores(model, clips, config.loss) if best_step else before
    return Report(before, after, curve, best_step, state.step, ended)


def learn(
    state: TrainState, clip: LabelledClip, rows: np.ndarray, rng: np.random.Generator, config: TrainConfig
) -> float:
    """Take a step with these rows; its loss."""
    if not len(clip.tracks):
        return train_step(state, clip.batch(clip.learnt, rows), config)["loss"]
    found, drawn = [], clip.tracks.draw(rng)

    def decode(queries: Queries) -> Prediction:
        with computing(config, state.model.device):
            return state.model.decode(clip.memory, queries)

    def of_tracks() -> Tensor:
        found.append(clip.track_loss(decode, clip.learnt, drawn))
        return found[0]

    metrics = train_step(state, clip.batch(clip.learnt, rows), config, of_tracks)
    return metrics["loss"] + found[0].item()


def recipe(model: D4RT, steps: int, lr: float) -> TrainConfig:
    """How a step is taken. ValueError, naming the option, for numbers that are in no range."""
    return TrainConfig(
        model=model.config,
        data=DataConfig(queries=QUERIES, clips_per_worker=1, augment=False),
        loss=LossConfig(lconf=0.0),
        optim=OptimConfig(
            lr=lr,
            final_lr=FINAL_SHARE * lr,
            warmup_steps=min(WARMUP_STEPS, steps - 1),
            weight_decay=0.0,
            freeze=("encoder",),
        ),
        steps=steps,
        workers=1,
        precision="bfloat16" if model.device.type == "cuda" else "float32",
    )


@contextmanager
def enough_memory() -> Iterator[None]:
    """ValueError where there is not."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise ValueError(
            "there is not enough memory to adapt to so many frames: give fewer (--num-frames), or a smaller model"
        ) from None


def all_scores(model: D4RT, clips: Sequence[LabelledClip], config: LossConfig) -> dict[str, Scores]:
    found = {"held_out": scores(model, clips, [clip.held_out for clip in clips], config)}
    known = [clip for clip in clips if clip.truth is not None]
    if known:
        found["truth"] = scores(model, known, [clip.truth for clip in known], config)
    return found


@torch.no_grad()
def scores(model: D4RT, clips: Sequence[LabelledClip], labels: Sequence[Columns], config: LossConfig) -> Scores:
    """Of the model's answers about each clip against its labels; those that weigh more count more in the loss."""
    sums, weights = torch.zeros(len(losses.TERMS)), torch.zeros(len(losses.TERMS))
    relative, distance, right, of_tracks = [], [], [], []
    for clip, columns in zip(clips, labels, strict=True):
        batch = clip.batch(columns)
        prediction = answers(model, clip.memory, batch.queries)
        weight = torch.from_numpy(columns["weight"]).to(batch.xyz)
        for i, (value, mask) in enumerate(losses.loss_terms(prediction, batch, config, 0).values()):
            sums[i] += torch.where(mask, value * weight, 0).sum().cpu()
            weights[i] += torch.where(mask, weight, 0).sum().cpu()
        tracks = TrackLabels.of(columns)
        if len(tracks):
            drawn = tracks.draw(np.random.default_rng(SEED), times=LOOKED_AT)
            of_tracks.append(clip.track_loss(partial(answers, model, clip.memory), columns, drawn).item())
        known = losses.term_masks(batch, config)
        relative.append(losses.relative_error(prediction, batch)[known["l3d"]])
        distance.append((prediction.uv_tgt - batch.uv_tgt).norm(dim=-1)[known["l2d"]])
        right.append((prediction.visible == batch.visible)[known["lvis"]].float())
    means = sums / weights.clamp(min=1e-12)
    loss = sum(getattr(config, name) * mean for name, mean in zip(losses.TERMS, means.tolist(), strict=True))
    return Scores(
        loss=loss + (float(np.mean(of_tracks)) if of_tracks else 0.0),
        median_relative_error=_over(relative, torch.median),
        uv_error=_over(distance, torch.mean),
        visibility_accuracy=_over(right, torch.mean),
    )


def answers(model: D4RT, memory: Memory, queries: Queries) -> Prediction:
    with half_on_gpu(model.device):
        return model.decode(memory, queries)


def _over(parts: list[Tensor], statistic: Callable[[Tensor], Tensor]) -> float | None:
    values = torch.cat(parts)
    return statistic(values).item() if len(values) else None
