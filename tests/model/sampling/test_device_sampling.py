import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from container.engine.sequence import Sequence
from container.messages.engine import LogprobMode, SamplingParams
from container.model.sampling.device import DeviceSelector, choose_on_device, float_keys
from container.model.sampling.host import choose_on_host
from container.model.sampling.rng import uniform
from container.model.sampling.sampler import Sampler
from tests.support.host_waits import HostWaits, watched
from tests.support.sampling_reference import ROUNDING, Reference

HIDDEN = -torch.inf


def _params(**values: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=1, **values)


def _random_logits(seed: int, rows: int, vocabulary: int, *, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * scale


def _choose(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> tuple[list[int], torch.Tensor]:
    """Tokens and the logits as they are left."""
    logits = logits.clone()
    return choose_on_device(logits, params, numbers).tolist(), logits


def _on_cpu(
    logits: torch.Tensor, params: list[SamplingParams], mode: LogprobMode
) -> tuple[list[int], torch.Tensor]:
    """The same by the CPU's sampler; with processed log-probabilities all its rows are warped."""
    logits = logits.clone()
    changed = {"logprobs": mode}
    sequences = [Sequence(0, [1], _params(**_fields(one) | changed)) for one in params]
    return [token.token_id for token in Sampler().sample(logits, sequences)], logits


def _fields(params: SamplingParams) -> dict[str, Any]:
    names = ("seed", "temperature", "top_k", "top_p", "typical_p", "min_p")
    return {name: getattr(params, name) for name in names}


def _compare(logits: torch.Tensor, params: list[SamplingParams]) -> int:
    """Compare with the reference and the CPU's sampler; how many rows were far from any limit."""
    numbers = [uniform(one.seed, 0) for one in params]
    token_ids, left = _choose(logits, params, numbers)
    whole, left_on_cpu = _on_cpu(logits, params, LogprobMode.PROCESSED)
    short, _ = _on_cpu(logits, params, LogprobMode.NONE)
    compared = 0
    for row, (one, number) in enumerate(zip(params, numbers, strict=True)):
        if one.is_greedy:
            assert token_ids[row] == whole[row] == int(logits[row].argmax())
            assert torch.equal(left[row], logits[row])
            compared += 1
            continue
        reference = Reference(logits[row], one, number)
        assert left[row, token_ids[row]] > HIDDEN  # whatever the rounding
        if reference.margin > ROUNDING:
            assert left[row].isfinite().tolist() == reference.kept.tolist()
            assert torch.equal(left[row], left_on_cpu[row])
            assert token_ids[row] == reference.token_id == whole[row] == short[row]
            compared += 1
    return compared


def _mixed(seed: int, count: int) -> list[SamplingParams]:
    """Parameters of every kind, at random."""
    rnd = np.random.default_rng(seed)

    def one_of(*values: float) -> Any:
        return values[rnd.integers(len(values))]

    return [
        _params(
            seed=int(rnd.integers(10_000)),
            temperature=one_of(0.0, 0.3, 0.7, 1.0, 1.0, 4.0),
            top_k=one_of(0, 0, 1, 5, 40, 300, 1024, 1025, 1500, 10_000),
            top_p=one_of(1.0, 1.0, 0.95, 0.9, 0.3, 0.01),
            typical_p=one_of(1.0, 1.0, 1.0, 0.9, 0.5, 0.05),
            min_p=one_of(0.0, 0.0, 0.05, 0.5, 1.0),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("vocabulary", [1, 7, 256, 700, 2600])
def test_rows_of_every_kind_get_the_tokens_of_the_cpus_sampler(vocabulary: int) -> None:
    params = _mixed(vocabulary, 400)
    logits = _random_logits(vocabulary, 400, vocabulary)
    assert _compare(logits, params) > 350


@pytest.mark.parametrize("longest", [0, 30])
def test_a_list_and_the_search_find_the_same(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    params = _mixed(8, 300)
    numbers = [uniform(one.seed, 0) for one in params]
    logits = _random_logits(8, 300, 1100).bfloat16().float()  # which makes ties
    token_ids, left = _choose(logits, params, numbers)
    monkeypatch.setattr(DeviceSelector, "longest_list", longest)
    searched, left_by_search = _choose(logits, params, numbers)
    assert searched == token_ids
    assert torch.equal(left, left_by_search)


KINDS = st.builds(
    _params,
    seed=st.integers(0, 2**40),
    temperature=st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 1.0, 7.0, 1e4]) | st.floats(0.1, 3.0),
    top_k=st.sampled_from([0, 0, 1, 2, 50]) | st.integers(0, 700),
    top_p=st.just(1.0) | st.floats(0.001, 0.999),
    typical_p=st.just(1.0) | st.floats(0.001, 0.999),
    min_p=st.just(0.0) | st.floats(0.001, 1.0),
)


@settings(max_examples=60, deadline=None)
@given(
    params=st.lists(KINDS, min_size=1, max_size=6),
    vocabulary=st.sampled_from([1, 2, 5, 255, 256, 257, 600]),
    seed=st.integers(0, 2**30),
    scale=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
    has_ties=st.booleans(),
    share_hidden=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    longest=st.sampled_from([0, 1024]),
)
def test_any_batch_follows_the_rules(
    params: list[SamplingParams],
    vocabulary: int,
    seed: int,
    scale: float,
    has_ties: bool,
    share_hidden: float,
    longest: int,
) -> None:
    logits = _random_logits(seed, len(params), vocabulary, scale=scale)
    if has_ties:
        logits = logits.round()
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(logits.shape, generator=generator) < share_hidden
    hidden[:, seed % vocabulary] = False  # a grammar leaves at least one
    logits.masked_fill_(hidden, HIDDEN)
    with mock.patch.object(DeviceSelector, "longest_list", longest):
        _compare(logits, params)


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
    logits = _random_logits(5, 30, 2000)
    expected = make()(None, logits.clone())
    one = _params(**{"temperature": 1.0} | values)
    _, left = _choose(logits, [one] * 30, [0.5] * 30)
    assert torch.equal(left, expected)


def test_combined_filters_equal_transformers() -> None:
    logits = _random_logits(6, 30, 2000)
    expected = logits.clone()
    for warper in (
        TemperatureLogitsWarper(1.7),
        TopKLogitsWarper(200),
        TopPLogitsWarper(0.9),
        TypicalLogitsWarper(0.8),
        MinPLogitsWarper(0.02),
    ):
        expected = warper(None, expected)
    one = _params(temperature=1.7, top_k=200, top_p=0.9, typical_p=0.8, min_p=0.02)
    _, left = _choose(logits, [one] * 30, [0.5] * 30)
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
        _, left = _choose(row[None], [_params(temperature=1.0, **limit)], [0.0])
        assert left[0].isfinite().tolist() == [True] * 5 + [False, True], limit
    _, left = _choose(row[None], [_params(temperature=1.0, top_k=2)], [0.0])
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
        _, left = _choose(row[None], [_params(temperature=1.0, **limit)], [0.0])
        assert left[0].isfinite().nonzero()[:, 0].tolist() == num_kept, limit
    _, left = _choose(torch.tensor([[0.0, 2.0, 1.0]]), [_params(temperature=1.0, top_k=2)], [0.0])
    assert left[0].tolist() == [HIDDEN, 2.0, 1.0]


def test_of_equally_likely_tokens_greedy_takes_the_first() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 1.0, 1.0]])
    assert _choose(logits, [_params()] * 2, [0.5] * 2)[0] == [1, 0]
    assert _choose(logits, [_params(), _params(temperature=1.0)], [0.5, 0.5])[0] == [1, 1]


