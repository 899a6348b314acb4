"""A training run on Ray: `run` is the command's side, `train_worker` what each worker does.

A run is a folder OUT/NAME: `run.json` (its config and MLflow run) and the newest checkpoints. If a worker dies, all
restart from the last checkpoint; if the command dies, calling it again with the same --name goes on from there. Either
way the run continues as if nothing had happened: same weights, same clips, each logged step once.
"""

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, ValidationConfig
from ray.train.torch import TorchTrainer, get_device
from torch.nn.parallel import DistributedDataParallel

from pipelines import cluster
from pipelines.clip_store import ClipStore
from pipelines.clip_writer import write_file
from train import tracking
from train.batches import absolute, check_labels, open_mixture, stream
from train.champion import register
from train.config import TrainConfig
from train.errors import RunFailed, TrainingDiverged
from train.mixture import MixturePlan
from train.progress import printed_progress
from train.start import pinned, start_model, starting_weights
from train.step import TrainState, train_step
from train.validation import HeldOut, Validation
from train.window import Window

TRAIN_SHARE = 0.7  # of the cluster's CPUs, at most one per worker; the rest reads clips
VALIDATION_SHARE = 1 / 6  # of what they leave on a node, for the task that validates: on two CPUs all readers fit too
# May differ when a run goes on: they change where and how often things happen, not what is learnt.
OPERATIONAL = (
    *("checkpoint_every", "log_every", "keep_checkpoints", "out", "register_as", "alias", "max_failures", "recompute"),
    "validation.every",
)


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
    config = pinned(config)
    start = starting_weights(config)
    cluster.connect()
    start = None if start is None else ray.put(start)  # which holds them from here on
    tracking_uri = tracking.connect()
    run_id = claim_run(config, stores)
    cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
    worker_cpus = min(1.0, TRAIN_SHARE * cpus / config.workers)
    validation_cpus, validation_gpus = 0.0, int(gpus > config.workers)
    if held_out:
        nodes = sum(node["Alive"] for node in ray.nodes())
        validation_cpus = min(1.0, VALIDATION_SHARE * (cpus - config.workers * worker_cpus) / nodes)
    scaling = ScalingConfig(
        num_workers=config.workers, use_gpu=gpus > 0, resources_per_worker={"CPU": round(worker_cpus, 2)}
    )
    fs, path = fsspec.core.url_to_fs(config.out)
    storage = {"storage_path": path}
    if "file" not in fs.protocol:
        storage["storage_filesystem"] = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    kind = "GPU" if gpus else "CPU"
    print(f"run {config.name}: {config.steps} steps on {config.workers} {kind} workers, in {config.out}/{config.name}")
    if 0 < gpus < config.workers:
        print(f"the cluster has {gpus:.0f} GPUs now: waiting for {config.workers}, or start again with fewer --workers")
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
                **storage,
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            tracking.end_run(run_id, "FAILED")
            raise RunFailed(f"run {config.name} failed: {reason(error)}") from error
        except SystemExit:  # how Ray ends a run on Ctrl-C
            tracking.end_run(run_id, "KILLED")
            again = f"the same command with --name {config.name} goes on from its last checkpoint"
            raise RunFailed(f"run {config.name} was stopped: {again}") from None
        uri = register(config, run_id, result.checkpoint, validation)
    write_record(config, run_id, model=uri)
    return uri


def claim_run(config: TrainConfig, stores: list[ClipStore]) -> str:
    """The MLflow run of this run: a new one, or, if a run of this name was interrupted, the one it had.

    ValueError if the run is finished, or was begun with another config.
    """
    try:
        with fsspec.open(f"{config.out}/{config.name}/run.json") as file:
            record = json.load(file)
    except FileNotFoundError:
        run_id = tracking.start_run(config.name, config.to_dict(), stores)
        write_record(config, run_id)
        return run_id
    if "model" in record:
        raise ValueError(f"run {config.name} in {config.out} is finished ({record['model']}): choose another --name")
    before, now = (tracking.flatten(entry) for entry in (record["config"], json.loads(json.dumps(config.to_dict()))))
    if changed := [k for k in now if now[k] != before.get(k) and k not in OPERATIONAL]:
        differences = "; ".join(f"{key}: {before.get(key)} there, {now[key]} asked" for key in changed)
        raise ValueError(
            f"run {config.name} in {config.out} was begun with another config ({differences}): "
            "use the same to go on with it, or choose another --name"
        )
    return record["run_id"]


def write_record(config: TrainConfig, run_id: str, **more: str) -> None:
    record = {"config": config.to_dict(), "run_id": run_id, **more}
    write_file(f"{config.out}/{config.name}/run.json", json.dumps(record, indent=1).encode())


def reason(error: ray.train.TrainingFailedError) -> str:
    """What we found wrong, else Ray's words. The error of a reading task comes as the text of its traceback."""
    failures = getattr(error, "worker_failures", {}).values()
    for failure in failures:
        if isinstance(failure, ValueError | TrainingDiverged):
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
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state.restore(Path(folder))
            torch.set_rng_state(torch.load(Path(folder) / f"rng_{rank}.pt", weights_only=True))
        if rank == 0:
            loop.progress.add.remote(f"going on from the checkpoint of step {state.step}")
    state.network = DistributedDataParallel(state.model, broadcast_buffers=False)  # the buffers are constants
    log = tracking.MetricLog(loop.tracking_uri, loop.run_id) if rank == 0 else None
    window = Window(config, state.step)
    batches = stream(
        config.data,
        loop.plan,
        loop.stores,
        steps=range(state.step, config.steps),
        rank=rank,
        world=world,
        reader_cpus=loop.reader_cpus,
    )
    for batch in window.timed(batches):
        window.add(train_step(state, batch.to(device), config))
        last = state.step == config.steps
        if log and (state.step % config.log_every == 0 or last):
            metrics, line = window.close(state.step)
            log.write(state.step, metrics)
            loop.progress.add.remote(line)
        if state.step % config.checkpoint_every == 0 or last:
            report(state, rank, config.validates(state.step))


def report(state: TrainState, rank: int, validation: bool) -> None:
    """Hand a checkpoint to Ray Train: all workers must call this at the same steps. Worker 0 adds the weights.

    `validation`: score it, in a task beside the training workers.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(torch.get_rng_state(), Path(folder) / f"rng_{rank}.pt")
        if rank == 0:
            state.save(Path(folder))
        name = f"step_{state.step:07d}"
        checkpoint = Checkpoint.from_directory(folder)
        ray.train.report({"step": state.step}, checkpoint, checkpoint_dir_name=name, validation=validation)
