"""Places: local paths or s3:// URIs, taken literally, and what they refuse said in words.

fsspec reads more into a name than its letters: `fs.cat`, `get`, `put`, `rm` and `glob` expand patterns in it,
and `url_to_fs` takes `::` for a chain of filesystems. A folder may well be called `room[12] *?{a,b}`. So a place is
opened here, and of its filesystem only calls are used that name one file or folder: `open`, `info`, `ls`, `isdir`,
`exists`, `cat_file`, `cat_ranges`, `pipe_file`, `put_file`, `get_file`, `rm_file`, `makedirs`.
"""

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError, PartialCredentialsError
from botocore.exceptions import ConnectionError as NoConnection
from fsspec import AbstractFileSystem

S3 = "s3://"
BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:[^/]+")
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # a variable of that name is set by Ray in what `ray job submit` runs
PACKAGES = "working_dir_files"  # the folder in which Ray keeps the copies of --working-dir
CREDENTIALS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do there"
REFUSALS = {
    errno.ENOENT: ("there is no such file, folder or bucket", "check its name"),
    errno.EEXIST: ("it is there already", "give another place"),
    errno.ENOTDIR: ("a part of its path is a file", "give a path of folders"),
    errno.EISDIR: ("it is a folder", "give the file itself"),
    errno.ENOSPC: ("the disk is full", "free some of it, or give another place"),
    errno.EDQUOT: ("the quota is used up", "free some of it, or give another place"),
    errno.EROFS: ("it is read-only", "give another place"),
    errno.EFBIG: ("a file gets larger than it may", "raise ulimit -f, or give a place on another file system"),
    errno.EMFILE: ("too many files are open", "raise ulimit -n"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter one"),
    errno.ELOOP: ("its links lead in a circle", "mend or remove them"),
    errno.EIO: ("it cannot be read or written", "check the disk or the server, and try again"),
}

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class Refused(ValueError):
    """A place does not give or take what it is asked for. It says nothing about the content: another time it may."""


class NoRoom(Refused):
    """A place takes nothing more, whatever is written: its disk is full or read-only."""


def open_place(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a local path or s3://bucket/prefix, and the path in it: every character of it literally, no
    slash at its end, a local one absolute.

    Nothing is asked of the place yet, and nothing that it lists will be remembered: others write there too. Only a
    leading ~/ is the home folder, as in the shell. ValueError for any other protocol, and for what is no path.
    """
    uri = os.fspath(uri)
    if not uri.strip() or "\0" in uri:
        raise ValueError(f"{uri!r} is no place: give a local path or s3://bucket/prefix")
    if re.match(r"[A-Za-z0-9+.-]+::", uri) or (re.match(r"[A-Za-z0-9+.-]+://", uri) and not uri.startswith(S3)):
        raise ValueError(f"{uri!r} is no place that is known here: give a local path or s3://bucket/prefix")
    if not uri.startswith(S3):
        path = os.path.expanduser(uri) if uri.startswith("~/") else uri
        return fsspec.filesystem("file"), os.path.abspath(path)
    path = uri.removeprefix(S3).rstrip("/")
    if not path or path.startswith("/") or "?versionId=" in path:
        raise ValueError(f"{uri!r} is no place: an S3 URI is s3://bucket/prefix, without a version")
    bucket = path.partition("/")[0]
    if not BUCKET.fullmatch(bucket):
        raise ValueError(f"{uri!r} is no place: bucket {bucket!r} must have letters, digits, '.', '-' and '_' only")
    if (endpoint := _endpoint()) and not re.match(r"https?://[^/]", endpoint):
        raise ValueError(f"AWS_ENDPOINT_URL {endpoint!r} is no server: it must be like http://host:port")
    return fsspec.filesystem("s3", use_listings_cache=False), path


def _endpoint() -> str | None:
    """The S3 server, if it is not Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def absolute(uri: str) -> str:
    """The same place from everywhere: tasks run in other folders, where a relative path would mean another place.

    Without a slash at its end. ValueError as `open_place`.
    """
    fs, path = open_place(uri)
    return path if is_local(fs) else f"{S3}{path}"


def lasting(uri: str, what: str) -> str:
    """A place to write to, as `absolute`. ValueError, naming `what` by its option, if it would go with a Ray job.

    `ray job submit` runs a job in a folder of the cluster; with --working-dir in a copy that Ray deletes later and no
    other node has. What a job leaves there is lost. Every place that a command writes to goes through here, before the
    work.
    """
    place = absolute(uri)
    relative = not place.startswith(S3) and not uri.startswith(("/", "~/"))
    if PACKAGES in Path(place).parts or (relative and RAY_JOB in os.environ):
        raise ValueError(
            f"{what} {uri} is a place of this Ray job alone, and is lost with it: give s3://bucket/prefix, or an "
            "absolute path that all nodes share. A job knows no variable of your shell; it gets them with ray job "
            'submit --runtime-env-json \'{"env_vars": {"NAME": "VALUE"}}\''
        )
    return place


def version_of(uri: str) -> str:
    """What becomes another when a file is written anew, even with the times of the old one: of its change of state
    nobody can set the time. ValueError if it is not there."""
    fs, path = open_place(uri)
    with reachable(uri):
        if is_local(fs):
            found = os.stat(path)
            return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
        info = fs.info(path)
    return " ".join(str(info.get(key)) for key in ("size", "ETag", "LastModified"))


def is_local(fs: AbstractFileSystem) -> bool:
    return "file" in fs.protocol


@contextmanager
def reachable(place: str) -> Iterator[None]:
    """Whatever a filesystem raises inside becomes Refused, which names the place, what it refuses and the remedy.

    A ValueError passes as it is. Catch FileNotFoundError or FileExistsError inside where they are an answer; here they
    are refusals too, as one of them is all that S3 says of a bucket that is not there. The original is the cause.
    """
    remote = place.startswith(S3) or f" {S3}" in place
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise Refused(f"{place}: no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except PermissionError as error:
        remedy = CREDENTIALS if remote else "check its owner and its mode"
        raise Refused(f"{place}: access is denied ({_said(error)}); {remedy}") from error
    except (HTTPClientError, NoConnection, ClientError, ConnectionError, TimeoutError) as error:
        server = _endpoint() or "AWS"
        raise Refused(
            f"{place}: the server {server} gives no answer ({_said(error)}); check AWS_ENDPOINT_URL and the network"
        ) from error
    except BotoCoreError as error:  # before anything is asked
        raise Refused(
            f"{place}: {_said(error)}; check AWS_PROFILE, ~/.aws/config and the name of the bucket"
        ) from error
    except OSError as error:
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else error.errno  # S3's have no number
        number = errno.EEXIST if isinstance(error, FileExistsError) else number
        rule, remedy = REFUSALS.get(number, REFUSALS[errno.EIO])
        kind = NoRoom if number in NO_ROOM else Refused
        raise kind(f"{place}: {rule} ({_said(error)}); {remedy}") from error


@contextmanager
def room_in(place: str) -> Iterator[None]:
    """While a place is written to: NoRoom, naming it, if it takes nothing more. All else passes as it is, because it
    may be about what is read meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        with reachable(place):
            raise


def _said(error: Exception) -> str:
    """Without the path, which the message has already."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class OpenFile(io.BufferedIOBase):
    """A file that is read piece by piece: Refused, not an error of its content, if the place fails meanwhile."""

    def __init__(self, file: io.IOBase, where: str) -> None:
        self._file, self._where = file, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with reachable(self._where):
            return self._file.read(-1 if size is None else size)

    read1 = read

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        # Asks nothing of the place: one before the beginning is the file's fault.
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
