from hypothesis import given
from hypothesis import strategies as st

from container.engine.ngram_proposer import SHORTEST, NgramProposer


def test_the_draft_is_the_continuation_of_the_same_tokens() -> None:
    token_ids = [1, 2, 3, 4, 5, 9, 2, 3]
    assert NgramProposer().propose(token_ids, 3) == (4, 5, 9)


def test_the_longest_common_run_decides() -> None:
    token_ids = [7, 1, 2, 3, 40, 8, 2, 3, 50, 1, 2, 3]
    assert NgramProposer().propose(token_ids, 1) == (40,)


def test_the_latest_match_wins() -> None:
    assert NgramProposer().propose([1, 2, 30, 1, 2, 40, 1, 2], 1) == (40,)


def test_a_draft_repeats_a_cycle() -> None:
    assert NgramProposer().propose([1, 2, 3, 1, 2, 3], 7) == (1, 2, 3, 1, 2, 3, 1)


def test_nothing_repeats_nothing_is_guessed() -> None:
    assert NgramProposer().propose([1, 2, 3, 4], 5) == ()
    assert NgramProposer().propose([], 5) == ()
    assert NgramProposer().propose([1, 2, 9, 2], 5) == (), "one token in common says too little"


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 60)), st.integers(0, 9))
def test_learning_in_pieces_is_learning_at_once(
    token_ids: list[int], cuts: list[int], count: int
) -> None:
    proposer = NgramProposer()
    for cut in sorted(cuts):
        proposer.propose(token_ids[:cut], count)
    propose = proposer.propose(token_ids, count)
    assert propose == NgramProposer().propose(token_ids, count)
    assert len(propose) in (0, count)
    if propose:
        tail = token_ids[-SHORTEST:]
        followers = [
            token_ids[i]
            for i in range(SHORTEST, len(token_ids))
            if token_ids[i - SHORTEST : i] == tail
        ]
        assert propose[0] in followers
