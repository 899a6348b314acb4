"""Adaptation to one video: it learns what is true, does no harm where labels are wrong, and never pays for the encoder
twice."""

import dataclasses
from copy import deepcopy

import numpy as np
import pytest
import torch
from oracle import Faults, Oracle

from model import D4RT, ModelConfig
from model.recipes import plan_windows
from pipelines.synthesize.job import scene_for
from train import teacher
from train.adapt import LabelledClip, adapt, remember
from train.label_split import deal
from train.pseudo_labels import PseudoLabels

FRAMES, SIZE = 6, 32
CONFIG = dataclasses.replace(
    ModelConfig.preset("tiny"), image_size=SIZE, clip_frames=4, encoder_layers=2, decoder_layers=2
)
SCENE = scene_for("kubric", 0, 0, frames=FRAMES, size="small")
PLAN = plan_windows(FRAMES, CONFIG.clip_frames)


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    from pipelines.truth.clips import resize

    return np.stack([resize(SCENE.render(t).image, SIZE) for t in range(FRAMES)])


def untrained() -> D4RT:
    torch.manual_seed(0)
    return D4RT(CONFIG).eval()


def labels(**faults: float) -> PseudoLabels:
    oracle = Oracle(SCENE, Faults(**faults), clip_frames=FRAMES)
    return teacher.ask(oracle, oracle.video.numpy(), (SCENE.height, SCENE.width), PLAN)


@pytest.fixture(scope="module")
def exact() -> PseudoLabels:
    return labels()


def clips_of(model: D4RT, video: np.ndarray, known: PseudoLabels, truth: PseudoLabels) -> list[LabelledClip]:
    return [
        LabelledClip(
            remember(model, video[part.window.start : part.window.stop], SCENE.width / SCENE.height),
            part.learnt,
            part.held_out,
            part.truth,
        )
        for part in deal(known, PLAN, "labels", truth)
    ]
