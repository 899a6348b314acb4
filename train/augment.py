"""Other colours for a clip, as it is read: the paper's augmentation (App. A) but for crops, which conversion makes.

One draw for all frames of a clip. Query patches are cut from what the model sees, so they follow by themselves.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

FACTORS = (0.8, 1.2)  # of brightness, contrast and saturation
HUE = 0.05  # of the circle, either way
GREY_SHARE = 0.2
BLUR_SHARE, BLUR_SIZE, BLUR_SIGMA = 0.4, 5, (0.1, 1.6)  # pixels

# The YIQ colours of NTSC: luma, then the plane in which hue is an angle.
YIQ = np.array([[0.30, 0.59, 0.11], [0.599, -0.2773, -0.3217], [0.213, -0.5251, 0.3121]])
LUMA = YIQ[0]


@dataclass(frozen=True)
class Look:
    """How a clip is changed."""

    brightness: float
    """Factor of all numbers."""
    contrast: float
    """Factor of their distance from the clip's mean luma."""
    saturation: float
    """Factor of their distance from the pixel's own luma; 0 is grey."""
    hue: float
    """Share of a full turn around the grey axis, from red towards green."""
    blur: float
    """Standard deviation of a Gaussian on 5x5 pixels; 0 for none."""

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Look":
        """As the paper draws, ranges ours."""
        brightness, contrast, saturation = rng.uniform(*FACTORS, 3)
        hue, blur = rng.uniform(-HUE, HUE), rng.uniform(*BLUR_SIGMA)
        grey, blurred = rng.random(2) < (GREY_SHARE, BLUR_SHARE)
        return cls(brightness, contrast, 0.0 if grey else saturation, hue, blur if blurred else 0.0)

    def apply(self, video: UInt8[np.ndarray, "T S S 3"]) -> UInt8[np.ndarray, "T S S 3"]:
        """The clip, RGB, so changed; rounded and cut off at 0 and 255 once, at the end."""
        matrix = self.matrix(np.mean([cv2.mean(frame)[:3] for frame in video], axis=0))
        changed = np.empty_like(video)
        for frame, out in zip(video, changed, strict=True):
            cv2.transform(frame, matrix, dst=out)
            if self.blur:
                cv2.GaussianBlur(out, (BLUR_SIZE, BLUR_SIZE), self.blur, dst=out)
        return changed

    def matrix(self, mean: Float64[np.ndarray, "3"]) -> Float32[np.ndarray, "3 4"]:
        """Brightness, contrast, saturation and hue in one affine map of RGB, for a clip of this mean colour.

        Hue turns in the plane of I and Q instead of HSV's hexagon: it keeps luma, is linear, and needs no conversion
        of the pixels, which would take as long as half their decoding.
        """
        to_grey = np.ones((3, 1)) * LUMA
        saturate = self.saturation * np.eye(3) + (1 - self.saturation) * to_grey
        cos, sin = np.cos(2 * np.pi * self.hue), np.sin(2 * np.pi * self.hue)
        turn = np.linalg.inv(YIQ) @ [[1, 0, 0], [0, cos, sin], [0, -sin, cos]] @ YIQ
        colour = self.brightness * self.contrast * turn @ saturate
        offset = np.full((3, 1), self.brightness * (1 - self.contrast) * (LUMA @ mean))
        return np.hstack([colour, offset]).astype(np.float32)
