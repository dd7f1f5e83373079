"""KV blocks offloaded to host memory when the GPU cache is full.

Maps prefixes to host memory slots in plain ints; owned by the block pool. A slot keeps its block
after a restore, so that evicting the block again costs no copy. The model performs the copies: it
receives them as BlockCopy items, to run in order.
"""

from collections import OrderedDict
from typing import NamedTuple

# The key of a prefix's last full block: the id of the prefix before it, and the block's token ids.
# These are exact keys, not hashes, so two prefixes never collide.
PrefixKey = tuple[int, tuple[int, ...]]


class OffloadedBlock(NamedTuple):
    """A full block of a prefix, stored in a host memory slot; see CachedBlock."""

    slot: int
    prefix_id: int
    key: PrefixKey


class OffloadedBlocks:
    """Owns the host memory slots; overwrites the least recently used first."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots))
        self._stored: OrderedDict[PrefixKey, OffloadedBlock] = OrderedDict()
        self._pinned: set[int] = set()

    def __len__(self) -> int:
        return len(self._stored)

    def find(self, key: PrefixKey) -> OffloadedBlock | None:
        """Look up the offloaded block of a prefix and mark it as most recently used."""
        if key in self._stored:
            self._stored.move_to_end(key)
        return self._stored.get(key)

    def offload(self, prefix_id: int, key: PrefixKey) -> int | None:
        """Take a slot for an evicted block; None if it has a slot already or all are pinned."""
        if self.find(key) is not None:
            return None
        slot = self._take()
        if slot is not None:
            self._stored[key] = OffloadedBlock(slot, prefix_id, key)
        return slot

    def pin(self, blocks: list[OffloadedBlock]) -> None:
        """Protect these blocks from eviction, and no others, until the next call."""
        self._pinned = {block.slot for block in blocks}

    def clear(self) -> None:
        """Drop every offloaded block."""
        self._stored.clear()
        self._pinned.clear()
        self._free = list(range(self.num_slots))

    def check_invariants(self) -> None:
        """Assert that each slot is free or stores one block."""
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
