"""From clip stores to batches: `open_mixture` checks the stores, `worker_batches` gives a worker its batches in order.

Ray Data shuffles nothing and moves no pixels about: each worker streams the numbers of its own clips (`MixturePlan`
says which), tasks read and decode those clips in parallel, a few steps ahead, and the batches arrive in order.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import ray.data

from model import ModelConfig
from pipelines.query_table import VALID_BITS
from pipelines.raw.place import absolute
from pipelines.store.reader import ClipStore, evenly, open_store
from train.augment import Look
from train.config import MIN_POINTS, DataConfig
from train.mixture import MixturePlan
from train.query_batch import QueryBatch
from train.recipe import LossConfig

TARGETS = tuple(VALID_BITS)  # xyz, uv_tgt, visible, displacement, normal
UV_SLACK = 1e-3  # rounding of a projection on the border; pixels instead of [0, 1] are far beyond

READER_CPUS = 0.25  # of a core per reading task: reading waits for the disk or the network half of the time
MAX_READERS = 16  # per worker
BLOCK_BYTES = 4 << 20  # a task reads about this much: scheduling a task costs some 20 ms, a tiny clip is 80 kB
SEGMENT_BYTES = 64 << 20  # read ahead per worker, or two steps if that is more
SCANNED = 64  # clips of a store that are looked at for labels of which its index says nothing
FIRST_STEPS = 8  # the first segment is short, so that training starts soon


def open_mixture(config: DataConfig, model: ModelConfig, seed: int) -> tuple[MixturePlan, list[ClipStore]]:
    """Open every store of the mixture and check that it fits the model. ValueError, naming the store, if not."""
    if not config.mixture:
        raise ValueError("data.mixture is empty: name at least one clip store, --data.mixture.STORE WEIGHT")
    stores = [open_store(absolute(uri)) for uri in config.mixture]
    frames = stores[0].settings.frames
    for store in stores:
        settings = store.settings
        if settings.image_size != model.image_size:
            raise ValueError(
                f"store {store.uri} has frames of {settings.image_size} pixels, the model takes {model.image_size}: "
                f"convert with --image-size {model.image_size}, or train with --model.image-size {settings.image_size}"
            )
        if settings.frames > model.clip_frames:
            raise ValueError(
                f"store {store.uri} has clips of {settings.frames} frames, the model takes at most "
                f"{model.clip_frames}: convert with --frames {model.clip_frames}, or raise --model.clip-frames"
            )
        if settings.frames != frames:
            raise ValueError(
                f"store {store.uri} has clips of {settings.frames} frames, store {stores[0].uri} of {frames}: "
                "the stores of a mixture must agree, convert one of them again"
            )
        if settings.queries < config.queries:
            raise ValueError(
                f"store {store.uri} holds {settings.queries} queries per sample, data.queries asks for "
                f"{config.queries}: lower it, or convert with --queries {config.queries}"
            )
    plan = MixturePlan(
        stores=tuple(store.uri for store in stores),
        weights=tuple(map(float, config.mixture.values())),
        lengths=tuple(map(len, stores)),
        samples=tuple(store.settings.samples for store in stores),
        seed=seed,
    )
    return plan, stores


def check_labels(stores: list[ClipStore], config: DataConfig, loss: LossConfig) -> None:
    """ValueError, naming store and dataset, for a store without a single label that the loss makes use of."""
    for store in stores:
        # The index knows of points; a clip with too few of them has no scale.
        points = config.queries * max(store.column("share_valid").tolist(), default=0)
        scale = points >= MIN_POINTS
        terms = {"xyz": (loss.l3d or loss.ldepth) and scale, "uv_tgt": loss.l2d, "visible": loss.lvis}
        terms["displacement"] = loss.ldisp and (scale or loss.displacement_norm == "metric")
        terms["normal"] = loss.lnormal
        used = [name for name, weight in terms.items() if weight]
        bits = sum(VALID_BITS[name] for name in used)
        numbers = evenly(len(store), SCANNED)
        if "xyz" not in used and not any((store[n].all_queries()["valid"] & bits).any() for n in numbers):
            raise ValueError(
                f"store {store.uri}: dataset {store.settings.dataset} has no label that loss.* makes use of: at most "
                f"{points:.0f} points per clip ({MIN_POINTS} make a scale), and in {len(numbers)} clips nothing of "
                f"{', '.join(used) or 'anything else'}; leave it out of data.mixture"
            )
    if unknown := sorted(loss.dynamic_reweight.keys() - {store.settings.dataset for store in stores}):
        raise ValueError(
            f"loss.dynamic_reweight names {', '.join(unknown)}, but the stores of data.mixture hold "
            f"{', '.join(sorted({store.settings.dataset for store in stores}))}"
        )


def read_clip(plan: MixturePlan, index: int, num_queries: int, augment: bool = False) -> dict[str, Any]:
    """Clip number `index` of the run with its queries, by name. ValueError if its targets are out of range.

    What is drawn, queries and augmentation, depends on (seed, index) alone.
    """
    number, clip_number, sample = plan.clip(index)
    clip = open_store(plan.stores[number])[clip_number]
    queries, video = clip.queries(sample), clip.video
    rng = np.random.default_rng([plan.seed, index])
    if num_queries < len(queries["valid"]):
        chosen = rng.choice(len(queries["valid"]), num_queries, replace=False)
        queries = {name: values[chosen] for name, values in queries.items()}
    if augment:
        video = Look.random(rng).apply(video)
    for name in TARGETS:
        known = queries["valid"] & VALID_BITS[name] > 0
        check_target(name, queries[name][known], f"dataset {clip.dataset}, clip {clip.id}, store {plan.stores[number]}")
        queries[name][~known] = 0
    return {"video": video, "aspect": np.float32(clip.aspect), "store": number, **queries}


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


def read_clips(rows: dict[str, np.ndarray], *, plan: MixturePlan, config: DataConfig) -> dict[str, np.ndarray]:
    """What a reading task does: the clips of these numbers of the run."""
    read = [read_clip(plan, int(index), config.queries, config.augment) for index in rows["item"]]
    return {name: np.stack([clip[name] for clip in read]) for name in read[0]}


def worker_batches(
    config: DataConfig,
    plan: MixturePlan,
    stores: list[ClipStore],
    *,
    steps: range,
    first_clip: int,
    rank: int,
    world: int,
    reader_cpus: float,
) -> Iterator[QueryBatch]:
    """One batch per step for worker `rank` of `world`, read with at most `reader_cpus` cores of the cluster.

    `first_clip` is the run's clip with which `steps` begin, a pure function of the steps before and how many workers
    did them: a run of always the same number of workers has the same batches wherever `steps` begins, one whose number
    changes goes on with the clips that come next.
    """
    batch, settings = config.clips_per_worker, stores[0].settings
    clip_bytes = settings.frames * settings.image_size**2 * 3 + config.queries * 64
    rows_per_block = max(1, BLOCK_BYTES // clip_bytes)
    steps_per_segment = max(2, SEGMENT_BYTES // (batch * clip_bytes))
    names = tuple(sorted({store.settings.dataset for store in stores}))
    dataset_of_store = np.array([names.index(store.settings.dataset) for store in stores])

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=max(READER_CPUS, min(reader_cpus, MAX_READERS * READER_CPUS))
    )

    def read(segment: range) -> list[dict[str, np.ndarray]]:
        """The batches of some steps, as views of Ray's object store."""
        # Worker clip number to run clip number: a step deals `batch` clips to each worker in turn.
        firsts = [first_clip + ((step - steps.start) * world + rank) * batch for step in segment]
        indices = [first + clip for first in firsts for clip in range(batch)]
        rows = ray.data.from_items(indices, override_num_blocks=-(-len(indices) // rows_per_block))
        arguments = {"plan": plan, "config": config}
        clips = rows.map_batches(read_clips, batch_size=None, fn_kwargs=arguments, num_cpus=READER_CPUS)
        return list(clips.iter_batches(batch_size=batch))

    ends = [*range(steps.start + min(FIRST_STEPS, steps_per_segment), steps.stop, steps_per_segment), steps.stop]
    segments = [range(start, end) for start, end in pairwise([steps.start, *ends]) if start < end]
    if not segments:
        return
    # A whole segment is read while the one before it is used. Read through an iterator instead, Ray Data would plan
    # and wait all the time in a thread of this process, and the training thread would wait for Python's lock: on two
    # cores that made steps three times as long.
    with ThreadPoolExecutor(max_workers=1) as background:
        upcoming = [background.submit(read, segment) for segment in segments[:1]]
        for following in [*segments[1:], None]:
            current = upcoming.pop().result()
            if following is not None:
                upcoming.append(background.submit(read, following))
            for columns in current:
                columns["dataset"] = dataset_of_store[columns.pop("store")]
                yield QueryBatch.from_columns(columns, names)
