"""Rows at a limit of their filters: ties, single tokens, extreme temperatures, no numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from container.model.sampling.device import DeviceSelector
from container.model.sampling.rng import uniform
from tests.model.sampling.random_rows import (
    HIDDEN,
    LIMITS,
    choose,
    mixed_params,
    random_logits,
    sampling_params,
)

WARPERS: list[tuple[dict[str, float], Callable[[], Any]]] = [
    ({"temperature": 0.7}, lambda: TemperatureLogitsWarper(0.7)),
    ({"top_k": 1}, lambda: TopKLogitsWarper(1)),
    ({"top_k": 40}, lambda: TopKLogitsWarper(40)),
    ({"top_k": 1500}, lambda: TopKLogitsWarper(1500)),
    ({"top_k": 9000}, lambda: TopKLogitsWarper(9000)),
    ({"top_p": 0.001}, lambda: TopPLogitsWarper(0.001)),
    ({"top_p": 0.5}, lambda: TopPLogitsWarper(0.5)),
    ({"top_p": 0.95}, lambda: TopPLogitsWarper(0.95)),
    ({"typical_p": 0.1}, lambda: TypicalLogitsWarper(0.1)),
    ({"typical_p": 0.9}, lambda: TypicalLogitsWarper(0.9)),
    ({"min_p": 0.1}, lambda: MinPLogitsWarper(0.1)),
    ({"min_p": 1.0}, lambda: MinPLogitsWarper(1.0)),
]


@pytest.mark.parametrize(("values", "make"), WARPERS, ids=lambda value: str(value)[:20])
def test_the_tokens_that_survive_are_those_of_transformers(
    values: dict[str, float], make: Callable[[], Any]
) -> None:
    logits = random_logits(5, 30, 2000)
    expected = make()(None, logits.clone())
    one = sampling_params(**{"temperature": 1.0} | values)
    _, left = choose(logits, [one] * 30, [0.5] * 30)
    assert torch.equal(left, expected)


def test_combined_filters_equal_transformers() -> None:
    logits = random_logits(6, 30, 2000)
    expected = logits.clone()
    for warper in (
        TemperatureLogitsWarper(1.7),
        TopKLogitsWarper(200),
        TopPLogitsWarper(0.9),
        TypicalLogitsWarper(0.8),
        MinPLogitsWarper(0.02),
    ):
        expected = warper(None, expected)
    one = sampling_params(temperature=1.7, top_k=200, top_p=0.9, typical_p=0.8, min_p=0.02)
    _, left = choose(logits, [one] * 30, [0.5] * 30)
    assert torch.equal(left, expected)


@pytest.mark.parametrize("longest", [0, 1024])
def test_equally_likely_tokens_are_kept_together(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceSelector, "longest_list", longest)
    row = torch.tensor([0.0, 2.0, -0.0, 0.0, 1.0, -3.0, -0.0])
    limits: list[dict[str, float]] = [
        {"top_k": 3},
        {"top_k": 5},
        {"top_p": 0.8},
        {"top_k": 6, "top_p": 0.8},
        {"top_k": 3, "top_p": 0.99},
        {"typical_p": 0.97},
    ]
    for limit in limits:
        _, left = choose(row[None], [sampling_params(temperature=1.0, **limit)], [0.0])
        assert left[0].isfinite().tolist() == [True] * 5 + [False, True], limit
    _, left = choose(row[None], [sampling_params(temperature=1.0, top_k=2)], [0.0])
    assert left[0].isfinite().nonzero()[:, 0].tolist() == [1, 4]


@pytest.mark.parametrize("longest", [0, 1024])
def test_a_limit_that_is_met_exactly_keeps_no_more(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceSelector, "longest_list", longest)
    row = torch.tensor([0.25, 0.5, 0.125, 0.0625, 0.0625]).log()
    assert (row - row.max()).exp().sum() == 2.0  # exactly, so that 1.5 are three quarters of it
    cases: list[tuple[dict[str, float], list[int]]] = [
        ({"top_p": 0.5}, [1]),
        ({"top_p": 0.75}, [0, 1]),
        ({"top_k": 4, "top_p": 0.75}, [0, 1]),
        ({"top_k": 4, "top_p": 0.7500001}, [0, 1, 2]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 4}, [0, 1, 2, 3, 4]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
    ]
    for limit, num_kept in cases:
        _, left = choose(row[None], [sampling_params(temperature=1.0, **limit)], [0.0])
        assert left[0].isfinite().nonzero()[:, 0].tolist() == num_kept, limit
    _, left = choose(
        torch.tensor([[0.0, 2.0, 1.0]]), [sampling_params(temperature=1.0, top_k=2)], [0.0]
    )
    assert left[0].tolist() == [HIDDEN, 2.0, 1.0]


def test_of_equally_likely_tokens_greedy_takes_the_first() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 1.0, 1.0]])
    assert choose(logits, [sampling_params()] * 2, [0.5] * 2)[0] == [1, 0]
    assert choose(logits, [sampling_params(), sampling_params(temperature=1.0)], [0.5, 0.5])[0] == [
        1,
        1,
    ]


def test_at_least_one_token_is_kept() -> None:
    one = sampling_params(temperature=1.0, top_p=0.0)
    typical = sampling_params(temperature=1.0, typical_p=0.0)
    listed = sampling_params(temperature=1.0, top_k=20, top_p=0.0)
    logits = random_logits(1, 3, 300)
    token_ids, left = choose(logits, [one, typical, listed], [0.9] * 3)
    assert left.isfinite().sum(-1).tolist() == [1, 1, 1]
    assert token_ids[0] == int(logits[0].argmax())
    assert token_ids[2] == int(logits[2].argmax())


@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1.0, 1e6, 1e300])
@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_a_token_alone_in_its_row_is_chosen(
    limit: dict[str, float], temperature: float, number: float
) -> None:
    vocabulary = 1301
    columns = [0, 255, 256, 700, vocabulary - 1]
    logits = torch.full((len(columns), vocabulary), HIDDEN)
    for row, (column, value) in enumerate(zip(columns, [-1e30, -5, 0, 7, 1e30], strict=True)):
        logits[row, column] = value
    params = [sampling_params(temperature=temperature, **limit)] * len(columns)
    assert choose(logits, params, [number] * len(columns))[0] == columns


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_extreme_temperatures_are_finite(limit: dict[str, float]) -> None:
    logits = random_logits(9, 2, 1300)
    low, high = (sampling_params(temperature=value, **limit) for value in (1e-30, 1e30))
    token_ids, left = choose(logits, [low, high], [0.4, 0.4])
    assert token_ids[0] == int(logits[0].argmax())
    assert not left.isnan().any()
    assert (left < torch.inf).all()


def test_a_token_of_probability_0_is_never_drawn() -> None:
    logits = random_logits(2, 500, 700, scale=40.0)  # most weights are 0 in float32
    logits[:, 600:] = HIDDEN
    logits[:, :300] = HIDDEN
    probabilities = logits.double().softmax(-1)
    numbers = [0.0, 1 - 2**-53] + [uniform(seed, 0) for seed in range(498)]
    token_ids, _ = choose(logits, [sampling_params(temperature=1.0)] * 500, numbers)
    assert probabilities[range(500), token_ids].min() > 1e-45


def test_a_row_gets_the_same_alone_and_among_others() -> None:
    params = mixed_params(4, 120)
    numbers = [uniform(one.seed, 0) for one in params]
    logits = random_logits(4, 120, 1400).bfloat16().float()
    token_ids, left = choose(logits, params, numbers)
    for row in range(120):
        alone, left_alone = choose(logits[row : row + 1], [params[row]], [numbers[row]])
        assert alone == [token_ids[row]]
        assert torch.equal(left_alone[0], left[row])


@pytest.mark.parametrize("nothing", [HIDDEN, torch.nan])
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_a_row_without_any_number_to_go_by_disturbs_no_other(
    nothing: float, limit: dict[str, float]
) -> None:
    logits = random_logits(3, 1, 1300).repeat(4, 1)
    params = [sampling_params(temperature=1.0, **limit)] * 3 + [sampling_params()]
    expected = choose(logits, params, [0.6] * 4)[0]
    logits[1] = nothing
    got = choose(logits, params, [0.6] * 4)[0]
    assert [got[0], got[2], got[3]] == [expected[0], expected[2], expected[3]]
    assert 0 <= got[1] < 1300
