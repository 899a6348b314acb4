"""Which clip comes when. No state: clip number `index` of a run follows from (mixture, seed, index) alone.

A run counts its clips 0, 1, 2, ... over all steps and workers, so a resumed run goes on with exactly the clips that
come next, and no two workers ever get the same one.

    cycle   1000 clips, each store with its exact share (largest remainder), in an order drawn from (seed, cycle)
    epoch   one pass through a store: every clip once, in an order drawn from (seed, store, epoch); the next epoch
            takes the next query sample of each clip
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

CYCLE = 1000


@dataclass(frozen=True, kw_only=True)
class MixturePlan:
    """Raises ValueError for a weight that gives a store less than one clip in `CYCLE`."""

    stores: tuple[str, ...]
    """URIs."""
    weights: tuple[float, ...]
    lengths: tuple[int, ...]
    """Clips in each store."""
    samples: tuple[int, ...]
    """Query samples per clip in each store."""
    seed: int

    def __post_init__(self) -> None:
        for store, count, length in zip(self.stores, self.counts, self.lengths, strict=True):
            if count < 1:
                raise ValueError(
                    f"--data.mixture: the weight of {store} is below 1/{CYCLE} of the sum; raise it or leave it out"
                )
            if length < 1:
                raise ValueError(f"--data.mixture: store {store} has no clips; leave it out")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Clips of each store in every cycle: the shares, rounded so that they add up to `CYCLE`."""
        exact = np.array(self.weights) / sum(self.weights) * CYCLE
        counts = np.floor(exact).astype(int)
        largest = np.argsort(counts - exact, kind="stable")[: CYCLE - counts.sum()]
        counts[largest] += 1
        return tuple(counts.tolist())

    def clip(self, index: int) -> tuple[int, int, int]:
        """(store number, clip number in it, query sample) of the run's clip number `index`."""
        cycle, slot = divmod(index, CYCLE)
        order, earlier = _cycle_order(self.counts, self.seed, cycle)
        store = int(order[slot])
        epoch, position = divmod(cycle * self.counts[store] + int(earlier[slot]), self.lengths[store])
        clip = permuted(position, self.lengths[store], _round_keys(self.seed, store, epoch))
        return store, clip, epoch % self.samples[store]

    def words(self, index: int) -> str:
        """Which clip that is, for people."""
        store, clip, _ = self.clip(index)
        return f"clip {clip} of {self.stores[store]}"


@lru_cache(maxsize=8)
def _cycle_order(counts: tuple[int, ...], seed: int, cycle: int) -> tuple[np.ndarray, np.ndarray]:
    """Per slot of a cycle: its store, and how many slots of that store come earlier in the cycle."""
    order = np.random.default_rng([seed, cycle]).permutation(np.repeat(np.arange(len(counts)), counts))
    earlier = np.empty(len(order), int)
    for store, count in enumerate(counts):
        earlier[order == store] = np.arange(count)
    return order, earlier


@lru_cache(maxsize=64)
def _round_keys(seed: int, store: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.SeedSequence([seed, store, epoch]).generate_state(6, np.uint64).tolist())


def permuted(position: int, length: int, keys: tuple[int, ...]) -> int:
    """Where a random permutation of 0..length-1, drawn by `keys`, takes `position`. Needs no table.

    A Feistel network permutes the numbers of an even count of bits; results beyond `length` are sent through again
    until they fall inside, which keeps it a permutation.
    """
    half = max(1, (length - 1).bit_length() + 1 >> 1)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & mask)
        position = left << half | right
        if position < length:
            return position


def _mix(value: int, key: int) -> int:
    """A hash of 64 bits (the finaliser of SplitMix64)."""
    value = (value ^ key) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
