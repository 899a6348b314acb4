"""A training run on Ray: `run` is the command's side, `train_worker` what each worker does.

A run is a folder (see `train/run_folder.py`). If a worker dies, all restart from the last checkpoint; if the command
dies, calling it again with the same --name goes on from there. Either way the run continues as if nothing had
happened: same weights, same clips, each logged step once. Other numbers of workers go on with the clips that come next.
"""

import os
import re
import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointConsistencyMode,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    ValidationConfig,
)
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device
from safetensors import SafetensorError
from torch.nn.parallel import DistributedDataParallel

from pipelines import cluster
from pipelines.clip_store import ClipStore
from train import run_folder, tracking
from train.batches import absolute, check_labels, open_mixture, stream
from train.champion import register
from train.config import TrainConfig
from train.errors import CheckpointFailed, RunFailed, TrainingDiverged
from train.mixture import MixturePlan
from train.progress import printed_progress
from train.run_folder import Position
from train.start import pinned, start_model, starting_weights
from train.step import MODEL, TrainState, train_step
from train.validation import HeldOut, Validation
from train.window import Window

TRAIN_SHARE = 0.7  # of the cluster's CPUs, at most one per worker; the rest reads clips
VALIDATION_SHARE = 1 / 6  # of what they leave on a node, for the task that validates: on two CPUs all readers fit too
RESIZE_SECONDS = 60  # how often an elastic run looks whether there is room for more workers


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What the command tells every worker."""

    config: TrainConfig
    plan: MixturePlan
    stores: list[ClipStore]
    tracking_uri: str
    run_id: str
    progress: ray.actor.ActorHandle
    start: ray.ObjectRef | None
    """The weights that `config.init` names: read once, so that all workers and all restarts have the same."""
    reader_cpus: float
    """Cores per worker for reading clips."""


def run(config: TrainConfig) -> str:
    """Train, register the last checkpoint, and return its URI, `models:/NAME/VERSION`.

    The alias moves to it; with validation only if it is better than the champion (`train/champion.py`).

    Raises ValueError before anything starts if config, stores and model do not fit together, and RunFailed if workers
    failed more than `max_failures` times or the last checkpoint cannot be validated.
    """
    plan, stores = open_mixture(config.data, config.model, config.seed)
    check_labels(stores, config.data, config.loss)
    held_out = HeldOut.open(config.validation, config.model, stores) if config.validation.stores else None
    run_folder.check_room(config)
    config = pinned(config)
    start = starting_weights(config)
    cluster.connect()
    start = None if start is None else ray.put(start)  # which holds them from here on
    tracking_uri = tracking.connect()
    run_id = run_folder.claim(config, stores)
    cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
    worker_cpus = min(1.0, TRAIN_SHARE * cpus / config.workers)
    validation_cpus, validation_gpus = 0.0, int(gpus > config.workers)
    if held_out:
        nodes = sum(node["Alive"] for node in ray.nodes())
        validation_cpus = min(1.0, VALIDATION_SHARE * (cpus - config.workers * worker_cpus) / nodes)
    scaling = ScalingConfig(
        num_workers=config.workers if config.min_workers is None else (config.min_workers, config.workers),
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": round(worker_cpus, 2)},
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )
    fs, path = run_folder.open_folder(config.out)
    run_folder.mend(fs, f"{path}/{config.name}")
    kind = "GPU" if gpus else "CPU"
    print(f"run {config.name}: {config.steps} steps on {config.workers} {kind} workers, in {config.out}/{config.name}")
    if 0 < gpus < (config.min_workers or config.workers):
        print(f"the cluster has {gpus:.0f} GPUs now: waiting for more, or start again with fewer --workers")
    if held_out and gpus and not validation_gpus:
        print("validation runs on CPUs while training does: a GPU more than there are --workers would make it fast")
    with printed_progress() as progress:
        loop = Loop(
            config=config,
            plan=plan,
            stores=stores,
            tracking_uri=tracking_uri,
            run_id=run_id,
            progress=progress,
            start=start,
            reader_cpus=(cpus - validation_cpus) / config.workers - worker_cpus,
        )
        validation = held_out and Validation(
            held_out=held_out,
            pictures=config.validation.pictures,
            run=f"{absolute(config.out)}/{config.name}",
            tracking_uri=tracking_uri,
            run_id=run_id,
            progress=progress,
        )
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"loop": loop},
            scaling_config=scaling,
            validation_config=validation
            and ValidationConfig(
                fn=validation,
                ray_remote_kwargs={"num_cpus": round(validation_cpus, 2), "num_gpus": validation_gpus},
            ),
            run_config=RunConfig(
                name=config.name,
                failure_config=FailureConfig(max_failures=config.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
                storage_path=path,
                storage_filesystem=fs,
            ),
        )
        # Ray ends well on SIGINT only; handlers can be set in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        again = f"the same command with --name {config.name} goes on from its last checkpoint"
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            tracking.end_run(run_id, "FAILED")
            raise RunFailed(f"run {config.name} failed: {reason(error)}") from error
        except SystemExit:  # how Ray ends a run on Ctrl-C and SIGTERM
            tracking.end_run(run_id, "KILLED")
            raise RunFailed(f"run {config.name} was stopped: {again}") from None
        uri = finish(config, run_id, tracking_uri, result.checkpoint, validation)
    run_folder.write_record(config, run_id, model=uri)
    return uri


def finish(
    config: TrainConfig, run_id: str, tracking_uri: str, checkpoint: Checkpoint, validation: Validation | None
) -> str:
    """Send what MLflow has not got of the curves, and register the last checkpoint. RunFailed if MLflow is away."""
    with checkpoint.as_directory() as folder:
        log = tracking.MetricLog(tracking_uri, run_id, Position.load(folder).unsent, print)
    log.close()
    try:
        if points := log.unsent():
            raise OSError(f"{len(points)} points of the curves could not be sent")
        return register(config, run_id, checkpoint, validation)
    except tracking.UNREACHABLE as error:
        raise RunFailed(
            f"run {config.name} is trained, but MLflow at {tracking_uri} did not take the model ({error}). When it "
            f"answers, the same command with --name {config.name} sends what is missing and registers it; or, "
            f"without the run: python -m train register --checkpoint {checkpoint.path}/{MODEL}"
        ) from error


def reason(error: ray.train.TrainingFailedError) -> str:
    """What we found wrong, else Ray's words. The error of a reading task comes as the text of its traceback."""
    failures = getattr(error, "worker_failures", {}).values()
    for failure in failures:
        if isinstance(failure, ValueError | TrainingDiverged | CheckpointFailed):
            return str(failure)
        if found := re.findall(r"^ValueError: (.+)$", str(failure), re.MULTILINE):
            return found[-1]
    return "; ".join(str(failure).strip().splitlines()[-1] for failure in failures) or str(error)


