"""Whatever bytes a file holds, its reader returns, or says with a ValueError what is wrong with which file.

Files begin valid, written by plain libraries, and are then damaged. Where a checksum or a compression would hide the
inside of a file from the damage, that inside is damaged and wrapped again.
"""

import gzip
import io
import itertools
import json
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import av
import lz4.block
import numpy as np
import OpenEXR
import plane
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from implicitron import viewpoint
from PIL import Image
from reader_process import Outcome, ReaderProcess
from tensorflow_example import framed, masked_crc, serialized

MEMORY = 256 << 20  # bytes that reading a file of some thousand bytes may take
EXAMPLES = 150  # of each reader


class Seed(NamedTuple):
    """A valid file: the part of it that is damaged, and how the file is made of it."""

    content: bytes
    wrap: Callable[[bytes], bytes] = bytes


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


# Images. All image readers get all of them: what is valid for one must be refused by the others.

HEIGHT, WIDTH = 6, 10
RGB = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
GREY16 = RGB[..., 0].astype(np.uint16) * 257
FLOAT32 = RGB[..., 0].astype(np.float32)


def image(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    return saved(lambda file: Image.fromarray(pixels).save(file, kind, **options))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += length + 12
    return found


def png_of(parts: list[tuple[bytes, bytes]]) -> bytes:
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def png_seeds(png: bytes) -> Iterator[Seed]:
    """The file as it is; its header; its pixels before compression."""
    (kind, header), *rest = chunks(png)
    yield Seed(png)
    yield Seed(header, lambda header: png_of([(kind, header), *rest]))
    others = [part for part in rest if part[0] not in (b"IDAT", b"IEND")]
    pixels = zlib.decompress(b"".join(data for name, data in rest if name == b"IDAT"))
    around = [(kind, header), *others]
    yield Seed(pixels, lambda pixels: png_of([*around, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]))


def rgb16_png() -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB.astype(np.uint16) * 257)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def palette_png() -> bytes:
    indices = Image.fromarray(RGB[..., 0] % 4, "P")
    indices.putpalette(list(range(12)))
    return saved(lambda file: indices.save(file, "PNG"))


@cache
def seeds(reader: str) -> list[Seed]:
    return list(SEEDS[reader]())


