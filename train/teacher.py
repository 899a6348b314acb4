"""Pseudo-labels from others: a model of ours, such as a larger checkpoint, or a function of the user's, around any
tracker or depth network.

A function is named by the user on the command line, as python:MODULE:FUNCTION. It gets the frames of a video, (T, H, W,
3) uint8 RGB, at most 1280 pixels wide or high, and gives the arrays of a file of labels (`pseudo_labels.py`).
"""

import hashlib
import inspect
from collections.abc import Callable
from importlib import import_module

import numpy as np
import torch
from jaxtyping import UInt8

from model import Queries
from model.precision import half_on_gpu
from model.recipes.asking import AnsweringModel
from model.recipes.windows import WindowPlan
from pipelines.query_table import VALID_BITS
from train.label_split import SEED
from train.pseudo_labels import ASKED, Columns, PseudoLabels

POINTS, TIMES_EACH = 512, 16  # per window: points, and how many questions about each
SAME_CAMERA = 0.4  # share of the questions with t_tgt = t_cam, as in training
FUNCTION = "python:"


def function_of(name: str) -> Callable[[UInt8[np.ndarray, "T H W 3"]], Columns]:
    """What python:MODULE:FUNCTION names. ValueError if there is no such function."""
    module, _, function = name.removeprefix(FUNCTION).rpartition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--teacher {name}: {error}; give {FUNCTION}MODULE:FUNCTION, to be found here") from None
    if not inspect.isfunction(found):
        raise ValueError(f"--teacher {name} is no function: give one that gets frames and gives labels")
    return found


def function_digest(name: str) -> str:
    """Of its file: what it said is asked again when that has changed. ValueError if there is no such function."""
    source = inspect.getsource(inspect.getmodule(function_of(name)))
    return hashlib.blake2b(f"{name}\n{source}".encode(), digest_size=16).hexdigest()


def ask_function(
    name: str, frames: UInt8[np.ndarray, "T h w 3"], size: tuple[int, int], digest: str | None = None
) -> PseudoLabels:
    """What it says of a video of (H, W) natively. ValueError for what it raises, and for what is no label."""
    try:
        given = {key: np.asarray(value) for key, value in function_of(name)(frames).items()}
    except Exception as error:  # it is the user's, and may raise anything
        raise ValueError(f"--teacher {name} failed ({type(error).__name__}: {error}): mend it") from error
    return PseudoLabels.of((len(frames), *size), given, f"what {name} gives", digest)


def questions(plan: WindowPlan, number: int) -> Columns:
    """About a window, times counted from the first frame of the video; each point is seen in a frame that the window
    answers for. Always the same ones."""
    rng = np.random.default_rng([SEED, number])
    window, own = plan.windows[number], np.flatnonzero(plan.owner.numpy() == number)
    count = POINTS * TIMES_EACH
    t_tgt = rng.integers(window.start, window.stop, count)
    t_cam = np.where(rng.random(count) < SAME_CAMERA, t_tgt, rng.integers(window.start, window.stop, count))
    return {
        "uv_norm": rng.random((POINTS, 2), np.float32).repeat(TIMES_EACH, axis=0),
        "t_src": rng.choice(own, POINTS).repeat(TIMES_EACH),
        "t_tgt": t_tgt,
        "t_cam": t_cam,
    }


@torch.inference_mode()
def ask(
    teacher: AnsweringModel,
    video: UInt8[np.ndarray, "T S S 3"],
    size: tuple[int, int],
    plan: WindowPlan,
    digest: str | None = None,
) -> PseudoLabels:
    """What the teacher answers about a video at its own image size, of (H, W) natively, in the windows of `plan`.

    Each label weighs as much as the teacher is confident; what is no number is not known. ValueError for a teacher that
    takes fewer frames.
    """
    require_frames(teacher, plan)
    height, width = size
    aspect = torch.tensor([width / height], dtype=torch.float32, device=teacher.device)
    parts = []
    for number, window in enumerate(plan.windows):
        asked = questions(plan, number)
        frames = torch.from_numpy(video[window.start : window.stop]).to(teacher.device)[None]
        uv_norm, t_src, t_tgt, t_cam = (torch.from_numpy(asked[name])[None] for name in ASKED)
        queries = Queries(uv_norm, *(t - window.start for t in (t_src, t_tgt, t_cam))).to(teacher.device)
        with half_on_gpu(teacher.device):
            answers = teacher.decode(teacher.encode(frames, aspect), queries)
        labels = {name: getattr(answers, name)[0].cpu().numpy() for name in VALID_BITS}
        sure = torch.isfinite(answers.visible_logit[0]).cpu().numpy()
        known = {name: sure & np.isfinite(x.reshape(len(x), -1)).all(axis=1) for name, x in labels.items()}
        weight = answers.confidence[0].nan_to_num(0.0).float().cpu().numpy()
        parts.append(asked | labels | {f"{name}_known": x for name, x in known.items()} | {"weight": weight})
    given = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return PseudoLabels.of((len(video), height, width), given, "what the teacher answers", digest)


def require_frames(teacher: AnsweringModel, plan: WindowPlan) -> None:
    longest = max(map(len, plan.windows))
    if teacher.config.clip_frames < longest:
        raise ValueError(
            f"the teacher takes {teacher.config.clip_frames} frames at once, the model {longest}: give --num-frames "
            f"{teacher.config.clip_frames}, or another teacher"
        )