def train_worker(loop_config: dict[str, Any]) -> None:
    """What each worker does: restore, then step by step until `config.steps`."""
    loop: Loop = loop_config["loop"]
    config, context = loop.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, os.cpu_count() // context.get_local_world_size()))
    device = get_device()
    model = start_model(config, None if loop.start is None else ray.get(loop.start)).to(device)
    model.set_dropout(config.dropout)
    model.set_recompute(config.recompute)
    if config.compile:
        model.compile_layers()
    state = TrainState.create(model, config.optim)
    before = restore(state, rank)
    if rank == 0 and before.step:
        loop.progress.add.remote(going_on(before, world, config))
    state.network = DistributedDataParallel(state.model, broadcast_buffers=False)  # the buffers are constants
    log = None
    if rank == 0:
        log = tracking.MetricLog(loop.tracking_uri, loop.run_id, before.unsent, loop.progress.add.remote)
    window = Window(config, state.step, world)
    batches = stream(
        config.data,
        loop.plan,
        loop.stores,
        steps=range(state.step, config.steps),
        first_clip=before.clips,
        rank=rank,
        world=world,
        reader_cpus=loop.reader_cpus,
    )
    clips_per_step = world * config.data.clips_per_worker
    for batch in window.timed(batches):
        # Random numbers of a step, on any device: nothing of them need be kept, and no worker has another's.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, state.step, rank]).generate_state(1)[0]))
        window.add(train_step(state, batch.to(device), config))
        last = state.step == config.steps
        clips = before.clips + (state.step - before.step) * clips_per_step
        if log and (state.step % config.log_every == 0 or last):
            metrics, lines = window.close(state.step)
            log.write(state.step, metrics | {"clips": clips, "workers": world})
            for line in lines:
                loop.progress.add.remote(line)
        if state.step % config.checkpoint_every == 0 or last:
            position = Position(
                step=state.step,
                clips=clips,
                workers=world,
                clips_per_worker=config.data.clips_per_worker,
                unsent=log.unsent() if log else [],
            )
            report(state, position, rank, config.validates(state.step))
    if log:
        log.close()


