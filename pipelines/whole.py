"""A file or folder appears whole or not at all."""

import math
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec


def write_file(uri: str, content: bytes) -> None:
    """Write a file whole or not at all: by rename locally; one PUT is atomic on S3."""
    fs, path = fsspec.core.url_to_fs(uri)
    if "file" not in fs.protocol:
        fs.pipe_file(path, content)
        return
    os.makedirs(posixpath.dirname(path), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    with open(partial, "wb") as file:
        file.write(content)
    os.replace(partial, path)


def json_value(value: Any) -> Any:
    """The same with null for infinity and NaN: JSON does not know them, and other readers of Zarr would stumble."""
    if isinstance(value, dict):
        return {key: json_value(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_new(uri: str) -> None:
    """ValueError if `uri` holds anything already: results are never mixed and never overwritten."""
    fs, path = fsspec.core.url_to_fs(uri)
    fs.invalidate_cache()
    if fs.exists(path) and not (fs.isdir(path) and not fs.ls(path)):
        raise ValueError(f"{uri} exists already and is not overwritten: remove it, or give another --out")


@contextmanager
def result_folder(uri: str, last: str) -> Iterator[Path]:
    """A local folder to fill; when the block has ended, it is at `uri`. If the block raises, nothing is.

    Locally it is renamed into place. On S3 its files are uploaded, `last` as the last one: its presence means complete.
    """
    require_new(uri)
    fs, path = fsspec.core.url_to_fs(uri)
    local = "file" in fs.protocol
    parent, name = os.path.split(path)
    beside = Path(parent if local else tempfile.gettempdir())
    beside.mkdir(parents=True, exist_ok=True)
    folder = beside / f".{name}.{uuid.uuid4().hex}.partial"
    folder.mkdir()
    try:
        yield folder
        if local:
            os.replace(folder, path)
            return
        files = sorted(folder.iterdir(), key=lambda file: file.name == last)
        for file in files:
            fs.put_file(str(file), f"{path}/{file.name}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
