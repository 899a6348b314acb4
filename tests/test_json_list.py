"""Long JSON lists: the records that `json` gives, grouped, in bounded memory; nothing but a whole list is accepted."""

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipelines.raw import json_list
from pipelines.raw.folder import RawFolder

NASTY = {"a": '"}, {', "b": [{"c": ["[", "]"]}, {}], "d": {"e": '\\"}'}, "f": "Zürich \ud83d\ude00", "g": 1e-7}


def read(folder: Path, name: str = "a.json") -> list[dict]:
    return [record for record, _ in json_list.parse(RawFolder(str(folder)), name)]


@pytest.mark.parametrize("records", [[], [NASTY], [NASTY, {}, NASTY | {"n": 1}], [{"i": i} for i in range(3000)]])
@pytest.mark.parametrize("layout", [{}, {"indent": 3}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_records_are_those_of_json(tmp_path, records, layout, monkeypatch):
    text = f"\n {json.dumps(records, **layout)} \n".encode("utf-8", "surrogatepass").replace(
        b"\xed\xa0\xbd\xed\xb8\x80", b"?"
    )
    (tmp_path / "a.json").write_bytes(text)
    (tmp_path / "a.jgz").write_bytes(gzip.compress(text))
    expected = json.loads(text)
    for chunk in (1 << 20, 100, 7):
        monkeypatch.setattr(json_list, "CHUNK", chunk)
        assert read(tmp_path) == read(tmp_path, "a.jgz") == expected
    for record, piece in json_list.parse(RawFolder(str(tmp_path)), "a.json"):
        assert json.loads(piece) == record


def test_groups_are_by_all_fields_and_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(json_list, "MAX_RUN", 3)
    rng = np.random.default_rng(0)
    records = [{"name": f"s{rng.integers(3)}", "eye": "lr"[rng.integers(2)], "frame": i} for i in range(50)]
    records += [{"name": "run", "eye": "l", "frame": i} for i in range(10)]
    (tmp_path / "a.jgz").write_bytes(gzip.compress(json.dumps(records).encode()))
    groups = json_list.groups(RawFolder(str(tmp_path)), "a.jgz", "name", "eye")
    assert sorted(groups) == sorted({(record["name"], record["eye"]) for record in records})
    for name, eye in groups:
        expected = [record for record in records if (record["name"], record["eye"]) == (name, eye)]
        assert groups.records((name, eye)) == expected and groups.first((name, eye)) == expected[0]
    assert groups.records(("run", "r")) == []


def test_a_list_is_read_once_until_it_changes(tmp_path):
    raw, path = RawFolder(str(tmp_path)), tmp_path / "a.json"
    path.write_text('[{"name": "a"}]')
    first = json_list.groups(raw, "a.json", "name")
    assert json_list.groups(RawFolder(str(tmp_path)), "a.json", "name") is first
    path.write_text('[{"name": "b"}, {"name": "c"}]')
    assert list(json_list.groups(RawFolder(str(tmp_path)), "a.json", "name")) == [("b",), ("c",)]


def test_memory_is_bounded(tmp_path):
    """A list that unpacks to 20 MB."""
    record = json.dumps({"name": "s", "text": "0.123456789 " * 110, "frame": 0}).encode()
    with gzip.open(tmp_path / "a.jgz", "wb", 1) as file:
        file.write(b"[" + record)
        for _ in range(150):
            file.write((b", " + record) * 100)
        file.write(b"]")
    tracemalloc.start()
    count = sum(1 for _ in json_list.parse(RawFolder(str(tmp_path)), "a.jgz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_001 and 15_001 * len(record) > 20e6 and peak < 8e6


def test_gives_up_on_a_record_without_end_before_memory_does(tmp_path):
    """A few kilobytes that unpack to 200 MB."""
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb") as file:
        file.write(b'[{"a": "')
        for _ in range(200):
            file.write(b" " * 1_000_000)
        file.write(b'"}]')
    (tmp_path / "a.jgz").write_bytes(buffer.getvalue())
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.jgz .*no whole record within 4194304 characters"):
        read(tmp_path, "a.jgz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


WRONG = {
    "": "ends before the list does",
    "   ": "ends before the list does",
    "{}": r"'\{' stands where '\[' should",
    '{"a": []}': r"stands where '\[' should",
    "[": "stands where a record should|ends before",
    "[{}": "ends before the list does",
    "[{},": "ends before the list does",
    "[{},]": r"'\]' stands where a record should",
    "[{} {}]": r"'\{' stands where ',' should",
    "[{}, 1]": "'1' stands where a record should",
    "[[{}]]": r"'\[' stands where a record should",
    '[{"a": }]': "a record is not whole",
    '[{"a": 1': "a record is not whole",
    "[{}] []": r"'\[' stands after its end",
    f'[{{"a": {"[" * 100_000}': "recursion|not whole",
    f'[{{"a": {"1" * 5000}}}]': "digits",
}


@pytest.mark.parametrize("text", WRONG, ids=[text[:12] for text in WRONG])
def test_refuses_what_is_no_whole_list(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json .*cannot be read as a JSON list of records .*({WRONG[text]})"):
        read(tmp_path)


DAMAGED_GZIP = {
    "plain text": b"[{}]",
    "empty": b"",
    "cut short": gzip.compress(b'[{"a": 1}]')[:-9],
    "not UTF-8": gzip.compress(b'["\xff"]'),
}


@pytest.mark.parametrize("damage", DAMAGED_GZIP)
def test_refuses_damaged_gzip(tmp_path, damage):
    content = DAMAGED_GZIP[damage]
    (tmp_path / "a.jgz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jgz .*truncated or corrupt, download it again"):
        read(tmp_path, "a.jgz")


def test_refuses_a_wrong_checksum(tmp_path):
    content = bytearray(gzip.compress(b'[{"a": 1}]'))
    content[-8] ^= 1
    (tmp_path / "a.jgz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jgz .*CRC"):
        read(tmp_path, "a.jgz")


@pytest.mark.parametrize("record", ["{}", '{"name": null}', '{"name": 3}', '{"name": ["a"]}'])
def test_refuses_records_without_their_fields(tmp_path, record):
    (tmp_path / "a.json").write_text(f"[{record}]")
    with pytest.raises(ValueError, match=r"a record of a\.json .*'name'.*text is needed"):
        json_list.groups(RawFolder(str(tmp_path)), "a.json", "name")


def test_a_missing_list(tmp_path):
    with pytest.raises(ValueError, match=r"missing file b/a\.jgz"):
        json_list.groups(RawFolder(str(tmp_path)), "b/a.jgz", "name")
