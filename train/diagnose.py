"""`python -m train diagnose --model M --data STORE`: what has a model learnt, and what has gone wrong with it?

The monitors of training (`train/losses.py`) on a few clips of each store, with words beside what is bad:

| row               | says                                                                                             |
|-------------------|--------------------------------------------------------------------------------------------------|
| loss              | with default weights, and its terms                                                              |
| a head            | its error, in the unit of its loss term; that of a trivial answer; and the share of queries that |
|                   | its term leaves out, because nothing is known                                                    |
| spread, depth     | ratio of predicted to true spread of points, and of their depth, and its correlation, per clip   |
| confidence        | its mean, and its rank correlation with the relative error: -1 would be perfect                  |
| calibration       | the share of points within the errors that 50, 80 and 95 % should be within, by their confidence |
| gradient          | its norm in each part of the network, of the mean loss of the clips                              |

Trivial answers: one constant depth on the true ray (position), nothing moves (projection, displacement), one
probability for all (visibility), a surface that faces the camera of t_cam (normal).
"""

import math
from collections import Counter

import numpy as np
import torch
from torch import nn

from model import D4RT, Prediction
from model.confidence import SHARES
from pipelines.evaluation.scores import answers_of, constant_depth, measure, require_fit
from pipelines.evaluation.tally import WITHIN, Tally
from pipelines.log import shown
from pipelines.models import load_model
from pipelines.query_table import VALID_BITS
from pipelines.store.reader import Clip, open_different, open_store
from train import losses
from train.averages import LOW_CONFIDENCE, LOW_Z_RATIO
from train.clips import find_clip, read_clip
from train.config import DataConfig, LossConfig
from train.query_batch import QueryBatch
from train.stores import open_mixture

HEADS = {"position": "l3d", "projection": "l2d", "visibility": "lvis", "displacement": "ldisp", "normal": "lnormal"}
LOW_CORRELATION = 0.1  # of depth with the truth, or of doubt with the error: next to none
MISFIT = 0.1  # of a share of answers
MAX_QUERIES = 2048  # per clip
CONFIG = LossConfig()

Row = tuple[str, str, str]
"""Name, numbers, and in words what is bad about them, empty if nothing is."""


def look_into(model: str, data: list[str], clips: int) -> dict[str, list[Row]]:
    """What `diagnose` prints, by store."""
    if clips < 1:
        raise ValueError(f"--clips {clips} must be at least 1")
    loaded = load_model(model, "cuda" if torch.cuda.is_available() else "cpu")
    stores = open_different(data)
    for store in stores:
        require_fit(store, loaded.config)
    found = {store.uri: rows(numbers(loaded, store.uri, min(clips, len(store)))) for store in stores}
    for uri, table in found.items():
        print(uri)
        for name, values, bad in table:
            print(f"  {name:13}{values:64}{bad and '  !! ' + bad}".rstrip())
    return found


def numbers(model: D4RT, uri: str, count: int) -> dict[str, float]:
    """By name: error/TERM, trivial/TERM, masked/TERM, gradient/PART, and the monitors. NaN if undefined."""
    config = DataConfig(mixture={uri: 1.0}, queries=min(open_store(uri).settings.queries, MAX_QUERIES))
    plan, (store,) = open_mixture(config, model.config, seed=0)
    read = [read_clip(find_clip(plan, i), config.queries) for i in range(count)]
    seen = np.concatenate([row["visible"][row["valid"] & VALID_BITS["visible"] > 0] for row in read])
    sums, counts, tally, watched = Counter(), Counter(), Tally(), torch.zeros(len(losses.MONITORS))
    model.zero_grad()
    for i, row in enumerate(shown(read, count, "diagnose", "clip", delay=2)):
        clip = store[plan.clip(i)[1]]
        columns = {name: np.asarray(value)[None] for name, value in row.items() if name != "store"}
        batch = QueryBatch.from_columns(columns | {"dataset": np.zeros(1, np.int64)}, (clip.dataset,)).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            prediction = model(batch.video, batch.aspect, batch.queries)
        terms = losses.loss_terms(prediction, batch, CONFIG, 0)
        loss = sum(getattr(CONFIG, name) * losses.masked_mean(*term)[0] for name, term in terms.items())
        (loss / count).backward()
        with torch.no_grad():
            easy = losses.loss_terms(trivial(batch, clip, seen.mean() if seen.size else 0.5), batch, CONFIG, 0)
        for kind, answered in (("error", terms), ("trivial", easy)):
            for name, (value, mask) in answered.items():
                sums[f"{kind}/{name}"] += value[mask].sum().item()
                counts[f"{kind}/{name}"] += mask.sum().item()
        watched += losses.monitors(prediction, batch, CONFIG).cpu()
        answers = answers_of(model, prediction, clip.world_from_cam)  # the cameras are not judged here
        tally.add(measure(row, answers, clip.world_from_cam, is_metric=clip.is_metric))
    watch = dict(zip(losses.MONITORS, watched.tolist(), strict=True))
    clips = watch["clips"] or math.nan  # with a scale
    confidence = tally.scores()["confidence"]
    parts = {name: [p.grad for p in part.parameters() if p.grad is not None] for name, part in model.named_children()}
    return {
        **{name: sums[name] / (counts[name] or math.nan) for name in sums},
        **{f"masked/{term}": 1 - counts[f"error/{term}"] / (count * config.queries) for term in HEADS.values()},
        "spread_ratio": watch["spread"] / (watch["spread_true"] or math.nan),
        "z_ratio": watch["z_std"] / (watch["z_std_true"] or math.nan),
        "z_correlation": watch["z_correlation"] / clips,
        "confidence": watch["confidence"] / clips,
        **{f"rank_correlation/{name}": value or 0.0 for name, value in confidence["rank_correlation"].items()},
        **{name: math.nan if share is None else share for name, share in confidence["coverage"].items()},
        **{f"gradient/{name}": nn.utils.get_total_norm(grads).item() for name, grads in parts.items() if grads},
    }


