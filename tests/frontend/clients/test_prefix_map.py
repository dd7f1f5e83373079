"""Where a prompt's prefix went before."""

from container.frontend.clients.prefix_map import BLOCK, PrefixMap

IDS = list(range(3 * BLOCK))


def test_the_longest_known_prefix_is_found() -> None:
    known = PrefixMap()
    assert known.find(IDS) == (None, 0)
    known.record(IDS[: 2 * BLOCK + 5], 1)
    assert known.find(IDS) == (1, 2 * BLOCK)
    assert known.find(IDS[:BLOCK]) == (1, BLOCK)
    assert known.find(IDS[: BLOCK - 1]) == (None, 0)
    assert known.find([7, *IDS]) == (None, 0)


def test_a_prefix_belongs_to_the_copy_that_had_it_last() -> None:
    known = PrefixMap()
    known.record(IDS, 0)
    known.record(IDS[:BLOCK], 1)
    assert known.find(IDS) == (0, 3 * BLOCK)
    assert known.find(IDS[:BLOCK]) == (1, BLOCK)


def test_the_oldest_prefixes_are_forgotten() -> None:
    known = PrefixMap(max_blocks=3)
    known.record(IDS, 0)
    known.record([5] * BLOCK, 1)
    assert known.find([5] * BLOCK) == (1, BLOCK)
    assert known.find(IDS) == (None, 0)
