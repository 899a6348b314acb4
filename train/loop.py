"""A training run on Ray, the command's side; `train/worker.py` has what each worker does.

A run is a folder (see `train/run_folder.py`). If a worker dies, all restart from the last checkpoint; if the command
dies or is stopped, calling it again with the same --name goes on from there. Either way the run continues as if nothing
had happened: same weights, same clips, each logged step once. Other numbers of workers go on with the clips that come
next.
"""

import os
import signal
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines import cluster
from pipelines.log import say
from pipelines.models import asked_again
from pipelines.raw.place import absolute
from pipelines.store.reader import ClipStore
from train import curves, lease, memory, run_folder, tracking
from train.champion import register
from train.config import TrainConfig
from train.errors import RunFailed, RunStopped
from train.failures import Failures, reason
from train.lease import Lease
from train.mixture import MixturePlan
from train.progress import printed_progress
from train.record import claim, meant, recorded, require_same
from train.resources import Resources, wait_for_gpu
from train.run_folder import Position
from train.start import read_start
from train.state import MODEL, held_bytes
from train.stores import check_labels, open_mixture
from train.validation import HeldOut, Validation
from train.worker import Loop, train_worker

STOP_SECONDS = 10  # within which it is known whether there are workers that can be stopped
RESIZE_SECONDS = 15  # how often an elastic run looks for room for more workers, and how long it waits for it


def run(config: TrainConfig) -> str:
    """Train, register the last checkpoint, and return its URI, `models:/NAME/VERSION`.

    The alias moves to it; with validation only if it is better than the champion (`train/champion.py`).

    Raises ValueError before anything starts if config, stores and model do not fit together, and RunFailed if workers
    failed more than `max_failures` times in a row, training diverged or was stopped, or the last checkpoint cannot be
    validated.
    """
    given, before = config.init, recorded(config)
    config = meant(config, before)
    if before is not None and before.model is not None:  # a scheduler repeats a job that was lost after its last word
        require_same(config, before, given)
        return finished(config, before.model)
    say("reading stores and weights", run=config.name)
    plan, stores = open_mixture(config.data, config.model, config.seed)
    check_labels(stores, config.data, config.loss)
    held_out = HeldOut.open(config.validation, config.model, stores) if config.validation.stores else None
    run_folder.check_room(config)
    if cluster.is_private():  # else each worker looks at its own
        memory.require_fit(config, stores[0].settings.frames, *memory.memory_here(config))
    start = None if run_folder.has_checkpoint(config) else read_start(config)  # a checkpoint has all weights
    say("connecting to MLflow and Ray", run=config.name)
    tracking_uri = tracking.connect()
    tracking.check_writable(config.register_as, held_bytes(config)["model"])
    with lease.owned(f"{absolute(config.out)}/{config.name}") as held:
        cluster.connect(held=0 if start is None else sum(tensor.nbytes for tensor in start.weights.values()))
        before_it = frozenset() if start is None else start.trained_on
        start = None if start is None else ray.put(start.weights)  # which holds them from here on
        record = claim(config, stores, given)
        trained_on = before_it.union(*record.stores.values())
        if record.model is not None:  # another command has just been there
            return finished(config, record.model)
        with tracking.ended(record.run_id):
            uri = run_on_cluster(config, plan, stores, held_out, start, trained_on, tracking_uri, record.run_id, held)
        replace(record, model=uri).save(held.run)
    return uri


def finished(config: TrainConfig, model: str) -> str:
    """Say so; the name of its model."""
    say(f"run {config.name} in {config.out} is finished, nothing to do: another one needs another --name")
    tracking.connect()
    return model


