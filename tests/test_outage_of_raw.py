"""S3 fails while a raw file is being read: that is said of the place, and not of the file, which is whole."""

import gzip
import io
import json
import os
import re
import struct
import zipfile

import numpy as np
import pytest
from proxy import Proxy
from s3fs import S3FileSystem

from pipelines.raw.folder import RawFolder
from pipelines.raw.json_list import parse
from pipelines.raw.npz import Npz
from pipelines.raw.sens import SensFile
from pipelines.raw.torch_file import read_tensors
from pipelines.whole import write_file

SIZE = 24 << 20  # bytes, far more than is fetched ahead


@pytest.fixture
def proxy(s3_server, monkeypatch):
    """S3 behind a proxy that can be cut; nothing is tried again, which would take a minute."""
    with Proxy(int(re.search(r":(\d+)$", os.environ["AWS_ENDPOINT_URL"])[1])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(S3FileSystem, "retries", 1)
        monkeypatch.setattr(S3FileSystem, "default_block_size", 1 << 20)
        S3FileSystem.clear_instance_cache()
        yield proxy
    S3FileSystem.clear_instance_cache()


def npz_file() -> bytes:
    file = io.BytesIO()
    np.savez(file, rows=np.random.default_rng(0).integers(255, size=(SIZE >> 20, 1 << 20), dtype=np.uint8))
    return file.getvalue()


def torch_file() -> bytes:
    """Of which already the list of its members is never reached."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/large", os.urandom(SIZE))
    return file.getvalue()


def sens_file() -> bytes:
    """A stream whose second frame lies far behind the first."""
    header = struct.pack("<IQ", 4, 0) + np.tile(np.eye(4, dtype="<f4"), (4, 1, 1)).tobytes()
    header += struct.pack("<2i4IfQ", 0, 1, 4, 4, 4, 4, 1000.0, 2)
    frame = struct.pack("<16f4Q", *np.eye(4).ravel(), 0, 0, SIZE, 0) + bytes(SIZE)
    return header + 2 * frame


def list_file() -> bytes:
    return gzip.compress(json.dumps([{"text": os.urandom(1 << 20).hex()} for _ in range(SIZE >> 20)]).encode(), 1)


def read_npz(raw: RawFolder, cut) -> None:
    archive = Npz(raw, "file")
    archive.rows("rows", np.array([0]))
    cut()
    archive.rows("rows", np.array([12]))


def read_list(raw: RawFolder, cut) -> None:
    for _ in parse(raw, "file.jgz"):
        cut()


def read_sens(raw: RawFolder, cut) -> None:
    stream = SensFile(raw, "file")
    cut()
    stream.colour(0)


def read_torch(raw: RawFolder, cut) -> None:
    opened = raw.open

    def open_and_cut(path: str) -> io.IOBase:
        file = opened(path)
        cut()
        return file

    raw.open = open_and_cut
    read_tensors(raw, "file", "mask")


@pytest.mark.parametrize(
    ("content", "read"),
    [(npz_file, read_npz), (list_file, read_list), (sens_file, read_sens), (torch_file, read_torch)],
)
def test_it_is_the_place_that_is_blamed(content, read, proxy, s3_uri):
    name = "file.jgz" if read is read_list else "file"
    write_file(f"{s3_uri}/{name}", content())
    with pytest.raises(ValueError) as error:
        read(RawFolder(s3_uri), proxy.cut)
    assert f"{name} in {s3_uri}: the server " in str(error.value) and "gives no answer" in str(error.value)
    assert "corrupt" not in str(error.value) and "truncated" not in str(error.value)
