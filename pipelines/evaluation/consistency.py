"""Query consistency: does the model give one answer for one physical point at one time, however it is asked?

A group asks for one true point g in several ways (through other t_src, t_cam or windows); its members are the answers,
p_k, in one frame of comparison, times one s = median ||g|| / median ||p|| over all finite members.

    spread D   mean over the pairs of a group of ||p_k - p_l||
    error E    mean over its members of ||p_k - g||
    ratio      mean D / mean E: 0, all ways agree, right or wrong; sqrt 2, they err independently; never above 2

A low spread with a large error is consistent and wrong: the two are told together.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

FAR = 0.1  # metres


def consistency(
    truth: Float[np.ndarray, "G 3"], members: Float[np.ndarray, "G K 3"], asked: Bool[np.ndarray, "G K"]
) -> dict[str, Any]:
    """Spread and error over the groups that keep two members or more; members that are not finite leave, and are
    counted as lost. `group_spread` and `group_epe` are those of each group that is left."""
    finite = asked & np.isfinite(members).all(axis=-1) & np.isfinite(truth).all(axis=-1)[:, None]
    found: dict[str, Any] = {"members_asked": int(asked.sum()), "members_lost": int((asked & ~finite).sum())}
    norms = np.linalg.norm(np.where(finite[..., None], members, 0.0).astype(np.float64), axis=-1)[finite]
    true_norms = np.broadcast_to(np.linalg.norm(truth.astype(np.float64), axis=-1)[:, None], finite.shape)[finite]
    scale = float(np.median(true_norms) / np.median(norms)) if len(norms) else float("nan")

    spreads, errors = [], []
    for true, group, kept in zip(truth, members, finite, strict=True):
        if kept.sum() < 2:
            continue
        points = scale * group[kept].astype(np.float64)
        first, second = np.triu_indices(len(points), 1)
        spreads.append(np.linalg.norm(points[first] - points[second], axis=-1).mean())
        errors.append(np.linalg.norm(points - true, axis=-1).mean())

    found |= {"scale": scale, "groups": len(spreads), "group_spread": spreads, "group_epe": errors}
    if not spreads:
        return found
    return found | {
        "spread_mean": float(np.mean(spreads)),
        "spread_median": float(np.median(spreads)),
        "epe_mean": float(np.mean(errors)),
        "ratio": float(np.mean(spreads) / np.mean(errors)) if np.mean(errors) > 0 else 0.0,
        "share_above_0p1": float(np.mean(np.array(spreads) > FAR)),
    }
