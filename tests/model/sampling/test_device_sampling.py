import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from container.engine.sequence import Sequence
from container.messages.engine import LogprobMode, SamplingParams
from container.model.sampling.device import DeviceSelector, choose_on_device, float_keys
from container.model.sampling.host import choose_on_host
from container.model.sampling.rng import uniform
from container.model.sampling.sampler import Sampler
from tests.model.sampling.random_rows import (
    HIDDEN,
    LIMITS,
    choose,
    mixed_params,
    random_logits,
    sampling_params,
)
from tests.support.host_waits import HostWaits, watched
from tests.support.sampling_reference import ROUNDING, Reference


def _on_cpu(
    logits: torch.Tensor, params: list[SamplingParams], mode: LogprobMode
) -> tuple[list[int], torch.Tensor]:
    """The same by the CPU's sampler; with processed log-probabilities all its rows are warped."""
    logits = logits.clone()
    changed = {"logprobs": mode}
    sequences = [Sequence(0, [1], sampling_params(**_fields(one) | changed)) for one in params]
    return [token.token_id for token in Sampler().sample(logits, sequences)], logits


def _fields(params: SamplingParams) -> dict[str, Any]:
    names = ("seed", "temperature", "top_k", "top_p", "typical_p", "min_p")
    return {name: getattr(params, name) for name in names}


def _compare(logits: torch.Tensor, params: list[SamplingParams]) -> int:
    """Compare with the reference and the CPU's sampler; how many rows were far from any limit."""
    numbers = [uniform(one.seed, 0) for one in params]
    token_ids, left = choose(logits, params, numbers)
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


@pytest.mark.parametrize("vocabulary", [1, 7, 256, 700, 2600])
def test_rows_of_every_kind_get_the_tokens_of_the_cpus_sampler(vocabulary: int) -> None:
    params = mixed_params(vocabulary, 400)
    logits = random_logits(vocabulary, 400, vocabulary)
    assert _compare(logits, params) > 350


@pytest.mark.parametrize("longest", [0, 30])
def test_a_list_and_the_search_find_the_same(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    params = mixed_params(8, 300)
    numbers = [uniform(one.seed, 0) for one in params]
    logits = random_logits(8, 300, 1100).bfloat16().float()  # which makes ties
    token_ids, left = choose(logits, params, numbers)
    monkeypatch.setattr(DeviceSelector, "longest_list", longest)
    searched, left_by_search = choose(logits, params, numbers)
    assert searched == token_ids
    assert torch.equal(left, left_by_search)


KINDS = st.builds(
    sampling_params,
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
    logits = random_logits(seed, len(params), vocabulary, scale=scale)
    if has_ties:
        logits = logits.round()
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(logits.shape, generator=generator) < share_hidden
    hidden[:, seed % vocabulary] = False  # a grammar leaves at least one
    logits.masked_fill_(hidden, HIDDEN)
    with mock.patch.object(DeviceSelector, "longest_list", longest):
        _compare(logits, params)


BATCH_OPTIONS: list[list[dict[str, Any]]] = [
    [{}],
    [{}, {"temperature": 1.0}],
    *([{"temperature": 0.8, **limit}] * 2 for limit in LIMITS),
    [{}, *({"temperature": 0.8, **limit} for limit in LIMITS)],
]
BATCHES = [[sampling_params(**options) for options in batch] for batch in BATCH_OPTIONS]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("params", BATCHES, ids=range(len(BATCHES)))
def test_nothing_is_read_back_and_one_copy_goes_to_the_device(
    params: list[SamplingParams], device: str
) -> None:
    logits = random_logits(1, len(params), 1500).to(device)
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
        choose_on_host(random_logits(1, len(params), 1500), sequences, None)


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
            rows = [sampling_params(temperature=1.0, **one) for one in batch]
            choose_on_device(random_logits(1, len(batch), 512), rows, [0.3] * len(batch))
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
        params = mixed_params(12, 200)
        numbers = [uniform(one.seed, 0) for one in params]
        logits = random_logits(12, 200, 5000)
        expected, _ = choose(logits, params, numbers)
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
