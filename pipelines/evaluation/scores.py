"""How answers about a held-out clip are scored, in `evaluate clips` and in validation while training.

Per clip, over all queries of all samples whose xyz is known; p is the answer, g the truth, both in the camera t_cam:
    s               median ||g|| / median ||p||: lengths are scale-free, so each clip has its scale, and nothing else
    error           e = ||s p - g||; a p that is not finite counts as infinitely wrong
    relative error  e / ||g||
    EPE             e in metres; where the dataset is not metric, in median ||g|| of the clip
    APD             share of queries with e <= d, mean over d in 0.1, 0.3, 0.5, 1.0 (WorldTrack's), in the unit of EPE
    moving          queries on something that moves (flag `dynamic`) with t_tgt != t_src; s is still that of all
    depth AbsRel    mean |s z_p - z_g| / z_g over queries with t_src = t_tgt = t_cam
    visibility      share of right answers where visibility is known
    confidence      its rank correlation (Spearman's) with the relative error, -1 at best; and the share of queries
                    within the errors in which 50, 80 and 95 % should be, by a calibrated model's confidence; and what
                    would calibrate it (`model/confidence.py`), as JSON
    pose            cameras 1 to T - 1, the world being camera 0 on both sides, as `recipes.cameras` fits each to it:
                    rotation, the angle between the two in degrees, and translation, ||s c_p - c_g|| of the camera's
                    position c, in the unit of EPE and with the s of the points; a camera not found is infinitely wrong

Reported over the queries and cameras of all clips together: the median relative error, mean EPE, APD, depth AbsRel and
visibility, and the medians of rotation and translation. Medians are true to 0.1 % (`tally.py` says why).
"""

from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from model import D4RT, ModelConfig, Prediction, Queries, recipes
from model.confidence import SHARES
from pipelines.evaluation.tally import WITHIN
from pipelines.geometry import inverse, scaled_intrinsics, unproject
from pipelines.query_table import FLAG_BITS, VALID_BITS
from pipelines.store.reader import ClipStore

THRESHOLDS = (0.1, 0.3, 0.5, 1.0)

Truth = dict[str, np.ndarray]
"""The fields of `Clip.all_queries()`."""


@dataclass(frozen=True)
class Answers:
    """To the Q queries of a clip, and its cameras."""

    xyz: Float32[np.ndarray, "Q 3"]
    visible: Bool[np.ndarray, "Q"]
    confidence_logit: Float32[np.ndarray, "Q"]
    within: Float32[np.ndarray, "shares Q"]
    """Relative errors within which 50, 80 and 95 % should be; NaN if the model is not calibrated."""
    world_from_cam: Float32[np.ndarray, "T 4 4"]
    """The world is camera 0; NaN for a camera not found."""


def require_fit(store: ClipStore, config: ModelConfig) -> None:
    """ValueError if this model cannot be asked about the clips of a store."""
    settings = store.settings
    if not len(store):
        raise ValueError(f"store {store.uri} has no clips")
    if settings.image_size != config.image_size or settings.frames > config.clip_frames:
        raise ValueError(
            f"store {store.uri} has clips of {settings.frames} frames, {settings.image_size} x {settings.image_size}; "
            f"this model takes up to {config.clip_frames}, {config.image_size} x {config.image_size}: convert with "
            f"--frames {config.clip_frames} --image-size {config.image_size}"
        )


def queries_of(truth: Truth) -> Queries:
    """The Q queries of a clip, as of a batch of one."""
    times = (torch.from_numpy(truth[name].astype(np.int64))[None] for name in ("t_src", "t_tgt", "t_cam"))
    return Queries(torch.from_numpy(truth["uv_norm"])[None], *times)


