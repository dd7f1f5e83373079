"""The block pool: free blocks, reference counts and the prefix cache of the KV cache.

Plain ints; the tensors behind the ids belong to the model. A block with a reference is used. A
block without one is free, but may still be cached: it holds the keys and values of a known prefix,
and a sequence with that prefix can reuse it until it is evicted, least recently used first.

    free and unknown | free but cached (least recently used first) | used (perhaps cached too)

With host memory slots, evicted blocks are offloaded there and restored on demand.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from container.engine.adapters import NO_ADAPTER
from container.engine.blocks.offload import OffloadedBlock, OffloadedBlocks, PrefixKey
from container.engine.schedule import BlockCopy


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """A full block with known content. `prefix_id` is unique to the prefix that ends with it."""

    block_id: int
    prefix_id: int
    key: PrefixKey


class BlockPool:
    """Allocates and frees blocks by reference count."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_slots: int = 0,
        on_evict: Callable[[int], None] | None = None,
    ) -> None:
        """`on_evict` is called with the id of each prefix whose last block is evicted."""
        self._on_evict = on_evict
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._unknown = deque(range(num_blocks))
        self._reusable: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._by_key: dict[PrefixKey, CachedBlock] = {}
        self._by_block: dict[int, CachedBlock] = {}
        self._next_prefix_id = NO_ADAPTER + 1
        self._offloaded = OffloadedBlocks(num_slots)
        self._pending_copies: list[BlockCopy] = []

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can still return."""
        return len(self._unknown) + len(self._reusable)

    @property
    def num_used(self) -> int:
        """Blocks with at least one reference."""
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks whose content a new sequence can reuse."""
        return len(self._by_block)

    @property
    def num_offloaded(self) -> int:
        """Blocks that are offloaded to host memory."""
        return len(self._offloaded)

    def blocks_for(self, num_tokens: int) -> int:
        """Number of blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Allocate free blocks, each with one reference. The caller has checked `num_free`."""
        assert count <= self.num_free, "allocate without checking num_free"
        return [self._take() for _ in range(count)]

    def touch(self, block_ids: Iterable[int]) -> None:
        """Add one reference to each block; a cached one may be free."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                assert block_id in self._reusable, "touch of a block with unknown content"
                del self._reusable[block_id]
            self._references[block_id] += 1

    def free(self, block_ids: Iterable[int]) -> None:
        """Drop one reference to each block; a block without references becomes free."""
        # Free the last block first: the end of a prefix is reused less often than its start.
        for block_id in reversed(list(block_ids)):
            assert self._references[block_id] > 0, "free of a free block"
            self._references[block_id] -= 1
            if self._references[block_id] > 0:
                continue
            if block_id in self._by_block:
                self._reusable[block_id] = None
            else:
                self._unknown.append(block_id)

    def find_prefix(
        self, token_ids: list[int], cache_namespace: int = NO_ADAPTER
    ) -> list[CachedBlock]:
        """Find the longest chain of cached blocks that `token_ids` starts with, in linear time.

        Prefixes of different namespaces (0 or a negative number) never match each other.
        """
        cached_blocks: list[CachedBlock] = []
        prefix_id = cache_namespace
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            key = (prefix_id, tuple(token_ids[start : start + self.block_size]))
            block = self._by_key.get(key)
            if block is None:
                break
            cached_blocks.append(block)
            prefix_id = block.prefix_id
        return cached_blocks

    def find_offloaded(
        self, token_ids: list[int], cached: list[CachedBlock], cache_namespace: int = NO_ADAPTER
    ) -> list[OffloadedBlock]:
        """Find the offloaded blocks that continue the prefix whose first blocks are `cached`.

        Pins them until the next call or `restore`.
        """
        offloaded: list[OffloadedBlock] = []
        if not len(self._offloaded):
            return offloaded
        prefix_id, size = cached[-1].prefix_id if cached else cache_namespace, self.block_size
        for start in range(len(cached) * size, len(token_ids) - size + 1, size):
            block = self._offloaded.find((prefix_id, tuple(token_ids[start : start + size])))
            if block is None:
                break
            offloaded.append(block)
            prefix_id = block.prefix_id
        # Allocating blocks for them may offload others, which must not overwrite them.
        self._offloaded.pin(offloaded)
        return offloaded

    def restore(self, offloaded: list[OffloadedBlock], block_ids: list[int]) -> None:
        """Queue copies of offloaded blocks into used blocks, which are cached from now on."""
        for block, block_id in zip(offloaded, block_ids, strict=True):
            self._pending_copies.append(BlockCopy(False, block_id, block.slot))
            if block.key not in self._by_key:
                known = CachedBlock(block_id, block.prefix_id, block.key)
                self._by_key[block.key] = self._by_block[block_id] = known
        self._offloaded.pin([])

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Return and clear the block copies to run, in order, before the next step."""
        copies, self._pending_copies = tuple(self._pending_copies), []
        return copies

    def reset_prefix_cache(self) -> None:
        """Reset the prefix cache; a failed step may have written garbage."""
        self._unknown.extend(self._reusable)
        self._reusable.clear()
        self._by_key.clear()
        self._by_block.clear()
        self._offloaded.clear()
        self._pending_copies.clear()

    def cache_full_block(self, block_id: int, parent_id: int, ids: list[int]) -> int:
        """Cache a full block that is in use, and return the id of the prefix that it ends.

        If another block already caches the same prefix, that block stays the cached one.
        """
        key = (parent_id, tuple(ids))
        known = self._by_key.get(key)
        if known is None:
            offloaded = self._offloaded.find(key)
            known = CachedBlock(
                block_id, offloaded.prefix_id if offloaded else self._next_prefix_id, key
            )
            self._next_prefix_id += 1
            self._by_key[key] = self._by_block[block_id] = known
        return known.prefix_id

    def check_invariants(self, tables: Iterable[list[int]]) -> None:
        """Assert that reference counts and free lists match the block tables."""
        counted = [0] * self.num_blocks
        for table in tables:
            for block_id in table:
                counted[block_id] += 1
        assert counted == self._references, "reference counts differ from the block tables"
        free = [*self._unknown, *self._reusable]
        assert len(set(free)) == len(free), "a block is free twice"
        assert set(free) == {i for i, count in enumerate(counted) if count == 0}, "a block leaked"
        assert not set(self._unknown) & set(self._by_block), "a cached block is listed as unknown"
        assert set(self._reusable) <= set(self._by_block), "an unknown block is listed as cached"
        assert set(self._by_key.values()) == set(self._by_block.values())
        self._offloaded.check_invariants()

    def _take(self) -> int:
        if self._unknown:
            block_id = self._unknown.popleft()
        else:
            block_id, _ = self._reusable.popitem(last=False)
            evicted = self._by_block.pop(block_id)
            del self._by_key[evicted.key]
            if self._on_evict is not None:
                self._on_evict(evicted.prefix_id)
            slot = self._offloaded.offload(evicted.prefix_id, evicted.key)
            if slot is not None:
                self._pending_copies.append(BlockCopy(True, block_id, slot))
        self._references[block_id] = 1
        return block_id
