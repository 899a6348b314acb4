"""Augmentation against Python's colorsys and a Gaussian written out; what is drawn, how often, and for which clip."""

import colorsys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from train.augment import Look

PLAIN = Look(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, blur=0.0)


def random_video(seed=0, frames=3, size=12, low=60, high=190) -> np.ndarray:
    """Far enough from 0 and 255 that nothing is cut off."""
    return np.random.default_rng(seed).integers(low, high, (frames, size, size, 3), dtype=np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    """(...) from (..., 3), by colorsys."""
    return np.apply_along_axis(lambda pixel: colorsys.rgb_to_yiq(*pixel)[0], -1, rgb.astype(float))


def assert_rounded(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.uint8
    assert np.abs(found - expected.clip(0, 255)).max() < 0.9  # OpenCV multiplies with 10 bits after the point


def test_without_a_change_the_clip_is_the_same():
    video = random_video(low=0, high=256)
    np.testing.assert_array_equal(PLAIN.apply(video), video)


def test_brightness_is_a_factor_and_is_cut_off():
    video = random_video(low=0, high=256)
    assert_rounded(replace(PLAIN, brightness=1.2).apply(video), video * 1.2)


@pytest.mark.parametrize("contrast", [0.8, 1.2])
def test_contrast_is_around_the_mean_luma_of_the_whole_clip(contrast):
    video = random_video()
    video[1:] //= 2  # frames differ, and are still changed alike
    mean = luma(video).mean()
    assert_rounded(replace(PLAIN, contrast=contrast).apply(video), mean + contrast * (video - mean))


@pytest.mark.parametrize("saturation", [0.0, 0.8, 1.2])
def test_saturation_is_around_the_luma_of_the_pixel(saturation):
    video = random_video()
    grey = luma(video)[..., None]
    assert_rounded(replace(PLAIN, saturation=saturation).apply(video), grey + saturation * (video - grey))


@pytest.mark.parametrize("hue", [-0.05, 0.03])
def test_hue_turns_the_chroma_and_keeps_the_luma(hue):
    video = random_video(low=100, high=150)

    def turned(pixel):
        y, i, q = colorsys.rgb_to_yiq(*pixel)
        chroma = (i + 1j * q) * np.exp(-2j * np.pi * hue)
        rows = [colorsys.rgb_to_yiq(*unit) for unit in np.eye(3)]
        return np.linalg.solve(np.transpose(rows), [y, chroma.real, chroma.imag])

    assert_rounded(replace(PLAIN, hue=hue).apply(video), np.apply_along_axis(turned, -1, video.astype(float)))


def test_a_positive_hue_goes_from_red_to_green_to_blue():
    colours = np.array([[150, 100, 100], [100, 150, 100], [100, 100, 150]], np.uint8)
    changed = replace(PLAIN, hue=0.05).apply(np.tile(colours, (3, 1, 1))[None])[0, 0]
    for before, after in zip(colours, changed, strict=True):
        step = colorsys.rgb_to_hsv(*after / 255)[0] - colorsys.rgb_to_hsv(*before / 255)[0]
        assert 0.03 < step % 1 < 0.08


def test_all_at_once_is_one_after_the_other():
    look = Look(brightness=0.9, contrast=1.1, saturation=0.8, hue=0.04, blur=0.0)
    video = random_video(low=90, high=160)
    in_turn = replace(PLAIN, brightness=0.9).apply(video)
    for field in ("contrast", "saturation", "hue"):
        in_turn = replace(PLAIN, **{field: getattr(look, field)}).apply(in_turn)
    assert np.abs(look.apply(video) - in_turn.astype(float)).max() <= 2  # of four roundings


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.6])
def test_blur_is_a_gaussian_of_five_by_five_pixels_within_each_frame(sigma):
    video = random_video(low=0, high=256)
    offsets = np.arange(-2, 3)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(video.astype(float), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    size = video.shape[1]
    expected = sum(
        kernel[i] * kernel[j] * padded[:, i : i + size, j : j + size] for i, j in product(range(5), repeat=2)
    )
    found = replace(PLAIN, blur=sigma).apply(video)
    assert np.abs(found - expected).max() < 1.6  # OpenCV's kernel has 8 bits


def test_draws_have_the_papers_shares_and_our_ranges():
    looks = [Look.random(np.random.default_rng([7, i])) for i in range(4000)]
    for name, low, high in (("brightness", 0.8, 1.2), ("contrast", 0.8, 1.2), ("hue", -0.05, 0.05)):
        values = np.array([getattr(look, name) for look in looks])
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    saturation, blur = (np.array([getattr(look, name) for look in looks]) for name in ("saturation", "blur"))
    assert (saturation == 0).mean() == pytest.approx(0.2, abs=0.02)
    assert (blur > 0).mean() == pytest.approx(0.4, abs=0.025)
    assert np.quantile(saturation[saturation > 0], [0, 0.5, 1]) == pytest.approx([0.8, 1.0, 1.2], abs=0.02)
    assert np.quantile(blur[blur > 0], [0, 0.5, 1]) == pytest.approx([0.1, 0.85, 1.6], abs=0.05)
    table = np.array([[look.brightness, look.contrast, look.hue, look.saturation > 0, look.blur > 0] for look in looks])
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.06  # independent of one another