@torch.inference_mode()
def ask(model: D4RT, video: UInt8[np.ndarray, "T S S 3"], aspect: float, truth: Truth) -> Answers:
    """What a model answers."""
    device = model.device
    queries = queries_of(truth).to(device)
    frames = torch.from_numpy(video)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        memory = model.encode(frames[None].to(device), torch.tensor([aspect], device=device))
        prediction = model.decode(memory, queries)
        cameras = recipes.cameras(model, frames, memory=memory, reference=0)
    return answers_of(model, prediction, cameras.world_from_cam.numpy())


def answers_of(model: D4RT, prediction: Prediction, world_from_cam: Float32[np.ndarray, "T 4 4"]) -> Answers:
    """What a model predicted about one clip."""
    logit = prediction.confidence_logit[0].detach().cpu()
    within = torch.full((len(SHARES), len(logit)), torch.nan)
    if model.calibration is not None:
        within = torch.stack([model.calibration.error(logit, share) for share in SHARES])
    return Answers(
        prediction.xyz[0].detach().float().cpu().numpy(),
        prediction.visible[0].cpu().numpy(),
        logit.numpy(),
        within.numpy(),
        world_from_cam,
    )


def constant_depth(truth: Truth, intrinsics: Float[np.ndarray, "T 3 3"], size: int) -> Answers:
    """The guess: depth 1 along the ray of the true camera t_src, the same point in every camera, always visible.

    The intrinsics are in pixels of a square frame of this size.
    """
    uv_norm = truth["uv_norm"]
    to_norm = scaled_intrinsics(intrinsics, width_ratio=1 / size, height_ratio=1 / size)
    xyz = unproject(uv_norm, np.ones(len(uv_norm), np.float32), to_norm[truth["t_src"]])
    still = np.tile(np.eye(4, dtype=np.float32), (len(intrinsics), 1, 1))
    unsaid = np.full((len(SHARES), len(uv_norm)), np.nan, np.float32)
    return Answers(
        xyz.astype(np.float32), np.ones(len(uv_norm), bool), np.zeros(len(uv_norm), np.float32), unsaid, still
    )


def scale(truth: Truth, xyz: Float32[np.ndarray, "Q 3"]) -> float:
    """s of the definition; NaN if there is nothing to take it from."""
    known = truth["valid"] & VALID_BITS["xyz"] > 0
    asked = np.linalg.norm(truth["xyz"][known].astype(np.float64), axis=1)
    said = np.linalg.norm(xyz[known & np.isfinite(xyz).all(axis=1)].astype(np.float64), axis=1)
    middle = np.median(said) if said.size else 0.0
    return float(np.median(asked) / middle) if middle > 0 else float("nan")


def measure(
    truth: Truth, answers: Answers, world_from_cam: Float[np.ndarray, "T 4 4"], *, is_metric: bool
) -> dict[str, Float[np.ndarray, "n"]]:
    """The errors of one clip, one value per query or camera that has it (see the top of this file).

    `relative`, `distance` (as in EPE), `hits` (share of thresholds met), `logit` (of confidence) and `within_50` and
    so on (if calibrated) of the n queries with a known xyz, `moving` which of them are; `depth` and `visible` of those
    that ask for them; `rotation` and `translation` of the cameras.
    """
    known = truth["valid"] & VALID_BITS["xyz"] > 0
    s = scale(truth, answers.xyz)
    g, p = truth["xyz"].astype(np.float64), s * answers.xyz.astype(np.float64)
    norm = np.linalg.norm(g, axis=1)
    unit = 1.0 if is_metric or not known.any() else np.median(norm[known])
    error = _infinite(np.linalg.norm(p - g, axis=1))
    moving = (truth["flags"] & FLAG_BITS["dynamic"] > 0) & (truth["t_tgt"] != truth["t_src"])
    own = known & (truth["t_src"] == truth["t_tgt"]) & (truth["t_tgt"] == truth["t_cam"])
    tell = truth["valid"] & VALID_BITS["visible"] > 0
    rotation, offset = camera_errors(answers.world_from_cam, world_from_cam, s)
    relative = error[known] / norm[known]
    inside = (relative <= answers.within[:, known])[:, np.isfinite(answers.within[0, known])]
    return {
        "relative": relative,
        "logit": answers.confidence_logit[known],
        **{name: part.astype(np.float64) for name, part in zip(WITHIN, inside, strict=True)},
        "distance": error[known] / unit,
        "hits": np.mean([error[known] <= threshold * unit for threshold in THRESHOLDS], axis=0),
        "moving": moving[known].astype(np.float64),
        "depth": np.abs(p[own, 2] - g[own, 2]) / g[own, 2],
        "visible": (answers.visible == truth["visible"])[tell].astype(np.float64),
        "rotation": rotation,
        "translation": offset / unit if known.any() else np.zeros(0),  # without a point there is no scale
    }


