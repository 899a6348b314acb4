"""The numbers of a page: arrays one after another, so made that gzip finds little left to say.

Positions are whole numbers of steps, from the lower to the upper end of a box around what is shown, each as the
difference to the one before, all low bytes before all high bytes: neighbours in an image are neighbours in space.
`decode.js` takes them apart again.
"""

import base64
import gzip
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pipelines.geometry import finite

LEVELS = 1 << 14  # steps along each side of the box: 1 mm in 16 m
MARGIN = 0.5  # of its sides, around where nearly all points are: what is further is not shown


@dataclass(frozen=True)
class Box:
    low: Float[np.ndarray, "3"]
    high: Float[np.ndarray, "3"]

    @classmethod
    def around(cls, *clouds: Float[np.ndarray, "_ 3"]) -> "Box":
        """Around nearly all that is known."""
        known = np.concatenate([cloud[finite(cloud)] for cloud in clouds]).astype(np.float64)
        if not len(known):
            return cls(np.full(3, -1.0), np.ones(3))
        low, high = np.quantile(known, [0.01, 0.99], axis=0)
        side = np.maximum(high - low, 1e-3 * max(1e-6, float((high - low).max())))
        return cls(low - MARGIN * side, high + MARGIN * side)

    def holds(self, xyz: Float[np.ndarray, "*n 3"]) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return ((xyz >= self.low) & (xyz <= self.high)).all(axis=-1)

    def steps(self, xyz: Float[np.ndarray, "*n 3"]) -> np.ndarray:
        """(..., 3) uint16; whatever for what it does not hold."""
        share = (np.nan_to_num(xyz, posinf=0, neginf=0) - self.low) / (self.high - self.low)
        return np.rint(np.clip(share, 0, 1) * (LEVELS - 1)).astype(np.uint16)


@dataclass
class Numbers:
    """Collects arrays; `places` says where each is in `content`."""

    content: bytearray = field(default_factory=bytearray)
    places: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, array: np.ndarray) -> None:
        """As it is."""
        self.content += bytes(-len(self.content) % 4)
        kind = array.dtype.name
        self.places[name] = {"offset": len(self.content), "dtype": kind, "shape": array.shape}
        self.content += np.ascontiguousarray(array).tobytes()

    def add_differences(self, name: str, steps: np.ndarray) -> None:
        """(n, c) uint16, as low and high bytes of differences along n, one column after another."""
        differences = np.diff(steps, axis=0, prepend=np.zeros((1, steps.shape[1]), np.uint16)).T
        halves = np.stack([differences & 255, differences >> 8], axis=1).astype(np.uint8)
        self.add(name, halves)

    def add_pictures(self, name: str, pictures: list[bytes]) -> None:
        """JPEG files, with where each ends."""
        self.add(name, np.frombuffer(b"".join(pictures), np.uint8))
        self.add(f"{name}_ends", np.cumsum([len(picture) for picture in pictures]).astype(np.uint32))

    def packed(self) -> str:
        return base64.b64encode(gzip.compress(bytes(self.content), 6, mtime=0)).decode("ascii")


def share_bytes(share: Float[np.ndarray, "*n"], levels: int) -> UInt8[np.ndarray, "*n"]:
    """Numbers from 0 to 1 as bytes from 0 to 255 of which only so many are used."""
    coarse = np.rint(np.clip(np.nan_to_num(share), 0, 1) * (levels - 1))
    return np.rint(coarse * (255 / (levels - 1))).astype(np.uint8)
