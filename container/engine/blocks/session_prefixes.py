"""Prefixes that sticky sessions pin in the KV cache after their requests have finished.

Pinned blocks are referenced, so they are not evicted. They are unpinned, oldest session first,
before a request has to wait or is preempted.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from container.engine.blocks.block_pool import BlockPool
from container.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class _PinnedPrefix:
    block_ids: list[int]
    until: float  # monotonic


class PinnedPrefixes:
    """Owns one reference to each block of each session's last conversation."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._pinned: OrderedDict[str, _PinnedPrefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pinned)

    def tables(self) -> Iterator[list[int]]:
        """Iterate over the pinned block ids of each session."""
        yield from (pinned.block_ids for pinned in self._pinned.values())

    def pin(self, sequence: Sequence) -> None:
        """Pin the cached prefix of a finishing sequence, replacing its session's previous one."""
        session = sequence.session
        if not session:
            return
        prefix = self._pool.find_prefix(sequence.token_ids, sequence.cache_namespace)
        block_ids = [block.block_id for block in prefix]
        self._pool.touch(block_ids)
        self._unpin(session)
        self._pinned[session] = _PinnedPrefix(block_ids, time.monotonic() + sequence.session_s)

    def expire(self) -> None:
        """Unpin sessions that have expired."""
        now = time.monotonic()
        for session in [
            session_id for session_id, pinned in self._pinned.items() if pinned.until < now
        ]:
            self._unpin(session)

    def evict_until(self, num_blocks: int) -> None:
        """Unpin sessions, oldest first, until `num_blocks` blocks are free or none is pinned."""
        while self._pinned and self._pool.num_free < num_blocks:
            self._unpin(next(iter(self._pinned)))

    def _unpin(self, session: str) -> None:
        pinned = self._pinned.pop(session, None)
        if pinned is not None:
            self._pool.free(pinned.block_ids)
