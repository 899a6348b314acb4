"""Weight files that others wrote: reading them without running anything in them, and saying what does not fit."""

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

LFS = b"version https://git-lfs"
SIGNATURES = (  # the first bytes of a file, what it then is
    (LFS, "a Git LFS pointer: the weights themselves were not downloaded; `git lfs pull` brings them"),
    (b"PK", "a zip archive"),
    (b"\x80", "a pickle"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"{", "JSON"),
)
HTML = re.compile(rb"\s*<(!doctype html|html|head|\?xml)", re.IGNORECASE)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """ValueError, naming the path, for whatever the disk refuses inside."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}): check its name, owner and mode"
        ) from error


def what_it_is(path: Path) -> str:
    """What a file is by its first bytes, whatever its name says: for the words of an error."""
    if path.is_dir():
        return "a folder"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty"
    if HTML.match(head):
        return "a web page, not weights: the download was answered by a page, perhaps one that asks to log in"
    if is_safetensors(head):
        return "a safetensors file"
    return next((words for start, words in SIGNATURES if head.startswith(start)), "of a kind unknown here")


def is_safetensors(head: bytes) -> bool:
    """Eight bytes with the length of a JSON object, and that object."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEADER


MAX_HEADER = 100 << 20  # of safetensors: its own limit


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file or in anything `torch.save` wrote, on the CPU, memory-mapped where it can be.

    Optimiser states and other company are left in the file. Raises ValueError, naming the file, if it is missing,
    damaged, holds more than plain data (nothing in it is executed), or holds no weights.
    """
    path = Path(path)
    with readable(path):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the file with the weights")
        if not path.is_file():
            raise ValueError(f"{path} does not exist; give the file with the weights")
        with path.open("rb") as file:
            head = file.read(64)
    payload: Any = read_safetensors(path) if is_safetensors(head) else _read_torch(path, head)
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


def read_safetensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Raises ValueError, saying what the file is, if it is not safetensors, or cut short."""
    try:
        with readable(path):
            return load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}): it is {what_it_is(path)}") from None


def _read_torch(path: Path, head: bytes) -> Any:
    zipped = head.startswith(b"PK")  # files of torch before 1.6 are not, and cannot be mapped
    if not zipped and not head.startswith(b"\x80"):
        raise ValueError(f"{path} is neither safetensors nor a file of torch.save: it is {what_it_is(path)}")
    try:
        # Training scripts keep their arguments beside the weights; a Namespace of them is names and plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            if path.suffix == ".safetensors":  # which torch would believe; a file that is open has no name
                return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words go on to say how to run what is in the file.
        found = re.search(r"GLOBAL (\S+)", str(error))
        foreign = f"an object of {found[1]}" if found else "more than plain data"
        raise ValueError(
            f"{path} holds more than tensors and plain values, which is never loaded: {foreign}. Where the file was "
            "made, save the weights alone: safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # whatever a damaged file makes torch stumble over: AssertionError, IndexError, ...
        raise ValueError(f"{path} is damaged or not a file of torch.save: {error}") from None


def usable(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The same weights as float32: narrower floats are widened, which changes no value.

    Raises ValueError, naming file and tensor, for any other type, which would have to be rounded, and for NaN or
    infinity, from which no answer comes.
    """
    widened = {}
    for name, tensor in state.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{path}: {name} is {kind}; weights are float32, or bfloat16 or float16, which become float32 without "
                "a change: convert it with .float() where the file was made"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} has values that are not finite: its training diverged, or it is damaged")
        widened[name] = tensor.float()
    return widened


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
