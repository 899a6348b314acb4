"""Random crops of native frames: the paper's crop augmentation, precomputed, each with queries of its own."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from pipelines.sequence import Cameras, Motion, Sequence

AREA = (0.3, 1.0)  # of the frame
ZOOM_SHARE, ZOOM = 0.05, (0.5, 1.0)  # so many crops are cut once more around their centre, to this share of each side


@dataclass(frozen=True)
class Crop:
    """A window of the raw frame, in whole pixels."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def random(cls, image_size: tuple[int, int], rng: np.random.Generator) -> "Crop":
        """Uniform area, an aspect log-uniform among those that fit, anywhere in the frame (paper App. A; our zoom)."""
        height, width = image_size
        area = rng.uniform(*AREA) * width * height
        aspect = np.exp(rng.uniform(np.log(area / height**2), np.log(width**2 / area)))
        size = np.sqrt(area * np.array([aspect, 1 / aspect]))
        corner = rng.uniform(0, np.maximum([width, height] - size, 0))
        if rng.random() < ZOOM_SHARE:
            factor = rng.uniform(*ZOOM)
            corner, size = corner + (1 - factor) / 2 * size, factor * size
        left, top = np.floor(corner).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(corner + size), [width, height]).astype(int).tolist()
        return cls(left, top, right - left, bottom - top)


class Cropped(Sequence):
    """A sequence as if its frames had been filmed through a smaller window. Points beyond it are out of the image."""

    def __init__(self, whole: Sequence, crop: Crop) -> None:
        super().__init__(whole.raw, whole.name)
        self._whole, self._crop = whole, crop
        intrinsics = whole.cameras.intrinsics.copy()
        intrinsics[:, :2, 2] -= [crop.left, crop.top]
        self.cameras = Cameras(intrinsics=intrinsics, world_from_cam=whole.cameras.world_from_cam)
        self.frame_numbers = whole.frame_numbers
        self.image_size = (crop.height, crop.width)
        rows, columns = slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width)
        self._window = np.s_[rows, columns]

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._whole.image(t)[self._window]

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        return self._whole.depth(t)[self._window]

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Motion:
        return self._whole.motion(frames)

    def normal(
        self, t: int, column: Int64[np.ndarray, "N"], row: Int64[np.ndarray, "N"]
    ) -> Float64[np.ndarray, "N 3"] | None:
        return self._whole.normal(t, column + self._crop.left, row + self._crop.top)

    def instance(self, t: int) -> Int32[np.ndarray, "H W"] | None:
        instance = self._whole.instance(t)
        return None if instance is None else instance[self._window]


class Remembered(Cropped):
    """The whole frames of one clip, decoded once for all its crops."""

    def __init__(self, whole: Sequence) -> None:
        super().__init__(whole, Crop(0, 0, whole.image_size[1], whole.image_size[0]))
        self.image, self.depth, self.instance = cache(whole.image), cache(whole.depth), cache(whole.instance)
