"""Weight files that others wrote: reading them without running anything in them, and saying what does not fit."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

PAYLOADS = ("state_dict", "model", "module", "network", "net")
"""Under which keys trainers keep the weights; the first one that is there counts."""

MAX_NESTED = 3  # a crafted file may hold itself

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What DistributedDataParallel and torch.compile put before every name."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file or in anything `torch.save` wrote, on the CPU, memory-mapped where it can be.

    Optimiser states and other company are left in the file. Raises ValueError, naming the file, if it is missing,
    damaged, holds more than plain data (nothing in it is executed), or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the file with the weights")
    if path.suffix == ".safetensors":
        try:
            payload: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None
    else:
        payload = _read_torch(path)
    for _ in range(MAX_NESTED):
        if _is_state(payload) or not isinstance(payload, Mapping):
            break
        inner = next((payload[key] for key in PAYLOADS if isinstance(payload.get(key), Mapping)), None)
        if inner is None:
            found = ", ".join(map(str, list(payload)[:8])) or "nothing"
            raise ValueError(f"{path} holds {found}, but no weights under any of {', '.join(PAYLOADS)}")
        payload = inner
    if not _is_state(payload):
        raise ValueError(f"{path} holds a {type(payload).__name__}, not weights by name")
    return {WRAPPERS.sub("", name): tensor for name, tensor in payload.items()}


def _is_state(payload: Any) -> bool:
    return (
        isinstance(payload, Mapping)
        and bool(payload)
        and all(isinstance(x, Tensor) and isinstance(name, str) for name, x in payload.items())
    )


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"  # files of torch before 1.6 are not, and cannot be mapped
        return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} holds more than tensors and plain values, which is never loaded: {reason}") from None
    except Exception as error:  # whatever a damaged file makes torch stumble over: AssertionError, IndexError, ...
        raise ValueError(f"{path} is damaged or not a file of torch.save: {error}") from None


def check_state(state: dict[str, Tensor], expected: dict[str, Tensor], path: Path, source: str) -> None:
    """Raise ValueError, with the path, naming every tensor that is missing, unexpected or misshaped.

    `source`: what says how they should be.
    """
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    misshaped = [
        f"{name} is {tuple(state[name].shape)}, the config asks for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped}
    found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
    if found:
        raise ValueError(f"{path} does not fit {source}. {found}")
