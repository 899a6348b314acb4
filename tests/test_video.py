"""Frames read are the frames meant, upright and whole; what cannot be read is named."""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from shared_data import SHARED

from pipelines.pictures.video_file import write_video
from pipelines.results.finding import find_sources
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, read_video

CAMEL = SHARED / "video" / "camel.mp4"


def shades(count: int, height: int = 36, width: int = 64) -> np.ndarray:
    """Frame k is grey 16 k, with a red top half."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += (16 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[:, : height // 2, :, 0] = 250
    return frames


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory) -> Path:
    """Twelve frames, 36 x 64, at 10 frames per second."""
    path = tmp_path_factory.mktemp("video") / "shades.mp4"
    write_video(path, shades(12), 10.0)
    return path


def read(path: Path | str, **options: int):
    """A video with all its frames in one array."""
    video = read_video(Source(str(path)), Selection(**options), 64)
    return replace(video, frames=np.stack([*video.frames]))


def test_a_written_video_comes_back(clip_file):
    video = read(clip_file)
    assert (video.name, video.fps, video.frames.shape) == ("shades", 10.0, (12, 36, 64, 3))
    assert video.frame_numbers.tolist() == list(range(12))
    error = np.abs(video.frames.astype(int) - shades(12))
    assert error[:, 4:14, 4:60].max() < 12 and error[:, 22:32, 4:60].max() < 12  # away from the colour edge


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 3}, [3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ({"start": 1, "step": 4}, [1, 5, 9]),
        ({"start": 2, "step": 3, "num_frames": 3}, [2, 5, 8]),
        ({"num_frames": 4}, [0, 1, 2, 3]),
    ],
)
def test_start_step_and_number_choose_frames(clip_file, options, expected):
    video = read(clip_file, **options)
    assert video.frame_numbers.tolist() == expected
    shown = video.frames[:, 22:32, 4:60, 1].reshape(len(expected), -1).mean(1) / 16
    np.testing.assert_allclose(shown, expected, atol=0.4)
    assert video.fps == 10.0 / options.get("step", 1)


def test_odd_sizes_get_a_doubled_last_row_and_column(tmp_path):
    write_video(tmp_path / "odd.mp4", shades(2, 35, 63), 5.0)
    assert read(tmp_path / "odd.mp4").frames.shape == (2, 36, 64, 3)
    assert os.listdir(tmp_path) == ["odd.mp4"]


def test_a_turned_video_is_turned_upright(clip_file, tmp_path):
    """The track header's matrix says that the frame's rows run downwards: clockwise by a right angle (ISO 14496-12)."""
    content = bytearray(clip_file.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # after version, flags, times, ids, duration, layer, volume
    turned = [0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 0, 0, 1 << 30]
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big") for value in turned)
    (tmp_path / "phone.mp4").write_bytes(content)
    frames = read(tmp_path / "phone.mp4").frames
    assert frames.shape == (12, 64, 36, 3)
    assert frames[0, :, 20:, 0].min() > 200 and frames[0, :, :16, 0].max() < 60  # the red top is now on the right


def test_wide_pixels_are_made_square(tmp_path):
    with av.open(tmp_path / "wide.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for frame in shades(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert read(tmp_path / "wide.mp4").frames.shape == (3, 36, 128, 3)


def test_images_are_read_in_natural_order(tmp_path):
    for k in (1, 2, 10, 9):
        Image.fromarray(np.full((8, 12, 3), k, np.uint8)).save(tmp_path / f"view{k}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert read(tmp_path).frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10]


def test_images_of_all_usual_kinds_are_read_as_they_are_seen(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    grey = np.repeat(rgb[..., :1], 3, axis=-1)
    palette = Image.fromarray(rgb[..., 0] % 4, "P")
    palette.putpalette(list(range(12)))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: the first row is the right side
    images = {
        "grey": (Image.fromarray(rgb[..., 0]), grey, {}),
        "grey16": (Image.fromarray(rgb[..., 0].astype(np.uint16) * 257), grey, {}),
        "palette": (palette, np.arange(12, dtype=np.uint8).reshape(4, 3)[rgb[..., 0] % 4], {}),
        "alpha": (Image.fromarray(np.dstack([rgb, rgb[..., 0]])), rgb, {}),
        "turned": (Image.fromarray(rgb), np.rot90(rgb, -1), {"exif": turned}),
        "black_and_white": (Image.fromarray(rgb[..., 0] > 99), (grey > 99) * np.uint8(255), {}),
    }
    for name, (image, expected, options) in images.items():
        (tmp_path / name).mkdir()
        for k in range(2):
            image.save(tmp_path / name / f"{k}.png", **options)
        video = read(tmp_path / name)
        np.testing.assert_array_equal(video.frames[1], expected)
        assert len(video.notes) == (name == "alpha")
    (tmp_path / "print").mkdir()
    for k in range(2):
        Image.fromarray(rgb).convert("CMYK").save(tmp_path / "print" / f"{k}.jpg")
    with pytest.raises(ValueError, match=r"print/0\.jpg is a JPEG of mode CMYK.*save it as RGB"):
        read(tmp_path / "print")


def test_extreme_shapes_are_read(tmp_path):
    write_video(tmp_path / "strip.mp4", np.full((3, 8, 2000, 3), 99, np.uint8), 10.0)
    video = read(tmp_path / "strip.mp4")
    assert video.size == (8, 2000) and video.frames.shape == (3, 5, 1280, 3) and video.clip.shape == (3, 64, 64, 3)


def write_images(folder: Path, shapes: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    for k, shape in enumerate(shapes):
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(folder / f"{k}.png")
    return folder


def test_bad_videos_are_refused(clip_file, tmp_path):
    refused = {
        "two_sizes": (write_images(tmp_path / "two_sizes", [(8, 12), (8, 12), (8, 16)]), r"2\.png is .8, 16.*one size"),
        "one_image": (write_images(tmp_path / "one_image", [(8, 12)]), "has 1 frame.s.: a video needs at least 2"),
        "no_images": (write_images(tmp_path / "no_images", []), "no .png or .jpg images"),
    }
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(CAMEL.read_bytes()[:300_000] if CAMEL.exists() else clip_file.read_bytes()[:-500])
    refused["cut"] = (cut, "cannot be read as a video.*truncated")
    text = tmp_path / "text.mp4"
    text.write_text("no video at all " * 100)
    refused["text"] = (text, "cannot be read as a video")
    for path, message in refused.values():
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 40}, "12 frames, --start 40 --step 1 leave 0: fewer than 2"),
        ({"start": 6, "num_frames": 7}, "leave 6: fewer than 7; lower --num-frames"),
        ({"num_frames": 13}, "12 frames: fewer than 13"),
        ({"num_frames": 1}, "--num-frames 1 must be at least 2"),
        ({"start": -1}, "--start -1 must not be negative"),
        ({"step": 0}, "--step 0 must be at least 1"),
    ],
)
def test_frames_that_are_not_there_are_refused(clip_file, options, message):
    with pytest.raises(ValueError, match=message):
        read(clip_file, **options)


def test_sources_must_exist_and_have_names_of_their_own(clip_file, tmp_path):
    write_video(tmp_path / "shades.mov", shades(2), 5.0)
    with pytest.raises(ValueError, match=r"would both be written to shades/"):
        find_sources([str(clip_file), str(tmp_path / "shades.mov")], None)
    with pytest.raises(ValueError, match=r"absent\.mp4 does not exist: check --video"):
        find_sources([str(tmp_path / "absent.mp4")], None)
    with pytest.raises(ValueError, match="no video given"):
        find_sources([], None)
