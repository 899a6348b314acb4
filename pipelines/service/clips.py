"""Encoded clips that are held in memory, the ones asked about last."""

from collections import OrderedDict
from threading import Lock

from model import Memory
from pipelines.service.limits import not_held


class Clips:
    """Memories by the id of their clip, together of so many bytes at most. Threads may share it.

    Nothing else holds on to a memory but who answers about it just now, so its bytes are given back when it goes.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held, self._lock = most, OrderedDict[str, Memory](), Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, clip: str) -> bool:
        return clip in self._held

    def get(self, clip: str) -> Memory:
        """`Refusal` (404) if it is not held. It is now the last one to go."""
        with self._lock:
            if clip not in self._held:
                raise not_held(clip)
            self._held.move_to_end(clip)
            return self._held[clip]

    def put(self, clip: str, memory: Memory) -> None:
        """In place of those that were not asked about for the longest time."""
        self.drop(clip)
        with self._lock:
            self._held[clip] = memory
            self.bytes += bytes_of(memory)
            while self.bytes > self._most:
                _, oldest = self._held.popitem(last=False)
                self.bytes -= bytes_of(oldest)

    def drop(self, clip: str) -> None:
        """Hold it no longer, if it is held."""
        with self._lock:
            if (memory := self._held.pop(clip, None)) is not None:
                self.bytes -= bytes_of(memory)


def bytes_of(memory: Memory) -> int:
    pairs = (tensor for pair in memory.keys_values for tensor in pair)
    return sum(tensor.nbytes for tensor in (memory.tokens, memory.video, *pairs))
