"""Overlapping steps and recorded decodes change no token, with any parameters of a request."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from container.engine.engine import Engine
from container.engine.sequence import Mask, Sequence
from container.messages.engine import (
    LogprobMode,
    SamplingParams,
    Submit,
    TokenEvent,
    Watermark,
)
from container.model.async_copy import AsyncHostCopy
from container.model.attention.varlen import REFERENCE_ONLY
from container.model.execution import cuda_graphs
from container.model.execution.cuda_graphs import (
    BLOCKS,
    CONTEXT_LEN,
    SLOT,
    DecodeGraphs,
    capture_nothing,
    default_capture_sizes,
    trial_plan,
)
from container.model.execution.forward_pass import ForwardPass
from container.model.forward_batch import ForwardPlan
from container.model.kv_cache.cache import KVCache
from container.model.reference_check import Mismatch
from container.model.sampling.sampler import Sampler
from tests.support.engines import Job, ids, run
from tests.support.host_waits import watched
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare
from tests.support.torch_engines import torch_engine

SIZES = {"num_blocks": 60, "max_total_tokens": 104, "max_input_tokens": 100}
WISHES: list[dict[str, object]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "seed": 4, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.2, "seed": 5, "typical_p": 0.7, "min_p": 0.01},
    {"repetition_penalty": 1.3, "context_frequency_penalty": 0.2},
    {"frequency_penalty": 0.5, "presence_penalty": 0.3, "logit_bias": {7: 4.0, 9: -3.0}},
    {"watermark": Watermark(0.5, 2.0), "min_tokens": 5, "stop_token_ids": [11]},
    {"logprobs": LogprobMode.RAW, "top_logprobs": 3, "prompt_logprobs": True},
    {"allowed_token_ids": [*range(5, 60)], "bad_words": [[7], [9, 11], [13, 14, 15]]},
    {"prompt_logprobs": True, "prompt_top_logprobs": 2},
    {"logprobs": LogprobMode.PROCESSED, "temperature": 0.7, "seed": 6, "top_logprobs": 1},
]


def jobs_of(seed: int) -> list[Job]:
    rnd = random.Random(seed)
    jobs = []
    for index in range(2 * len(WISHES)):
        prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 60))]
        wishes = {"max_new_tokens": rnd.randint(1, 40), **WISHES[index % len(WISHES)]}
        params = SamplingParams(**wishes)  # type: ignore[arg-type]
        jobs.append(Job(prompt, params, at_step=rnd.randrange(30)))
    return jobs


def all_logprobs(events: list[TokenEvent]) -> list[float]:
    """All log-probabilities of a request."""
    stats = events[0].prompt
    first = list(stats.logprobs) if stats is not None else []
    first += [value for top in stats.tops for _, value in top] if stats is not None else []
    own = [event.logprob for event in events if event.logprob is not None]
    return first + own + [value for event in events for _, value in event.top]


@pytest.mark.parametrize("recorded", [(), (2, 4, 8)], ids=["eager", "recorded"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_every_wish_is_met_as_without_overlap(name: str, recorded: tuple[int, ...]) -> None:
    jobs = jobs_of(1)
    one_by_one = run(torch_engine(name, **SIZES), jobs)
    engine = torch_engine(name, overlaps=True, recorded=recorded, **SIZES)
    overlapping = run(engine, jobs)
    assert engine.load.preemptions > 0
    for index in range(len(jobs)):
        assert ids(overlapping[index]) == ids(one_by_one[index]), jobs[index].params
        expected = pytest.approx(all_logprobs(one_by_one[index]), abs=1e-4)
        assert all_logprobs(overlapping[index]) == expected


def test_the_engine_recovers_from_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = torch_engine("llama", overlaps=True, **SIZES)
    job = Job([5, 6, 7], SamplingParams(max_new_tokens=9))
    expected = ids(run(engine, [job])[0])
    _fail_at(engine, 4, monkeypatch)
    engine.submit(b"test", Submit(0, job.prompt, job.params))
    events = []
    has_failed = False
    while engine.has_work:
        try:
            events += engine.step()
        except MemoryError:
            has_failed = True
            engine.recover()
    assert has_failed
    assert [event.token_id for _, event in events] == expected
    steps = engine.load.steps
    assert steps.prefill.begun + steps.decode.begun > steps.prefill.done + steps.decode.done


def _fail_at(engine: Engine, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = engine.runner.forward  # type: ignore[attr-defined]
    original, calls = forward.run, 0

    def run_or_fail(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        result: torch.Tensor = original(*args)
        return result

    monkeypatch.setattr(forward, "run", run_or_fail)


def test_usual_sizes_reach_the_largest_batch() -> None:
    assert default_capture_sizes(1) == [2]
    assert default_capture_sizes(8) == [2, 4, 8]
    assert default_capture_sizes(64) == [2, 4, 8, 16, 24, 32, 48, 64]
    assert default_capture_sizes(100)[-2:] == [96, 100]


def _recorded(run_model: object, cache: KVCache) -> DecodeGraphs:
    return DecodeGraphs(
        run_model,  # type: ignore[arg-type]
        cache,
        sizes=[2, 6],
        max_blocks=4,
        vocabulary=50,
        device=torch.device("cpu"),
        kernels=REFERENCE_ONLY,
    )


def test_a_recording_that_differs_is_refused() -> None:
    cpu = torch.device("cpu")
    cache = KVCache([], num_blocks=8, block_size=4, dtype=torch.float32, device=cpu)
    table = torch.randn(50, 50)
    result = _recorded(lambda ids, positions, step: table[ids], cache)
    result.capture(capture_nothing, lambda _: None)
    result.check(lambda plan: table[torch.tensor(plan.token_ids)])
    with pytest.raises(Mismatch, match="the CUDA graph of 2 rows"):
        result.check(lambda plan: -table[torch.tensor(plan.token_ids)])


def test_a_replay_repeats_the_recorded_step_nearly_bit_for_bit() -> None:
    cpu = torch.device("cpu")
    cache = KVCache([], num_blocks=8, block_size=4, dtype=torch.float32, device=cpu)
    table = torch.randn(50, 50)
    is_replay = False

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            nonlocal is_replay
            is_replay = True
            run()
            is_replay = False

        return replay

    def run_model(ids: torch.Tensor, _: torch.Tensor, __: object) -> torch.Tensor:
        return table[ids] * (1.01 if is_replay else 1.0)  # far below rounding of whole models

    result = _recorded(run_model, cache)
    result.capture(capture, lambda _: None)
    with pytest.raises(Mismatch, match=r"off by 0.01 \(limit 0.001\)"):
        result.check(lambda plan: table[torch.tensor(plan.token_ids)])


FAULTS_OF_GRAPHS: dict[str, Callable[[torch.Tensor], None]] = {
    "the blocks of another sequence": lambda numbers: numbers[:, BLOCKS].copy_(
        numbers[:, BLOCKS].roll(1)
    ),
    "a later block that is left out": lambda numbers: numbers[:, BLOCKS + 1 :].fill_(0),
    "a context that is too short": lambda numbers: numbers[:, CONTEXT_LEN].clamp_(max=16),
    "another slot": lambda numbers: numbers[:, SLOT].add_(1),
}


@pytest.mark.parametrize("fault", [None, *FAULTS_OF_GRAPHS])
def test_a_fault_in_a_recorded_step_is_refused(
    fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward: ForwardPass = torch_engine("llama", block_size=16).runner.forward  # type: ignore[attr-defined]
    lay_out = cuda_graphs._lay_out

    def changed(plan: ForwardPlan, numbers: np.ndarray) -> None:
        lay_out(plan, numbers)
        if fault is not None:
            FAULTS_OF_GRAPHS[fault](torch.from_numpy(numbers))

    monkeypatch.setattr(cuda_graphs, "_lay_out", changed)
    obstacle = forward.capture([8], 8, capture_nothing, lambda _: None)
    assert (obstacle is None) == (fault is None)
    assert fault is None or "Mismatch: the CUDA graph of 8 rows is off by" in str(obstacle)


def test_a_recording_reads_padding_promises_and_tables() -> None:
    cpu = torch.device("cpu")
    cache = KVCache([], num_blocks=8, block_size=4, dtype=torch.float32, device=cpu)
    seen = []

    def record(ids: torch.Tensor, positions: torch.Tensor, step: Any) -> torch.Tensor:
        seen.append((ids.tolist(), positions.tolist(), step))
        return torch.zeros(len(ids), 50)

    result = _recorded(record, cache)
    result.capture(capture_nothing, lambda _: None)
    plan = trial_plan(5, cache)
    plan.token_ids[1], plan.token_ids[4] = -2, -1
    assert result.replay(plan, torch.tensor([31, 32])).shape == (5, 50)
    ids_, positions, step = seen[-1]
    assert ids_ == [1, 32, 3, 4, 31, 0]
    assert positions == [0, 1, 2, 3, 0, 0]
    (group,) = step.groups
    assert group.context_lens.tolist() == [1, 2, 3, 4, 1, 1]
    assert group.block_table[:, 0].tolist() == [0, 0, 0, 0, 1, 8]
    assert step.slot_mapping.tolist() == [0, 1, 2, 3, 4, 32]


def test_a_model_that_cannot_be_recorded_serves_without() -> None:
    engine = torch_engine("llama", **SIZES)
    forward: ForwardPass = engine.runner.forward  # type: ignore[attr-defined]

    def refuse(run: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    obstacle = forward.capture([2], 26, refuse, lambda _: None)  # type: ignore[arg-type]
    assert obstacle == "RuntimeError: operation not permitted when stream is capturing"
    assert not forward.has_graphs
    job = Job([5, 6, 7], SamplingParams(max_new_tokens=9))
    assert ids(run(engine, [job])[0]) == tiny_models.reference("llama", (5, 6, 7), 9)


class AnyToken:
    """A grammar that allows every second token."""

    is_advanced = is_ready = True
    is_complete = False
    error = None

    def fill(self, mask: Mask) -> None:
        mask[:] = 0x55555555

    def accept(self, token_id: int) -> None:
        pass

    def copy(self) -> "AnyToken":
        return self

    def close(self) -> None:
        pass


def test_no_wish_makes_the_host_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncHostCopy, "add", lambda _, tensor: tensor)
    sequences = []
    for wishes in WISHES:
        params = SamplingParams(max_new_tokens=40, **wishes)  # type: ignore[arg-type]
        sequences.append(Sequence(0, [5, 6, 7], params))
        sequences[-1].token_ids += [8, 8, 9]
    sequences[1].constraint = sequences[2].constraint = AnyToken()
    logits = torch.zeros(len(sequences), tiny_models.VOCABULARY, device="meta")
    with watched() as seen:
        samples = Sampler(frozenset({2}), reads_logits=False).sample_async(logits, sequences)
    assert samples.token_ids.shape == (len(sequences),)
    assert seen.copies
    assert all(copy["non_blocking"] for copy in seen.copies)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_pass_does_not_wait_for_the_device(name: str) -> None:
    meta = torch.device("meta")
    layers = prepare(tiny_models.make(name), torch.float32, torch.device("cpu")).layers
    assert layers is not None
    module = tiny_models.make(name).to("meta")
    module.set_attn_implementation("paged")
    cache = KVCache(
        [replace(layer, device=meta) for layer in layers],
        num_blocks=9, block_size=4, dtype=torch.float32, device=meta,
    )  # fmt: skip
    forward = ForwardPass(module, cache, meta)
    plan = msgspec.structs.replace(trial_plan(5, cache), num_placeholders=2)
    plan.token_ids[0] = -1
    with watched() as seen:
        logits = forward.run(plan, torch.zeros(2, dtype=torch.int64, device=meta))
    assert logits.shape == (5, tiny_models.VOCABULARY)
    assert seen.copies
    assert all(copy["non_blocking"] for copy in seen.copies)