def rows(found: dict[str, float]) -> list[Row]:
    """`numbers` as a table, with words."""
    loss = {name: found[f"error/{name}"] for name in losses.TERMS}
    total = sum(getattr(CONFIG, name) * value for name, value in loss.items() if not math.isnan(value))
    table = [("loss", f"{total:.4f}: " + ", ".join(f"{name} {value:.3f}" for name, value in loss.items()), "")]
    for head, term in HEADS.items():
        error, easy, masked = (found[f"{kind}/{term}"] for kind in ("error", "trivial", "masked"))
        worse = easy > 0 and not error < easy  # an answer without error, where nothing moves, cannot be beaten
        bad = "no valid entries: these clips say nothing about it" if masked == 1 else ""
        bad = bad or ("no better than the trivial answer" if worse else "")
        table.append((head, f"error {error:.4f}, trivial {easy:.4f}, masked {masked:.1%}", bad))

    spread, z, correlation = (found[name] for name in ("spread_ratio", "z_ratio", "z_correlation"))
    confidence, order = found["confidence"], found["rank_correlation/all"]
    coverage = [found[name] for name in WITHIN]
    flat = "variance collapse: the answers hardly differ"
    unrelated = "unrelated to the true depth" if correlation < LOW_CORRELATION else ""
    low = "confidence collapse: no answer is trusted" if confidence < LOW_CONFIDENCE else ""
    blind = "says nothing about the error" if order > -LOW_CORRELATION and confidence > 0 else ""
    moving = f"of moving points {found['rank_correlation/moving']:.2f}"
    calibration, off = "none; see register --calibrate-on", ""
    if not math.isnan(coverage[0]):
        calibration = ", ".join(f"{share:.0%} {part:.1%}" for share, part in zip(SHARES, coverage, strict=True))
        worst = max(abs(share - part) for share, part in zip(SHARES, coverage, strict=True))
        off = "the errors it tells are of another size here" if worst > MISFIT else ""
    depth = f"spread {z:.2f} of the true one, correlation {correlation:.2f}"
    table += [
        ("spread", f"{spread:.2f} of the true one", flat if spread < LOW_Z_RATIO else ""),
        ("depth", depth, flat if z < LOW_Z_RATIO else unrelated),
        ("confidence", f"mean {confidence:.3f}, rank correlation with the error {order:.2f}, {moving}", low or blind),
        ("calibration", calibration, off),
    ]
    parts = {name.removeprefix("gradient/"): norm for name, norm in found.items() if name.startswith("gradient/")}
    broken = ", ".join(name for name, norm in parts.items() if not (norm > 0 and math.isfinite(norm)))
    numbers = ", ".join(f"{name} {norm:.2g}" for name, norm in parts.items())
    return [*table, ("gradient", numbers, broken and f"nothing to learn from in {broken}")]


def trivial(batch: QueryBatch, clip: Clip, seen: float) -> Prediction:
    """The answers that need no model; `seen` is the share of visible points."""
    asked = {"uv_norm": batch.uv_norm[0].cpu().numpy(), "t_src": batch.t_src[0].cpu().numpy()}
    xyz = torch.from_numpy(constant_depth(asked, clip.intrinsics, batch.video.shape[2]).xyz)[None].to(batch.xyz)
    logit = torch.full_like(batch.uv_norm[..., 0], seen).logit(eps=1e-4)
    facing = torch.tensor([0.0, 0.0, -1.0]).to(xyz).expand(xyz.shape)
    return Prediction(xyz, batch.uv_norm, logit, torch.zeros_like(xyz), facing, torch.zeros_like(logit))
