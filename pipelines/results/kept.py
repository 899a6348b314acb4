"""What a model said of each window of a video, on disk as soon as it is known, beside the results to come.

OUT/.DIGEST.windows/ has a file for each thing that is kept of a window, NNNNN.FIELD.npz, where FIELD is one of
`WindowAnswers` and the keys of the file are the names of what it is made of. Each file appears whole, `LAST` after the
others of its window: where it is, the window is done. What is asked when all windows are done (`across.py`) lies beside
it, under names of its own. DIGEST is made from the name of the video and from all that the answers depend on: the
frames, the model, what is asked, and how. So a job that was killed goes on behind its last window, and joining windows
can be repeated without the model. When the results are there, the folder is deleted; it may be deleted at any time.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import torch

from model.recipes.following import Followed
from model.recipes.loops import Loop
from pipelines.results.files import WINDOWS, claim_of
from pipelines.results.windowed import Jitter, WindowAnswers
from pipelines.whole import delete_folder, listed, read_file, written

SCHEMA = 1
LAST = "geometry"
DAMAGED = zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError

Kind = TypeVar("Kind")


def _kind(hint: Any) -> type:
    """The dataclass that a field is, where it is not None."""
    return next(kind for kind in (*get_args(hint), hint) if kind is not NoneType)


KINDS = {name: _kind(hint) for name, hint in get_type_hints(WindowAnswers).items()}
ACROSS = {"backwards": Followed, "backwards_jitter": Jitter, "loop": Loop}
"""Asked of a window when all are done; a loop is kept with the later one of its windows."""


class KeptWindow(WindowAnswers):
    """They are on disk: what is asked for is read, each time, and not held."""

    def __init__(self, folder: str, number: int, names: set[str]) -> None:
        vars(self).update(_folder=folder, _number=number, _names=names)

    def __getattr__(self, name: str) -> Any:
        if name not in KINDS:
            raise AttributeError(name)
        file = _file(self._number, name)
        if file not in self._names:
            return None
        found = _load(f"{self._folder}/{file}", KINDS[name])
        if found is None:
            raise ValueError(f"{self._folder}/{file} is gone: run it again, its window is asked again")
        return found


class Kept:
    """The windows of one request that are done."""

    def __init__(self, out: str, name: str, request: dict[str, Any]) -> None:
        """`name`: of the video, for one that lies there twice is answered twice; `request`: all that the answers depend
        on."""
        told = f"{SCHEMA} {name} {claim_of(request)}"
        self.uri = f"{out}/.{hashlib.blake2b(told.encode(), digest_size=16).hexdigest()}{WINDOWS}"

    def done(self) -> int:
        """How many of the first windows are kept."""
        names, number = set(listed(self.uri)), 0
        while _file(number, LAST) in names:
            number += 1
        return number

    def window(self, number: int) -> KeptWindow:
        return KeptWindow(self.uri, number, set(listed(self.uri)))

    def windows(self, count: int) -> list[KeptWindow]:
        """The first `count`, of which nothing is read yet. ValueError if one of them is gone."""
        names = set(listed(self.uri))
        if gone := [number for number in range(count) if _file(number, LAST) not in names]:
            raise ValueError(f"{self.uri} has no window {gone[0]} any more: run it again, it is asked again")
        return [KeptWindow(self.uri, number, names) for number in range(count)]

    def write(self, number: int, answers: WindowAnswers) -> None:
        """ValueError if the place refuses."""
        names = [name for name in KINDS if name != LAST and getattr(answers, name) is not None]
        for name in (*names, LAST):
            _save(f"{self.uri}/{_file(number, name)}", getattr(answers, name))

    def once(self, number: int, name: str, ask: Callable[[], Any]) -> Any:
        """The answer that is kept of a window under a name of `ACROSS`; if there is none, what `ask` gives, kept from
        now on."""
        uri = f"{self.uri}/{_file(number, name)}"
        found = _load(uri, ACROSS[name])
        if found is None:
            found = ask()
            _save(uri, found)
        return found

    def sweep(self) -> None:
        delete_folder(self.uri)


def _file(number: int, name: str) -> str:
    return f"{number:05d}.{name}.npz"


def _save(uri: str, said: Any) -> None:
    with written(uri) as file:
        np.savez(file, **{key: np.asarray(value) for key, value in vars(said).items()})


def _load(uri: str, kind: type[Kind]) -> Kind | None:
    """None if there is nothing. ValueError if it is damaged."""
    content = read_file(uri)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {field.name: arrays[field.name] for field in fields(kind)}
    except DAMAGED as error:
        folder = uri.rpartition("/")[0]
        raise ValueError(f"{uri} cannot be read ({error}): delete {folder}, its windows are asked again") from None
    tensors = {field.name for field in fields(kind) if field.type is torch.Tensor}
    return kind(**{name: torch.from_numpy(x) if name in tensors else x.item() for name, x in found.items()})