def camera_errors(
    predicted: Float[np.ndarray, "T 4 4"], true: Float[np.ndarray, "T 4 4"], s: float
) -> tuple[Float[np.ndarray, "cameras"], Float[np.ndarray, "cameras"]]:
    """(degrees, distance) of cameras 1 to T - 1, the world being camera 0."""
    first_from_cam = inverse(true[:1].astype(np.float64)) @ true
    predicted, true = predicted[1:].astype(np.float64), first_from_cam[1:]
    # ||A - B|| = 2 sqrt(2) sin(angle / 2): unlike the trace, exact for small angles.
    chord = np.linalg.norm(predicted[:, :3, :3] - true[:, :3, :3], axis=(1, 2)) / np.sqrt(8)
    degrees = np.degrees(2 * np.arcsin(np.minimum(chord, 1)))
    return _infinite(degrees), _infinite(np.linalg.norm(s * predicted[:, :3, 3] - true[:, :3, 3], axis=1))


def _infinite(error: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """What is not finite is infinitely wrong."""
    return np.where(np.isfinite(error), error, np.inf)


ROWS = (  # of a table: title, where the score is, factor, format
    ("median relative error %, all points", ("median_relative_error", "all"), 100, ".1f"),
    ("  moving points", ("median_relative_error", "moving"), 100, ".1f"),
    ("APD %, all points", ("apd", "all"), 100, ".1f"),
    ("  moving points", ("apd", "moving"), 100, ".1f"),
    ("EPE, all points", ("epe", "all"), 1, ".3f"),
    ("  moving points", ("epe", "moving"), 1, ".3f"),
    ("depth AbsRel %", ("depth_abs_rel",), 100, ".1f"),
    ("visibility right %", ("visibility_accuracy",), 100, ".1f"),
    ("confidence and error, rank correlation", ("confidence", "rank_correlation", "all"), 1, ".2f"),
    ("  moving points", ("confidence", "rank_correlation", "moving"), 1, ".2f"),
    ("within the error told for 50 %", ("confidence", "coverage", "within_50"), 100, ".1f"),
    ("  for 80 %", ("confidence", "coverage", "within_80"), 100, ".1f"),
    ("  for 95 %", ("confidence", "coverage", "within_95"), 100, ".1f"),
    ("camera rotation off by, degrees", ("pose", "rotation_degrees"), 1, ".2f"),
    ("camera position off by", ("pose", "translation"), 1, ".3f"),
)


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """Scores by who answered, as text: a row per score, a column for each who answered."""
    width = max(len(title) for title, *_ in ROWS)
    lines = [" " * (width + 2) + "".join(f"{name:>12}" for name in scores)]
    for title, path, factor, form in ROWS:
        values = [reduce(getitem, path, score) for score in scores.values()]
        if all(value is None for value in values):
            continue  # of a confidence that is not calibrated, say
        cells = ["-" if value is None else format(factor * value, form) for value in values]
        lines.append(f"  {title:{width}}" + "".join(f"{cell:>12}" for cell in cells))
    queries = next(iter(scores.values()))["queries"]
    lines.append(f"  {queries['all']} queries, {queries['moving']} of them on something that moved")
    return "\n".join([*lines, "  EPE and position: metres; of a clip that is not metric, its median distance is 1"])
