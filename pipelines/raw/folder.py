"""A folder of raw files, local or on S3: what lies in it, and the bytes of what it holds.

What a *user* laid there is followed: links to files and folders, so that a dataset may be gathered from several
disks. What a *file* names (annotations, lists, playlists) never leaves the folder: such a path goes down from it, along
the user's links if there are any, and one that is absolute or has a `..` in it is refused, whatever it would lead to.
Names are taken literally, whatever characters they have. What operating systems leave behind is no data.
"""

import io
import os
import posixpath
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from fnmatch import filter as fitting
from typing import Any

import numpy as np
from jaxtyping import Int64

from pipelines.raw.files import RawFiles
from pipelines.raw.place import OpenFile, is_local, open_place, reachable

# Of macOS's zip, Synology, Windows and ext4; names that begin with a dot, such as macOS `._*`, are no data either.
NO_DATA = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
ABSENT = FileNotFoundError, NotADirectoryError
UNFINISHED = ".synthesize.json"
"""Lies in a folder while scenes are written to it (`synthesize/begun.py`)."""


class RawFolder(RawFiles):
    """A folder of raw files. All paths are relative to it, with forward slashes.

    Every method raises ValueError for a path that leaves it, and where the place refuses: no permission, no network.
    """

    def __init__(self, uri: str) -> None:
        """uri: a local path or s3://bucket/prefix. ValueError if it is not a folder."""
        self._fs, self._root = open_place(uri)
        self.uri = str(uri).rstrip("/") or "/"
        self.used: dict[str, str] = {}
        """Every file that was read or looked for through this object, and its `version` before that."""
        self._listed: dict[str, dict[str, str]] = {}  # of folders on S3, name -> version
        with reachable(f"raw folder {self.uri}"):
            try:
                is_folder = self._fs.info(self._root)["type"] == "directory"
            except ABSENT:
                is_folder = False
        if not is_folder:
            raise ValueError(f"raw folder {self.uri!r} does not exist or is not a folder: check --raw")

    def _path(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise ValueError(f"{path!r} leaves the raw folder {self.uri}: refused")
        clean = posixpath.normpath(path)
        return self._root if clean == "." else posixpath.join(self._root, clean)  # on S3, "." is a name like others

    def _reachable(self, path: str) -> AbstractContextManager[None]:
        return reachable(f"{path} in {self.uri}")

    def listdir(self, path: str = ".") -> tuple[list[str], list[str]]:
        """Sorted names of (folders, files), through links; none if it is absent. What is no data is left out.

        ValueError for a link to something that is not there, or to itself.
        """
        folder = self._path(path)
        folders, files = [], []
        for entry in self._entries(path):
            above, name = posixpath.split(entry["name"].rstrip("/"))
            if above != folder or name.startswith(".") or name.casefold() in NO_DATA:
                continue
            kind = self._kind_of_target(posixpath.join(path, name)) if entry.get("islink") else entry["type"]
            if kind != "other":  # a pipe or socket, from which one could read for ever
                (folders if kind == "directory" else files).append(name)
        return sorted(folders), sorted(files)

    def hidden(self, path: str = ".") -> list[str]:
        """Sorted names in a folder that begin with a dot, as far as nobody but a user can have put them there."""
        names = [posixpath.basename(entry["name"].rstrip("/")) for entry in self._entries(path)]
        return sorted(name for name in names if name.startswith(".") and not name.startswith("._"))

    def _entries(self, path: str) -> list[dict[str, Any]]:
        """Of a folder, as fsspec lists them; none if it is absent."""
        folder = self._path(path)
        with self._reachable(path):
            try:
                return self._fs.ls(folder, detail=True)
            except ABSENT:
                return []

    def _kind_of_target(self, link: str) -> str:
        where = self._path(link)
        with self._reachable(link):
            try:
                return self._fs.info(where)["type"]
            except FileNotFoundError:
                raise ValueError(
                    f"{link} in {self.uri} is a link to {os.readlink(where)}, which is not there: mount what it points "
                    "to, or remove the link"
                ) from None

    def find_folders(self, *markers: str, max_depth: int = 5) -> Iterator[str]:
        """Folders that hold a file or folder called like one of `markers`, which may be patterns such as "*.sens".

        Breadth first, not looking inside those found. Links to folders come after all others and no folder comes twice,
        so one that lies here keeps its own name. ValueError for a link to a folder that holds the link.
        """
        folders, links, seen = deque(["."]), deque(), set()
        while folders or links:
            folder = folders.popleft() if folders else links.popleft()
            target = self._target(folder)
            if target in seen:
                continue
            seen.add(target)
            inner, files = self.listdir(folder)
            if _any_fits(inner + files, markers):
                yield folder
            elif folder == "." or folder.count("/") + 1 < max_depth:
                for name in inner:
                    path = posixpath.normpath(posixpath.join(folder, name))
                    (links if self._is_link(path) else folders).append(path)

    def _is_link(self, path: str) -> bool:
        return is_local(self._fs) and os.path.islink(self._path(path))

    def _target(self, path: str) -> str:
        """Where a folder really is. ValueError if it is a link to a folder in which the link lies."""
        if not is_local(self._fs):
            return path
        target = os.path.realpath(self._path(path))
        lies_in = os.path.realpath(os.path.dirname(self._path(path)))
        if path != "." and f"{lies_in}/".startswith(f"{target.rstrip('/')}/"):
            raise ValueError(
                f"{path} in {self.uri} is a link to {target}, which holds the link: a loop without end; remove the link"
            )
        return target

    def holds(self, folder: str, *markers: str) -> bool:
        folders, files = self.listdir(folder)
        return _any_fits(folders + files, markers)

    def name_of(self, folder: str, *, parts: int) -> str:
        """What to call a folder: its path, led by the end of the raw folder's own path where shorter than `parts`.

        So a sequence has one name, and falls into one split, whichever level the raw folder is.
        """
        inner = [] if folder == "." else folder.split("/")
        outer = self._root.strip("/").split("/")
        return "/".join(outer[len(outer) - max(parts - len(inner), 0) :] + inner)

    def folder_of(self, name: str, *markers: str) -> str:
        """The folder that `name_of` named, by what `find_folders` knew it by; ValueError if there is none."""
        parts = name.split("/")
        for skipped in range(len(parts) + 1):
            folder = "/".join(parts[skipped:]) or "."
            if self.holds(folder, *markers):
                return folder
        raise ValueError(
            f"no {' or '.join(markers)} for {name!r} in {self.uri}: not one of the sequences that can be found there"
        )

    def found(self, names: Iterable[str], layout: str) -> list[str]:
        """Names of sequences, sorted. ValueError that shows what lies here instead of `layout` if there are none, and
        for a folder that is still being written."""
        if UNFINISHED in self.hidden():
            raise ValueError(f"{self.uri} is not whole: `synthesize` writes to it, or was interrupted: run it again")
        if names := sorted(names):
            return names
        folders, files = self.listdir()
        here = ", ".join(([f"{folder}/" for folder in folders] + files)[:5]) or "nothing"
        raise ValueError(
            f"no sequence in {self.uri}: expected {layout}; found {here}. Check --raw and what was extracted"
        )

    def frame_numbers(self, folder: str, template: str) -> Int64[np.ndarray, "T"]:
        """The numbers of the files named like "%06d_cam.txt" or "%d.txt", sorted as numbers. Other names are none."""
        found = map(_number_in(template).fullmatch, self.listdir(folder)[1])
        return np.array(sorted(int(match[1]) for match in found if match), np.int64)

    def frame_files(self, folder: str, template: str, numbers: Int64[np.ndarray, "T"], annotation: str) -> list[str]:
        """Paths of one file per frame that the file or folder `annotation` lists, named like "%06d_left.png".

        Other names are no frames. ValueError unless the folder has exactly these frames, and at least one.
        """
        found = set(filter(_number_in(template).fullmatch, self.listdir(folder)[1]))
        wanted = [template % number for number in numbers]
        missing, extra = [name for name in wanted if name not in found], sorted(found.difference(wanted))
        if missing or extra or not wanted:
            detail = [f"missing file {folder}/{name}" for name in missing[:1]]
            detail += [f"nothing listed for {folder}/{name}" for name in extra[:1]]
            raise ValueError(
                f"{annotation} lists {len(wanted)} frames but {folder} has {len(found)} in {self.uri}: "
                f"{' and '.join(detail) or 'empty'}; the copy is incomplete or mixed, download or extract it again"
            )
        return [f"{folder}/{name}" for name in wanted]

    def exists(self, path: str) -> bool:
        self.version(path)
        with self._reachable(path):
            return self._fs.exists(self._path(path))

    def open(self, path: str, *, ahead: int | None = None) -> io.IOBase:
        """A seekable binary file; ValueError if it is missing. `ahead`: how many bytes more than asked for may be
        fetched over a network, few for a file of which little is read."""
        return OpenFile(self._of_file(self._fs.open, path, "rb", block_size=ahead), f"{path} in {self.uri}")

    def read(self, path: str) -> bytes:
        """All bytes of a file, in one request; ValueError if it is missing."""
        return self._of_file(self._fs.cat_file, path)

    def part(self, path: str, start: int, length: int) -> bytes:
        """Some bytes of a file, which alone are fetched; fewer where it ends before."""
        return self._of_file(self._fs.cat_file, path, start=start, end=start + length) if length > 0 else b""

    def size(self, path: str) -> int:
        """Of a file, in bytes."""
        return self._of_file(self._fs.size, path)

    def version(self, path: str) -> str:
        """A text that changes with the file: size and time of change, on S3 size and ETag; "absent" if there is none.

        Told once for each file, as it was when this object met it first.
        """
        if path not in self.used:
            self.used[path] = self._local_version(path) if is_local(self._fs) else self._remote_version(path)
        return self.used[path]

    def _local_version(self, path: str) -> str:
        try:
            found = os.stat(self._path(path))
        except ABSENT:
            return "absent"
        return f"{found.st_size}-{found.st_mtime_ns}"

    def _remote_version(self, path: str) -> str:
        """Each folder is listed once: to ask about every file would be as many requests as reading them."""
        folder, name = posixpath.split(path)
        if folder not in self._listed:
            self._listed[folder] = {
                posixpath.basename(entry["name"]): f"{entry['size']}-{entry.get('ETag', '')}"
                for entry in self._entries(folder or ".")
            }
        return self._listed[folder].get(name, "absent")

    def sizes(self, paths: Iterable[str]) -> list[int]:
        """Bytes of each file, listing each folder once; ValueError that names the first one missing."""
        folders: dict[str, dict[str, int]] = {}
        sizes = []
        for path in paths:
            folder, name = posixpath.split(self._path(path))
            if folder not in folders:
                entries = self._entries(posixpath.dirname(path) or ".")
                folders[folder] = {posixpath.basename(entry["name"]): entry["size"] for entry in entries}
            if name not in folders[folder]:
                raise self._missing(path)
            sizes.append(folders[folder][name])
        return sizes

    def texts(self, paths: list[str]) -> list[str]:
        """Many small text files, fetched together: over a network, one after the other would take minutes."""
        where = [self._path(path) for path in paths]
        for path in paths:
            self.version(path)
        contents = self._fs.cat_ranges(where, None, None, on_error="return")
        texts = []
        for path, content in zip(paths, contents, strict=True):
            if isinstance(content, ABSENT):
                raise self._missing(path)
            if isinstance(content, Exception):
                with self._reachable(path):
                    raise content
            texts.append(self._as_text(path, content))
        return texts

    def _of_file(self, call: Callable[..., Any], path: str, *given: Any, **options: Any) -> Any:
        """What a call of the filesystem gives for a file; ValueError if it is missing."""
        where = self._path(path)
        self.version(path)
        with self._reachable(path):
            try:
                return call(where, *given, **options)
            except ABSENT:
                raise self._missing(path) from None

    def _missing(self, path: str) -> ValueError:
        return ValueError(f"missing file {path} in {self.uri}: the dataset has it; download or extract it again")


def _any_fits(names: list[str], markers: tuple[str, ...]) -> bool:
    return any(fitting(names, marker) for marker in markers)


def _number_in(template: str) -> re.Pattern:
    """Matches file names like "%06d_left.png" or "%d.jpg"; the number is group 1."""
    escaped = re.sub(r"%0(\d+)d", r"(\\d{\1})", re.escape(template))
    return re.compile(escaped.replace("%d", "([0-9]+)"))
