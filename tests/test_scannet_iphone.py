"""The phone videos of ScanNet++, file by file (dataset notes D6, the variant): what is read, and what is refused."""

import json
import shutil
import tracemalloc
import zlib
from pathlib import Path

import av
import lz4.block
import numpy as np
import plane
import pytest

from pipelines.datasets.scannet import DATASET, ScanNet
from pipelines.raw.folder import RawFolder

FRAMES = 70  # more than between two marks of one stream
MISSING = 5, 41  # frames of which the JSON knows nothing
HEIGHT, WIDTH = 192, 256
VIDEO_HEIGHT, VIDEO_WIDTH = 96, 128  # any size of the shape of 1920 x 1440
INTRINSICS = np.array([[191.0, 0, 130.2], [0, 190.0, 94.5], [0, 0, 1]])  # of depth
NAME = "0a7cc12c0e/iphone"


def pose(t: int) -> np.ndarray:
    return plane.world_from_cam(t / 40)


def depth(t: int) -> np.ndarray:
    return plane.depth(t / 40, HEIGHT, WIDTH, INTRINSICS)


def flat(t: int) -> np.ndarray:
    """Cheap to write, and different in every frame."""
    return np.full((HEIGHT, WIDTH), 1 + t / 100)


def raw_deflate(content: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(content) + deflater.flush()


def led_by_lengths(payloads: list[bytes]) -> bytes:
    return b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)


def metres(depth: np.ndarray) -> bytes:
    return depth.astype("<f4").tobytes()


def millimetres(depth: np.ndarray) -> bytes:
    return np.round(1000 * depth).astype("<u2").tobytes()


def block(depth: np.ndarray) -> bytes:
    return lz4.block.compress(millimetres(depth), store_size=False)


