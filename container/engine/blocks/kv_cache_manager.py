"""Assigns cache memory to sequences: blocks, state slots, and prefixes that are already cached.

Owned by the scheduler, which decides who gets memory and who must give it back; this module decides
which blocks that are. A sequence of a recurrent model also needs a state slot. It can continue a
cached prefix only where there is a snapshot of its states.
"""

import math
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import replace

from container.engine.blocks.block_pool import BlockPool, CachedBlock
from container.engine.blocks.session_prefixes import PinnedPrefixes
from container.engine.blocks.state_slots import StateSlots
from container.engine.config import EngineConfig
from container.engine.schedule import BlockCopy, ScheduledSequence, Snapshot, StateCopy
from container.engine.sequence import Sequence


class KVCacheManager:
    """Owns the block pool, the state slots and the pinned prefixes.

    Only it changes the memory of a sequence: `block_table`, `prefix_ids` and `state_slot`.
    """

    def __init__(
        self,
        pool: BlockPool,
        states: StateSlots | None = None,
        *,
        reuses_prefixes: bool = True,
        chunk_multiple: int = 1,
    ) -> None:
        self.pool = pool
        self.states = states
        self.pinned = PinnedPrefixes(pool)
        self.chunk_multiple = chunk_multiple
        self._reuses_prefixes = reuses_prefixes
        self.num_cached_tokens = 0
        self.num_restored_tokens = 0

    @classmethod
    def from_config(cls, config: EngineConfig) -> "KVCacheManager":
        """Create the blocks and the slots of an engine with these sizes."""
        states = None
        if config.num_state_slots:
            states = StateSlots(config.num_state_slots, config.num_snapshots)
        on_evict = states.snapshots.drop if states is not None else None
        return cls(
            BlockPool(config.num_blocks, config.block_size, config.num_slots, on_evict),
            states,
            reuses_prefixes=config.reuses_prefixes,
            chunk_multiple=config.chunk_multiple,
        )

    @property
    def has_free_slot(self) -> bool:
        """Whether one more sequence can have a state slot, if it needs one."""
        return self.states is None or self.states.num_free > 0

    def allocate_prompt(self, sequence: Sequence) -> bool:
        """Allocate the blocks of all tokens of a waiting sequence, reusing cached ones first.

        Returns False, with nothing allocated, if too few blocks are free.
        """
        # At least one token must be computed, to get its logits.
        may_reuse = self._reuses_prefixes and _may_reuse(sequence)
        ids = sequence.key_ids(0, len(sequence.token_ids) - 1) if may_reuse else []
        prefix = self.pool.find_prefix(ids, sequence.cache_namespace)
        usable_prefix = self._with_states(sequence, prefix)
        cached = [block.block_id for block in usable_prefix]
        self.pool.touch(cached)
        offloaded = self.pool.find_offloaded(ids, usable_prefix, sequence.cache_namespace)
        needed = self.pool.blocks_for(len(sequence.token_ids)) - len(cached)
        self.pinned.evict_until(needed)
        if needed > self.pool.num_free:
            self.pool.free(cached)
            return False
        fresh = self.pool.allocate(needed)
        self.pool.restore(offloaded, fresh[: len(offloaded)])
        sequence.block_table = cached + fresh
        sequence.prefix_ids = [block.prefix_id for block in usable_prefix]
        sequence.prefix_ids += [block.prefix_id for block in offloaded]
        num_cached = len(sequence.prefix_ids) * self.pool.block_size
        sequence.num_computed = sequence.encoder.begin(num_cached)
        self._allocate_slot(sequence, len(prefix) * self.pool.block_size)
        if sequence.num_preemptions == 0:
            sequence.num_cached = min(num_cached, sequence.encoder.length or num_cached)
        self.num_cached_tokens += num_cached
        self.num_restored_tokens += len(offloaded) * self.pool.block_size
        return True

    def has_cached(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether the first `num_tokens` tokens of a waiting sequence need not be computed."""
        if not (self._reuses_prefixes and _may_reuse(sequence)):
            return False
        ids = sequence.key_ids(0, len(sequence.token_ids) - 1)
        prefix = self._with_states(sequence, self.pool.find_prefix(ids, sequence.cache_namespace))
        return len(prefix) * self.pool.block_size >= num_tokens

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks until a running sequence has them for `num_tokens` tokens.

        Unpins sessions if needed. Returns False, with nothing allocated, if too few are free.
        """
        missing = self.pool.blocks_for(num_tokens) - len(sequence.block_table)
        self.pinned.evict_until(missing)
        if missing > self.pool.num_free:
            return False
        if missing > 0:
            sequence.block_table += self.pool.allocate(missing)
        return True

    def num_drafts_fitting(self, item: ScheduledSequence) -> int:
        """Return for how many draft tokens of a decode there are blocks without eviction."""
        num_blocks = len(item.sequence.block_table) + self.pool.num_free
        return num_blocks * self.pool.block_size - item.end

    def free(self, sequence: Sequence) -> None:
        """Free the blocks and the state slot of a sequence, if it has any."""
        self.pool.free(sequence.block_table)
        sequence.block_table = []
        sequence.prefix_ids = []
        if self.states is not None and sequence.state_slot is not None:
            self.states.free(sequence.state_slot)
        sequence.state_slot = None

    def finish(self, sequence: Sequence) -> None:
        """Free the memory of a sequence that has ended, but pin the prefix of a sticky session."""
        if sequence.block_table:
            self.pinned.pin(sequence)
        self.free(sequence)

    def cache_full_blocks(self, sequence: Sequence) -> None:
        """Add the blocks that a step has filled to the prefix cache.

        A prompt whose images have no digests is not cached.
        """
        if not sequence.has_known_images:
            return
        size, prefix_ids = self.pool.block_size, sequence.prefix_ids
        while (len(prefix_ids) + 1) * size <= sequence.num_computed:
            start = len(prefix_ids) * size
            parent_id = prefix_ids[-1] if prefix_ids else sequence.cache_namespace
            ids = sequence.key_ids(start, start + size)
            block_id = sequence.block_table[len(prefix_ids)]
            prefix_ids.append(self.pool.cache_full_block(block_id, parent_id, ids))

    def reserve_snapshots(self, items: Iterable[ScheduledSequence]) -> list[ScheduledSequence]:
        """Reserve slots for the snapshots that a step's chunks take."""
        states = self.states
        if states is None:
            return list(items)
        states.snapshots.release_reserved()
        return [_with_snapshots(item, states) for item in items]

    def add_snapshots(self, item: ScheduledSequence) -> None:
        """Record that an item's snapshots are taken, each at the end of a cached block."""
        if self.states is None:
            return
        for position, slot in item.snapshots:
            prefix_id = item.sequence.prefix_ids[position // self.pool.block_size - 1]
            self.states.snapshots.add(prefix_id, slot)

    def take_copies(self) -> tuple[tuple[BlockCopy, ...], tuple[StateCopy, ...]]:
        """Return and clear the copies of blocks and states to run, in order, before the step."""
        states = self.states
        return self.pool.take_copies(), states.take_copies() if states is not None else ()

    def reset_prefix_cache(self) -> None:
        """Reset the cached prefixes and snapshots; a failed step may have written garbage."""
        self.pool.reset_prefix_cache()
        if self.states is not None:
            self.states.snapshots.clear()

    def check_invariants(self, running: Items[Sequence], waiting: Items[Sequence]) -> None:
        """Assert the invariants that hold between any two steps."""
        tables = [sequence.block_table for sequence in [*running, *waiting]]
        self.pool.check_invariants([*tables, *self.pinned.tables()])
        if self.states is not None:
            slots = [sequence.state_slot for sequence in running]
            self.states.check_invariants([slot for slot in slots if slot is not None])
            assert None not in slots
        for sequence in running:
            assert self.pool.blocks_for(sequence.num_computed) <= len(sequence.block_table)
        for sequence in waiting:
            assert not sequence.block_table
            assert sequence.state_slot is None

    def _allocate_slot(self, sequence: Sequence, num_cached: int) -> None:
        """Allocate a state slot; `num_cached` tokens of the sequence were cached."""
        if self.states is None:
            return
        prefix_id = sequence.prefix_ids[-1] if sequence.prefix_ids else None
        sequence.state_slot = self.states.allocate(prefix_id)
        sequence.snapshot_positions = self._snapshots_of(sequence, num_cached)

    def _snapshots_of(self, sequence: Sequence, num_cached: int) -> tuple[int, ...]:
        """Choose where to keep a sequence's states: at the end, and where it leaves `num_cached`.

        The latter is a prefix that another sequence had as well, so a third may come.
        """
        if not sequence.has_known_images or not self._reuses_prefixes:
            return ()
        multiple = math.lcm(self.chunk_multiple, self.pool.block_size)
        ends = [min(length, len(sequence.token_ids) - 2) for length in (num_cached, 2**62)]
        positions = {end // multiple * multiple for end in ends}
        return tuple(sorted(p for p in positions if p > sequence.num_computed))

    def _with_states(self, sequence: Sequence, cached: list[CachedBlock]) -> list[CachedBlock]:
        """Return the longest part of a cached prefix that has a snapshot.

        At least two tokens must be left: see container.model.states.pieces.
        """
        if self.states is None:
            return cached
        size, last = self.pool.block_size, len(sequence.token_ids) - 2
        for count in range(len(cached), 0, -1):
            is_known = cached[count - 1].prefix_id in self.states.snapshots
            if is_known and count * size <= last:
                return cached[:count]
        return []


def _with_snapshots(item: ScheduledSequence, states: StateSlots) -> ScheduledSequence:
    """Reserve slots for the snapshots that one chunk takes, as far as there are slots."""
    positions = item.sequence.snapshot_positions
    passed = [] if item.is_decode else [p for p in positions if item.start < p <= item.end]
    if not passed:
        return item
    slots = [(position, states.snapshots.reserve()) for position in passed]
    taken = tuple(Snapshot(position, slot) for position, slot in slots if slot is not None)
    return replace(item, snapshots=taken)


def _may_reuse(sequence: Sequence) -> bool:
    """Whether the sequence may reuse cached blocks.

    Not with images that nothing identifies, nor while prompt logprobs are missing, which need
    logits, and those are never cached.
    """
    return sequence.has_known_images and not sequence.lacks_prompt_logprobs
