"""The weights of step 0: fresh ones, or those that `--init` names.

| --init                                        | gives                                                        |
|-----------------------------------------------|--------------------------------------------------------------|
| a folder, s3://..., models:/d4rt@champion     | all weights, of a model of this project                      |
| opend4rt:FILE                                 | all weights, of an OpenD4RT checkpoint; model.yaml beside it |
| videomae:FILE                                 | the encoder                                                  |
| timm:NAME, timm:NAME@FILE                     | the encoder, from a model of images                          |

The command reads them once, before anything starts, and hands them to the workers.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model import D4RT, checkpoints, opend4rt, pretrained
from pipelines.log import say
from pipelines.models import load_model, model_version
from train.config import TrainConfig
from train.parallel import prepare


def pinned(config: TrainConfig) -> TrainConfig:
    """The same start, said so that it still means the same tomorrow and elsewhere: absolute paths, version numbers."""
    if config.init is None:
        return config
    kind, _, rest = config.init.partition(":")
    if kind in ("videomae", "opend4rt"):
        return replace(config, init=f"{kind}:{os.path.abspath(rest)}")
    if kind == "timm":
        name, at, file = rest.partition("@")
        rest = f"{name}@{os.path.abspath(file)}" if at else pretrained.full_name(name)
        return replace(config, init=f"timm:{rest}")
    if kind in ("models", "runs") or "://" in config.init:
        return replace(config, init=model_version(config.init))
    return replace(config, init=os.path.abspath(config.init))


@dataclass(frozen=True)
class Start:
    """What `init` gives."""

    weights: dict[str, Tensor]
    """All of the model."""
    trained_on: frozenset[str]
    """Digests of the clip stores behind them, as far as they say."""


def read_start(config: TrainConfig) -> Start | None:
    """What a run starts from, printing what came from there; None if its weights are to be fresh.

    Raises ValueError if `init` cannot be read or does not fit the model.
    """
    if config.init is None:
        return None
    kind, _, rest = config.init.partition(":")
    if kind in ("videomae", "timm"):
        model = start_model(config)
        load = checkpoints.load_videomae if kind == "videomae" else checkpoints.load_timm
        say(str(load(model, rest)))
        return Start(model.state_dict(), frozenset())
    if kind == "opend4rt":
        whole = checkpoints.load_opend4rt(rest, Path(rest).parent / opend4rt.CONFIG)
    else:
        whole = load_model(config.init)
    return Start(fitted(whole, config), whole.trained_on)


def fitted(whole: D4RT, config: TrainConfig) -> dict[str, Tensor]:
    """The weights of a whole model, which may differ from ours in `clip_frames` only."""
    theirs, ours = whole.config.to_dict(), config.model.to_dict()
    if changed := [key for key in ours if ours[key] != theirs[key] and key != "clip_frames"]:
        differences = ", ".join(f"{key} {theirs[key]} there, {ours[key]} here" for key in changed)
        raise ValueError(f"init: {config.init} is another model ({differences}); set --model.* to match")
    say(f"weights of {config.init}: all loaded")
    before, now = whole.config.clip_frames, config.model.clip_frames
    if before != now:
        say(f"  its timestep tables resized from {before} to {now} frames ({config.resize_tables})")
    return checkpoints.resize_tables(whole.state_dict(), now, config.resize_tables)


def start_model(config: TrainConfig, weights: dict[str, Tensor] | None = None) -> D4RT:
    """The model of step 0 with its switches for training, the same on all workers. Fresh weights depend on the seed."""
    torch.manual_seed(config.seed)
    model = D4RT(config.model)
    if weights is not None:
        model.load_state_dict(weights)
    return prepare(model, config)
