"""What each training worker does: restore, then step by step, with curves and checkpoints on the way.

Weights, clips, random numbers and curves of a step follow from the newest whole checkpoint alone, so it does not matter
how often and by what a run was interrupted.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from pyarrow.fs import LocalFileSystem
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.torch import get_device

from pipelines import cluster, telemetry
from pipelines.partial import scratch_path
from pipelines.store.reader import ClipStore
from train import memory, parallel, run_folder
from train.averages import Averages
from train.checkpoint import CheckpointWriter
from train.config import TrainConfig
from train.errors import OutOfMemory, TrainingDiverged
from train.feed import Feed
from train.lease import Lease
from train.mixture import MixturePlan
from train.run_folder import Position
from train.start import start_model
from train.state import TrainState
from train.step import Taken, take_step
from train.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What the command tells every worker."""

    config: TrainConfig
    plan: MixturePlan
    stores: list[ClipStore]
    tracking_uri: str
    run_id: str
    trained_on: frozenset[str]
    """Digests of the clip stores behind the weights, those of `start` among them."""
    validation: Validation | None
    lease: Lease
    """Of the command: without it nothing may be written."""
    progress: ray.actor.ActorHandle
    start: ray.ObjectRef | None
    """The weights that `config.init` names: read once, so that all workers and all restarts have the same. None if they
    are to be fresh, or if there was a checkpoint to go on from."""
    reader_cpus: float
    """Cores per worker for reading clips."""