def image_seeds() -> list[Seed]:
    pngs = [image(RGB, "PNG"), image(GREY16, "PNG"), rgb16_png(), palette_png(), image(RGB[..., 0] > 30, "PNG")]
    pngs.append(image(FLOAT32[..., None].view(np.uint8), "PNG"))
    seeds = [seed for png in pngs for seed in png_seeds(png)]
    seeds += [Seed(image(RGB, "JPEG")), Seed(image(RGB[..., 0], "JPEG", progressive=True)), Seed(image(RGB, "GIF"))]
    seeds += [
        Seed(f"P5\n# {kind}\n{WIDTH} {HEIGHT}\n{kind}\n".encode() + GREY16.astype(">u2").tobytes())
        for kind in (65535, 999)
    ]
    for pixels in (FLOAT32, GREY16, RGB, GREY16.astype(np.int32)):
        seeds += [Seed(image(pixels, "TIFF", compression=kind)) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate")]
    return seeds


IMAGES = ("rgb", "grey16", "rgb16", "float32", "float_tiff", "indices", "mask", "image_size")


def exr_seeds() -> list[Seed]:
    compressions = [
        OpenEXR.Compression.__members__[name]
        for name in sorted(OpenEXR.Compression.__members__)
        if name != "NUM_COMPRESSION_METHODS"
    ]
    seeds = []
    for kind, compression in itertools.product((np.float16, np.float32), compressions):
        seeds.append(Seed(exr(FLOAT32.astype(kind), {"compression": compression})))
    tiles = OpenEXR.TileDescription()
    tiles.xSize = tiles.ySize = 4
    seeds.append(Seed(exr(FLOAT32, {"type": OpenEXR.tiledimage, "tiles": tiles})))
    return seeds


def exr(pixels: np.ndarray, header: dict) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        OpenEXR.File({"type": OpenEXR.scanlineimage} | header, {"Y": pixels}).write(f"{folder}/a.exr")
        return Path(folder, "a.exr").read_bytes()


def pfm_seeds() -> list[Seed]:
    return [Seed(b"Pf\n10 6\n-1.000000\n" + FLOAT32.tobytes()), Seed(b"Pf 10 6 1 " + FLOAT32.astype(">f4").tobytes())]


# Arrays.


def zipped(name: str, content: bytes, *others: tuple[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    def save(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w", kind, compresslevel=1) as archive:
            for each, inside in ((name, content), *others):
                info = zipfile.ZipInfo(each)  # of no time, so that every run has the same file
                info.compress_type = kind
                archive.writestr(info, inside)

    return saved(save)


def npz_seeds() -> Iterator[Seed]:
    arrays = {"tracks": np.arange(24.0).reshape(4, 3, 2), "flags": np.ones((4, 3), bool), "none": np.array(None)}
    yield Seed(saved(lambda file: np.savez(file, **arrays)))
    yield Seed(saved(lambda file: np.savez_compressed(file, **arrays)))
    flags = "flags.npy", saved(lambda file: np.save(file, arrays["flags"]))
    for seed in npy_seeds():
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            yield Seed(seed.content, lambda content, kind=kind: zipped("tracks.npy", content, flags, kind=kind))


def npy_seeds() -> Iterator[Seed]:
    for version in ((1, 0), (2, 0), (3, 0)):
        save = partial(np.lib.format.write_array, array=np.arange(24.0).reshape(4, 3, 2), version=version)
        yield Seed(saved(save))
    yield Seed(saved(lambda file: np.save(file, np.ones(3, [("a", "<i4"), ("b", "<f8")]))))


def torch_seeds() -> Iterator[Seed]:
    content = saved(
        lambda file: torch.save(
            {
                "xyz": torch.arange(12.0).reshape(4, 3),
                "flags": torch.ones(4, dtype=torch.uint8),
                "name": "left",
                "n": np.float64(2),
            },
            file,
        )
    )
    yield Seed(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    pickled = next(member for member in members if member[0].endswith("data.pkl"))
    others = [member for member in members if member is not pickled]
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield Seed(pickled[1], lambda content, kind=kind: zipped(pickled[0], content, *others, kind=kind))


# Streams of records.


def tfrecord_seeds() -> Iterator[Seed]:
    payload = serialized({"video": [image(RGB, "PNG"), b""], "numbers": [1.5, -2.0], "counts": [1, 300, -1], "x": [7]})
    yield Seed(framed(payload) + framed(b"") + framed(payload))
    yield Seed(payload, framed)
    yield Seed(len(payload).to_bytes(8, "little"), lambda length: length + masked_crc(length) + framed(payload)[12:])


def sens_file(colours: list[bytes], depths: list[bytes], kinds: tuple[int, int]) -> bytes:
    start = struct.pack("<IQ", 4, 9) + b"a sensor." + np.tile(np.eye(4, dtype="<f4"), (4, 1, 1)).tobytes()
    start += struct.pack("<2i4IfQ", *kinds, WIDTH, HEIGHT, WIDTH, HEIGHT, 1000, len(colours))
    pose = np.eye(4, dtype="<f4").tobytes()
    return start + b"".join(
        pose + struct.pack("<4Q", 0, 0, len(colour), len(depth)) + colour + depth
        for colour, depth in zip(colours, depths, strict=True)
    )


def sens_seeds() -> Iterator[Seed]:
    depth, packed = GREY16.tobytes(), zlib.compress(GREY16.tobytes())
    for kind, colour in enumerate((RGB.tobytes(), image(RGB, "PNG"), image(RGB, "JPEG"))):
        yield Seed(sens_file([colour] * 2, [depth] * 2, (kind, 0)))
        yield Seed(sens_file([colour] * 2, [packed] * 2, (kind, 1)))
        yield Seed(colour, lambda colour, kind=kind: sens_file([colour], [packed], (kind, 1)))
    yield Seed(packed, lambda packed: sens_file([RGB.tobytes()], [packed], (0, 1)))
    yield Seed(depth, lambda depth: sens_file([RGB.tobytes()], [zlib.compress(depth)], (0, 1)))


def led_by_lengths(payloads: list[bytes]) -> bytes:
    return b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)


def raw_deflate(content: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(content) + deflater.flush()


def depth_bin_seeds() -> Iterator[Seed]:
    metres, millimetres = np.ones((192, 256), "<f4").tobytes(), np.ones((192, 256), "<u2").tobytes()
    block, stream = lz4.block.compress(millimetres, store_size=False), raw_deflate(metres)
    yield Seed(led_by_lengths([block, stream, zlib.compress(metres)]))
    yield Seed(block, lambda block: led_by_lengths([block, stream]))
    yield Seed(stream, lambda stream: led_by_lengths([block, stream]))
    yield Seed(raw_deflate(3 * metres))


VIDEO_KINDS = {
    "mp4": ("libx264", "yuv420p", {"g": "3"}),
    "matroska": ("libx264", "yuv420p", {"g": "3"}),
    "mpegts": ("mpeg2video", "yuv420p", {"bf": "1"}),
    "mpeg": ("mpeg2video", "yuv420p", {}),
    "avi": ("mpeg4", "yuv420p", {"bf": "1"}),
    "mov": ("png", "rgb24", {}),
    "webm": ("libvpx-vp9", "yuv420p", {}),
    "flv": ("flv", "yuv420p", {}),
    "asf": ("wmv2", "yuv420p", {}),
    "gif": ("gif", "rgb8", {}),
    "yuv4mpegpipe": ("wrapped_avframe", "yuv420p", {}),
}


def video_seeds() -> Iterator[Seed]:
    for kind, (codec, pixels, options) in VIDEO_KINDS.items():
        file = io.BytesIO()
        with av.open(file, "w", format=kind) as container:
            stream = container.add_stream(codec, rate=30)
            stream.width, stream.height, stream.pix_fmt, stream.options = 32, 16, pixels, options
            for t in range(5):
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.full((16, 32, 3), 20 * t, np.uint8), "rgb24"))
                )
            container.mux(stream.encode())
        yield Seed(file.getvalue())


# Annotations.


def record(t: int) -> dict:
    return {
        "sequence_name": "110_13051",
        "frame_number": t,
        "image": {"path": f"apple/images/frame{t}.jpg", "size": [HEIGHT, WIDTH]},
        "depth": {"path": f"apple/depths/{t}.png", "scale_adjustment": 1.5, "mask_path": f"apple/masks/{t}.png"},
        "mask": {"path": None, "mass": 1e3},
        "viewpoint": viewpoint(np.eye(4), 12, 13, 5.5, 3, height=HEIGHT, width=WIDTH, isotropic=bool(t % 2)),
        "meta": {"\u00e9\ud834\udd1e": [[], {}, True, -1.5e-3, "\u2028"]},
    }


def record_seeds() -> Iterator[Seed]:
    text = json.dumps([record(t) for t in range(3)]).encode()
    yield Seed(text, lambda text: gzip.compress(text, mtime=0))
    yield Seed(gzip.compress(text, mtime=0))


def set_list_seeds() -> list[Seed]:
    entries = [["110_13051", t, f"apple/images/frame{t}.jpg"] for t in range(3)]
    return [Seed(json.dumps({"train": entries, "val": entries[:1], "test": []}).encode())]


NUMBERS = 0, 3  # of the photos of the scene that cam.txt and pair.txt belong to


def cam_txt_seeds() -> list[Seed]:
    intrinsics = np.array([[25.5, 0, 5.2], [0, 25.25, 3.1], [0, 0, 1]])
    matrix, k = (
        "\n".join(" ".join(f"{value:.6g}" for value in row) for row in rows)
        for rows in (np.linalg.inv(plane.world_from_cam(0)), intrinsics)
    )
    ends = "1.5 0.1 128 14.3", "1.5 0.1 128", "1.5 0.1"
    return [Seed(f"extrinsic\n{matrix}\n\nintrinsic\n{k}\n\n{end}\n".encode()) for end in ends]


def pair_txt_seeds() -> list[Seed]:
    return [Seed(b"2\n0\n1 3 100.5\n3\n1 0 2.25\n")]


def text_seeds() -> list[Seed]:
    return [Seed(b"# frame x y\n0 1.5 True\n1 -2e-3 False\n"), Seed("\ufeffhalf a \u00bd\r\n1 2 3\n".encode())]


SEEDS: dict[str, Callable[[], object]] = {
    "npz": npz_seeds,
    "torch_file": torch_seeds,
    "json_list": record_seeds,
    "frames": record_seeds,
    "set_list": set_list_seeds,
    "tfrecord": tfrecord_seeds,
    "sens": sens_seeds,
    "pfm": pfm_seeds,
    "depth_bin": depth_bin_seeds,
    "video": video_seeds,
    "whole_video": video_seeds,
    "exr": exr_seeds,
    **dict.fromkeys(IMAGES, image_seeds),
    "npy": npy_seeds,
    "table": text_seeds,
    "json": set_list_seeds,
    "text": text_seeds,
    "cam_txt": cam_txt_seeds,
    "pair_txt": pair_txt_seeds,
}
PATHS = {
    "set_list": "{0}/set_lists/a.json",
    "json_list": "{0}.jgz",
    "frames": "{0}.jgz",
    "cam_txt": "scene/cams/00000003_cam.txt",
    "pair_txt": "scene/cams/pair.txt",
}
"""Where a reader finds its file: each in a place of its own, so that no cache can know it."""


class Readers:
    """The readers in their process, with a folder of files around those that are damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process, self._count = folder, ReaderProcess(str(folder)), itertools.count()
        for name in ("blended_images", "rendered_depth_maps", "cams"):
            (folder / "scene" / name).mkdir(parents=True)
        for number in NUMBERS:
            (folder / f"scene/blended_images/{number:08d}.jpg").write_bytes(image(RGB, "JPEG"))
            (folder / f"scene/rendered_depth_maps/{number:08d}.pfm").write_bytes(pfm_seeds()[0].content)
            (folder / f"scene/cams/{number:08d}_cam.txt").write_bytes(cam_txt_seeds()[0].content)
        (folder / "scene/cams/pair.txt").write_bytes(pair_txt_seeds()[0].content)

    def read(self, reader: str, content: bytes) -> Outcome:
        path = PATHS.get(reader, "{0}.bin").format(f"file{next(self._count)}")
        file = self.folder / path
        before = file.read_bytes() if file.exists() else None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        outcome = self.process.read(reader, path)
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)
        # Where several files are read, what does not fit together is named by their folder.
        named = path.rpartition("/")[0] if before else path
        problem = outcome.error not in ("", "ValueError") and f"{outcome.error}: {outcome.message}\n{outcome.details}"
        if outcome.error == "ValueError" and named not in outcome.message:
            problem = f"the error does not name {named}: {outcome.message}\n{outcome.details}"
        if max(outcome.resident, outcome.traced) > MEMORY:
            problem = f"took {outcome.resident >> 20} MB of memory, and asked for {outcome.traced >> 20} MB"
            self.process.end()
        assert not problem, f"{reader} {problem}\n{len(content)} bytes: {content[:3000]!r}"
        return outcome


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> Iterator[Readers]:
    readers = Readers(tmp_path_factory.mktemp("raw"))
    yield readers
    readers.process.end()


# Damage.

ABSURD = [
    0,
    1,
    -1,
    255,
    2**15,
    2**16 - 1,
    2**24,
    2**26,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**33,
    2**62,
    2**63 - 1,
    2**64 - 1,
]
ABSURD_TEXT = [b"0", b"-1", b"1e999", b"nan", b"null", b"{}", b"[]", b'"x"', b"2147483648", b"9223372036854775808"]
ABSURD_TEXT += [b"9" * 400, b"9" * 5000, b"[" * 2000, b"(" * 300, "\u0663\u00b2".encode()]


def numbers(content: bytes) -> list[tuple[int, int]]:
    """Where numbers written as text begin and end."""
    return [found.span() for found in re.finditer(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", content)]


@st.composite
def damaged(draw: st.DrawFn, seeds: list[Seed]) -> bytes:
    """One of the files with one to three damages, or anything at all."""
    if draw(st.integers(0, 19)) == 19:
        return draw(st.binary(max_size=300))
    content, wrap = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["absurd", "absurd", "text", "flip", "cut", "insert", "drop"]))
        # Most of what can go wrong is told in the first bytes.
        at = draw(st.integers(0, min(len(content), 200)) | st.integers(0, len(content)))
        new, end = b"", at
        if kind == "absurd":
            size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            new = (draw(st.sampled_from(ABSURD)) % 256**size).to_bytes(size, order)
            end = at + size
        elif kind == "text" and (places := numbers(content)):
            (at, end), new = draw(st.sampled_from(places)), draw(st.sampled_from(ABSURD_TEXT))
        elif kind == "flip":
            new = draw(st.binary(min_size=1, max_size=4))
            end = at + len(new)
        elif kind == "cut":
            end = len(content)
        elif kind == "insert":
            new = draw(st.binary(min_size=1, max_size=9))
        else:
            end = at + draw(st.integers(1, 20))
        content = content[:at] + new + content[end:]
    return wrap(content)


def test_undamaged_files_are_read(readers):
    """Otherwise the damage would be to files that are refused anyway."""
    for reader in SEEDS:
        outcomes = [readers.read(reader, wrap(content)) for content, wrap in seeds(reader)]
        assert not all(outcome.error for outcome in outcomes), f"{reader}: {outcomes[0].message}"


def npy(shape: str, content: bytes = bytes(96), kind: str = "<f4") -> bytes:
    """With any header."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + content


def in_npz(content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    return zipped("tracks.npy", content, ("flags.npy", npy("(96,)", kind="|u1")), kind=kind)


def understated(archive: bytes, size: int) -> bytes:
    """The same zip, that says of each member to be as long as this when unpacked."""
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        place = -1
        while (place := archive.find(signature, place + 1)) >= 0:
            archive = archive[: place + at] + struct.pack("<I", size) + archive[place + at + 4 :]
    return archive


def in_torch(pickled: bytes, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    return zipped("a/data.pkl", pickled, kind=kind)


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def exr_of(width: int, height: int) -> bytes:
    """A header with this size, and the pixels of a small image."""
    content = exr(FLOAT32, {"compression": OpenEXR.ZIP_COMPRESSION})
    for name in (b"dataWindow\0box2i\0", b"displayWindow\0box2i\0"):
        at = content.index(name) + len(name) + 12
        content = content[:at] + struct.pack("<ii", width - 1, height - 1) + content[at + 8 :]
    return content


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%ImageData: 6 6 8 1 0 1 1 "x"\n%%EndComments\n(x) run\n'
FOUND = {
    "huge number in a pose": ("json", lambda: b"[" + b"9" * 5000 + b"]", "cannot be read as JSON"),
    "header of an array that does not end": ("npy", lambda: npy("(2,"), "plain .npy array"),
    "the same in an npz": ("npz", lambda: in_npz(npy("(2,")), "corrupt or truncated"),
    "array larger than its file": ("npy", lambda: npy(f"({1 << 40},)"), "plain .npy array"),
    "array of bytes larger than its file": ("npy", lambda: npy("(600000000,)"), "plain .npy array"),
    "archive of arrays where one should be": ("npy", lambda: in_npz(npy("(24,)")), "plain .npy array"),
    "ever so many rows of nothing": ("npz", lambda: in_npz(npy(f"({2**62}, 0)", b"")), "each side must be from 0"),
    "sides of -4 and -6": ("npz", lambda: in_npz(npy("(-4, -6)")), "each side must be from 0"),
    "array in bzip2, of which a few bytes can be gigabytes": (
        "npz",
        lambda: in_npz(npy("(24,)"), zipfile.ZIP_BZIP2),
        "neither nothing nor deflate",
    ),
    "bomb beside a pickle": (
        "torch_file",
        lambda: understated(zipped("a/data.pkl", b"}.", ("a/byteorder", bytes(300_000_000))), 2),
        "cannot be read as tensors|no zip file",
    ),
    "pickle in bzip2": (
        "torch_file",
        lambda: in_torch(b"\x80\2}.", zipfile.ZIP_BZIP2),
        "neither nothing nor deflate",
    ),
    "memo of a pickle": (
        "torch_file",
        lambda: in_torch(b"\x80\2}r" + struct.pack("<I", 1 << 26) + b"."),
        "numbers an object",
    ),
    "bytes of a pickle": ("torch_file", lambda: in_torch(b"\x80\4B" + struct.pack("<I", 1 << 30) + b"."), "as tensors"),
    "colour image of 100 megapixels": ("rgb", lambda: png(10_000, 10_000, 8, 2), "10000 x 10000 pixels"),
    "size of 100 megapixels": ("image_size", lambda: png(10_000, 10_000, 8, 2), "10000 x 10000 pixels"),
    "mask of 100 megapixels": ("mask", lambda: png(10_000, 10_000, 1, 0, bytes(12_510_000)), "10000 x 10000 pixels"),
    "program that draws an image": ("mask", lambda: EPS, "is a PostScript file"),
    "header of a PNG cut": ("rgb", lambda: png_of([(b"IHDR", b"\0")]), "Truncated IHDR"),
    "32-bit TIFF as 16-bit": ("grey16", lambda: image(GREY16.astype(np.int32), "TIFF"), "not a 16-bit grey PNG"),
    "OpenEXR of 60 megapixels": ("exr", lambda: exr_of(7_000, 8_500), "cannot be read as an OpenEXR"),
    "OpenEXR beyond 32 bits": ("exr", lambda: exr_of(2**31 - 1, 2**31 - 1), "at most 64000000 pixels|OpenEXR image"),
    "depth in units of nothing": (
        "sens",
        lambda: sens_file([], [], (0, 0))[:-12] + struct.pack("<fQ", np.inf, 0),
        "not a number above 0",
    ),
    "video of an unknown codec": (
        "video",
        lambda: seeds("video")[0].content.replace(b"avc1", b"none"),
        "codec is not known",
    ),
    "camera that is no rigid motion": (
        "cam_txt",
        lambda: re.sub(rb"\n\S+", b"\n9", cam_txt_seeds()[0].content, count=1),
        "not a rigid",
    ),
}
"""What readers once took, or refused with an error that named nothing or only after taking the memory; for OpenEXR,
which has a parser of its own, what would do so."""


@pytest.mark.slow
@pytest.mark.parametrize("case", FOUND)
def test_refuses_what_was_found(readers, case):
    reader, content, message = FOUND[case]
    outcome = readers.read(reader, content())
    assert outcome.error and re.search(message, outcome.message), outcome


def test_a_video_may_name_its_writer_in_any_bytes(readers):
    outcome = readers.read("video", seeds("video")[0].content.replace(b"Lavf", b"\x80avf"))
    assert not outcome.error, outcome


@pytest.mark.slow
@pytest.mark.parametrize("reader", SEEDS)
@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_reads_or_refuses_whatever_a_file_holds(readers, reader, data):
    readers.read(reader, data.draw(damaged(seeds(reader))))
