"""Damage in a JPEG is told wherever its code loses its place, and healthy ones are read as other decoders read them."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.raw.images import decode_rgb, decode_shown


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


def broken_code(content: bytes) -> bytes:
    """A stretch in the middle of the picture is lost; header and end are whole. Of a few wrong bits nothing tells."""
    middle = len(content) * 2 // 3
    return content[:middle] + content[middle + 400 :]


both = pytest.mark.parametrize("decode", [decode_rgb, lambda *image: decode_shown(*image)[0]], ids=["dataset", "user"])


@both
def test_pixels_are_those_of_other_decoders(jpeg, decode):
    expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode(jpeg, "photo.jpg"), expected)


@both
def test_damage_is_told_though_opencv_shows_a_picture(jpeg, decode):
    damaged = broken_code(jpeg)
    shown = cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert shown is not None and np.abs(shown.astype(int) - decode(jpeg, "")).max() > 50, "a wrong picture"
    with pytest.raises(ValueError, match=r"photo\.jpg cannot be read as an image .*truncated or corrupt"):
        decode(damaged, "photo.jpg")
    with pytest.raises(ValueError, match=r"photo\.jpg cannot be read as an image"):
        decode(jpeg[: len(jpeg) // 2], "photo.jpg")


@both
def test_what_stands_after_the_picture_is_no_damage(jpeg, decode):
    np.testing.assert_array_equal(decode(jpeg + b"of a camera's own", "photo.jpg"), decode(jpeg, "photo.jpg"))


@pytest.mark.parametrize(("kind", "name"), [("webp", "WebP"), ("bmp", "BMP"), ("gif", "GIF")])
def test_images_of_other_formats_are_named_as_what_they_are(kind, name):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    with pytest.raises(ValueError, match=rf"a\.png is a {name} file.*save it as PNG or JPEG"):
        decode_shown(file.getvalue(), "a.png")
