"""Rows of .npz arrays: the same as np.load gives, in bounded memory, and nothing is ever unpickled."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.raw.folder import RawFolder
from pipelines.raw.npz import Npz


def opened(folder: Path) -> Npz:
    return Npz(RawFolder(str(folder)), "a.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_rows_in_any_order(tmp_path, write):
    array = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float16)
    write(tmp_path / "a.npz", a=array, b=np.arange(5), c=np.zeros((5, 0, 3)))
    npz = opened(tmp_path)
    assert npz.shape("a") == (20, 4, 3) and npz.shape("absent") is None
    for rows in ([3, 4, 9], [1, 19, 0, 0], []):  # ahead; then back, unordered and twice
        read = npz.rows("a", np.array(rows, int))
        assert read.dtype == np.float16
        np.testing.assert_array_equal(read, array[np.array(rows, int)])
    np.testing.assert_array_equal(npz.rows("a"), array)
    np.testing.assert_array_equal(npz.rows("b"), np.arange(5))
    assert npz.rows("c", np.array([2, 4])).shape == (2, 0, 3)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_memory_is_bounded(tmp_path, write):
    array = np.zeros((2000, 5000, 3), np.float32)
    array += np.arange(2000, dtype=np.float32)[:, None, None]
    write(tmp_path / "a.npz", a=array)
    size = array.nbytes
    del array
    npz = opened(tmp_path)
    tracemalloc.start()
    for rows in ([1900, 1999], [3, 700, 3]):  # ahead, then back again
        assert npz.rows("a", np.array(rows))[:, 17, 2].tolist() == rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2


class Bomb:
    """Leaves a trace where a pickle of it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_are_never_loaded(tmp_path):
    trace = tmp_path / "exploded"
    scalar = np.empty((), object)
    scalar[()] = Bomb(trace)
    np.savez(
        tmp_path / "a.npz",
        none=np.array(None),
        scalar=scalar,
        one=np.array([Bomb(trace)]),
        array=np.array([Bomb(trace), None]),
    )
    npz = opened(tmp_path)
    assert npz.shape("none") is None and npz.shape("scalar") is None and npz.shape("one") is None
    with pytest.raises(ValueError, match=r"array of a\.npz .*pickled .*refused"):
        npz.rows("array")
    with pytest.raises(ValueError, match=r"a\.npz .*no array 'scalar'"):
        npz.rows("scalar")
    assert not trace.exists()


def test_refuses_what_is_no_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"a\.npz .*corrupt or truncated.*download it again"):
        opened(tmp_path)
    np.savez(tmp_path / "a.npz", a=np.zeros(100))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-90])
    with pytest.raises(ValueError, match=r"a\.npz .*corrupt or truncated"):
        opened(tmp_path)
    np.savez(tmp_path / "a.npz", a=np.asfortranarray(np.zeros((4, 3))))
    with pytest.raises(ValueError, match=r"a of a\.npz .*column by column"):
        opened(tmp_path).rows("a")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 3)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", buffer.getvalue().replace(b"(4, 3)", b"(9, 3)"))
    with pytest.raises(ValueError, match=r"a of a\.npz .*is \(9, 3\) float64 but has \d+ bytes"):
        opened(tmp_path).rows("a")
    with pytest.raises(ValueError, match=r"missing file a\.npz"):
        Npz(RawFolder(str(tmp_path / "..")), "a.npz")
