"""Places are opened by their very letters, and what they refuse is said in words."""

import errno
import os
import re
import socket

import pytest
from s3fs import S3FileSystem

from pipelines.raw.place import open_place, reachable

NAMES = ["room[12] *?{a,b}", "50% #1", "Küche", ".hidden", "ends with.", "a::b", "two  spaces", "~", "x=1&y", "{}"]


@pytest.fixture
def fresh_s3(s3_server, monkeypatch):
    """Filesystems made in this test read the environment that the test sets."""
    S3FileSystem.clear_instance_cache()
    yield monkeypatch
    S3FileSystem.clear_instance_cache()


def written_and_read(place: str) -> None:
    """Beside `room1` and `room2`, which patterns would hit."""
    for name in [*NAMES, "room1", "room2"]:
        fs, folder = open_place(f"{place}/{name}")
        assert folder.endswith(f"/{name}")
        fs.makedirs(folder, exist_ok=True)
        fs.pipe_file(f"{folder}/{name}", name.encode())
    for name in NAMES:
        fs, folder = open_place(f"{place}/{name}/")
        (entry,) = fs.ls(folder, detail=True)
        assert entry["name"] == f"{folder}/{name}" and fs.isdir(folder) and fs.exists(entry["name"])
        assert fs.cat_file(f"{folder}/{name}") == fs.open(f"{folder}/{name}").read() == name.encode()
        fs.rm_file(f"{folder}/{name}")
        assert not fs.exists(f"{folder}/{name}")
    fs, folder = open_place(place)
    assert fs.exists(f"{folder}/room1/room1") and fs.exists(f"{folder}/room2/room2")


def test_every_character_of_a_local_place_is_literal(tmp_path):
    written_and_read(str(tmp_path))


def test_every_character_of_a_place_on_s3_is_literal(s3_uri):
    written_and_read(s3_uri)


def test_a_relative_place_is_made_absolute_and_only_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert open_place("a/./b/")[1] == f"{tmp_path}/a/b"
    assert open_place("~me/x")[1] == f"{tmp_path}/~me/x"
    assert open_place("~/x")[1] == "/home/me/x"
    assert open_place("/")[1] == "/"


def test_what_others_write_is_seen_at_once(s3_uri):
    fs, path = open_place(s3_uri)
    fs.pipe_file(f"{path}/first", b"")
    assert len(fs.ls(path)) == 1
    S3FileSystem(skip_instance_cache=True).pipe_file(f"{path}/second", b"")
    assert len(fs.ls(path)) == 2


@pytest.mark.parametrize(
    "uri",
    ["", " ", "a\0b", "s3://", "s3:///key", "s3://bucket/key?versionId=3", "gs://bucket/key", "http://host/file",
     "file:///tmp", "zip://x::s3://bucket/y", "simplecache::s3://bucket/y", "memory://x", "S3://bucket"],
)  # fmt: skip
def test_other_protocols_and_chains_are_refused(uri):
    with pytest.raises(ValueError, match=rf"{re.escape(repr(uri))} is no place.* s3://bucket/prefix"):
        open_place(uri)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "it is read-only"), (errno.EACCES, "access is denied"),
     (errno.ENOENT, "no such file, folder or bucket"), (errno.EEXIST, "there already"), (errno.ELOOP, "in a circle"),
     (errno.ETIMEDOUT, "gives no answer"), (errno.EIO, "cannot be read or written"), (errno.EDQUOT, "quota")],
)  # fmt: skip
def test_a_refusal_names_place_rule_and_remedy(number, words):
    with pytest.raises(ValueError, match=rf"^/some/place: .*{words}.*; \w+") as caught, reachable("/some/place"):
        raise OSError(number, os.strerror(number), "/some/place")
    assert isinstance(caught.value.__cause__, OSError)


def test_errors_of_the_program_are_left_alone():
    with pytest.raises(KeyError), reachable("/some/place"):
        raise KeyError("typo")
    with pytest.raises(ValueError, match=r"^as it was$"), reachable("/some/place"):
        raise ValueError("as it was")


def test_a_wrong_secret(fresh_s3, s3_uri):
    fs, path = open_place(s3_uri)
    fs.pipe_file(f"{path}/file", b"")
    fresh_s3.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    S3FileSystem.clear_instance_cache()
    fs, path = open_place(s3_uri)
    for call in (fs.ls, fs.isdir, fs.info, fs.cat_file, fs.open, fs.exists):
        with pytest.raises(ValueError, match=r"access is denied .*; check AWS_ACCESS_KEY_ID"), reachable(s3_uri):
            call(f"{path}/file")


def test_no_such_bucket_and_no_credentials(fresh_s3, tmp_path):
    fs, path = open_place("s3://nowhere/x")
    with pytest.raises(ValueError, match=r"^s3://nowhere/x: there is no such"), reachable("s3://nowhere/x"):
        fs.ls(path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        fresh_s3.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        fresh_s3.setenv(name, str(tmp_path / "none"))
    fresh_s3.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    fs, path = open_place("s3://nowhere/x")
    with pytest.raises(ValueError, match=r"no credentials|access is denied"), reachable("s3://nowhere/x"):
        fs.info(path)


def test_no_server(fresh_s3):
    with socket.socket() as taken:  # but nobody listens
        taken.bind(("127.0.0.1", 0))
        fresh_s3.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        fs, path = open_place("s3://bucket/x")
        with pytest.raises(ValueError, match=r"gives no answer .*; check AWS_ENDPOINT_URL"), reachable("s3://bucket/x"):
            fs.cat_file(path)


def test_what_is_set_wrong_is_not_blamed_on_the_server(monkeypatch):
    for bucket in ("Bad Bucket", "room[1]", "b!"):
        with pytest.raises(ValueError, match=r"bucket .* must have letters, digits"):
            open_place(f"s3://{bucket}/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(ValueError, match=r"^AWS_ENDPOINT_URL 'nonsense' is no server: it must be like http://"):
        open_place("s3://bucket/x")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    S3FileSystem.clear_instance_cache()
    fs, path = open_place("s3://bucket/x")
    with (
        pytest.raises(ValueError, match=r"profile \(nosuch\) could not be found; check AWS_PROFILE"),
        reachable("s3://b/x"),
    ):
        fs.cat_file(path)
    S3FileSystem.clear_instance_cache()
