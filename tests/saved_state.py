"""A training state in a folder, as a checkpoint has it, without a thread or a run."""

from pathlib import Path

from train.checkpoint import HostMemory
from train.state import TrainState


def save(state: TrainState, folder: Path) -> None:
    for name, write in state.writers(state.progress(), HostMemory().copy).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            write(file)
