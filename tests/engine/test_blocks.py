import random

import pytest

from container.engine.blocks import BlockPool


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(4, 8)
    assert [pool.blocks_for(n) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]


def test_a_shared_block_is_free_only_after_its_last_release() -> None:
    pool = BlockPool(2, 8)
    table = pool.allocate(1)
    pool.share(table)
    pool.release(table)
    assert pool.num_free == 1
    pool.release(table)
    assert pool.num_free == 2


def test_releasing_a_free_block_is_a_bug() -> None:
    pool = BlockPool(2, 8)
    with pytest.raises(AssertionError):
        pool.release([0])


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
            pool.share(table)
            tables.append(list(table))
        elif tables:
            pool.release(tables.pop(rnd.randrange(len(tables))))
        pool.check_invariants(tables)