def restore(state: TrainState, rank: int) -> Position:
    """Bring the state to the newest whole checkpoint, if there is one; where that is. All workers must call this."""
    storage = ray.train.get_context().get_storage()
    fs, run = storage.storage_filesystem, storage.experiment_fs_path
    path = broadcast_from_rank_zero(run_folder.newest(fs, run) if rank == 0 else None)
    known = ray.train.get_checkpoint()
    if path and (known is None or known.path != path):  # the worker died before Ray Train heard of it
        found = Checkpoint(path, fs) if rank == 0 else None
        mode = CheckpointUploadMode.NO_UPLOAD
        ray.train.report({"step": int(path.rpartition("_")[2])}, found, checkpoint_upload_mode=mode)
    if rank == 0:
        listed = ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        run_folder.sweep(fs, run, {entry.checkpoint.path for entry in listed})
    if path is None:
        return Position()
    with Checkpoint(path, fs).as_directory() as folder:
        state.restore(Path(folder))
        return Position.load(folder)


def going_on(before: Position, world: int, config: TrainConfig) -> str:
    """What a run that goes on has to say."""
    line = f"going on from the checkpoint of step {before.step}, with clip {before.clips} of the run"
    clips, clips_before = world * config.data.clips_per_worker, before.workers * before.clips_per_worker
    if world == before.workers and clips == clips_before:
        return line
    line += f"; {world} workers, before {before.workers}"
    if clips == clips_before:
        return f"{line}; a step sees {clips} clips as before, but shared out otherwise: equal up to rounding"
    line += f"; a step sees {clips} clips, before {clips_before}, with the same learning rate"
    if clips_before % world == 0:
        line += f" (--data.clips-per-worker {clips_before // world} keeps it at {clips_before})"
    return line


def report(state: TrainState, position: Position, rank: int, validation: bool) -> None:
    """Hand a checkpoint to Ray Train: all workers must call this at the same steps. Worker 0 has the checkpoint.

    It is written to a temporary folder, and on its way from there to the run's folder while training goes on.
    `validation`: score it, in a task beside the training workers.
    """
    storage = ray.train.get_context().get_storage()
    name = f"step_{position.step:07d}"
    place = f"{storage.experiment_fs_path}/{name}"
    checkpoint = None
    if rank == 0:
        folder = tempfile.mkdtemp(prefix=f"{name}-")
        try:
            state.save(Path(folder))
            position.save(Path(folder))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointFailed(folder, str(error)) from error
        checkpoint = Checkpoint.from_directory(folder)
    ray.train.report(
        {"step": position.step},
        checkpoint,
        checkpoint_dir_name=name,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=lambda local, _: run_folder.store(Path(local.path), storage.storage_filesystem, place),
        validation=validation,
    )
