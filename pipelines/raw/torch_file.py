"""Tensors of a file that `torch.save` wrote, as NumPy arrays: without torch, and without ever executing a pickle.

Such a file is a zip of `<name>/data.pkl`, which says how each tensor lies in its storage, and of the storages'
bytes, `<name>/data/0` and so on. Only the storages of the tensors asked for are read. The pickle may hold plain Python
values and tensors; NumPy objects, which some copies have beside them, are passed over; any other name is refused.
"""

import io
import math
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from pipelines.raw.folder import RawFolder
from pipelines.raw.place import Refused

MAX_PICKLE = 1 << 20  # bytes; without the storages, a dictionary of tensors is a thousandth of that
MAX_STORAGE = 1 << 28  # bytes; 24,000 points have 288,000
DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}


class _Storage(NamedTuple):
    dtype: str
    key: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, stride: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, stride)


class _PassedOver:
    """Stands for an object of NumPy: takes whatever its pickle would give it, and does nothing."""

    def __new__(cls, *_: Any) -> "_PassedOver":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


ALLOWED = {("torch", name): dtype for name, dtype in DTYPES.items()}
ALLOWED |= {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _PassedOver,
    ("numpy", "dtype"): _PassedOver,
    ("_codecs", "encode"): _PassedOver,
}
ALLOWED |= {
    (f"numpy.{core}.multiarray", name): _PassedOver for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ValueError(
                f"names {module}.{name}, which is neither a tensor nor NumPy's: refused, it can run any code"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or dtype not in DTYPES.values():
            raise ValueError(f"has a storage of unknown kind {kind!r} or type")
        return _Storage(dtype, str(key), int(count))


def read_tensors(raw: RawFolder, path: str, *keys: str) -> list[np.ndarray]:
    """The tensors under these keys of the dictionary in a file. ValueError for what is corrupt, missing or refused."""
    where = f"{path} in {raw.uri}"
    with raw.open(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                tensors = _dictionary(archive)
                return [_array(archive, tensors, key) for key in keys]
        except Refused:
            raise
        except zipfile.BadZipFile as error:
            raise ValueError(f"{where} is no zip file of torch.save ({error}): truncated, download it again") from None
        except (
            ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError, RecursionError,
            RuntimeError, TypeError, ValueError, pickle.UnpicklingError, zlib.error,
        ) as error:  # fmt: skip
            raise ValueError(f"{where} cannot be read as tensors: {error}; download it again") from None


def _dictionary(archive: zipfile.ZipFile) -> dict[str, Any]:
    member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if member is None:
        raise ValueError("it has no data.pkl")
    byteorder = f"{member.removesuffix('data.pkl')}byteorder"
    if byteorder in archive.namelist() and _bytes(archive, byteorder, MAX_PICKLE) != b"little":
        raise ValueError("its numbers are big-endian")
    pickled = _bytes(archive, member, MAX_PICKLE)
    for code, argument, _ in pickletools.genops(pickled):  # which also stumbles over lengths beyond the end
        if "PUT" in code.name and argument > len(pickled):  # memory would be taken for as many
            raise ValueError(f"its data.pkl numbers an object {argument}, but has {len(pickled)} bytes")
    tensors = _Unpickler(io.BytesIO(pickled)).load()
    if not isinstance(tensors, dict):
        raise ValueError(f"it holds a {type(tensors).__name__}, not a dictionary")
    return tensors | {"": member.removesuffix("data.pkl")}


def _array(archive: zipfile.ZipFile, tensors: dict[str, Any], key: str) -> np.ndarray:
    tensor = tensors.get(key)
    if not isinstance(tensor, _Tensor) or not isinstance(tensor.storage, _Storage):
        raise ValueError(f"it has no tensor {key!r} but {', '.join(sorted(map(str, filter(None, tensors))))}")
    dtype = np.dtype(tensor.storage.dtype)
    content = _bytes(archive, f"{tensors['']}data/{tensor.storage.key}", MAX_STORAGE)
    if len(content) != tensor.storage.count * dtype.itemsize or math.prod(tensor.shape) > tensor.storage.count:
        raise ValueError(f"{key} is {tensor.shape} {dtype} but its storage has {len(content)} bytes")
    # NumPy checks that the view stays inside its buffer.
    strides = [step * dtype.itemsize for step in tensor.stride]
    return np.ndarray(tensor.shape, dtype, content, tensor.offset * dtype.itemsize, strides).copy()


def _bytes(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    if (size := archive.getinfo(name).file_size) > limit:
        raise ValueError(f"{name} is larger than {limit} bytes")
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed with neither nothing nor deflate")
    with archive.open(name) as stream:
        return stream.read(size)  # without a size, all is inflated, whatever the archive says of it
