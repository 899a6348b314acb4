"""The frames of a long video that are asked for while it is gone through window by window."""

import numpy as np
from jaxtyping import UInt8

from pipelines.results.sources import Clip


class Nearby:
    """A `Clip` that holds the frames that were added or asked for last. All others are read again."""

    def __init__(self, clip: Clip) -> None:
        self._clip, self._held, self._asked = clip, {}, set()

    def __len__(self) -> int:
        return len(self._clip)

    def add(self, frames: range, pixels: UInt8[np.ndarray, "F S S 3"]) -> None:
        """The next frames. Of those before, the ones that were added or asked for since the last time stay."""
        self._held = {t: self._held[t] for t in self._asked} | dict(zip(frames, pixels, strict=True))
        self._asked = set(frames)

    def __getitem__(self, frames: list[int], /) -> UInt8[np.ndarray, "F S S 3"]:
        if missing := [t for t in frames if t not in self._held]:
            self._held |= dict(zip(missing, self._clip[missing], strict=True))
        self._asked |= set(frames)
        return np.stack([self._held[t] for t in frames])