def test_at_least_one_token_is_kept() -> None:
    one = _params(temperature=1.0, top_p=0.0)
    typical = _params(temperature=1.0, typical_p=0.0)
    listed = _params(temperature=1.0, top_k=20, top_p=0.0)
    logits = _random_logits(1, 3, 300)
    token_ids, left = _choose(logits, [one, typical, listed], [0.9] * 3)
    assert left.isfinite().sum(-1).tolist() == [1, 1, 1]
    assert token_ids[0] == int(logits[0].argmax())
    assert token_ids[2] == int(logits[2].argmax())


LIMITS: list[dict[str, float]] = [
    {},
    {"top_k": 5},
    {"top_k": 1200},
    {"top_p": 0.5},
    {"top_k": 5, "top_p": 0.5},
    {"typical_p": 0.5},
    {"min_p": 0.2},
]


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
    params = [_params(temperature=temperature, **limit)] * len(columns)
    assert _choose(logits, params, [number] * len(columns))[0] == columns


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_extreme_temperatures_are_finite(limit: dict[str, float]) -> None:
    logits = _random_logits(9, 2, 1300)
    low, high = (_params(temperature=value, **limit) for value in (1e-30, 1e30))
    token_ids, left = _choose(logits, [low, high], [0.4, 0.4])
    assert token_ids[0] == int(logits[0].argmax())
    assert not left.isnan().any()
    assert (left < torch.inf).all()


def test_a_token_of_probability_0_is_never_drawn() -> None:
    logits = _random_logits(2, 500, 700, scale=40.0)  # most weights are 0 in float32
    logits[:, 600:] = HIDDEN
    logits[:, :300] = HIDDEN
    probabilities = logits.double().softmax(-1)
    numbers = [0.0, 1 - 2**-53] + [uniform(seed, 0) for seed in range(498)]
    token_ids, _ = _choose(logits, [_params(temperature=1.0)] * 500, numbers)
    assert probabilities[range(500), token_ids].min() > 1e-45


