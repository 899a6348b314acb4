"""Clip number i of a run, as it is trained on: read, its queries drawn and checked, its colours changed.

NumPy only: the processes that do this start in half a second.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.query_table import VALID_BITS, query_dtype
from pipelines.store.layout import StoreSettings
from pipelines.store.reader import Clip, open_store
from train.augment import Look
from train.mixture import MixturePlan

TARGETS = tuple(VALID_BITS)  # xyz, uv_tgt, visible, displacement, normal
TIMES = ("t_src", "t_tgt", "t_cam")
UV_SLACK = 1e-3  # rounding of a projection on the border; pixels instead of [0, 1] are far beyond


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A clip of a run, and all that is needed to read it: not the index of its store, which may be large."""

    index: int
    """Number of the clip in the run."""
    seed: int
    store: int
    """Number of the store in the mixture."""
    clip: Clip
    sample: int
    """Of its samples of queries."""


def find_clip(plan: MixturePlan, index: int) -> Planned:
    """Clip number `index` of the run."""
    store, clip, sample = plan.clip(index)
    return Planned(index=index, seed=plan.seed, store=store, clip=open_store(plan.stores[store])[clip], sample=sample)


def read_clip(planned: Planned, num_queries: int, augment: bool = False) -> dict[str, Any]:
    """The clip with its queries, by name: a clip of `batch_dtype`.

    What is drawn, queries and augmentation, depends on (seed, index) alone. ValueError, naming clip and store, if it
    cannot be read, or asks or answers what cannot be.
    """
    clip = planned.clip
    queries, video = clip.queries(planned.sample), clip.video
    rng = np.random.default_rng([planned.seed, planned.index])
    if num_queries < len(queries["valid"]):
        chosen = rng.choice(len(queries["valid"]), num_queries, replace=False)
        queries = {name: values[chosen] for name, values in queries.items()}
    if augment:
        video = Look.random(rng).apply(video)
    where = f"dataset {clip.dataset}, clip {clip.id}, store {clip.store}"
    check_asked(queries, clip.num_frames, where)
    for name in TARGETS:
        known = queries["valid"] & VALID_BITS[name] > 0
        check_target(name, queries[name][known], where)
        queries[name][~known] = 0
    return {"video": video, "aspect": np.float32(clip.aspect), "store": planned.store, **queries}


def check_asked(queries: dict[str, np.ndarray], num_frames: int, where: str) -> None:
    """ValueError for a question about a place outside the frame or a time outside the clip: the model, which trusts
    its training data, would answer one about another frame."""
    uv = queries["uv_norm"]
    if not ((uv >= 0) & (uv <= 1)).all():  # NaN is neither
        raise ValueError(
            f"{where}: uv_norm runs from {uv.min():g} to {uv.max():g}; it must lie in [0, 1]: pixels must be divided "
            "by (W, H); convert the store again"
        )
    for name in TIMES:
        if (latest := queries[name].max(initial=0)) >= num_frames:  # none is below 0: they are stored unsigned
            raise ValueError(
                f"{where}: {name} has {latest}, but the clip has {num_frames} frames: times run from 0 to "
                f"{num_frames - 1}; convert the store again"
            )


def check_target(name: str, known: np.ndarray, where: str) -> None:
    """ValueError for known targets of one kind that cannot be true."""
    if not np.isfinite(known).all():
        raise ValueError(f"{where}: {name} is not finite where it is marked valid; convert the store again")
    if name == "uv_tgt" and known.size and (known.min() < -UV_SLACK or known.max() > 1 + UV_SLACK):
        raise ValueError(
            f"{where}: uv_tgt runs from {known.min():g} to {known.max():g} where it is marked valid; it must lie in "
            "[0, 1]: pixels must be divided by (W, H) and points outside the image marked unknown"
        )
    if name == "normal" and known.size and np.abs(np.square(known.astype(np.float32)).sum(-1) - 1).max() > 0.02:
        raise ValueError(f"{where}: normal is not of unit length where it is marked valid; convert the store again")


def batch_dtype(clips: int, queries: int, settings: StoreSettings) -> np.dtype:
    """A batch in memory: the columns of so many clips, each column in one piece."""
    frames, size = settings.frames, settings.image_size
    columns = [("video", "u1", (frames, size, size, 3)), ("aspect", "<f4", ()), ("store", "<i8", ())]
    columns += [(name, field.base, (queries, *field.shape)) for name, (field, _) in query_dtype(frames).fields.items()]
    return np.dtype([(name, kind, (clips, *shape)) for name, kind, shape in columns], align=True)
