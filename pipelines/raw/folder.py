"""Reading raw files, local or s3://, with errors that name the file, the rule and the remedy.

The traps of `Library traps` in the dataset notes are met here once: 16-bit greys stay 16-bit, palette indices stay
indices, truncated files raise, pickles are never executed, and no path leaves the raw folder.
"""

import io
import json
import math
import posixpath
import re
import tokenize
from collections.abc import Iterable, Iterator
from fnmatch import filter as fitting
from typing import Any

import cv2
import fsspec
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8, UInt16

from pipelines.raw.images import NO_IMAGE, decode_exr, decode_image, decode_rgb, header_of, unreadable

MAX_SIDE = 1 << 24  # of an array; a few would hold nothing, but ever so many rows of it


class RawFolder:
    """A folder of raw files. All paths are relative to it, with forward slashes."""

    def __init__(self, uri: str) -> None:
        """uri: a local path or s3://bucket/prefix. ValueError if it is not a folder."""
        self.uri = str(uri).rstrip("/")
        self._fs, self._root = fsspec.core.url_to_fs(self.uri)
        self._fs.invalidate_cache()  # of what lay here when this process looked last
        if not self._fs.isdir(self._root):
            raise ValueError(f"raw folder {self.uri!r} does not exist or is not a folder: check --raw")

    def _path(self, path: str) -> str:
        clean = posixpath.normpath(path)
        if clean.startswith(("/", "..")):
            raise ValueError(f"{path!r} leaves the raw folder {self.uri}: refused")
        return self._root if clean == "." else posixpath.join(self._root, clean)  # on S3, "." is a name like others

    def listdir(self, path: str = ".") -> tuple[list[str], list[str]]:
        """Sorted names of (folders, files), none if it is absent. Hidden ones, such as macOS `._*`, are left out."""
        try:
            entries = self._fs.ls(self._path(path), detail=True)
        except FileNotFoundError:
            return [], []
        folders, files = [], []
        for entry in entries:
            name = posixpath.basename(entry["name"].rstrip("/"))
            if name and not name.startswith("."):
                (folders if entry["type"] == "directory" else files).append(name)
        return sorted(folders), sorted(files)

    def find_folders(self, *markers: str, max_depth: int = 5) -> Iterator[str]:
        """Folders that hold a file or folder called like one of `markers`, which may be patterns such as "*.sens";
        breadth first, not looking inside those found."""
        level = ["."]
        for _ in range(max_depth + 1):
            below = []
            for folder in level:
                if self.holds(folder, *markers):
                    yield folder
                else:
                    below += [posixpath.normpath(posixpath.join(folder, name)) for name in self.listdir(folder)[0]]
            level = below

    def holds(self, folder: str, *markers: str) -> bool:
        folders, files = self.listdir(folder)
        return any(fitting(folders + files, marker) for marker in markers)

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
        """Names of sequences, sorted; ValueError that shows what lies here instead of `layout` if there are none."""
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
        return self._fs.exists(self._path(path))

    def open(self, path: str, *, ahead: int | None = None) -> io.IOBase:
        """A seekable binary file; ValueError if it is missing. `ahead`: how many bytes more than asked for may be
        fetched over a network, few for a file of which little is read."""
        try:
            return self._fs.open(self._path(path), "rb", block_size=ahead)
        except FileNotFoundError:
            raise self._missing(path) from None

    def version(self, path: str) -> str:
        """A text that changes with the file; ValueError if it is missing."""
        self.sizes([path])
        return str(self._fs.ukey(self._path(path)))

    def sizes(self, paths: Iterable[str]) -> list[int]:
        """Bytes of each file, listing each folder once; ValueError that names the first one missing."""
        folders: dict[str, dict[str, int]] = {}
        sizes = []
        for path in paths:
            folder, name = posixpath.split(self._path(path))
            if folder not in folders:
                entries = self._fs.ls(folder, detail=True) if self._fs.isdir(folder) else []
                folders[folder] = {posixpath.basename(entry["name"]): entry["size"] for entry in entries}
            if name not in folders[folder]:
                raise self._missing(path)
            sizes.append(folders[folder][name])
        return sizes

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()

    def size(self, path: str) -> int:
        """Of a file, in bytes."""
        try:
            return self._fs.size(self._path(path))
        except FileNotFoundError:
            raise self._missing(path) from None

    def part(self, path: str, start: int, length: int) -> bytes:
        """Some bytes of a file, which alone are fetched; fewer where it ends before."""
        try:
            return self._fs.cat_file(self._path(path), start=start, end=start + length) if length > 0 else b""
        except FileNotFoundError:
            raise self._missing(path) from None

    def text(self, path: str) -> str:
        return self.texts([path])[0]

    def texts(self, paths: list[str]) -> list[str]:
        """Many small text files, fetched together: over a network, one after the other would take minutes."""
        contents = self._fs.cat_ranges([self._path(path) for path in paths], None, None, on_error="return")
        texts = []
        for path, content in zip(paths, contents, strict=True):
            if isinstance(content, FileNotFoundError):
                raise self._missing(path)
            if isinstance(content, Exception):
                raise content
            try:
                texts.append(content.decode())
            except UnicodeDecodeError as error:
                raise self._unreadable(path, "text", error) from None
        return texts

    def json(self, path: str) -> Any:
        text = self.text(path)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._unreadable(path, "JSON", error) from None

    def table(self, path: str, *, columns: int, skip_rows: int = 0) -> Float64[np.ndarray, "rows columns"]:
        """A text table of numbers separated by spaces, True and False being 1 and 0; every row must have `columns`."""
        lines = self.text(path).replace("True", "1").replace("False", "0").splitlines()[skip_rows:]
        if not any(line.strip() for line in lines):
            return np.empty((0, columns))
        try:
            rows = np.loadtxt(lines, ndmin=2, dtype=np.float64)
        except ValueError as error:
            raise self._unreadable(path, f"a table of {columns} numbers per line", error) from None
        if rows.shape[1] != columns:
            raise ValueError(
                f"{path} in {self.uri} has {rows.shape[1]} columns, not {columns}: not this dataset's file"
            )
        return rows

    def npy(self, path: str) -> np.ndarray:
        """A plain .npy array; object arrays (pickles) are refused."""
        with self.open(path) as file:
            try:
                shape, _, dtype = npy_header(file)
                if file.tell() + math.prod(shape) * dtype.itemsize != self.size(path):
                    raise ValueError(f"{shape} {dtype} in {self.size(path)} bytes")
                file.seek(0)
                return np.lib.format.read_array(file, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise self._unreadable(path, "a plain .npy array", error) from None

    def image_size(self, path: str) -> tuple[int, int]:
        """(H, W) of an image, from its header."""
        with self.open(path) as file:
            try:
                with header_of(file) as image:
                    return image.height, image.width
            except NO_IMAGE as error:
                raise self._unreadable(path, "an image", error) from None

    def rgb(self, path: str) -> UInt8[np.ndarray, "H W 3"]:
        """An 8-bit RGB image."""
        return decode_rgb(self.read(path), f"{path} in {self.uri}")

    def grey16(self, path: str) -> UInt16[np.ndarray, "H W"]:
        """A 16-bit grey PNG or PGM (which is big-endian, and may have comments)."""
        return self._decoded(path, ("PNG I;16", "PNG I", "PPM I"), "a 16-bit grey PNG or PGM", cv2.IMREAD_UNCHANGED)

    def float32(self, path: str) -> Float32[np.ndarray, "H W"]:
        """A PNG of four 8-bit channels that are, in the order B, G, R, A, the bytes of little-endian float32."""
        channels = self._decoded(path, ("PNG RGBA",), "a PNG of four 8-bit channels", cv2.IMREAD_UNCHANGED)
        return np.ascontiguousarray(channels).view("<f4")[..., 0].astype(np.float32)

    def rgb16(self, path: str) -> UInt16[np.ndarray, "H W 3"]:
        """A 16-bit RGB PNG, of which Pillow would give the upper bytes only."""
        what = "a 16-bit RGB PNG"
        decoded = self._decoded(path, ("PNG RGB",), what, cv2.IMREAD_UNCHANGED)
        if decoded.dtype != np.uint16:
            raise ValueError(f"{path} in {self.uri} has 8 bits per channel, but must be {what}: was it saved again?")
        return decoded[..., ::-1]

    def float_tiff(self, path: str) -> Float32[np.ndarray, "H W"]:
        """A TIFF of one channel of float32."""
        return self._decoded(path, ("TIFF F",), "a float32 TIFF of one channel", cv2.IMREAD_UNCHANGED)

    def exr(self, path: str, channel: str) -> Float[np.ndarray, "H W"]:
        """The one channel of an OpenEXR image, as float16 or float32, whichever it is stored as."""
        return decode_exr(self.read(path), f"{path} in {self.uri}", channel)

    def indices(self, path: str) -> UInt8[np.ndarray, "H W"]:
        """An 8-bit palette (or grey) PNG, as its indices."""
        return self._decoded(path, ("PNG P", "PNG L"), "an 8-bit index PNG", None)

    def mask(self, path: str) -> Bool[np.ndarray, "H W"]:
        """A black-and-white PNG, of 1 bit per pixel or 8: true where it is not black."""
        return self._decoded(path, ("PNG 1", "PNG L"), "a PNG of black and white or greys", None) > 0

    def _decoded(self, path: str, kinds: tuple[str, ...], what: str, flag: int | None) -> np.ndarray:
        return decode_image(self.read(path), f"{path} in {self.uri}", kinds, what, flag)

    def _missing(self, path: str) -> ValueError:
        return ValueError(f"missing file {path} in {self.uri}: the dataset has it; download or extract it again")

    def _unreadable(self, path: str, what: str, error: Exception | str) -> ValueError:
        return unreadable(f"{path} in {self.uri}", what, error)


def npy_header(file: io.IOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether by columns, and dtype of an .npy array; `file` then stands where its numbers begin. ValueError
    for what is none, or of a later version than 1.0: these are for field names, and their headers have any length."""
    if (version := np.lib.format.read_magic(file)) != (1, 0):
        raise ValueError(f"version {version}, not (1, 0)")
    try:
        shape, column_major, dtype = np.lib.format.read_array_header_1_0(file)
    except (tokenize.TokenError, RecursionError) as error:
        raise ValueError(f"no header: {error}") from None
    if not all(0 <= side <= MAX_SIDE for side in shape):
        raise ValueError(f"shape {shape}: each side must be from 0 to {MAX_SIDE}")
    return shape, column_major, dtype


def _number_in(template: str) -> re.Pattern:
    """Matches file names like "%06d_left.png" or "%d.jpg"; the number is group 1."""
    escaped = re.sub(r"%0(\d+)d", r"(\\d{\1})", re.escape(template))
    return re.compile(escaped.replace("%d", "([0-9]+)"))