def train_worker(loop_config: dict[str, Any]) -> tuple[int, str | None]:
    """What each worker does: restore, then step by step until `config.steps` or until the command is told to stop.

    Returns the steps done, and why the run cannot be finished, if so: it diverged, or its last checkpoint cannot be
    scored. It would be the same again, so there is no other try; nor is there for OutOfMemory and NotShared
    (`train/failures.py`).
    """
    cluster.end_with_node()
    loop: Loop = ray.get(loop_config["loop"])
    config, context = loop.config, ray.train.get_context()
    torch.set_num_threads(max(1, cluster.node_cores() // context.get_local_world_size()))
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where torch.distributed looks for what has no device
    if context.get_world_rank() == 0:
        loop.progress.workers_are_up.remote(True)
        loop.progress.add.remote("workers are up: making the model, reading the first clips")
    needed = [f"{loop.lease.run}/{run_folder.RECORD}", *(f"{store}/store.json" for store in loop.plan.stores)]
    run_folder.wait_for(needed, loop.progress.add.remote if context.get_local_rank() == 0 else str)
    loop.lease.require_held()
    try:
        frames = loop.stores[0].settings.frames
        present = replace(config, workers=context.get_world_size(), min_workers=None)  # who share what there is
        memory.require_fit(present, frames, *memory.memory_of(device, context.get_local_world_size()))
    except ValueError as error:
        raise OutOfMemory(str(error)) from error
    said = parallel.words(config, device)  # on all workers, lest others wait for one that has no kernel
    if context.get_world_rank() == 0:
        loop.progress.add.remote(said)
    readers, say = max(1, round(loop.reader_cpus)), loop.progress.add.remote
    with Feed(config.data, loop.plan, loop.stores, readers=readers, device=device, say=say) as feed:
        return train(loop, feed, device)


def train(loop: Loop, feed: Feed, device: torch.device) -> tuple[int, str | None]:
    """The same, while the feed's readers start and then read ahead."""
    config, context = loop.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    frames = loop.stores[0].settings.frames
    model = start_model(config, None if loop.start is None else ray.get(loop.start)).to(device)
    model.trained_on = loop.trained_on
    state = TrainState.create(model, config.optim, shard=config.shard, precision=config.precision)
    name, before = restore(state, rank)
    if name is None and loop.start is None and config.init is not None:
        raise ValueError(f"the checkpoints of {loop.lease.run} are gone since the command began: call it again")
    if rank == 0 and name:
        loop.progress.add.remote(going_on(before, world, config))
    checkpoints, failed = CheckpointWriter(loop.lease, rank), None
    if name and config.validates(state.step):
        scored = broadcast_from_rank_zero(loop.validation.scores(name) is not None if rank == 0 else None)
        failed = None if scored else validate(loop, state, name, checkpoints)
    state.network = parallel.beside_others(state.model)
    log = None
    if rank == 0:
        from train import curves  # and MLflow, to which no other worker speaks

        log = curves.MetricLog(loop.tracking_uri, loop.run_id, before.unsent, loop.progress.add.remote)
        loop.progress.add.remote(f"first step; then a line every {config.log_every} steps")
    averages, taken = Averages(config, state.step, world), None
    batches = feed.batches(steps=range(state.step, config.steps), first_clip=before.clips, rank=rank, world=world)
    clips_per_step = world * config.data.clips_per_worker

    def finish(step: Taken) -> None:
        """Take down the metrics of a step."""
        first = before.clips + (step.step - before.step) * clips_per_step
        skipped = len(state.skipped)
        averages.add(step.metrics(state, config, lambda place: loop.plan.words(first + place)))
        if rank == 0 and len(state.skipped) > skipped:
            left = config.max_skipped - len(state.skipped)
            loop.progress.add.remote(f"warning: step left out, {left} more may be: {state.skipped[-1]}", step.step)

    for batch in averages.timed(batches):
        # Random numbers of a step, on any device: nothing of them need be kept, and no worker has another's.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, state.step, rank]).generate_state(1)[0]))
        point = (state.step + 1) % config.log_every == 0 or state.step + 1 == config.steps
        try:
            with memory.explained(config, state.step):
                now = take_step(state, batch, config)
            # While the device works on this step, those of the step before are read; at a point of the curves, both.
            for step in [taken, now] if point else [taken]:
                if step is not None:
                    finish(step)
            taken = None if point else now
        except TrainingDiverged as error:  # on all workers
            failed = str(error)
            break
        last = state.step == config.steps
        clips = before.clips + (state.step - before.step) * clips_per_step
        stop = False
        if point:
            telemetry.show("train", {"clips_ordered": feed.ordered()}, run=config.name, rank=str(rank))
            if log:
                metrics, lines = averages.close(state.step)
                metrics |= parallel.usage(config, frames, metrics["seconds_per_step"], device)
                metrics |= {"clips": clips, "workers": world}
                log.write(state.step, metrics)
                telemetry.show("train", {"skipped_steps": 0} | metrics | {"step": state.step}, run=config.name)
                for line in lines:
                    loop.progress.add.remote(line, state.step)
            stop = broadcast_from_rank_zero(ray.get(loop.progress.stopping.remote()) if rank == 0 else None)
        if state.step % config.checkpoint_every == 0 or last or stop:
            position = Position(
                step=state.step,
                clips=clips,
                workers=world,
                clips_per_worker=config.data.clips_per_worker,
                unsent=log.unsent() if log else [],
            )
            name = checkpoints.write(state, position)
            if config.validates(state.step) and (last or not stop):  # else whoever goes on does it
                began = time.perf_counter()
                failed = validate(loop, state, name, checkpoints)
                averages.skip(time.perf_counter() - began)
        if stop:
            break
    if log:
        log.close()
    checkpoints.close()
    return state.step, failed


def validate(loop: Loop, state: TrainState, name: str, checkpoints: CheckpointWriter) -> str | None:
    """Score the checkpoint of that name, which is the present state. All workers must call this.

    If that fails, training goes on, and the reason is shown; of the last checkpoint, it is returned.
    """
    began = time.perf_counter()
    scores, failed = loop.validation.measure(state.result, name)
    seconds = time.perf_counter() - began
    if failed and state.step == loop.config.steps:
        return f"{name} cannot be validated ({failed}): the same command with --name {loop.config.name} tries again"
    if checkpoints.rank == 0:
        if failed:
            loop.progress.add.remote(f"validation of {name} failed: {failed}")
        else:
            checkpoints.afterwards(lambda: loop.validation.publish(name, scores, seconds))
    return None


def restore(state: TrainState, rank: int) -> tuple[str | None, Position]:
    """Bring the state to the newest whole checkpoint, if there is one; its name, and where that is.

    All workers must call this.
    """
    context = ray.train.get_context()
    fs, run = context.get_storage().storage_filesystem, context.get_storage().experiment_fs_path
    path = broadcast_from_rank_zero(run_folder.newest(fs, run) if rank == 0 else None)
    known = ray.train.get_checkpoint()
    if path and (known is None or known.path != path):  # the worker died before Ray Train heard of it
        ray.train.report(
            {"step": run_folder.step_of(Path(path).name)},
            Checkpoint(path, fs) if rank == 0 else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )
    if rank == 0:
        listed = ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        run_folder.sweep(fs, run, {entry.checkpoint.path for entry in listed})
    if path is None:
        return None, Position()
    with on_node(Checkpoint(path, fs)) as folder:
        state.restore(folder)
        return Path(path).name, Position.load(folder)


@contextmanager
def on_node(checkpoint: Checkpoint) -> Iterator[Path]:
    """A local folder with the files of a checkpoint, downloaded once per node. All workers must use it.

    Not `Checkpoint.as_directory`: a worker that comes late may find there what another is just deleting.
    """
    if isinstance(checkpoint.filesystem, LocalFileSystem):
        yield Path(checkpoint.path)
        return
    key = broadcast_from_rank_zero(uuid.uuid4().hex)
    first = ray.train.get_context().get_local_rank() == 0
    with run_folder.downloaded(checkpoint, key) if first else nullcontext(scratch_path(key)) as folder:
        barrier()
        yield folder
        barrier()


def going_on(before: Position, world: int, config: TrainConfig) -> str:
    """What a run that goes on has to say."""
    line = f"going on from the checkpoint of step {before.step}, with clip {before.clips} of the run"
    clips, clips_before = world * config.data.clips_per_worker, before.workers * before.clips_per_worker
    if world == before.workers and clips == clips_before:
        return line
    line += f"; workers: {world}, before {before.workers}"
    if clips == clips_before:
        return f"{line}; a step sees {clips} clips as before, but shared out otherwise: equal up to rounding"
    line += f"; a step sees {clips} clips, before {clips_before}, with the same learning rate"
    if clips_before % world == 0:
        line += f" (--data.clips-per-worker {clips_before // world} keeps it at {clips_before})"
    return line
