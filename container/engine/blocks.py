"""Blocks: which pages of the KV cache are free, and who refers to the others.

Plain ints; the tensors behind the ids belong to the model. A block is free or has at least one
reference. Owned by the scheduler.
"""

from collections import deque
from collections.abc import Iterable


class BlockPool:
    """Hands out blocks and takes them back by reference count."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can still give."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks with at least one reference."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take free blocks, each with one reference. The caller has checked `num_free`."""
        assert count <= len(self._free), "allocate without checking num_free"
        taken = [self._free.popleft() for _ in range(count)]
        for block_id in taken:
            self._references[block_id] = 1
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Add one reference to each block."""
        for block_id in block_ids:
            assert self._references[block_id] > 0, "share of a free block"
            self._references[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop one reference of each block; those without any become free."""
        for block_id in block_ids:
            assert self._references[block_id] > 0, "release of a free block"
            self._references[block_id] -= 1
            if self._references[block_id] == 0:
                self._free.append(block_id)

    def check_invariants(self, tables: Iterable[list[int]]) -> None:
        """Assert that free and referenced blocks are exactly those that the tables say."""
        counted = [0] * self.num_blocks
        for table in tables:
            for block_id in table:
                counted[block_id] += 1
        assert counted == self._references, "reference counts differ from the block tables"
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert free == {i for i, count in enumerate(counted) if count == 0}, "a block leaked"
