"""Files of torch.save: the same tensors as torch loads, only the bytes that are needed, and no code is ever run."""

import io
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.raw.folder import RawFolder
from pipelines.raw.torch_file import read_tensors


def read(folder: Path, *keys: str) -> list[np.ndarray]:
    return read_tensors(RawFolder(str(folder)), "a.pth", *keys)


def save(folder: Path, value: object) -> None:
    torch.save(value, folder / "a.pth")


DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_those_of_torch(tmp_path, dtype):
    whole = (torch.arange(60).reshape(4, 5, 3) % 7).to(getattr(torch, dtype))
    tensors = {"whole": whole, "view": whole[1:, ::2, 1], "turned": whole.permute(2, 0, 1), "scalar": whole[2, 2, 2]}
    tensors |= {"empty": whole[:0], "shared": whole}
    save(tmp_path, tensors)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    for key, found in zip(tensors, read(tmp_path, *tensors), strict=True):
        assert found.dtype == loaded[key].numpy().dtype and found.shape == tuple(loaded[key].shape)
        np.testing.assert_array_equal(found, loaded[key].numpy())
        found[...] = 0  # it is nobody else's


def test_other_entries_are_passed_over(tmp_path):
    """Some copies have NumPy objects and plain values beside the tensors, which torch refuses with weights_only."""
    value = OrderedDict(
        a=torch.arange(3),
        array=np.arange(3.0),
        scalar=np.float64(2),
        flag=np.bool_(True),
        name="left",
        nested=[{"b": (1, None, b"x")}],
        long=10**30,
    )
    save(tmp_path, value)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)
    np.testing.assert_array_equal(read(tmp_path, "a")[0], [0, 1, 2])
    with pytest.raises(ValueError, match=r"no tensor 'array' but a, array, flag, long"):
        read(tmp_path, "array")


