import random
from collections import Counter

import pytest
import torch

from container.engine.model_runner import Sampled
from container.engine.sequence import Sequence
from container.messages.engine import LogprobMode, SamplingParams
from container.model.sampling.host import NUCLEUS_PROBES
from container.model.sampling.rng import uniform
from container.model.sampling.sampler import Sampler


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled]:
    return Sampler().sample(logits, sequences)


LOGITS = [2.0, 1.0, 0.5, 0.0, -1.0]


def _sequence(**params: float) -> Sequence:
    return Sequence(0, [1], SamplingParams(max_new_tokens=5, **params))


def _draws(count: int, **params: float) -> Counter[int]:
    sequences = [_sequence(seed=seed, **params) for seed in range(count)]
    logits = torch.tensor(LOGITS).repeat(count, 1)
    return Counter(token.token_id for token in sample(logits, sequences))


def test_greedy_takes_the_most_likely() -> None:
    assert sample(torch.tensor([LOGITS]), [_sequence()])[0].token_id == 0


def test_frequencies_follow_the_probabilities() -> None:
    sampled = _draws(20_000, temperature=1.0)
    expected = torch.tensor(LOGITS).softmax(-1)
    for token_id, probability in enumerate(expected.tolist()):
        assert sampled[token_id] / 20_000 == pytest.approx(probability, abs=0.012)


def test_top_k_keeps_only_the_k_most_likely() -> None:
    assert set(_draws(500, temperature=3.0, top_k=2)) == {0, 1}


def test_top_p_keeps_the_fewest_that_reach_the_mass() -> None:
    first = torch.tensor(LOGITS).softmax(-1)[0].item()
    assert set(_draws(500, temperature=1.0, top_p=first - 0.01)) == {0}
    assert set(_draws(500, temperature=1.0, top_p=first + 0.01)) == {0, 1}


def test_top_p_of_one_keeps_all() -> None:
    assert set(_draws(3000, temperature=1.0, top_p=1.0)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("probe", "rows"), [(NUCLEUS_PROBES[0], 400), (NUCLEUS_PROBES[1], 40)])
def test_a_nucleus_wider_than_the_probe_is_still_exact(probe: int, rows: int) -> None:
    width = probe * 3
    logits = torch.zeros(rows, width)
    logits[:, : width // 2] = -20.0  # the nucleus is the other half: more tokens than are probed
    sequences = [_sequence(seed=seed, temperature=1.0, top_p=0.999) for seed in range(rows)]
    sampled = [token.token_id for token in sample(logits, sequences)]
    assert min(sampled) >= width // 2
    assert len(set(sampled)) > 0.75 * rows


def test_a_very_small_temperature_is_greedy_and_finite() -> None:
    assert set(_draws(50, temperature=1e-30)) == {0}


def test_each_row_has_its_own_params() -> None:
    sequences = [
        _sequence(),
        _sequence(temperature=5.0, top_k=1),
        _sequence(seed=4, temperature=9.0),
    ]
    tokens = sample(torch.tensor(LOGITS).repeat(3, 1), sequences)
    assert [token.token_id for token in tokens[:2]] == [0, 0]


def test_only_processed_logprobs_depend_on_temperature() -> None:
    raw = _sequence(temperature=2.0, top_k=1, logprobs=LogprobMode.RAW)
    processed = _sequence(temperature=2.0, top_k=1, logprobs=LogprobMode.PROCESSED)
    tokens = sample(torch.tensor(LOGITS).repeat(2, 1), [raw, processed])
    assert tokens[0].logprob == pytest.approx(torch.tensor(LOGITS).log_softmax(-1)[0].item())
    assert tokens[1].logprob == pytest.approx(0.0)


def test_logprobs_come_only_where_asked_for() -> None:
    tokens = sample(
        torch.tensor(LOGITS).repeat(2, 1), [_sequence(), _sequence(logprobs=LogprobMode.RAW)]
    )
    assert tokens[0].logprob is None
    assert tokens[1].logprob is not None


def test_uniform_numbers_are_even_and_depend_on_both_arguments() -> None:
    numbers = [uniform(seed, index) for seed in range(100) for index in range(100)]
    assert len(set(numbers)) == 10_000
    assert sum(numbers) / 10_000 == pytest.approx(0.5, abs=0.01)
    assert uniform(3, 4) == uniform(3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the second makes ties
def test_the_topk_fast_path_samples_the_same_token(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnd = random.Random(6)
    sequences = [
        _sequence(
            seed=rnd.randrange(1000),
            temperature=rnd.choice([0.3, 1.0, 4.0]),
            top_k=rnd.choice([0, 1, 5, 40, 300, 5000]),
            top_p=rnd.choice([1.0, 0.9, 0.3, 0.01]),
            min_p=rnd.choice([0.0, 0.0, 0.05]),
        )
        for _ in range(300)
    ]
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(300, 2000, generator=generator) * 3).to(dtype).float()
    logits[::7, 3:] = -torch.inf  # a grammar that leaves fewer than top_k
    short = sample(logits.clone(), sequences)
    one_by_one = [sample(logits[i : i + 1].clone(), sequences[i : i + 1])[0] for i in range(300)]
    monkeypatch.setattr("container.model.sampling.host.can_use_topk_path", lambda _: False)
    whole = sample(logits.clone(), sequences)
    assert short == whole == one_by_one


def test_greedy_rows_beside_drawn_ones_keep_their_logprobs() -> None:
    greedy = _sequence(logprobs=LogprobMode.PROCESSED)
    sampled = _sequence(temperature=3.0, top_p=0.5, logprobs=LogprobMode.PROCESSED)
    alone, batched = (
        sample(torch.tensor(LOGITS).repeat(len(rows), 1), rows)[0]
        for rows in ([greedy], [greedy, sampled])
    )
    assert alone == batched


def test_a_token_of_probability_0_is_never_drawn() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(500, 700, generator=generator) * 40  # most weights are 0 in float32
    logits[:, 600:] = -torch.inf
    logits[:, :300] = -torch.inf
    sequences = [_sequence(seed=seed, temperature=1.0) for seed in range(500)]
    probabilities = logits.double().softmax(-1)
    for row, token in enumerate(sample(logits.clone(), sequences)):
        assert probabilities[row, token.token_id] > 1e-45


@pytest.mark.parametrize("nothing", [-torch.inf, torch.nan])
@pytest.mark.parametrize("params", [{"top_k": 3}, {"top_p": 0.5}, {}, {"typical_p": 0.5}], ids=str)
def test_a_row_without_any_number_to_go_by_disturbs_no_other(
    nothing: float, params: dict[str, float]
) -> None:
    sequences = [_sequence(seed=5, temperature=1.0, **params) for _ in range(3)]
    logits = torch.tensor(LOGITS).repeat(3, 1)
    expected = sample(logits[:1].clone(), sequences[:1])[0]
    logits[1] = nothing
    got = sample(logits, sequences)
    assert got[0] == got[2] == expected
    assert 0 <= got[1].token_id < len(LOGITS)
