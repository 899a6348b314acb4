"""A file or folder appears whole or not at all."""

import errno
import math
import os
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import IOBase
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from pipelines.partial import partial_file, partial_folder, scratch_folder, sweep
from pipelines.raw.place import is_local, open_place, reachable

PART_BYTES = 64 << 20  # of an upload
CONFLICTS = 20  # of two conditional writes of one file on S3, after which it is given up
CLAIM = "claim.json"  # of a folder of results on S3: whose it is


def write_file(uri: str, content: bytes) -> None:
    """Write a file whole or not at all, in place of the one that was there. ValueError if the place refuses."""
    with written(uri) as file:
        file.write(content)


@contextmanager
def written(uri: str) -> Iterator[IOBase]:
    """A file to write to, from its beginning to its end. When the block has ended, it is at `uri`, whole, in place of
    the one that was there; if the block raises, it is not. ValueError if the place refuses.

    On S3 it is sent in parts while it is written, and counts when the last one has come.
    """
    fs, path = open_place(uri)
    with reachable(uri):
        if not is_local(fs):
            file = fs.open(path, "wb", block_size=PART_BYTES)
            try:
                yield file
            except BaseException:
                with suppress(Exception):  # of what was sent nothing stays, if the place still answers
                    file.discard()
                file.closed = True  # or it would be completed as it is
                raise
            file.close()
            return
        with partial_file(path) as file:
            yield file
            _to_disk(file)
            os.replace(file.name, path)


def create_if_absent(uri: str, content: bytes) -> bool:
    """Create a file, whole, unless there is one: then that one stays as it is. Whether it was created.

    Of several processes that create one file at the same time, exactly one succeeds: by a hard link locally, on S3 by a
    conditional PUT. It learns so even if the server's word of it is lost and the request made again. ValueError if the
    place refuses.
    """
    fs, path = open_place(uri)
    with reachable(uri):
        if not is_local(fs):
            return _put_if_absent(fs, path, content)
        with partial_file(path) as file:
            file.write(content)
            _to_disk(file)
            try:
                os.link(file.name, path)
            except FileExistsError:
                return os.fstat(file.fileno()).st_nlink > 1  # by this process: NFS, too, makes a request again
    return True


def _put_if_absent(fs: AbstractFileSystem, path: str, content: bytes) -> bool:
    attempts_left, writer = CONFLICTS, uuid.uuid4().hex
    while True:
        try:
            fs.pipe_file(path, content, mode="create", Metadata={"writer": writer})
            return True
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code == "PreconditionFailed":
                return _writer_of(fs, path) == writer
            attempts_left -= 1
            if code != "ConditionalRequestConflict" or attempts_left == 0:  # another one is being written just now
                raise
            time.sleep(0.1)


def _writer_of(fs: AbstractFileSystem, path: str) -> str | None:
    try:
        return fs.metadata(path, refresh=True).get("writer")
    except FileNotFoundError:  # deleted meanwhile
        return None


def _to_disk(file: IOBase) -> None:
    """Not only on its way there."""
    file.flush()
    os.fsync(file.fileno())


def read_file(uri: str) -> bytes | None:
    """Its content; None if there is no such file. ValueError if the place refuses."""
    fs, path = open_place(uri)
    with reachable(uri):
        try:
            return fs.cat_file(path)
        except FileNotFoundError:
            return None


def listed(uri: str) -> list[str]:
    """Names of the files and folders in a folder, sorted; none if there is no such folder."""
    fs, path = open_place(uri)
    with reachable(uri):
        try:
            found = [entry.rstrip("/") for entry in fs.ls(path, detail=False)]
        except FileNotFoundError:
            return []
    return sorted(posixpath.basename(entry) for entry in found if entry != path)  # a file lists itself; S3 some folders


def sizes(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder, by its path in it; none if there is no such folder."""
    fs, path = open_place(uri)
    with reachable(uri):
        if not is_local(fs):
            found = fs.find(path, detail=True)  # on S3 literally, and a thousand files per request
            return {name.removeprefix(f"{path}/"): entry["size"] for name, entry in found.items()}
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}


def delete_folder(uri: str) -> None:
    """Delete a folder and all in it, if it is there. Its name, and the names in it, are taken literally."""
    fs, path = open_place(uri)
    with reachable(uri):
        if is_local(fs):
            shutil.rmtree(path, onerror=_unless_gone)
            return
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry["type"] == "directory":
                delete_folder(f"s3://{entry['name']}")
            else:
                with suppress(FileNotFoundError):
                    fs.rm_file(entry["name"])


def sweep_left(uri: str) -> None:
    """Delete what killed processes left in a folder of files that were not whole yet. On S3 there are none."""
    fs, path = open_place(uri)
    if is_local(fs):
        sweep(path)


def _unless_gone(_call: object, _path: str, raised: tuple) -> None:
    """Another process may delete the same folder, or still write into it: then it deletes it itself."""
    if not isinstance(raised[1], FileNotFoundError) and raised[1].errno != errno.ENOTEMPTY:
        raise raised[1]


def json_value(value: Any) -> Any:
    """The same with null for infinity and NaN: JSON does not know them, and other readers of Zarr would stumble."""
    if isinstance(value, dict):
        return {key: json_value(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ExistsAlready(ValueError):
    """There are results already, perhaps those of another who did the same."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri} exists already and is not overwritten: remove it, or give another --out")