def test_a_row_gets_the_same_alone_and_among_others() -> None:
    params = _mixed(4, 120)
    numbers = [uniform(one.seed, 0) for one in params]
    logits = _random_logits(4, 120, 1400).bfloat16().float()
    token_ids, left = _choose(logits, params, numbers)
    for row in range(120):
        alone, left_alone = _choose(logits[row : row + 1], [params[row]], [numbers[row]])
        assert alone == [token_ids[row]]
        assert torch.equal(left_alone[0], left[row])


@pytest.mark.parametrize("nothing", [HIDDEN, torch.nan])
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_a_row_without_any_number_to_go_by_disturbs_no_other(
    nothing: float, limit: dict[str, float]
) -> None:
    logits = _random_logits(3, 1, 1300).repeat(4, 1)
    params = [_params(temperature=1.0, **limit)] * 3 + [_params()]
    expected = _choose(logits, params, [0.6] * 4)[0]
    logits[1] = nothing
    got = _choose(logits, params, [0.6] * 4)[0]
    assert [got[0], got[2], got[3]] == [expected[0], expected[2], expected[3]]
    assert 0 <= got[1] < 1300


BATCH_OPTIONS: list[list[dict[str, Any]]] = [
    [{}],
    [{}, {"temperature": 1.0}],
    *([{"temperature": 0.8, **limit}] * 2 for limit in LIMITS),
    [{}, *({"temperature": 0.8, **limit} for limit in LIMITS)],
]
BATCHES = [[_params(**options) for options in batch] for batch in BATCH_OPTIONS]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("params", BATCHES, ids=range(len(BATCHES)))
def test_nothing_is_read_back_and_one_copy_goes_to_the_device(
    params: list[SamplingParams], device: str
) -> None:
    logits = _random_logits(1, len(params), 1500).to(device)
    with watched() as calls:
        token_ids = choose_on_device(logits, params, [0.3] * len(params))
    assert (token_ids.device, token_ids.dtype) == (logits.device, torch.int64)
    assert token_ids.shape == (len(params),)
    draws = any(not one.is_greedy for one in params)
    assert len(calls.copies) == (draws and device == "meta")
    assert all(copy["non_blocking"] for copy in calls.copies)


@pytest.mark.parametrize("params", BATCHES, ids=range(len(BATCHES)))
def test_the_host_sampler_reads_back(params: list[SamplingParams]) -> None:
    sequences = [Sequence(0, [1], one) for one in params]
    with pytest.raises(HostWaits), watched():
        choose_on_host(_random_logits(1, len(params), 1500), sequences, None)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.argmax(-1).tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: int(x.argmax()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x[[0, 2]],
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.where(x > 0, x, 0.0),
    ],
    ids=["tolist", "bool", "int", "nonzero", "mask", "cpu", "index", "tensor", "scalar"],
)
def test_each_kind_of_host_wait_is_detected(
    reads: Callable[[torch.Tensor], Any], device: str
) -> None:
    with pytest.raises(HostWaits), watched():
        reads(torch.zeros(3, device=device))


def test_unused_filters_do_not_run() -> None:
    searches = {"topk", "bitwise_xor", "log_softmax", "_log_softmax", "log", "masked_fill_"}

    def used(*batch: dict[str, float]) -> set[str]:
        with watched() as calls:
            rows = [_params(temperature=1.0, **one) for one in batch]
            choose_on_device(_random_logits(1, len(batch), 512), rows, [0.3] * len(batch))
        return searches & set(calls.names)

    plain = {"masked_fill_"}  # of the draw
    assert used({}, {}) == plain
    assert used({"top_k": 5}, {}) == plain | {"topk"}
    assert used({"min_p": 0.5}, {}) == plain | {"log"}
    assert used({"top_k": 5, "top_p": 0.5}, {"top_k": 9}) == plain | {"topk"}
    assert used({"top_p": 0.5}, {}) == plain | {"bitwise_xor"}


def test_keys_are_in_the_order_of_the_values() -> None:
    finfo = torch.finfo(torch.float32)
    ordered = [HIDDEN, finfo.min, -1.5, -finfo.tiny, -1e-45, 0.0, 1e-45, 1.0, finfo.max, torch.inf]
    keys = float_keys(torch.tensor(ordered)).tolist()
    assert all(one < other for one, other in itertools.pairwise(keys))
    assert float_keys(torch.tensor([-0.0])).item() == keys[5]


if torch.cuda.is_available():

    def test_on_a_gpu_the_host_never_waits() -> None:
        params = _mixed(12, 200)
        numbers = [uniform(one.seed, 0) for one in params]
        logits = _random_logits(12, 200, 5000)
        expected, _ = _choose(logits, params, numbers)
        on_gpu = logits.cuda()
        choose_on_device(on_gpu.clone(), params, numbers)  # which loads the kernels
        torch.cuda.set_sync_debug_mode("error")
        try:
            token_ids = choose_on_device(on_gpu, params, numbers)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for row, token_id in enumerate(token_ids.tolist()):
            reference = Reference(logits[row], params[row], numbers[row])
            assert token_id == expected[row] or reference.margin < ROUNDING
