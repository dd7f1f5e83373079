"""Maps recent prefixes to the replica that has computed them, as far as one frontend knows.

A prompt is cut into blocks; the key of a block is the hash of all ids up to its end. Replicas evict
prefixes on their own, so an entry is a guess that costs a computation when it is wrong.
"""

from collections import OrderedDict
from collections.abc import Iterator

BLOCK = 64
MAX_BLOCKS = 65_536  # some 10 MB; four million tokens


class PrefixMap:
    """Owns the most recent prefixes and their replicas."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._replicas: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self._max_blocks = max_blocks

    def find(self, ids: list[int]) -> tuple[int | None, int]:
        """Return the replica with the longest cached prefix, or None, and the prefix's tokens."""
        best, length = None, 0
        for key in _keys(ids):
            replica = self._replicas.get(key)
            if replica is None:
                break
            best, length = replica, length + BLOCK
        return best, length

    def record(self, ids: list[int], replica: int) -> None:
        """Record that a prompt goes to a replica."""
        for key in _keys(ids):
            self._replicas[key] = replica
            self._replicas.move_to_end(key)
        while len(self._replicas) > self._max_blocks:
            self._replicas.popitem(last=False)


def _keys(ids: list[int]) -> Iterator[int]:
    key = 0
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        key = hash((key, *ids[start : start + BLOCK]))
        yield key
