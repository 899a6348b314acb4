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
"""Share of the distance by which two windows may always differ about one point."""

NEAR = 3
"""Beyond it, by so many times as much as is typical of the points that go on."""

HARDER = 3
"""Where a point is at another time is known less well than a landmark at its own: by so many times, at most."""

MOST_DISAGREEMENT = 0.2
"""But by no more than this, at which different things of a scene begin to be taken for one another."""

VOTES = 0.25
"""Share of the instants at which they must be as near."""

RIGHT_SHARE = 0.5
"""Of the candidates, at least so many are taken to be right: the typical disagreement is the median of theirs."""


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


@dataclass(frozen=True)
class Comparison:
    """P points as a window knows them, and K candidates for each in the next one."""

    left: Tensor
    """(P, K) how far from being one point they are, as a share of the distance; infinite where too few instants vote
    for it."""
    votes: Tensor
    """(P, K) share of the instants at which they are near each other."""


def compare(there: Tensor, here: Tensor, residual: float) -> Comparison:
    """Is it one and the same point?

    An instant votes for it where the two are near each other, measured by the `residual` of the seam; nonsense is near
    by no chance. Over the instants that do, `VOTES` of all at least, noise averages out.

    Args:
        there: (P, C, 3), at C instants in one camera, as the window says that knows the points.
        here: (P, K, C, 3), as the new one says of each candidate, in the unit of the other.
    """
    difference = (here - there[:, None]) / there.norm(dim=-1)[:, None, :, None]  # (P, K, C, 3)
    near = difference.norm(dim=-1) < min(NEAR * max(AGREEMENT, HARDER * residual), MOST_DISAGREEMENT)
    left = difference.masked_fill(~near[..., None], torch.nan).nanquantile(0.5, dim=2).norm(dim=-1)
    votes = near.double().mean(dim=-1)
    return Comparison(torch.where(votes >= VOTES, left, torch.inf), votes)


def choose(seen: Tensor, compared: Comparison, residual: float) -> Tensor:
    """(P,) the candidate to go on from, -1 if there is none: of those that are the point, the one that was seen best,
    for which most instants vote, and of which least is left.

    A model that is off by 5 % disagrees with itself by as much about what it knows well, so there is no fixed bound: no
    more may be left than `NEAR` times what is typical of these points, which the landmarks of the seam bound in turn.

    Args:
        seen: (P, K), as `Sightings.seen`; 0 is no candidate.
    """
    asked = compared.left[seen > 0].sort().values
    if len(asked) == 0:
        return torch.full((len(seen),), -1)
    typical = max(AGREEMENT / NEAR, min(float(asked[int(len(asked) * RIGHT_SHARE / 2)]), HARDER * residual))
    left = torch.where(seen > 0, compared.left, torch.inf)
    score = seen * compared.votes / (1 + (left / typical).square())
    best, which = score.masked_fill(left >= min(NEAR * typical, MOST_DISAGREEMENT), 0).max(dim=1)
    return torch.where(best > 0, which, -1)


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
