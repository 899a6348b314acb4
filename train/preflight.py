"""`python -m train PRESET ... --dry-run`: all that a run needs, checked before it costs anything.

    stores     all there, complete, of the model's clip geometry, with labels that the loss makes use of; those of
               --validation.stores too, which must be others
    weights    what --init names can be read and fits
    shapes     the clips of a worker's step go through the model and back; if that is too large, one clip through the
               first layers
    memory     closed-form estimate of such a step against the device
    disk       room in `out` for keep_checkpoints and one more
    lease      nobody trains it now
    mlflow     reachable and writable

`run` makes the cheap ones of these checks at every start.
"""

from dataclasses import replace

import numpy as np
import ray
import torch

from pipelines import cluster
from pipelines.raw.place import absolute
from train import lease, run_folder, tracking
from train.clips import find_clip, read_clip
from train.config import MIN_POINTS, TrainConfig
from train.errors import OutOfMemory, TrainingDiverged
from train.memory import device_here, explained, memory_here, memory_of, require_fit, step_bytes
from train.query_batch import QueryBatch
from train.start import pinned, read_start, start_model
from train.state import TrainState, held_bytes
from train.step import train_step
from train.stores import check_labels, open_mixture
from train.validation import HeldOut

BUSY_SECONDS = 60  # after which nobody waits for a GPU, only to ask how large it is
REAL_FLOPS = 5e12  # of a forward pass that is tried out: half a minute on a CPU core


def preflight(config: TrainConfig) -> bool:
    """Print a line per check; False if one of them fails."""
    failed = set()
    for check in (check_stores, check_weights, check_shapes, check_memory, check_disk, check_lease, check_mlflow):
        name = check.__name__.removeprefix("check_")
        if name == "lease" and "disk" in failed:  # no run can be there
            continue
        try:
            if name in ("shapes", "memory") and "stores" in failed:
                raise ValueError("cannot be checked without the stores")
            print(f"{name:8} ok      {check(config)}", flush=True)
        except (ValueError, TrainingDiverged, OutOfMemory) as error:
            failed.add(name)
            print(f"{name:8} FAILED  {error}", flush=True)
    return not failed


def check_stores(config: TrainConfig) -> str:
    _, stores = open_mixture(config.data, config.model, config.seed)
    check_labels(stores, config.data, config.loss)
    words = f"{len(stores)} with {sum(map(len, stores)):,} clips of {stores[0].settings.frames} frames"
    if config.validation.stores:
        words += f", {len(HeldOut.open(config.validation, config.model, stores).clips)} clips to judge by"
    return words


def check_weights(config: TrainConfig) -> str:
    if run_folder.has_checkpoint(config):
        return "from the run's own checkpoint"
    return "fresh" if read_start(pinned(config)) is None else f"from {config.init}"


def check_shapes(config: TrainConfig) -> str:
    plan, stores = open_mixture(config.data, config.model, config.seed)
    device = device_here(config)
    limit, _ = memory_of(device, workers=1)
    frames, count = stores[0].settings.frames, config.data.clips_per_worker
    flops = count * (config.model.flops_encode(frames) + config.model.flops_decode(config.data.queries, frames))
    words = "all layers"
    if step_bytes(config, frames) > limit or (device.type == "cpu" and flops > REAL_FLOPS):
        words = f"the first layers, since all are too much for the {device.type} here"
        config = replace(
            config,
            model=replace(config.model, encoder_layers=2, decoder_layers=1),
            data=replace(config.data, queries=MIN_POINTS, clips_per_worker=1),
            accumulate=1,
        )
    clips = [read_clip(find_clip(plan, index), config.data.queries) for index in range(config.data.clips_per_worker)]
    columns = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
    columns["dataset"] = columns.pop("store")
    batch = QueryBatch.from_columns(columns, tuple(store.settings.dataset for store in stores))
    if device.type == "cpu":  # whose bfloat16 can be slow
        config = replace(config, precision="float32")
    with explained(config, 0):
        state = TrainState.create(start_model(config).to(device), config.optim)
        metrics = train_step(state, batch.to(device), config)
    return f"a step of fresh weights, {words}, clips: {len(clips)}, loss: {metrics['loss']:.3f}"


def check_memory(config: TrainConfig) -> str:
    _, stores = open_mixture(config.data, config.model, config.seed)
    return require_fit(config, stores[0].settings.frames, *worker_memory(config))


def worker_memory(config: TrainConfig) -> tuple[float, str]:
    """(bytes that a worker has, words for where), of the cluster of RAY_ADDRESS or else of this machine."""
    if not cluster.is_private():
        cluster.connect()
        gpus = ray.cluster_resources().get("GPU")
        if config.device == "gpu" and not gpus:
            raise ValueError(
                "--device gpu: the cluster has no GPU yet, so its memory is not known; a run waits for one"
            )
        if gpus and config.device != "cpu":
            answer = ray.remote(memory_of).options(num_gpus=1).remote(torch.device("cuda"), 1)
            if not ray.wait([answer], timeout=BUSY_SECONDS)[0]:
                ray.cancel(answer)
                raise ValueError("all GPUs of the cluster are busy, so their memory is not known: try again later")
            return ray.get(answer)
        return ray.cluster_resources()["memory"] / config.workers, "its share of the cluster"
    return memory_here(config)


def check_lease(config: TrainConfig) -> str:
    run = f"{absolute(config.out)}/{config.name}"
    return f"{run} is {'free, and was begun before' if lease.require_free(run) else 'new'}"


def check_disk(config: TrainConfig) -> str:
    return run_folder.check_room(config)


def check_mlflow(config: TrainConfig) -> str:
    uri = tracking.connect()
    tracking.check_writable(config.register_as, held_bytes(config)["model"])
    return f"{uri} answers and can be written"
