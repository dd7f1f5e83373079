import random

import pytest

from container.engine.adapters import NO_ADAPTER
from container.engine.blocks.block_pool import BlockPool
from container.engine.schedule import BlockCopy


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(4, 8)
    assert [pool.blocks_for(n) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]


def test_a_shared_block_is_free_only_after_its_last_release() -> None:
    pool = BlockPool(2, 8)
    table = pool.allocate(1)
    pool.touch(table)
    pool.free(table)
    assert pool.num_free == 1
    pool.free(table)
    assert pool.num_free == 2


def test_releasing_a_free_block_is_a_bug() -> None:
    pool = BlockPool(2, 8)
    with pytest.raises(AssertionError):
        pool.free([0])


def test_the_check_finds_a_leak() -> None:
    pool = BlockPool(2, 8)
    pool.allocate(1)
    with pytest.raises(AssertionError):
        pool.check_invariants([])


def test_random_operations_keep_the_invariants() -> None:
    rnd = random.Random(0)
    pool = BlockPool(20, 4)
    tables: list[list[int]] = []
    for _ in range(3000):
        action = rnd.randrange(3)
        if action == 0 and pool.num_free:
            tables.append(pool.allocate(rnd.randint(1, pool.num_free)))
        elif action == 1 and tables:
            table = rnd.choice(tables)
            pool.touch(table)
            tables.append(list(table))
        elif tables:
            pool.free(tables.pop(rnd.randrange(len(tables))))
        pool.check_invariants(tables)


def _filled(pool: BlockPool, token: int) -> list[int]:
    """A block of one token that is cached and free."""
    block_ids = pool.allocate(1)
    pool.cache_full_block(block_ids[0], NO_ADAPTER, [token])
    pool.free(block_ids)
    return block_ids


def test_evicted_blocks_are_offloaded_and_restored() -> None:
    pool = BlockPool(1, 1, num_slots=2)
    _filled(pool, 5)
    _filled(pool, 6)
    assert pool.take_copies() == (BlockCopy(True, 0, 1),)
    offloaded = pool.find_offloaded([5], pool.find_prefix([5]))
    pool.restore(offloaded, pool.allocate(1))
    assert pool.take_copies() == (BlockCopy(True, 0, 0), BlockCopy(False, 0, 1))
    pool.free([0])
    assert [block.prefix_id for block in pool.find_prefix([5])] == [offloaded[0].prefix_id]
    _filled(pool, 7)
    assert pool.take_copies() == (), "the host has a copy of 5 already"
    assert pool.num_offloaded == 2


def test_a_restored_block_is_not_overwritten_by_an_offload() -> None:
    pool = BlockPool(1, 1, num_slots=1)
    _filled(pool, 5)
    _filled(pool, 6)
    pool.take_copies()
    offloaded = pool.find_offloaded([5], pool.find_prefix([5]))
    pool.restore(offloaded, pool.allocate(1))  # 6 has to go, and there is no slot for it
    assert pool.take_copies() == (BlockCopy(False, 0, 0),)
    pool.free([0])
    assert pool.find_offloaded([6], []) == []
