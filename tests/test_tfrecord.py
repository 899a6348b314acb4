"""TFRecord shards and tf.train.Example, against Google's Protocol Buffers and the definition of the framing."""

from pathlib import Path

import numpy as np
import pytest
from odd_names import ODD, upload
from tensorflow_example import framed, masked_crc, serialized

from pipelines.raw import tfrecord
from pipelines.raw.folder import RawFolder
from pipelines.raw.tfrecord import Example, record_starts

FEATURES = {
    "pictures": [b"one", b"", bytes(range(256)) * 40],
    "numbers": [1.5, -2.25, 0.0],
    "counts": [0, 1, 127, 128, 300, 2**40, 2**63 - 1, -1],
    "none": [],
    "flow": list(range(5000)),
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    payloads = [serialized(FEATURES), serialized({"counts": [7]}), serialized(FEATURES | {"numbers": [4.0]})]
    (tmp_path / "shard").write_bytes(b"".join(framed(payload) for payload in payloads))
    return tmp_path


def record(raw: Path | str, number: int = 0, wanted=("pictures", "numbers", "counts", "none", "absent")) -> Example:
    return Example(RawFolder(str(raw)), "shard", number, wanted)


def test_framing_fits_the_published_checksum():
    crc = 0xE3069283  # of this text, in every description of crc32c
    masked = ((crc >> 15 | crc << 17) % 2**32 + 0xA282EAD8) % 2**32
    assert tfrecord.masked_crc(b"123456789") == masked_crc(b"123456789") == masked.to_bytes(4, "little")


def test_reads_what_protocol_buffers_wrote(raw):
    found = record(raw).features
    assert set(found) == {"pictures", "numbers", "counts", "none"}, "only what is wanted, and there"
    assert found["pictures"] == FEATURES["pictures"]
    np.testing.assert_array_equal(found["numbers"], FEATURES["numbers"])
    np.testing.assert_array_equal(found["counts"], FEATURES["counts"])
    assert found["counts"].dtype == np.int64 and len(found["none"]) == 0
    assert record(raw, 2).features["numbers"] == [4]
    assert set(record(raw, 1).features) == {"counts"}


def test_numbers_may_come_one_by_one(raw):
    """As old writers store them, not packed: each float and each int in a field of its own."""
    floats = b"".join(b"\x0d" + np.float32(x).tobytes() for x in (1.5, -2.0))
    ints = b"\x08\x05\x08\xac\x02"
    entries = [b"\x0a\x01f\x12" + bytes([len(floats) + 2]) + b"\x12" + bytes([len(floats)]) + floats]
    entries += [b"\x0a\x01i\x12" + bytes([len(ints) + 2]) + b"\x1a" + bytes([len(ints)]) + ints]
    features = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in entries)
    (raw / "shard").write_bytes(framed(b"\x0a" + bytes([len(features)]) + features))
    found = record(raw, 0, ("f", "i")).features
    np.testing.assert_array_equal(found["f"], [1.5, -2])
    np.testing.assert_array_equal(found["i"], [5, 300])


def test_byte_strings_are_files(raw):
    example = record(raw)
    assert example.read("pictures/0") == b"one" and example.read("pictures/2") == FEATURES["pictures"][2]
    for path in ("pictures/3", "pictures/-1", "pictures", "numbers/0", "absent/0", "../shard"):
        with pytest.raises(ValueError, match=r"record 0 of shard in .* has no byte string"):
            example.read(path)


def test_finds_records_by_their_lengths_alone(raw):
    starts = record_starts(RawFolder(str(raw)), "shard")
    lengths = [len(framed(serialized(features))) for features in (FEATURES, {"counts": [7]})]
    assert starts == [0, lengths[0], sum(lengths)]
    content = bytearray((raw / "shard").read_bytes())
    content[12 : lengths[0] - 4] = bytes(lengths[0] - 16)  # nothing but the lengths is looked at
    (raw / "shard").write_bytes(content)
    assert record_starts(RawFolder(str(raw)), "shard") == starts


def test_reads_from_s3_alike(raw, s3_uri):
    place = f"{s3_uri}/{ODD}"
    upload(raw, place)
    assert record_starts(RawFolder(place), "shard") == record_starts(RawFolder(str(raw)), "shard")
    assert record(place, 2).features["pictures"] == FEATURES["pictures"]
    with pytest.raises(ValueError, match="missing file other in s3://"):
        record_starts(RawFolder(place), "other")


def patched(position: int, value: bytes):
    def patch(content: bytes) -> bytes:
        return content[:position] + value + content[position + len(value) :]

    return patch


def claiming(length: int):
    """A header that claims this length, with the checksum that fits it."""
    header = length.to_bytes(8, "little")
    return patched(0, header + masked_crc(header))


def payload(content: bytes):
    return lambda _: framed(content)


BROKEN = {
    "one bit of the payload": (patched(500, b"\xff\xfe"), "checksum of its content"),
    "one bit of the length": (patched(2, b"\x01"), "checksum of its length"),
    "cut in the header": (lambda content: content[:7], "cut, or the checksum"),
    "cut in the payload": (lambda content: content[:4000], "the file ends before"),
    "cut before the last checksum": (lambda content: framed(b"")[:-2], "the file ends before"),
    "absurd length": (claiming(1 << 62), r"claims 4611686018427387904 bytes, more than the 1073741824"),
    "a little too long": (claiming(1 << 20), "claims 1048576 bytes, but the file ends before"),
    "empty shard": (lambda content: b"", "the shard has 0 records"),
    "no Example": (payload(b"a text, not a message"), "holds no Example"),
    "field beyond its message": (payload(b"\x0a\x7f\x0a"), "ends beyond its message"),
    "fixed field beyond its message": (payload(b"\x0d\x00"), "ends beyond its message"),
    "number without end": (payload(b"\x08" + b"\xff" * 12), "number without end"),
    "number cut": (payload(b"\x08\x80"), "number without end"),
    "number of more than 64 bits": (payload(b"\x08" + b"\xff" * 9 + b"\x7f"), "number without end"),
    "group": (payload(b"\x0b\x0c"), "wire type 3"),
    "floats of five bytes": (
        payload(b"\x0a\x11\x0a\x0f\x0a\x04none\x12\x07\x12\x05\x0a\x03abc"),
        "multiple of element size",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_broken_records(raw, case):
    damage, message = BROKEN[case]
    (raw / "shard").write_bytes(damage((raw / "shard").read_bytes()))
    with pytest.raises(ValueError, match=rf"record 0 of shard in .*{message}.*: download the shard again"):
        record(raw)


def test_a_broken_record_is_found_and_hides_only_what_comes_after(raw):
    content, first = (raw / "shard").read_bytes(), len(framed(serialized(FEATURES)))
    (raw / "shard").write_bytes(content[: first + 10])
    assert record_starts(RawFolder(str(raw)), "shard") == [0, first]
    assert record(raw, 0).features["pictures"] == FEATURES["pictures"]
    with pytest.raises(ValueError, match=r"record 1 of shard .* is cut"):
        record(raw, 1)


def test_no_record_is_read_beyond_its_length(raw):
    """A message that claims more than its record has is refused, though the next record would fill it."""
    inner = b"\x0a\xff\x01" + bytes(20)
    (raw / "shard").write_bytes(framed(inner) + framed(bytes(1000)))
    with pytest.raises(ValueError, match="ends beyond its message"):
        record(raw)
