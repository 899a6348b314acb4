"""Who is who in the next window: a track goes on from a pixel that the model itself gave, if the windows agree on it.

Nothing here asks a model. Votes are taken in 3D, over all frames that two windows share.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder import Prediction

CANDIDATES = 6
"""Shared frames from which a track may go on, that are tried."""

MEMORY_FRAMES = 6
"""Earlier frames that are shown together with a window, at most, to know what it does not see at its begin."""

ONCE_MORE = 0.05
"""What another memory frame is worth that saw the same, where one is worth 1."""

AGREEMENT = 0.01
"""Share of the distance by which two windows may differ about one point; or the residual of their seam, if larger."""

MOST_DISAGREEMENT = 0.03
"""But no more than this: where windows are joined worse, nobody is known again."""

NEAR = 3
"""By so many times as much at one instant."""

VOTES = 0.25
"""Share of the instants at which they must be as near."""


@dataclass(frozen=True)
class Sightings:
    """Where N points were seen in frames, the same M for all or M of its own for each, and how well."""

    frames: Tensor
    """(M,) or (N, M) int64."""
    uv_norm: Tensor
    """(N, M, 2)."""
    seen: Tensor
    """(N, M): visibility times confidence; 0 where a point was hidden or outside the image."""

    def of(self, columns: list[int]) -> "Sightings":
        """Some of the frames."""
        return Sightings(self.frames[columns], self.uv_norm[:, columns], self.seen[:, columns])

    def best(self, rows: Tensor, count: int) -> "Sightings":
        """Of some points, the frames in which each was seen best, best first."""
        seen, columns = self.seen[rows].topk(min(count, len(self.frames)), dim=1)
        return Sightings(self.frames[columns], self.uv_norm[rows[:, None], columns], seen)


def how_well_seen(answers: Prediction) -> Tensor:
    """`Sightings.seen` of answers, in the shape of their confidence. What is not a number is not seen."""
    inside = ((answers.uv_tgt >= 0) & (answers.uv_tgt <= 1)).all(-1)
    score = answers.visible_logit.sigmoid() * answers.confidence
    return torch.where(answers.visible & inside, score.nan_to_num(), 0.0)


def agree(there: Tensor, here: Tensor, tolerance: float) -> Tensor:
    """Is it one and the same point, (P, K)? P points there, K candidates each here, at C instants in one camera.

    An instant votes for it where the two are near each other; nonsense is near by no chance. Over the instants that do,
    `VOTES` of all at least, noise averages out, and what is left must be below the tolerance.

    Args:
        there: (P, C, 3), as the window says that knows the point.
        here: (P, K, C, 3), as the new one says of each candidate, in the unit of the other.
        tolerance: as a share of the distance.
    """
    difference = (here - there[:, None]) / there.norm(dim=-1)[:, None, :, None]  # (P, K, C, 3)
    votes = difference.norm(dim=-1) < NEAR * tolerance
    difference = difference.masked_fill(~votes[..., None], torch.nan).nanquantile(0.5, dim=2)  # (P, K, 3)
    enough = votes.double().mean(dim=-1) >= VOTES
    return enough & (difference.norm(dim=-1) < tolerance)


def choose(seen: Tensor, agreeing: Tensor) -> Tensor:
    """(P,) the candidate to go on from: of those that agree (P, K), the one seen best; -1 if there is none."""
    score = torch.where(agreeing & (seen > 0), seen, -1.0)
    best_score, which = score.max(dim=1)
    return torch.where(best_score > 0, which, -1)


def choose_memory(seen: Tensor, gap: Tensor, limit: int) -> list[int]:
    """Which earlier frames to show again, so that each of P hidden points was seen in some: columns, best first.

    Greedily the frame that saw most of what none yet saw, then once more of the rest; frames long ago count less.

    Args:
        seen: (P, M), as `Sightings.seen`.
        gap: (M,) how long ago, in windows.
    """
    chosen: list[int] = []
    times = torch.zeros(len(seen))
    for _ in range(min(limit, seen.shape[1])):
        gain = (seen * ONCE_MORE ** times[:, None]).sum(dim=0) / (1 + gap)
        gain[chosen] = 0
        frame = int(gain.argmax())
        if gain[frame] <= 0:
            break
        chosen.append(frame)
        times += seen[:, frame] > 0
    return chosen
