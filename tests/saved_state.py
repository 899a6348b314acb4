"""A training state in a folder, as a checkpoint has it, without a thread or a run."""

from pathlib import Path
from typing import Any

from train.checkpoint import HostMemory
from train.state import TrainState


def save(state: TrainState, folder: Path, progress: dict[str, Any] | None = None) -> None:
    """`progress`: what `state.progress()` gave, where all workers had to call that."""
    for name, write in state.writers(progress or state.progress(), HostMemory().copy).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            write(file)
