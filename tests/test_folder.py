"""What a raw folder takes for data, where links lead, and that nothing a file names leads out of it."""

import os
from pathlib import Path

import pytest
from odd_names import ODD, upload
from s3fs import S3FileSystem

from pipelines.audit import audit
from pipelines.convert import convert
from pipelines.raw.folder import RawFolder

LEFT_BEHIND = [
    "__MACOSX",
    "@eaDir",
    "$RECYCLE.BIN",
    "$Recycle.Bin",
    "lost+found",
    "System Volume Information",
    ".hidden",
]


def found(raw: Path) -> list[str]:
    return sorted(RawFolder(str(raw)).find_folders("marker"))


def folder(path: Path) -> Path:
    """One that is looked for."""
    path.mkdir(parents=True)
    (path / "marker").write_text(path.name)
    return path


@pytest.fixture
def raw(tmp_path) -> Path:
    return folder(tmp_path / ODD / "real/a").parents[1]


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_systems_leave_behind_is_no_data(raw, name):
    for above in (raw, raw / "real", raw / "real/a"):
        folder(above / name / "a")
    folder(raw / name / "marker")
    assert found(raw) == ["real/a"]
    assert RawFolder(str(raw)).listdir("real/a") == ([], ["marker"])


def test_pipes_are_no_files(raw):
    os.mkfifo(raw / "real/pipe")
    (raw / "real/link").symlink_to("pipe")
    assert RawFolder(str(raw)).listdir("real") == (["a"], [])


def test_odd_names_are_found_and_read_on_s3(raw, s3_uri):
    folder(raw / ODD)
    folder(raw / "__MACOSX/a")
    upload(raw, f"{s3_uri}/{ODD}")
    remote = RawFolder(f"{s3_uri}/{ODD}")
    assert sorted(remote.find_folders("marker")) == sorted(["real/a", ODD])
    path = f"{ODD}/marker"
    assert remote.read(path) == remote.open(path).read() == ODD.encode()
    assert remote.texts([path, "real/a/marker"]) == [ODD, "a"]
    assert remote.sizes([path]) == [remote.size(path)] == [len(ODD.encode())]
    assert remote.part(path, 0, 4) == b"room" and remote.exists(path) and remote.version(path)
    assert not remote.exists(f"{ODD}/mark?r") and remote.listdir("real/*") == ([], [])
    with pytest.raises(ValueError, match="missing file real/a/other in s3://"):
        remote.texts(["real/a/marker", "real/a/other"])


def test_folders_that_are_links_are_followed_each_real_folder_once(raw, tmp_path):
    other_disk = folder(tmp_path / "disk/b").parent
    folder(other_disk / "deep/er/c")
    (raw / "linked").symlink_to(other_disk)
    (raw / "again").symlink_to(other_disk / "deep")  # the first of two links to one folder, by name
    (raw / "a copy").symlink_to(raw / "real/a")  # what lies here keeps its own name
    (raw / "real/d").symlink_to("../../disk/b")
    names = found(raw)
    assert names == ["again/er/c", "linked/b", "real/a"]
    assert [RawFolder(str(raw)).text(f"{name}/marker") for name in names] == ["c", "b", "a"]


def test_a_raw_folder_may_be_a_link_itself_and_so_may_files(raw, tmp_path):
    (tmp_path / "link").symlink_to(raw)
    (raw / "real/a/marker").rename(tmp_path / "elsewhere")
    (raw / "real/a/marker").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "link") == ["real/a"]
    assert RawFolder(str(tmp_path / "link")).sizes(["real/a/marker"]) == [1]


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "real"])
def test_a_link_to_a_folder_that_holds_it_is_an_error(raw, target):
    place = raw / "real/loop" if target != "real" else raw / "real/x/loop"
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(target if target != "real" else "../../real")
    with pytest.raises(
        ValueError, match=r"real/(x/)?loop in .* is a link to .*, which holds the link.* remove the link"
    ):
        found(raw)


def test_links_that_lead_in_a_circle_or_nowhere_are_errors(raw):
    (raw / "real/b").symlink_to(raw / "real/c")
    with pytest.raises(ValueError, match=r"real/b in .* is a link to .*/real/c, which is not there: mount"):
        found(raw)
    (raw / "real/c").symlink_to(raw / "real/b")
    with pytest.raises(ValueError, match=r"real/b in .*: its links lead in a circle .*; mend or remove them"):
        found(raw)


@pytest.mark.parametrize(
    "path", ["../secret", "real/../../secret", "real/a/../marker", "link/../../secret", "/etc/hostname", "..", "a\0b"]
)
def test_what_a_file_names_never_leads_out(raw, path):
    (raw.parent / "secret").write_text("secret")
    (raw / "link").symlink_to(raw / "real/a")
    folder_of = RawFolder(str(raw))
    calls = [folder_of.read, folder_of.open, folder_of.size, folder_of.exists, folder_of.listdir, folder_of.version]
    calls += [lambda path: folder_of.texts([path]), lambda path: folder_of.sizes([path]), folder_of.text]
    calls += [lambda path: folder_of.part(path, 0, 1), folder_of.rgb, folder_of.npy]
    for call in calls:
        with pytest.raises(ValueError, match=r"leaves the raw folder .*: refused"):
            call(path)
    assert folder_of.text("link/marker") == "a"  # along the user's own link it may go


def test_a_raw_folder_that_refuses_or_is_none(raw, tmp_path, s3_uri, monkeypatch):
    upload(raw, s3_uri)
    for uri in (f"{s3_uri}/nothing", "s3://no-such-bucket/x", str(raw / "real/a/marker"), str(raw / "none"), "none"):
        with pytest.raises(ValueError, match="does not exist or is not a folder: check --raw"):
            RawFolder(uri)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    S3FileSystem.clear_instance_cache()
    try:
        out = str(tmp_path / "out")
        for call in (
            lambda: RawFolder(s3_uri),
            lambda: convert("tartanair", raw=s3_uri, store=out),
            lambda: audit("tartanair", raw=s3_uri, out=out),
        ):
            with pytest.raises(ValueError, match=rf"raw folder {s3_uri}: access is denied .*; check AWS_ACCESS_KEY_ID"):
                call()
        assert not (tmp_path / "out").exists()
    finally:
        S3FileSystem.clear_instance_cache()
