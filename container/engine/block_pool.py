"""Blocks: which pages of the KV cache are free, who refers to the others, and what they hold.

Plain ints; the tensors behind the ids belong to the model. A block with a reference is used. One
without is free, but may still be cached: it holds the keys and values of a known prefix and can be
used again by a sequence with that prefix, until it is needed for something else, the least
recently used first. Owned by the scheduler.

    free and unknown | free but cached (least recently used first) | used (perhaps cached too)

With slots in the host's memory, what is evicted is copied there, and brought back on demand.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from container.engine.offload import ColdBlock, ColdBlocks, PrefixKey
from container.engine.schedule import Move

ROOT = 0


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """A full block whose content is known. `name` is unique for the prefix that ends with it."""

    block_id: int
    name: int
    key: PrefixKey


class BlockPool:
    """Hands out blocks and takes them back by reference count."""

    def __init__(self, num_blocks: int, block_size: int, num_slots: int = 0) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._unknown = deque(range(num_blocks))
        self._reusable: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._by_key: dict[PrefixKey, CachedBlock] = {}
        self._by_block: dict[int, CachedBlock] = {}
        self._next_name = ROOT + 1
        self._cold = ColdBlocks(num_slots)
        self._moves: list[Move] = []

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can still give."""
        return len(self._unknown) + len(self._reusable)

    @property
    def num_used(self) -> int:
        """Blocks with at least one reference."""
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks whose content a new sequence could use."""
        return len(self._by_block)

    @property
    def num_cold(self) -> int:
        """Blocks of which the host has a copy."""
        return len(self._cold)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take free blocks, each with one reference. The caller has checked `num_free`."""
        assert count <= self.num_free, "allocate without checking num_free"
        return [self._take() for _ in range(count)]

    def share(self, block_ids: Iterable[int]) -> None:
        """Add one reference to each block; a cached one may be free."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                assert block_id in self._reusable, "share of a block with unknown content"
                del self._reusable[block_id]
            self._references[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop one reference of each block; those without any become free."""
        # The end of a prefix is worth less than its start, so it is the first to be evicted.
        for block_id in reversed(list(block_ids)):
            assert self._references[block_id] > 0, "release of a free block"
            self._references[block_id] -= 1
            if self._references[block_id] > 0:
                continue
            if block_id in self._by_block:
                self._reusable[block_id] = None
            else:
                self._unknown.append(block_id)

    def find_prefix(self, token_ids: list[int], root: int = ROOT) -> list[CachedBlock]:
        """The longest chain of cached blocks that starts these ids; linear in their number.

        Prefixes of another root, a negative number, are other ones.
        """
        found: list[CachedBlock] = []
        name = root
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            key = (name, tuple(token_ids[start : start + self.block_size]))
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
            name = block.name
        return found

    def find_cold(
        self, token_ids: list[int], found: list[CachedBlock], root: int = ROOT
    ) -> list[ColdBlock]:
        """How a prefix, of which `found` is cached, goes on in the host's memory."""
        cold: list[ColdBlock] = []
        if not len(self._cold):
            return cold
        name, size = found[-1].name if found else root, self.block_size
        for start in range(len(found) * size, len(token_ids) - size + 1, size):
            block = self._cold.find((name, tuple(token_ids[start : start + size])))
            if block is None:
                break
            cold.append(block)
            name = block.name
        # Allocating for them must not overwrite them.
        self._cold.pin(cold)
        return cold

    def bring_back(self, cold: list[ColdBlock], block_ids: list[int]) -> None:
        """Have cold blocks copied into used ones, which are cached from now on."""
        for found, block_id in zip(cold, block_ids, strict=True):
            self._moves.append(Move(False, block_id, found.slot))
            if found.key not in self._by_key:
                known = CachedBlock(block_id, found.name, found.key)
                self._by_key[found.key] = self._by_block[block_id] = known
        self._cold.pin([])

    def take_moves(self) -> tuple[Move, ...]:
        """The copies to be made, in this order, before the next step writes; each told once."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def forget_prefixes(self) -> None:
        """Drop all that is known of contents, since a step may have left something else there."""
        self._unknown.extend(self._reusable)
        self._reusable.clear()
        self._by_key.clear()
        self._by_block.clear()
        self._cold.forget()
        self._moves.clear()

    def remember(self, block_id: int, parent_name: int, ids: list[int]) -> int:
        """Note that a used block is full and what it holds; return the name of the prefix.

        When the same prefix is cached in another block already, that one keeps the name.
        """
        key = (parent_name, tuple(ids))
        known = self._by_key.get(key)
        if known is None:
            cold = self._cold.find(key)
            known = CachedBlock(block_id, cold.name if cold else self._next_name, key)
            self._next_name += 1
            self._by_key[key] = self._by_block[block_id] = known
        return known.name

    def check_invariants(self, tables: Iterable[list[int]]) -> None:
        """Assert that free and referenced blocks are exactly those that the tables say."""
        counted = [0] * self.num_blocks
        for table in tables:
            for block_id in table:
                counted[block_id] += 1
        assert counted == self._references, "reference counts differ from the block tables"
        free = [*self._unknown, *self._reusable]
        assert len(set(free)) == len(free), "a block is free twice"
        assert set(free) == {i for i, count in enumerate(counted) if count == 0}, "a block leaked"
        assert not set(self._unknown) & set(self._by_block), "a cached block is held for unknown"
        assert set(self._reusable) <= set(self._by_block), "an unknown block is held for cached"
        assert set(self._by_key.values()) == set(self._by_block.values())
        self._cold.check_invariants()

    def _take(self) -> int:
        if self._unknown:
            block_id = self._unknown.popleft()
        else:
            block_id, _ = self._reusable.popitem(last=False)
            evicted = self._by_block.pop(block_id)
            del self._by_key[evicted.key]
            slot = self._cold.keep(evicted.name, evicted.key)
            if slot is not None:
                self._moves.append(Move(True, block_id, slot))
        self._references[block_id] = 1
        return block_id
