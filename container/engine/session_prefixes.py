"""Prefixes that sticky sessions hold in the KV cache, beyond the end of their requests.

Held blocks are referenced, so they are not evicted; but they give way, the oldest first, before a
request must wait or is preempted. Owned by the scheduler.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from container.engine.block_pool import BlockPool
from container.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class _Held:
    block_ids: list[int]
    until: float  # monotonic


class HeldPrefixes:
    """Owns one reference to each block of the last conversation of each session."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def tables(self) -> Iterator[list[int]]:
        """The blocks of each session."""
        yield from (held.block_ids for held in self._held.values())

    def keep(self, sequence: Sequence) -> None:
        """Hold what is cached of a sequence that ends, in place of its session's last one."""
        session = sequence.params.session
        if not session:
            return
        found = self._pool.find_prefix(sequence.token_ids, sequence.root)
        block_ids = [block.block_id for block in found]
        self._pool.share(block_ids)
        self._let_go(session)
        self._held[session] = _Held(block_ids, time.monotonic() + sequence.params.session_s)

    def expire(self) -> None:
        """Let go of sessions whose time is over."""
        now = time.monotonic()
        for session in [one for one, held in self._held.items() if held.until < now]:
            self._let_go(session)

    def give_way(self, num_blocks: int) -> None:
        """Let go, the oldest first, until so many blocks are free or nothing is held."""
        while self._held and self._pool.num_free < num_blocks:
            self._let_go(next(iter(self._held)))

    def _let_go(self, session: str) -> None:
        held = self._held.pop(session, None)
        if held is not None:
            self._pool.release(held.block_ids)
