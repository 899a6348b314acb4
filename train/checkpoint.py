"""How a checkpoint is taken and gets to where it belongs, while training goes on.

    take      the training thread copies all that it has to memory of the host: worker 0 holds it once more, for good
    write     a thread writes from there, straight to its place, position.json last (`train/run_folder.py`)
    report    Ray Train hears of it when it is there whole, or why it is not

One is on its way at most: the next one is taken when the one before is written.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from train import run_folder
from train.lease import Lease
from train.run_folder import POSITION, Position
from train.state import TrainState


class HostMemory:
    """Copies of tensors in memory of the host, which the next copies of the same name use again.

    Of tensors on a GPU they are pinned, so that they come at the speed of the bus.
    """

    def __init__(self) -> None:
        self.held: dict[str, torch.Tensor] = {}

    def copy(self, values: Any, name: str) -> Any:
        """Nested values with copies for tensors. Those of a GPU are under way until `torch.cuda.synchronize()`."""
        if isinstance(values, dict):
            return {key: self.copy(value, f"{name}/{key}") for key, value in values.items()}
        if isinstance(values, list):
            return [self.copy(value, f"{name}/{number}") for number, value in enumerate(values)]
        if not isinstance(values, torch.Tensor):
            return values
        if name not in self.held:
            self.held[name] = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        return self.held[name].copy_(values.detach(), non_blocking=True)


class CheckpointWriter:
    """Of one worker. Worker 0 writes; the others say to Ray Train that they have nothing."""

    def __init__(self, lease: Lease, rank: int) -> None:
        self.lease, self.rank = lease, rank
        self.memory, self.thread = HostMemory(), ThreadPoolExecutor(max_workers=1)
        self.written: Future[None] | None = None
        """Of the last checkpoint that was taken."""

    def write(self, state: TrainState, position: Position) -> str:
        """Take a checkpoint, and let it be written; its name. All workers must call this at the same steps.

        CheckpointFailed if the one before it could not be written.
        """
        storage = ray.train.get_context().get_storage()
        name = run_folder.checkpoint_name(position.step, self.lease.number)
        written = checkpoint = None
        if self.written:
            self.written.result()
        progress = state.progress()
        if self.rank == 0:
            files = state.writers(progress, self.memory.copy) | {POSITION: position.write}
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.written = written = self.thread.submit(run_folder.store, files, f"{self.lease.run}/{name}", self.lease)
            checkpoint = Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)

        def when_written(checkpoint: Checkpoint, _: str) -> Checkpoint:
            written.result()
            return checkpoint

        ray.train.report(
            {"step": position.step},
            checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # it is where it belongs
            checkpoint_upload_fn=when_written,
        )
        return name

    def afterwards(self, act: Callable[[], None]) -> None:
        """Do something in the same thread, if the last checkpoint could be written."""
        written = self.written

        def follow() -> None:
            if written is None or not written.exception():
                act()

        self.thread.submit(follow)

    def close(self) -> None:
        """Wait until all is done. What failed is Ray Train's to tell."""
        self.thread.shutdown()