def write_video(path: Path, count: int = FRAMES) -> None:
    """H.264, also with frames that depend on later ones; each is a little brighter, and so is its right."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = VIDEO_WIDTH, VIDEO_HEIGHT, "yuv420p"
        stream.options = {"crf": "6", "g": "12", "x264-params": "bframes=3:b-adapt=0:scenecut=0"}
        for t in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t, VIDEO_HEIGHT, VIDEO_WIDTH), "rgb24")))
        container.mux(stream.encode())


def picture(t: int, height: int, width: int) -> np.ndarray:
    ramp = 10 + 2 * t + (np.arange(width) + 0.5) / width * 100
    return np.tile(ramp[None, :, None], (height, 1, 3)).round().astype(np.uint8)


def annotation() -> dict:
    nominal = np.diag([7.5, 7.5, 1]) @ INTRINSICS  # of 1920 x 1440
    other_world = np.diag([1.0, -1, -1, 1])
    return {
        f"frame_{t:06d}": {
            "timestamp": t / 60,
            "aligned_pose": pose(t).tolist(),
            "pose": (other_world @ pose(t)).tolist(),
            "intrinsic": (np.diag([1 + t / 1000, 1 + t / 1000, 1]) @ nominal).tolist(),
        }
        for t in range(FRAMES)
        if t not in MISSING
    }


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "data" / NAME
    folder.mkdir(parents=True)
    write_video(folder / "rgb.mp4")
    (folder / "depth.bin").write_bytes(led_by_lengths([block(flat(t)) for t in range(FRAMES)]))
    (folder / "pose_intrinsic_imu.json").write_text(json.dumps(annotation()))
    return folder.parents[2]


@pytest.fixture
def raw(shipped, tmp_path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "raw"))


def phone(raw: Path) -> Path:
    return raw / "data" / NAME


def only(raw: Path) -> ScanNet:
    (name,) = DATASET.find(RawFolder(str(raw)))
    return ScanNet(RawFolder(str(raw)), name)


def test_reads_what_the_files_say(raw):
    sequence = only(raw)
    assert sequence.name == f"data/{NAME}" and DATASET.scene_of(sequence.name) == "0a7cc12c0e"
    assert only(raw / "data").name == only(phone(raw)).name == NAME
    assert len(sequence) == FRAMES and sequence.image_size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(sequence.frame_numbers, range(FRAMES))
    assert np.flatnonzero(~sequence.cameras.known).tolist() == list(MISSING)
    for t in set(range(FRAMES)) - set(MISSING):
        np.testing.assert_allclose(sequence.cameras.world_from_cam[t], pose(t), atol=1e-12)
        breathing = np.diag([1 + t / 1000, 1 + t / 1000, 1])
        np.testing.assert_allclose(sequence.cameras.intrinsics[t], breathing @ INTRINSICS, rtol=1e-12)


def test_pixel_centres_lie_at_one_half(raw):
    (phone(raw) / "depth.bin").write_bytes(led_by_lengths([raw_deflate(metres(depth(t))) for t in range(FRAMES)]))
    sequence = only(raw)
    geometry = sequence.depth(8), sequence.cameras.intrinsics[8] / [[1.008], [1.008], [1]], pose(8)
    assert plane.distance(*geometry, centre=0.5).max() < 1e-6
    assert np.median(plane.distance(*geometry, centre=0)) > 3e-4


def test_a_frame_the_annotation_lacks_shifts_nothing(raw):
    """Depth and picture of a frame are those of its number, in whatever order they are asked for."""
    with av.open(phone(raw) / "rgb.mp4") as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(times)
    sequence = only(raw)
    for t in (0, 4, 5, 6, 40, 42, 69, 13, 12, 25, 11, 68, 68, 0):
        np.testing.assert_allclose(sequence.depth(t), flat(t), atol=1e-6)
        error = sequence.image(t).astype(int) - picture(t, HEIGHT, WIDTH)
        assert abs(error.mean()) < 0.7 and np.abs(error).max() <= 4  # the next frame is brighter by 2


def test_matroska_is_a_video_too(raw):
    (phone(raw) / "rgb.mp4").unlink()
    write_video(phone(raw) / "rgb.mkv")
    sequence = only(raw)
    for t in (30, 7):
        assert abs((sequence.image(t).astype(int) - picture(t, HEIGHT, WIDTH)).mean()) < 0.7


ENCODINGS = {
    "lz4": lambda depths: led_by_lengths([block(depth) for depth in depths]),
    "deflate": lambda depths: led_by_lengths([raw_deflate(metres(depth)) for depth in depths]),
    "one stream": lambda depths: raw_deflate(b"".join(map(metres, depths))),
    "with zlib's header": lambda depths: led_by_lengths([zlib.compress(metres(depth)) for depth in depths]),
    "deflate of millimetres": lambda depths: led_by_lengths([raw_deflate(millimetres(depth)) for depth in depths]),
    "both kinds": lambda depths: led_by_lengths(
        [block(depth) if t % 3 else raw_deflate(metres(depth)) for t, depth in enumerate(depths)]
    ),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_depth_in_every_encoding_and_order(raw, encoding):
    depths = [flat(t) for t in range(FRAMES)]
    depths[2] = depth(2)
    depths[2][10:13, 20] = 0
    (phone(raw) / "depth.bin").write_bytes(ENCODINGS[encoding](depths))
    sequence = only(raw)
    for t in (0, 1, 2, 69, 66, 3, 63, 64, 65, 2):
        read = sequence.depth(t)
        unknown = depths[t] == 0
        np.testing.assert_array_equal(np.isnan(read), unknown)
        np.testing.assert_allclose(read[~unknown], depths[t][~unknown], atol=0.0005 + 1e-6)


def test_broken_depths_are_unknown(raw):
    depths = [flat(t) for t in range(FRAMES)]
    depths[3][0, :4] = [np.nan, np.inf, -1, 0]
    (phone(raw) / "depth.bin").write_bytes(ENCODINGS["deflate"](depths))
    assert np.argwhere(np.isnan(only(raw).depth(3))).tolist() == [[0, column] for column in range(4)]


def rewrite(key: str | None, change):
    """Change the annotation, or one frame of it."""

    def damage(folder: Path) -> None:
        frames = annotation()
        if key is None:
            frames = change(frames)
        else:
            change(frames[key])
        (folder / "pose_intrinsic_imu.json").write_text(json.dumps(frames))

    return damage


REFUSED = {
    "no JSON": (lambda f: (f / "pose_intrinsic_imu.json").write_text("{"), r"imu\.json .*cannot be read as a JSON"),
    "a list": (rewrite(None, lambda frames: list(frames)), r"imu\.json .*cannot be read as a JSON object"),
    "no frames": (rewrite(None, lambda frames: {}), r"imu\.json .*must have keys from frame_000000"),
    "other keys": (rewrite(None, lambda frames: frames | {"extra": {}}), r"imu\.json .*must have keys"),
    "absurd number": (
        rewrite(None, lambda f: f | {"frame_999999": f["frame_000000"]}),
        r"keys .*below 200000",
    ),
    "no pose": (
        rewrite("frame_000007", lambda frame: frame.pop("aligned_pose")),
        "frame_000007 .*4x4 aligned_pose",
    ),
    "a 3x4": (
        rewrite("frame_000007", lambda frame: frame["aligned_pose"].pop()),
        "frame_000007 .*4x4 aligned_pose",
    ),
    "other K": (
        rewrite("frame_000007", lambda frame: frame.update(intrinsic=[[1]])),
        "frame_000007 .*3x3 intrinsic",
    ),
    "number of 400 digits": (
        rewrite("frame_000007", lambda frame: frame.update(aligned_pose=[10**400])),
        "frame_000007 .*4x4 aligned_pose",
    ),
    "no video": (lambda f: (f / "rgb.mp4").unlink(), r"missing file .*rgb\.mp4"),
    "no depth": (lambda f: (f / "depth.bin").unlink(), r"missing file .*depth\.bin"),
    "text as video": (lambda f: (f / "rgb.mp4").write_text("no"), r"rgb\.mp4 .*cannot be read as a video"),
    "K of the small video": (
        rewrite("frame_000001", lambda frame: frame.update(intrinsic=INTRINSICS.tolist())),
        "intrinsics of colour of .*were the images resized",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_open(raw, case):
    damage, message = REFUSED[case]
    damage(phone(raw))
    with pytest.raises(ValueError, match=message):
        only(raw)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_refuses_truncated_depth(raw, encoding):
    path = phone(raw) / "depth.bin"
    path.write_bytes(ENCODINGS[encoding]([flat(t) for t in range(FRAMES)])[:-10])
    message = (
        r"depth\.bin .*cannot be read as frames led by their lengths, nor as one stream of more than (0|69) frames"
    )
    with pytest.raises(ValueError, match=message):
        only(raw).depth(69)


def test_refuses_depth_that_does_not_fit(raw):
    path = phone(raw) / "depth.bin"
    payloads = [block(flat(0)), b"\1\2\3", raw_deflate(bytes(196_607)), raw_deflate(bytes(200_000_000))]
    path.write_bytes(led_by_lengths([*payloads, lz4.block.compress(bytes(98_306), store_size=False)]))
    sequence = only(raw)
    tracemalloc.start()
    for t in (1, 2, 3, 4):
        with pytest.raises(ValueError, match=rf"depth of frame {t} of .*depth\.bin .*neither LZ4 nor deflate"):
            sequence.depth(t)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000  # the bomb did not go off
    tracemalloc.stop()
    with pytest.raises(ValueError, match=r"depth\.bin .*has 5 frames, number 5 is asked for"):
        sequence.depth(5)


def test_refuses_a_video_that_does_not_fit(raw):
    write_video(phone(raw) / "rgb.mp4", 30)
    with pytest.raises(ValueError, match=r"rgb\.mp4 .*has 30 frames, number 30 is asked for"):
        only(raw).image(30)
    content = (phone(raw) / "rgb.mp4").read_bytes()
    (phone(raw) / "rgb.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"rgb\.mp4 .*cannot be read as a video"):
        only(raw).image(29)