def run_on_cluster(
    config: TrainConfig,
    plan: MixturePlan,
    stores: list[ClipStore],
    held_out: HeldOut | None,
    start: ray.ObjectRef | None,
    trained_on: frozenset[str],
    tracking_uri: str,
    run_id: str,
    held: Lease,
) -> str:
    """From the first step, or the last checkpoint, to the registered model, whose URI it returns."""
    # With it, Ray asks dead workers how they are until a node that is to go is gone, and calls each answer a failure.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if config.min_workers is not None:
        # When a node is lost, Ray first tries to start as many workers as before, and waits a minute for the node.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(RESIZE_SECONDS))
    wait_for_gpu(config)
    resources = Resources.of_cluster(config)
    fs, path = run_folder.open_folder(config.out)
    run_folder.mend(fs, f"{path}/{config.name}")
    kind = "GPU" if resources.gpus else "CPU"
    say(
        f"run {config.name}: {config.steps} steps of {config.workers * config.data.clips_per_worker} clips on "
        f"{config.workers} {kind} workers, in {config.out}/{config.name}",
        run=config.name,
    )
    if 0 < resources.gpus < (config.min_workers or config.workers):
        say(
            f"the cluster has {resources.gpus} GPUs now: waiting for more, or start again with fewer --workers",
            run=config.name,
        )
    say("starting workers", run=config.name)
    with printed_progress(config.name) as progress:
        validation = held_out and Validation(
            held_out=held_out,
            pictures=config.validation.pictures,
            run=held.run,
            tracking_uri=tracking_uri,
            run_id=run_id,
            progress=progress,
        )
        loop = Loop(
            config=config,
            plan=plan,
            stores=stores,
            tracking_uri=tracking_uri,
            run_id=run_id,
            trained_on=trained_on,
            validation=validation,
            lease=held,
            progress=progress,
            start=start,
            reader_cpus=resources.reader_cpus,
        )
        trainer = TorchTrainer(
            train_worker,
            # By reference: Ray's controller, which would read it too, need not import all that is in it.
            train_loop_config={"loop": ray.put(loop)},
            scaling_config=ScalingConfig(
                num_workers=config.workers if config.min_workers is None else (config.min_workers, config.workers),
                use_gpu=resources.gpus > 0,
                resources_per_worker={"CPU": resources.worker_cpus + resources.reader_cpus},
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            ),
            run_config=RunConfig(
                name=config.name,
                failure_config=FailureConfig(max_failures=-1),  # `Failures` counts them
                callbacks=[Failures(config.max_failures, progress)],
                checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
                storage_path=path,
                storage_filesystem=fs,
            ),
        )
        checkpoint = f"{held.run}/{train(config, trainer, progress)}"
        held.require_held()
        return finish(config, run_id, tracking_uri, checkpoint, validation)


def train(config: TrainConfig, trainer: TorchTrainer, progress: ray.actor.ActorHandle) -> str:
    """Train to the last step; the name of its checkpoint. RunFailed, saying why, if it comes to an end before."""
    again = f"the same command with --name {config.name} goes on from its last checkpoint"
    try:
        result = fit(trainer, progress)
    except ray.train.TrainingFailedError as error:
        raise RunFailed(f"run {config.name} failed: {reason(error)}") from error
    except KeyboardInterrupt:
        raise RunStopped(f"run {config.name} was stopped at once: {again}") from None
    except ray.exceptions.RayError as error:  # of what Ray keeps beside the workers: too little memory, a lost node
        what = str(error).strip().partition("\n")[0]
        raise RunFailed(f"run {config.name} failed, because Ray lost its controller: {what}; {again}") from error
    step, failed = result.return_value
    if failed:
        raise RunFailed(f"run {config.name} failed: {failed}")
    if step < config.steps:
        raise RunStopped(f"run {config.name} was stopped at step {step}: {again}")
    return Path(result.checkpoint.path).name


def fit(trainer: TorchTrainer, progress: ray.actor.ActorHandle) -> ray.train.Result:
    """`trainer.fit()`, and what Ctrl-C and SIGTERM do meanwhile: the first lets the workers write a checkpoint and
    return; a second, or while there are no workers, raises KeyboardInterrupt.

    Training is in a thread, because in the main thread Ray would answer to Ctrl-C by ending the workers.
    """
    if threading.current_thread() is not threading.main_thread():  # Python lets no other set what signals do
        return trainer.fit()
    found, signals = Future(), []

    def work() -> None:
        try:
            found.set_result(trainer.fit())
        except BaseException as error:
            found.set_exception(error)

    def heard() -> bool:
        with suppress(ray.exceptions.RayError):
            return ray.get(progress.stop.remote(), timeout=STOP_SECONDS)
        return True  # nobody knows: better not to lose work

    def stop(number: int, _: object) -> None:
        signals.append(number)
        if len(signals) > 1 or not heard():
            raise KeyboardInterrupt
        say("stopping: a checkpoint first, at the next point of the curves; once more to stop at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    threading.Thread(target=work, daemon=True).start()
    try:
        return found.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(config: TrainConfig, run_id: str, tracking_uri: str, checkpoint: str, validation: Validation | None) -> str:
    """Send what MLflow has not got of the curves, and register the last checkpoint, which is at that place. RunFailed
    if MLflow is away."""
    log = curves.MetricLog(tracking_uri, run_id, Position.load(checkpoint).unsent, say)
    log.close()
    try:
        if points := log.unsent():
            raise OSError(f"{len(points)} points of the curves could not be sent")
        return asked_again(lambda: register(config, run_id, checkpoint, validation))
    except tracking.UNREACHABLE as error:
        raise RunFailed(
            f"run {config.name} is trained, but MLflow at {tracking_uri} did not take the model ({error}). When it "
            f"answers, the same command with --name {config.name} sends what is missing and registers it; or, "
            f"without the run: python -m train register --checkpoint {checkpoint}/{MODEL}"
        ) from error
