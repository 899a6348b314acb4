"""What is learnt of a video where others know tracks in its images and depth along z, but no positions.

St4RTrack's test-time adaptation (2504.13152: its losses of track, depth and alignment), as queries. A point is at q(i)
in frame i and at q(j) in frame j, seen in both; x(uv, s, t, c) is the answer for pixel uv of frame s, at time t, in
camera c:

    reprojection   |K x(q(i), i, j, j) - q(j)|, in images; K is told by the answers, and gets no gradient
    alignment      |x(q(i), i, j, c) - x(q(j), j, j, c)|, c = i and j: one point, pointed at in two frames
    cameras        |x(q(i), i, j, i) - M x(q(i), i, j, j)|, M the motion from x(q(j), j, j, j) to x(q(j), j, j, i)
    depth          |log z - log D|, less its median: the unit of length of a clip is free

Positions are by the mean |z| of the answers, as in training, and compared by their signed logarithm.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model import Prediction, Queries
from model.recipes.alignment import MIN_POINTS, fit_robust, move
from model.recipes.intrinsics import focal_lengths
from pipelines.query_table import VALID_BITS
from train.losses import DEPTH_FLOOR, SCALE_FLOOR, signed_log
from train.pseudo_labels import Columns

WEIGHTS = {"reprojection": 0.5, "alignment": 5.0, "cameras": 1.0, "depth": 10.0}
PAIRS, POINTS, DEPTHS = 4, 64, 512  # of a step, at most: pairs of frames, tracks of each, depths

Decode = Callable[[Queries], Prediction]


@dataclass(frozen=True)
class Drawn:
    """Rows (int64) of a window's labels to be asked about together."""

    pairs: list[np.ndarray]
    """Tracks that are seen in the same two frames."""
    depths: np.ndarray


@dataclass(frozen=True)
class TrackLabels:
    """Which rows (int64) of a window's labels these terms can be made of."""

    columns: Columns
    pairs: list[np.ndarray]
    depths: np.ndarray

    @classmethod
    def of(cls, columns: Columns) -> "TrackLabels":
        """None of them where positions are known, which tell all of it."""
        known = {name: columns["valid"] & bit > 0 for name, bit in VALID_BITS.items()}
        if known["xyz"].any():
            return cls(columns, [], np.empty(0, np.int64))
        inside = ((columns["uv_tgt"] >= 0) & (columns["uv_tgt"] <= 1)).all(axis=1)
        seen = np.flatnonzero(known["uv_tgt"] & known["visible"] & columns["visible"] & inside)
        _, number = np.unique(
            np.column_stack([columns["t_src"][seen], columns["t_tgt"][seen]]), axis=0, return_inverse=True
        )
        groups = [seen[number.reshape(-1) == pair] for pair in range(int(number.max(initial=-1)) + 1)]
        depths = np.flatnonzero(np.isfinite(columns["depth"]) & (columns["weight"] > 0))
        return cls(columns, [rows for rows in groups if len(rows) >= MIN_POINTS], depths)

    def __len__(self) -> int:
        return len(self.pairs) + len(self.depths)

    def draw(self, rng: np.random.Generator, times: int = 1) -> Drawn:
        """Of a step; or `times` as many."""
        pairs = rng.permutation(len(self.pairs))[: times * PAIRS]
        weight = self.columns["weight"][self.depths].astype(np.float64)
        count = min(times * DEPTHS, len(self.depths))
        return Drawn(
            [rng.permutation(self.pairs[pair])[:POINTS] for pair in pairs.tolist()],
            rng.choice(self.depths, count, p=weight / weight.sum()) if count else self.depths,
        )


def track_loss(decode: Decode, columns: Columns, drawn: Drawn, aspect: float, device: torch.device) -> Tensor:
    """() float32: the terms of these rows, weighted; 0 where there are none."""
    loss = torch.zeros((), device=device)
    if drawn.pairs:
        rows = np.concatenate(drawn.pairs)
        answers = _four_ways(decode, columns, rows, device)
        scale = answers[2][:, 2].abs().mean().clamp(min=SCALE_FLOOR)
        loss = loss + _of_tracks([xyz / scale for xyz in answers], columns["uv_tgt"][rows], drawn.pairs, aspect)
    if len(drawn.depths):
        asked = {name: columns[name][drawn.depths] for name in ("uv_norm", "t_src", "t_tgt", "t_cam")}
        z = decode(_queries(device, **asked)).xyz[0, :, 2].float()
        loss = loss + WEIGHTS["depth"] * depth_error(z, torch.from_numpy(columns["depth"][drawn.depths]).to(device))
    return loss


def _four_ways(decode: Decode, columns: Columns, rows: np.ndarray, device: torch.device) -> list[Float[Tensor, "P 3"]]:
    """The points at t_tgt: pointed at in t_src, in cameras t_tgt and t_src; pointed at in t_tgt, likewise."""
    here, there = columns["t_src"][rows], columns["t_tgt"][rows]
    pixels = np.concatenate([columns[name][rows] for name in ("uv_norm", "uv_norm", "uv_tgt", "uv_tgt")])
    queries = _queries(
        device,
        uv_norm=pixels,
        t_src=np.concatenate([here, here, there, there]),
        t_tgt=np.tile(there, 4),
        t_cam=np.concatenate([there, here, there, here]),
    )
    return list(decode(queries).xyz[0].float().chunk(4))


def _queries(device: torch.device, **asked: np.ndarray) -> Queries:
    return Queries(**{name: torch.from_numpy(x)[None] for name, x in asked.items()}).to(device)


def _of_tracks(
    answers: list[Float[Tensor, "P 3"]], uv_tgt: np.ndarray, pairs: list[np.ndarray], aspect: float
) -> Tensor:
    """Reprojection, alignment and cameras, weighted, of answers by their scale, in the order of `pairs`."""
    there, here, own, own_here = answers
    seen = torch.from_numpy(uv_tgt)
    focal = focal_lengths(own.detach().cpu()[None], seen, aspect, shared=True, square=True)[0]
    loss = there.new_zeros(())
    if focal.isfinite().all():
        projected = 0.5 + focal.to(there) * there[:, :2] / there[:, 2:].clamp(min=DEPTH_FLOOR)
        loss = loss + WEIGHTS["reprojection"] * (projected - seen.to(there)).abs().mean(-1).clamp(max=1).mean()
    loss = loss + WEIGHTS["alignment"] / 2 * (_off(there, own) + _off(here, own_here))

    moved, begin = [], 0
    for rows in pairs:
        part = slice(begin, begin + len(rows))
        begin = part.stop
        source, target = (xyz[part].detach().cpu()[None] for xyz in (own, own_here))
        motion = fit_robust(source, target, torch.ones(source.shape[:2]), scale=False).target_from_source[0]
        if motion.isfinite().all():
            moved.append(_off(here[part], move(motion.to(there.device), there[part])))
    return loss + WEIGHTS["cameras"] * torch.stack(moved).mean() if moved else loss


def _off(points: Float[Tensor, "P 3"], others: Float[Tensor, "P 3"]) -> Tensor:
    return (signed_log(points) - signed_log(others)).abs().mean()


def depth_error(z: Float[Tensor, "D"], depth: Float[Tensor, "D"]) -> Tensor:
    """() Mean difference of logarithms once both have one unit; what is predicted behind the camera counts as near."""
    ratio = (z / z.abs().mean().clamp(min=SCALE_FLOOR)).clamp(min=DEPTH_FLOOR).log() - depth.log()
    return (ratio - ratio.median().detach()).abs().mean()
