"""Each processor against transformers' own on the same logits."""

import random
from collections import Counter

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from container.engine.sequence import Sequence
from container.messages.engine import SamplingParams, Watermark
from container.model.sampling import logits_processors
from container.model.sampling.device import DeviceSelector
from container.model.sampling.host import HostSelector
from container.model.sampling.rules import Selector, choose_tokens

VOCABULARY = 300


def _logits(rows: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def _sequences(rows: int = 4, **params: object) -> list[Sequence]:
    rnd = random.Random(1)
    created = []
    for _ in range(rows):
        sequence = Sequence(
            0, [rnd.randrange(VOCABULARY) for _ in range(20)], SamplingParams(9, **params)
        )
        sequence.token_ids += [rnd.randrange(VOCABULARY) for _ in range(15)]
        created.append(sequence)
    return created


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_repetition_penalty(penalty: float) -> None:
    logits, sequences = _logits(), _sequences(repetition_penalty=penalty)
    ids = torch.tensor([sequence.token_ids for sequence in sequences])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    logits_processors.penalise(logits, sequences, logits_processors.TokenCounts())
    torch.testing.assert_close(logits, expected)


def test_tgis_frequency_penalty_is_a_share_of_the_context() -> None:
    [sequence] = _sequences(1, context_frequency_penalty=1.5)
    sequence.token_ids = [5, 5, 5, 9]
    logits = torch.zeros(1, VOCABULARY)
    logits_processors.penalise(logits, [sequence], logits_processors.TokenCounts())
    assert logits[0, 5].item() == pytest.approx(-1.5 * 3 / 4)
    assert logits[0, 9].item() == pytest.approx(-1.5 * 1 / 4)
    assert logits[0, 7].item() == 0


def test_openais_penalties_count_the_completion_only() -> None:
    sequence = Sequence(0, [5, 9], SamplingParams(9, frequency_penalty=0.5, presence_penalty=0.25))
    sequence.token_ids += [5, 5, 7]
    logits = torch.zeros(1, VOCABULARY)
    counts = logits_processors.TokenCounts()
    logits_processors.penalise(logits, [sequence], counts)
    assert logits[0, 5].item() == pytest.approx(-(2 * 0.5 + 0.25))
    assert logits[0, 9].item() == 0
    sequence.token_ids.append(5)  # counts grow by what is new
    logits = torch.zeros(1, VOCABULARY)
    logits_processors.penalise(logits, [sequence], counts)
    assert logits[0, 5].item() == pytest.approx(-(3 * 0.5 + 0.25))


@pytest.mark.parametrize(
    ("params", "warper"),
    [
        ({"top_k": 7}, TopKLogitsWarper(7)),
        ({"top_p": 0.8}, TopPLogitsWarper(0.8)),
        ({"top_p": 0.05}, TopPLogitsWarper(0.05)),
        ({"typical_p": 0.7}, TypicalLogitsWarper(0.7)),
        ({"min_p": 0.1}, MinPLogitsWarper(0.1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("selector", [HostSelector(), DeviceSelector()], ids=["host", "device"])
def test_filters_equal_transformers(params: dict, warper, seed: int, selector: Selector) -> None:
    logits = _logits(seed=seed)
    sequences = _sequences(temperature=1.3, **params)
    scaled = TemperatureLogitsWarper(1.3)(None, logits.clone())
    expected = warper(None, scaled)
    choose_tokens(logits, [sequence.params for sequence in sequences], [0.5] * 4, selector)
    torch.testing.assert_close(logits, expected)


def test_min_tokens_hide_every_end() -> None:
    sequence = Sequence(0, [1], SamplingParams(9, min_tokens=2, stop_token_ids=[3]))
    logits = torch.zeros(1, VOCABULARY)
    logits_processors.hide_ends(logits, [sequence], frozenset({2, 10_000}))
    assert torch.isinf(logits[0, [2, 3]]).all()
    assert torch.isfinite(logits[0, 4:]).all()
    sequence.token_ids += [5, 5]
    logits = torch.zeros(1, VOCABULARY)
    logits_processors.hide_ends(logits, [sequence], frozenset({2}))
    assert torch.isfinite(logits).all()


def test_min_tokens_leave_the_only_token_that_may_come() -> None:
    sequence = Sequence(0, [1], SamplingParams(9, min_tokens=2))
    logits = torch.full((1, VOCABULARY), -torch.inf)
    logits[0, 2] = 1.0
    logits_processors.hide_ends(logits, [sequence], frozenset({2}))
    assert logits[0, 2] == 1.0
    logits[0, 7] = 0.5
    logits_processors.hide_ends(logits, [sequence], frozenset({2}))
    assert logits[0].isfinite().nonzero()[:, 0].tolist() == [7]


def test_only_allowed_tokens_stay() -> None:
    sequences = [*_sequences(1), *_sequences(1, allowed_token_ids=[3, 299, 3])]
    logits = _logits(2)
    expected = logits.clone()
    logits_processors.hide_others(logits, [1], sequences)
    assert torch.equal(logits[0], expected[0])
    assert logits[1].isfinite().nonzero()[:, 0].tolist() == [3, 299]
    assert torch.equal(logits[1, [3, 299]], expected[1, [3, 299]])


@pytest.mark.parametrize(
    ("completion", "hidden"),
    [([], [9]), ([4], [9]), ([4, 5], [6, 9]), ([3, 4, 5], [6, 8, 9]), ([5], [9])],
)
def test_bad_words_lose_their_last_token(completion: list[int], hidden: list[int]) -> None:
    words = [[9], [4, 5, 6], [3, 4, 5, 8]]
    sequence = Sequence(0, [3, 4], SamplingParams(9, bad_words=words))
    sequence.token_ids += completion
    logits = torch.zeros(1, VOCABULARY)
    logits_processors.hide_bad_words(logits, [0], [sequence])
    assert logits[0].isinf().nonzero()[:, 0].tolist() == hidden


def test_the_watermark_favours_its_green_list() -> None:
    [sequence] = _sequences(1, watermark=Watermark(0.25, 2.0))

    def green() -> set[int]:
        logits = torch.zeros(1, VOCABULARY)
        logits_processors.watermark(logits, [sequence])
        assert set(logits.unique().tolist()) == {0.0, 2.0}
        return set(logits[0].nonzero()[:, 0].tolist())

    first = green()
    assert len(first) == VOCABULARY // 4
    assert green() == first
    sequence.token_ids.append((sequence.token_ids[-1] + 1) % VOCABULARY)
    assert green() != first


def test_many_tokens_are_counted_and_new_ones_are_added() -> None:
    rnd = random.Random(3)
    token_counts, ids = logits_processors.SequenceTokenCounts(5), [1] * 5
    for _ in range(20):
        ids += [rnd.randrange(200) for _ in range(rnd.randrange(40))]
        token_counts.read_on(ids)
        counted = dict(zip(token_counts.ids.tolist(), token_counts.counts.tolist(), strict=True))
        assert counted == Counter(ids[5:])
