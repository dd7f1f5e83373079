"""Which copy of the model has lately computed which prefix, as far as one frontend knows.

A prompt is cut into blocks; the name of a block is the hash of all ids up to its end. Copies forget
prefixes on their own, so what is told here is a guess that costs a computation when it is wrong.
"""

from collections import OrderedDict
from collections.abc import Iterator

BLOCK = 64
MAX_BLOCKS = 65_536  # some 10 MB; four million tokens


class PrefixMap:
    """Remembers where the most recent prefixes went."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._copies: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self._max_blocks = max_blocks

    def find(self, ids: list[int]) -> tuple[int | None, int]:
        """Which copy knows the longest prefix, and how many tokens that is; None for none."""
        best, length = None, 0
        for name in _names(ids):
            replica = self._copies.get(name)
            if replica is None:
                break
            best, length = replica, length + BLOCK
        return best, length

    def record(self, ids: list[int], replica: int) -> None:
        """Say that a prompt goes to a copy."""
        for name in _names(ids):
            self._copies[name] = replica
            self._copies.move_to_end(name)
        while len(self._copies) > self._max_blocks:
            self._copies.popitem(last=False)


def _names(ids: list[int]) -> Iterator[int]:
    name = 0
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        name = hash((name, *ids[start : start + BLOCK]))
        yield name
