"""Cold prefixes: what the KV cache had no room for, kept in the host's memory.

Plain ints, like the block pool, which owns this: which slot of the host's memory has a copy of
which prefix. A copy stays when its prefix is brought back, so that evicting it again costs nothing.
The copies themselves are the model's business; it is told the moves, to be made in their order.
"""

from collections import OrderedDict
from typing import NamedTuple

# A prefix is named by its last full block: the name of the prefix before it, and its ids. Names
# are compared, not hashes alone, so two prefixes can never be taken for each other.
PrefixKey = tuple[int, tuple[int, ...]]


class OffloadedBlock(NamedTuple):
    """A full block of a known prefix, in a slot; see CachedBlock."""

    slot: int
    prefix_id: int
    key: PrefixKey


class OffloadedBlocks:
    """Owns the slots; the least recently used is overwritten first."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots))
        self._stored: OrderedDict[PrefixKey, OffloadedBlock] = OrderedDict()
        self._pinned: set[int] = set()

    def __len__(self) -> int:
        return len(self._stored)

    def find(self, key: PrefixKey) -> OffloadedBlock | None:
        """What is kept of a prefix, which thereby counts as used."""
        if key in self._stored:
            self._stored.move_to_end(key)
        return self._stored.get(key)

    def offload(self, prefix_id: int, key: PrefixKey) -> int | None:
        """Find a slot for an evicted block; None if it has one already, or none may be taken."""
        if self.find(key) is not None:
            return None
        slot = self._take()
        if slot is not None:
            self._stored[key] = OffloadedBlock(slot, prefix_id, key)
        return slot

    def pin(self, blocks: list[OffloadedBlock]) -> None:
        """Let nothing overwrite these, until others are pinned in their place."""
        self._pinned = {block.slot for block in blocks}

    def clear(self) -> None:
        """Drop everything."""
        self._stored.clear()
        self._pinned.clear()
        self._free = list(range(self.num_slots))

    def check_invariants(self) -> None:
        """Assert that each slot is free or keeps one prefix."""
        used = [block.slot for block in self._stored.values()]
        assert sorted([*used, *self._free]) == list(range(self.num_slots)), "a slot is lost"

    def _take(self) -> int | None:
        if self._free:
            return self._free.pop()
        for key, block in self._stored.items():
            if block.slot not in self._pinned:
                del self._stored[key]
                return block.slot
        return None