def test_reads_only_what_is_asked_for(tmp_path):
    save(tmp_path, {"small": torch.arange(4), "img": torch.zeros(4000, 4000, dtype=torch.uint8)})
    tracemalloc.start()
    np.testing.assert_array_equal(read(tmp_path, "small")[0], np.arange(4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


class Runs:
    """Its pickle calls a function with an argument."""

    def __init__(self, function, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.mkdir, r"posix\.mkdir"),
        (eval, r"(__builtin__|builtins)\.eval"),
        (exec, r"(__builtin__|builtins)\.exec"),
        (getattr, r"__builtin__\.|(__builtin__|builtins)\.getattr"),
        (Path.mkdir, r"pathlib\.Path\.mkdir|(__builtin__|builtins)\.getattr"),
        (np.fromfile, r"numpy\.fromfile"),
        (torch.load, r"torch\.serialization\.load"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_is_refused_by_name_and_never_run(tmp_path, function, name, protocol):
    trace = tmp_path / "trace"
    argument = f"__import__('os').mkdir({str(trace)!r})" if function in (eval, exec) else str(trace)
    attack = {"a": torch.arange(3), "b": Runs(function, argument)}
    torch.save(attack, tmp_path / "a.pth", pickle_protocol=protocol)
    with pytest.raises(ValueError, match=rf"a\.pth .*cannot be read as tensors: names ({name}), .*refused"):
        read(tmp_path, "a")
    assert not trace.exists()


def archive(folder: Path, pickled: bytes, storages: dict[str, bytes] | None = None, **other: bytes) -> None:
    """A file in torch's layout with any content."""
    with zipfile.ZipFile(folder / "a.pth", "w") as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in ((storages or {}) | other).items():
            file.writestr(f"a/{'data/' * (name in (storages or {}))}{name}", content)


class Crafted(pickle.Pickler):
    """Writes tensors with any fields, by naming the functions that torch's own pickles name."""

    def persistent_id(self, value: object) -> object:
        return value.arguments if isinstance(value, Runs) and value.function == "storage" else None


def crafted(*, storage=("storage", torch.FloatStorage, "0", "cpu", 4), offset=0, shape=(4,), stride=(1,)) -> bytes:
    buffer = io.BytesIO()
    tensor = Runs(torch._utils._rebuild_tensor_v2, Runs("storage", *storage), offset, shape, stride, False, None)
    Crafted(buffer, 2).dump({"a": tensor})
    return buffer.getvalue()


BYTES = np.arange(4, dtype=np.float32).tobytes()
REFUSED = {
    "not a zip": (lambda f: (f / "a.pth").write_bytes(b"\x80\x02" + b"torch" * 99), r"no zip file of torch\.save"),
    "cut short": (lambda f: (f / "a.pth").write_bytes((f / "a.pth").read_bytes()[:-30]), "download it again"),
    "no dictionary": (lambda f: save(f, [torch.arange(3)]), "holds a list, not a dictionary"),
    "no such key": (lambda f: save(f, {"b": torch.arange(3), 3: 1}), r"no tensor 'a' but 3, b"),
    "no pickle": (lambda f: zipfile.ZipFile(f / "a.pth", "w").close(), r"no data\.pkl"),
    "huge pickle": (lambda f: archive(f, pickle.dumps("x" * (1 << 21))), r"data\.pkl is larger than 1048576 bytes"),
    "broken pickle": (lambda f: archive(f, b"\x80\x02}q\x00"), "cannot be read as tensors"),
    "big-endian": (lambda f: archive(f, crafted(), {"0": BYTES}, byteorder=b"big"), "big-endian"),
    "no storage": (lambda f: archive(f, crafted()), "data/0"),
    "storage elsewhere": (
        lambda f: archive(f, crafted(storage=("storage", torch.FloatStorage, "../../x", "cpu", 4))),
        r"data/\.\./\.\./x",
    ),
    "storage too short": (lambda f: archive(f, crafted(), {"0": BYTES[:-1]}), r"a is \(4,\) float32 .* has 15 bytes"),
    "more than its storage": (
        lambda f: archive(f, crafted(shape=(1 << 40,), stride=(0,)), {"0": BYTES}),
        r"a is \(1099511627776,\)",
    ),
    "beyond its storage": (lambda f: archive(f, crafted(offset=1), {"0": BYTES}), "cannot be read as tensors"),
    "before its storage": (lambda f: archive(f, crafted(offset=-1), {"0": BYTES}), "cannot be read as tensors"),
    "backwards": (lambda f: archive(f, crafted(stride=(-1,)), {"0": BYTES}), "cannot be read as tensors"),
    "shape of text": (lambda f: archive(f, crafted(shape="abcd"), {"0": BYTES}), "cannot be read as tensors"),
    "negative shape": (lambda f: archive(f, crafted(shape=(-4,)), {"0": BYTES}), "cannot be read as tensors"),
    "other type": (
        lambda f: archive(f, crafted(storage=("storage", torch.BFloat16Storage, "0", "cpu", 4)), {"0": BYTES[:8]}),
        r"names torch\.BFloat16Storage",
    ),
    "type of no storage": (
        lambda f: archive(f, crafted(storage=("storage", "O", "0", "cpu", 4)), {"0": BYTES}),
        "storage of unknown kind",
    ),
    "kind of no storage": (
        lambda f: archive(f, crafted(storage=("module", torch.FloatStorage, "0", "cpu", 4)), {"0": BYTES}),
        "storage of unknown kind 'module'",
    ),
    "no fields": (lambda f: archive(f, crafted(storage=("storage",))), "cannot be read as tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(tmp_path, case):
    save(tmp_path, {"a": torch.arange(4.0)})
    damage, message = REFUSED[case]
    damage(tmp_path)
    with pytest.raises(ValueError, match=rf"a\.pth in .*({message})"):
        read(tmp_path, "a")


def test_the_crafted_file_is_read_unless_something_is_wrong_with_it(tmp_path):
    archive(tmp_path, crafted(), {"0": BYTES}, byteorder=b"little")
    np.testing.assert_array_equal(read(tmp_path, "a")[0], [0, 1, 2, 3])


def test_a_storage_that_unpacks_to_too_much_is_not_unpacked(tmp_path):
    count = (1 << 28) // 4 + 1
    pickled = crafted(storage=("storage", torch.FloatStorage, "0", "cpu", count), shape=(count,))
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickled)
        with file.open("a/data/0", "w") as storage:
            for _ in range(count * 4 // (1 << 22) + 1):
                storage.write(bytes(1 << 22))
    assert (tmp_path / "a.pth").stat().st_size < 2e6
    with pytest.raises(ValueError, match=r"a/data/0 is larger than 268435456 bytes"):
        read(tmp_path, "a")
