"""The one door for video: it reads what a file shows, opens nothing else, and never shows what was made up."""

import gc
import http.server
import io
import random
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest
from reader_process import ReaderProcess

from benchmarks.model_task import resident_bytes
from pipelines.raw.limits import MAX_VIDEO_PIXELS
from pipelines.raw.video import VideoFrames

HEIGHT, WIDTH = 36, 64


def shade(k: int) -> np.ndarray:
    """Frame k: grey 16 k, its top half red, and a green block at the left of it."""
    frame = np.full((HEIGHT, WIDTH, 3), 16 * k, np.uint8)
    frame[: HEIGHT // 2] = 250, 16 * k, 16 * k
    frame[: HEIGHT // 2, : WIDTH // 4] = 0, 200, 0
    return frame


def write(
    kind: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    count: int = 12,
    frame: Callable[[int], np.ndarray] = shade,
    aspect: Fraction | None = None,
    **options: str,
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frame(0).shape[:2]
        stream.pix_fmt, stream.options = pixels, options
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if pixels == "gray":
            stream.codec_context.color_range = 2  # all levels from 0 to 255, as FFmpeg makes them
        for k in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(k), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def opened(content: bytes, **options: int) -> VideoFrames:
    return VideoFrames(io.BytesIO(content), "clip", **options)


def grey(frame: np.ndarray) -> float:
    """Which frame this is, by the grey of its lower half."""
    return frame[HEIGHT // 2 + 4 : -4, 4:-4].mean() / 16


# --- frames by number ------------------------------------------------------------------------------------------------

KINDS = [
    ("mp4", "libx264", "yuv420p", {"bf": "3"}),
    ("matroska", "libx264", "yuv420p", {"g": "4"}),
    ("mpegts", "libx264", "yuv420p", {"g": "4", "bf": "2"}),
    ("avi", "libx264", "yuv420p", {"bf": "3"}),  # tells no times, and stores frames in another order
    ("avi", "mpeg4", "yuv420p", {"bf": "2", "b": "2M"}),
    ("mpeg", "mpeg2video", "yuv420p", {"bf": "2", "g": "6", "b": "4M"}),
    ("webm", "libvpx-vp9", "yuv420p", {}),
    ("mp4", "libsvtav1", "yuv420p", {}),
    ("mp4", "libx265", "yuv420p10le", {"x265-params": "log-level=none"}),
    ("mov", "prores_ks", "yuv422p10le", {}),
    ("avi", "mjpeg", "yuvj420p", {"qmin": "1", "qmax": "2"}),
    ("matroska", "ffv1", "yuv444p", {}),
    ("matroska", "libx264", "gray", {}),
    ("flv", "flv", "yuv420p", {"b": "2M"}),
    ("asf", "wmv2", "yuv420p", {"b": "2M"}),
]


@pytest.mark.parametrize(("kind", "codec", "pixels", "options"), KINDS, ids=[f"{k[0]}-{k[1]}-{k[2]}" for k in KINDS])
def test_frames_are_those_that_were_written(kind, codec, pixels, options):
    video = opened(write(kind, codec, pixels, **options))
    assert (len(video), video.size) == (12, (HEIGHT, WIDTH))
    assert video.fps == pytest.approx(10)
    order = [0, 1, 2, 7, 8, 3, 11, 5, 0]
    np.testing.assert_allclose([grey(video.shown(t)) for t in order], order, atol=0.35)
    if pixels != "gray":
        red, green = video.shown(2)[4:14, 24:60], video.shown(2)[4:14, 4:12]
        np.testing.assert_allclose(red.mean((0, 1)), [250, 32, 32], atol=16)
        np.testing.assert_allclose(green.mean((0, 1)), [0, 200, 0], atol=16)
    assert not video.notes
    with pytest.raises(ValueError, match="clip has 12 frames, number 12 is asked for"):
        video.frame(12)


class Counted(io.BytesIO):
    """How many bytes were taken from it."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        part = super().read(size)
        self.taken += len(part)
        return part


@pytest.fixture(scope="module")
def long() -> bytes:
    return write(count=800, frame=noise, g="10", movflags="faststart")


def test_only_the_frames_that_will_be_asked_for_are_looked_at(long):
    file = Counted(long)
    video = VideoFrames(file, "clip", first=5)
    assert len(video) == 5
    video.shown(4)
    assert file.taken < len(long) / 2
    assert len(opened(long)) == 800


def test_a_look_before_the_work_reads_the_head_and_a_frame(long):
    """Where the head lists the frames. As far as it goes, it says what a pass over the file says."""
    file = Counted(turned(long, (0, 1, -1, 0)))
    video = VideoFrames(file, "clip", first=700)
    assert (video.shown_size, video.told) == ((128, 96), 700)
    assert file.taken < len(long) / 4
    assert VideoFrames(io.BytesIO(long), "clip", first=900).told == 800
    plain = write("matroska", count=12)
    assert (opened(plain, first=5).told, opened(plain, first=50).told) == (5, 12)


def test_who_knows_a_file_needs_no_pass_over_it(long):
    index = opened(long).index
    file = Counted(long)
    video = VideoFrames(file, "clip", index=index)
    np.testing.assert_array_equal(video.frame(3), opened(long).frame(3))
    assert len(video) == 800 and file.taken < len(long) / 2


def test_another_content_has_another_digest():
    content = write()
    assert opened(content).digest == opened(content).digest == opened(content, first=12).digest
    others = [write(crf="30"), write(count=11), write(aspect=Fraction(2, 1)), turned(content, (0, 1, -1, 0))]
    assert len({opened(each).digest for each in [content, *others]}) == 5


# --- as it is to be seen ---------------------------------------------------------------------------------------------


def turned(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An mp4 with a, b, c, d in its track header (ISO 14496-12, 8.3.2)."""
    content = bytearray(content)
    at = content.index(b"tkhd") + 4 + 40  # after version, flags, times, ids, duration, layer, volume
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(content)


def placed(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Every pixel (x, y) at (a x + c y, b x + d y), moved so that all are in the picture."""
    a, b, c, d = matrix
    y, x = np.indices(pixels.shape[:2])
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    there = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    there[to_y, to_x] = pixels
    return there


ORIENTATIONS = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=str)
def test_all_eight_orientations_are_made_upright(matrix):
    content = write()
    stored = opened(content).frame(3)
    video = opened(turned(content, matrix))
    np.testing.assert_array_equal(video.shown(3), placed(stored, matrix))
    np.testing.assert_array_equal(video.frame(3), stored)


def test_an_angle_that_is_not_right_is_refused():
    with pytest.raises(ValueError, match="clip is to be turned by an angle that is not a right one"):
        opened(turned(write(), (1, 1, -1, 1))).shown(0)


def test_wide_pixels_are_made_square():
    video = opened(write(aspect=Fraction(2, 1)))
    assert (video.shown(0).shape, video.frame(0).shape) == ((36, 128, 3), (36, 64, 3))


def pq(nits: float) -> float:
    """SMPTE ST 2084, inverse EOTF."""
    y = (nits / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def hlg(nits: float) -> float:
    """ARIB STD-B67 of a display of 1000 cd/m2: inverse OOTF, then OETF (BT.2100)."""
    scene = (nits / 1000) ** (1 / 1.2)
    return (3 * scene) ** 0.5 if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073


@pytest.mark.parametrize(("kind", "transfer", "signal"), [("PQ", 16, pq), ("HLG", 18, hlg)])
def test_high_range_becomes_standard_range_and_is_noted(kind, transfer, signal):
    """BT.2408: 203 cd/m2 are white. A display of gamma 2.4 gives as much light in that proportion, up to where the
    curve of BT.2390 begins: 93 cd/m2 for a peak of 1000. White paper is darker, so that what is brighter differs from
    it."""
    nits = [20.3, 50.75, 90, 203, 400, 1000]

    def frame(k: int) -> av.VideoFrame:
        luma = np.full((HEIGHT, WIDTH), round(64 + 876 * signal(nits[k])), np.uint16)
        made = av.VideoFrame(WIDTH, HEIGHT, "yuv420p10le")
        for plane, values in zip(
            made.planes, (luma, *2 * [np.full((HEIGHT // 2, WIDTH // 2), 512, np.uint16)]), strict=True
        ):
            row = np.zeros((len(values), plane.line_size // 2), np.uint16)
            row[:, : values.shape[1]] = values
            plane.update(row.tobytes())
        return made

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p10le"
        stream.options = {"x265-params": f"log-level=none:colorprim=9:transfer={transfer}:colormatrix=9"}
        for k in range(len(nits)):
            container.mux(stream.encode(frame(k)))
        container.mux(stream.encode())
    video = opened(file.getvalue())
    shown = np.array([video.shown(k)[10, 10].astype(int) for k in range(len(nits))])
    assert (np.ptp(shown, axis=1) <= 2).all()  # grey stays grey
    np.testing.assert_allclose(shown[:3, 0], 255 * (np.array(nits[:3]) / 203) ** (1 / 2.4), atol=4)
    paper, bright, brightest = shown[3:, 0]
    assert 222 <= paper <= 238 and bright - paper >= 10 and brightest - bright >= 3 and brightest >= 253
    assert video.notes == [f"its brightness has a high range ({kind}): what is bright is shown darker than it is"]


# --- damage ----------------------------------------------------------------------------------------------------------


def noise(k: int) -> np.ndarray:
    """Something that moves and cannot be guessed, so that damage shows."""
    rng = np.random.default_rng(3)
    return np.roll(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), 5 * k, axis=1)


def snow(k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def test_flipped_bits_are_refused_and_never_shown():
    content = write(frame=noise, count=16, g="8", bf="2")
    healthy = [opened(content).frame(t) for t in range(16)]
    start = content.index(b"mdat") + 800  # behind the text in which the encoder names its settings
    end = content.index(b"moov") if content.index(b"moov") > start else len(content)
    refused = 0
    for seed in range(12):
        rng, damaged = random.Random(seed), bytearray(content)
        for _ in range(10):
            damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        try:
            video = opened(bytes(damaged))
            frames = [video.frame(t) for t in range(len(video))]
        except ValueError as error:
            assert "clip cannot be read as a video (frame" in str(error)
            refused += 1
        else:  # bits that decode to other noise cannot be told from it, but then nothing is made up
            assert len(frames) == 16 and all(a.shape == b.shape for a, b in zip(frames, healthy, strict=True))
    assert refused >= 11


def test_the_damaged_frame_is_named_and_those_before_it_are_shown():
    content = bytearray(write("matroska", frame=snow, bf="0", g="100", tune="zerolatency"))
    with av.open(io.BytesIO(bytes(content))) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = content.index(packets[7]) + len(packets[7]) // 2
    content[at : at + 40] = b"\xa5" * 40
    video = opened(bytes(content))
    healthy = opened(write("matroska", frame=snow, bf="0", g="100", tune="zerolatency"))
    np.testing.assert_array_equal(video.frame(6), healthy.frame(6))
    for t in (7, 9):
        with pytest.raises(ValueError, match=r"clip cannot be read as a video \(frame 7 is damaged: "):
            video.frame(t)
    np.testing.assert_array_equal(video.frame(2), healthy.frame(2))


def test_a_stream_that_starts_late_is_healthy():
    """A recording cut out of a broadcast begins in the middle of a group of pictures."""
    whole = write("mpegts", frame=noise, count=24, g="8", bf="2", **{"x264-params": "scenecut=0:open-gop=0"})
    with av.open(io.BytesIO(whole)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    tables = whole[: 3 * 188]
    video, healthy = opened(tables + whole[starts[4] :]), opened(whole)
    assert len(video) == 16
    for t in (0, 5, 15):
        np.testing.assert_array_equal(video.shown(t), healthy.frame(8 + t))
    assert video.notes == ["its first 4 frames are made of others, which are not in it: frame 0 comes after them"]


def test_truncated_empty_and_other_files_are_named():
    content = write(frame=noise)
    refused = {
        b"": "clip is empty: copy or download it again",
        content[: len(content) // 2]: "clip cannot be read as a video",
        b"no video at all " * 100: "clip cannot be read as a video",
    }
    for bad, message in refused.items():
        with pytest.raises(ValueError, match=message):
            opened(bad).frame(0)


def test_sizes_are_refused_before_a_frame_is_decoded():
    side = int(MAX_VIDEO_PIXELS**0.5) + 100
    huge = write("avi", "rawvideo", "gray", count=1, frame=lambda k: np.zeros((side, 16, 3), np.uint8))
    header = huge.index(b"strf") + 12
    assert struct.unpack_from("<ii", huge, header) == (16, side)
    huge = huge[:header] + struct.pack("<ii", side, side) + huge[header + 8 :]
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"clip (has frames of \d+ x \d+ pixels|cannot be read as a video)"):
        opened(huge)
    with pytest.raises(ValueError, match=r"clip has frames of 1000 x 480 pixels, each 200 wide"):
        opened(write(frame=lambda k: np.zeros((480, 1000, 3), np.uint8), count=2, aspect=Fraction(200, 1)))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_frames_that_were_shown_are_let_go():
    """A frame of 720p is 1.4 MB where it was decoded."""
    video = opened(write(count=100, frame=lambda k: np.full((720, 1280, 3), k, np.uint8), preset="ultrafast"))
    held = []
    for t in range(100):
        video.shown(t)
        held.append(resident_bytes("RssAnon"))
    assert held[-1] - held[20] < 40e6


def test_what_decoded_the_first_frame_is_let_go_when_a_file_is_opened_again():
    """Some frames of 1080p, 3 MB each, are decoded to know the size: the garbage collector would come late for them."""
    content = write(count=8, frame=lambda k: np.full((1080, 1920, 3), k, np.uint8), preset="ultrafast")
    gc.collect()
    gc.disable()
    try:
        held = []
        for _ in range(12):
            video = opened(content)
            video.shown_size, video.digest, video.shown(2)
            video.close()
            held.append(resident_bytes("RssAnon"))
    finally:
        gc.enable()
    assert held[-1] - held[2] < 30e6


def test_a_long_large_video_needs_memory_for_a_few_frames(tmp_path):
    """24 frames of 4K are 600 MB in RGB; each is 25."""
    (tmp_path / "4k.mp4").write_bytes(
        write(count=24, frame=lambda k: np.full((2160, 3840, 3), 10 * k, np.uint8), preset="ultrafast")
    )
    process = ReaderProcess(str(tmp_path))
    try:
        outcome = process.read("whole_video", "4k.mp4")
    finally:
        process.end()
    assert not outcome.error, outcome
    assert outcome.resident < 250e6


# --- nothing else is opened ------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """Counts who asks."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_a_file_cannot_make_us_open_another(tmp_path, server):
    address, asked = server
    other = tmp_path / "other.mp4"
    other.write_bytes(write())
    hostile = {
        "concat": f"ffconcat version 1.0\nfile '{other}'\n",
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}/a.ts\n#EXT-X-ENDLIST\n",
        "local_playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n",
        "dash": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{address}/</BaseURL></MPD>',
        "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "subtitles": "1\n00:00:00,000 --> 00:00:09,000\nhello\n\n" * 9,
        "asx": f'<asx version="3.0"><entry><ref href="{address}/a.wmv"/></entry></asx>',
    }
    for name, text in hostile.items():
        for suffix in (".mp4", ".m3u8", ".sdp", ".txt"):
            path = tmp_path / f"{name}{suffix}"
            path.write_text(text)
            before = time.monotonic()
            with open(path, "rb") as file, pytest.raises(ValueError, match="hostile cannot be read as a video"):
                VideoFrames(file, "hostile").frame(0)
            assert time.monotonic() - before < 2
    assert not asked


def test_a_movie_cannot_keep_its_frames_in_another_file(tmp_path):
    """QuickTime lets a data reference name a file ("alis" or "url "); FFmpeg does not follow it here."""
    whole = write("mov")
    other = tmp_path / "other.mov"
    other.write_bytes(whole)
    at = whole.index(b"dref")
    entry = whole.index(b"url ", at)
    outside = bytearray(whole)
    outside[entry + 4 : entry + 8] = bytes(4)  # its frames are not in this file
    mdat = whole.index(b"mdat")
    outside[mdat + 4 : mdat + 604] = bytes(600)
    with pytest.raises(ValueError, match="clip cannot be read as a video"):
        video = opened(bytes(outside))
        [video.frame(t) for t in range(len(video))]
