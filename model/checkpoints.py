"""A checkpoint is a folder of two files, and needs nothing else:

    config.json           the ModelConfig; written last, so its presence means the folder is complete
    weights.safetensors   float32 tensors by name, nothing executable; bfloat16 and float16 are taken too. Its metadata
                          say `trained_on`: the digests of the clip stores behind the weights, separated by commas;
                          and `calibration`, if there is one: what confidences stand for, as JSON

A training checkpoint, RUN/step_N, has such a folder in it, called `model`, and may be given in its place.
`load(folder)` rebuilds the very model that `save(model, folder)` was given, or says what is wrong with the folder.
`resize_tables` makes its weights those of a model for longer or shorter clips.
"""

import json
import os
from collections.abc import Callable
from io import IOBase
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.confidence import Calibration
from model.config import ModelConfig
from model.d4rt import D4RT
from model.opend4rt import load_opend4rt, save_opend4rt
from model.pretrained import load_timm, load_videomae
from model.weights import check_state, read_safetensors, readable, usable, what_it_is

__all__ = [
    "calibration",
    "folder_of",
    "load",
    "load_opend4rt",
    "load_timm",
    "load_videomae",
    "resize_tables",
    "save",
    "save_opend4rt",
    "trained_on",
    "writers",
]

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
TRAINED_ON, CALIBRATION = "trained_on", "calibration"  # among the metadata of the weights
MODEL = "model"  # the folder inside a training checkpoint
TABLES = tuple(f"query_embedder.{name}_embed.weight" for name in ("t_src", "t_tgt", "t_cam"))


def save(model: D4RT, folder: str | Path) -> Path:
    """Write a checkpoint and return its folder, which is created if needed.

    Each file is written beside its place and then renamed, so a reader never sees half a file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # an older checkpoint here is void from now on
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    for name, write in writers(model, state).items():
        with (folder / f"{name}.partial").open("wb") as file:
            write(file)
        os.replace(folder / f"{name}.partial", folder / name)
    return folder


def writers(model: D4RT, state: dict[str, Tensor]) -> dict[str, Callable[[IOBase], None]]:
    """What writes each file of a checkpoint, in the order in which they must be written.

    `state`: the weights of the model, on the CPU.
    """
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    metadata = {TRAINED_ON: ",".join(sorted(model.trained_on))}
    if model.calibration is not None:
        metadata[CALIBRATION] = model.calibration.to_json()
    return {
        WEIGHTS: lambda file: write_weights(state, metadata, file),
        CONFIG: lambda file: file.write(config.encode()),
    }


def write_weights(state: dict[str, Tensor], metadata: dict[str, str], file: IOBase) -> None:
    """Write float32 weights on the CPU as safetensors, from beginning to end: `file` may be an upload.

    The library writes to a path, or makes all of it in memory. The format (huggingface.co/docs/safetensors): 8 bytes
    with the length of the header, little-endian; the header, JSON with the type, shape and place of each tensor; their
    bytes, one after the other.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in state.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in state.values():
        file.write(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def load(folder: str | Path, device: torch.device | str = "cpu") -> D4RT:
    """The model saved in a folder, in eval mode, float32, on `device`.

    Raises ValueError, naming the file, for a missing or unreadable file and for weights that are missing, unexpected,
    of the wrong shape for the config, or not finite. Nothing is loaded partly.
    """
    folder = folder_of(folder)
    config = read_config(folder / CONFIG)
    state = read_weights(folder / WEIGHTS, device)
    if config.encoder_layers + config.decoder_layers > len(state):  # a crafted number would take for ever to build
        raise ValueError(f"{folder / CONFIG} has more layers than {folder / WEIGHTS} has tensors: not a pair")
    with torch.device("meta"):  # no memory and no initialisation: the file's tensors become the weights
        model = D4RT(config)
    check_state(state, model.state_dict(), folder / WEIGHTS, f"{CONFIG} beside it")
    model.load_state_dict(state, strict=True, assign=True)
    model.trained_on = trained_on(folder)
    model.calibration = calibration(folder)
    return model.to(device).eval()


def trained_on(folder: str | Path) -> frozenset[str]:
    """Digests of the clip stores behind the weights of a checkpoint; none where it does not say.

    Only the head of the file is read. Raises ValueError as `load` does.
    """
    digests = _metadata(folder_of(folder) / WEIGHTS).get(TRAINED_ON, "")
    return frozenset(filter(None, digests.split(",")))


def calibration(folder: str | Path) -> Calibration | None:
    """What the confidences of a checkpoint stand for; None where it does not say. Raises ValueError as `load` does."""
    path = folder_of(folder) / WEIGHTS
    text = _metadata(path).get(CALIBRATION)
    try:
        return None if text is None else Calibration.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _metadata(path: Path) -> dict[str, str]:
    """Of weights. Only the head of the file is read."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; the checkpoint is incomplete")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None


def folder_of(place: str | Path) -> Path:
    """The folder with the two files: `place`, or the `model` in a training checkpoint.

    Raises ValueError, saying what it is, for a file.
    """
    place = Path(place)
    inner = place / MODEL
    with readable(place):
        if place.is_file():
            raise ValueError(
                f"{place} is a file ({what_it_is(place)}); a checkpoint is the folder with {CONFIG} and {WEIGHTS}"
            )
        return inner if (inner / CONFIG).is_file() and not (place / CONFIG).is_file() else place


def read_config(path: Path) -> ModelConfig:
    """Raises ValueError, with the path, for a file that is not a model config."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a checkpoint is a folder with {CONFIG} and {WEIGHTS}")
    with readable(path):
        content = path.read_bytes()
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not the fields of a model config")
    try:
        return ModelConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_weights(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """Raises ValueError, with the path, for a file that is missing, cut short, not safetensors or not finite."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; the checkpoint is incomplete")
    state = usable(read_safetensors(path, device), path)
    return {name: tensor.clone() for name, tensor in state.items()}  # into memory of our own, aligned as torch does


def resize_tables(
    state: dict[str, Tensor], clip_frames: int, how: Literal["linear", "nearest", "repeat"] = "linear"
) -> dict[str, Tensor]:
    """A model's weights for clips of another length: the three timestep tables get `clip_frames` rows.

    linear: interpolated so that the first and the last row stay the first and the last, as OpenD4RT does it.
    nearest: row n of N is row floor(n * old / N).
    repeat: the rows there are, then the last one again and again; of a table that shrinks, the first rows.
    """
    return state | {name: _resized(state[name], clip_frames, how) for name in TABLES}


def _resized(table: Tensor, rows: int, how: str) -> Tensor:  # (old, D) -> (rows, D)
    if how == "repeat":
        return table[torch.arange(rows, device=table.device).clamp(max=len(table) - 1)]
    align = {"align_corners": True} if how == "linear" else {}
    resized = F.interpolate(table.double().T[None], size=rows, mode=how, **align)[0].T
    return resized.to(table.dtype).contiguous()