def require_folder(uri: str, what: str) -> None:
    """ValueError, naming `what` by its option, if there is a file where a folder would be."""
    fs, path = open_place(uri)
    with reachable(f"{what} {uri}"):
        if fs.exists(path) and not fs.isdir(path):
            raise ValueError(f"{what} {uri} is a file: give a folder")


def require_writable(uri: str, what: str) -> None:
    """ValueError, naming `what` by its option, if no folder can be made there, or nothing can be written to it.

    Nothing stays of what is tried.
    """
    fs, path = open_place(uri)
    if not is_local(fs):
        with reachable(f"{what} {uri}"):
            fs.ls(path.partition("/")[0], refresh=True)  # some servers make a bucket of whatever is written
            fs.pipe_file(f"{path}/.writable", b"")
            fs.rm_file(f"{path}/.writable")
        return
    place = next(folder for folder in (Path(path), *Path(path).parents) if os.path.lexists(folder))
    if not place.is_dir():
        raise ValueError(f"{what} {uri} cannot be a folder, because {place} is a file: give another place")
    with reachable(f"{what} {place}"), tempfile.TemporaryFile(dir=place):
        pass


def require_new(uri: str, claim: bytes | None = None) -> None:
    """ExistsAlready if `uri` holds anything: results are never mixed and never overwritten.

    `claim` as in `result_folder`: on S3, half an upload of the same results does not count.
    """
    fs, path = open_place(uri)
    with reachable(uri):
        there = fs.exists(path) and (not fs.isdir(path) or listed(uri))
    if there and (is_local(fs) or claim is None or read_file(f"{uri}/{CLAIM}") != claim):
        raise ExistsAlready(uri)


@contextmanager
def result_folder(uri: str, last: str, claim: bytes | None = None) -> Iterator[Path]:
    """A local folder to fill; when the block has ended, it is at `uri`. If the block raises, nothing is.

    Locally it is renamed into place. On S3 its files are uploaded, and `last` is created as the last one: where it is,
    the results are complete. What may be uploaded there is settled by a file that is created before all others: `claim`
    says which results these are, so that the same ones may go on after an upload that was cut off; without it, none
    may. Of several who do this at once, the first wins; the others get ExistsAlready and have overwritten nothing.
    """
    require_new(uri, claim)
    fs, path = open_place(uri)
    with partial_folder(path) if is_local(fs) else scratch_folder() as folder:
        yield folder
        if is_local(fs):
            _rename(folder, uri, path)
        else:
            _upload(folder, uri, last, uuid.uuid4().hex.encode() if claim is None else claim)


@contextmanager
def remade_folder(uri: str) -> Iterator[Path]:
    """A local folder to fill; when the block has ended, it is at `uri`, in place of the one that was there, folders in
    it included. If the block raises, nothing changes.

    For what can be made again at any time: on S3 it is not there, or only in part, while it is uploaded.
    """
    fs, path = open_place(uri)
    with partial_folder(path) if is_local(fs) else scratch_folder() as folder:
        yield folder
        if is_local(fs):
            _replace(folder, uri, path)
            return
        delete_folder(uri)
        with reachable(uri):
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    fs.put_file(str(file), f"{path}/{file.relative_to(folder).as_posix()}")


def _replace(folder: Path, uri: str, path: str) -> None:
    for attempts_left in reversed(range(CONFLICTS)):  # another one may make the same at the same time
        delete_folder(uri)
        try:
            return _rename(folder, uri, path)
        except ExistsAlready:
            if attempts_left == 0:
                raise


def _rename(folder: Path, uri: str, path: str) -> None:
    try:
        os.replace(folder, path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ExistsAlready(uri) from None
        raise


def _upload(folder: Path, uri: str, last: str, claim: bytes) -> None:
    if not create_if_absent(f"{uri}/{CLAIM}", claim) and read_file(f"{uri}/{CLAIM}") != claim:
        raise ExistsAlready(uri)
    fs, path = open_place(uri)
    with reachable(uri):
        for file in sorted(folder.iterdir()):
            if file.name == last:
                continue
            if fs.exists(f"{path}/{last}"):
                raise ExistsAlready(uri)
            fs.put_file(str(file), f"{path}/{file.name}")
    content = (folder / last).read_bytes()
    if not create_if_absent(f"{uri}/{last}", content) and read_file(f"{uri}/{last}") != content:
        raise ExistsAlready(uri)
