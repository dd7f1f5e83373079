"""The one theorem: whatever the schedule, greedy float32 output is that of `generate`."""

import random
from typing import Any

import pytest

from container.messages.engine import SamplingParams, Submit
from tests.support.engines import Job, ids, run, run_sequences
from tests.support.models import tiny_models
from tests.support.torch_engines import torch_engine

SCHEDULES: dict[str, dict[str, Any]] = {
    "roomy": {"num_blocks": 400, "max_batch_tokens": 512},
    "small_chunks": {"num_blocks": 400, "max_batch_tokens": 7},
    "one_token_budget": {"num_blocks": 400, "max_batch_tokens": 1},
    "few_running": {"max_running": 2},
    "tiny_blocks": {"block_size": 1, "num_blocks": 400},
    "preempting": {"num_blocks": 26, "max_total_tokens": 104, "max_input_tokens": 100},
    "swapping": {
        "num_blocks": 26,
        "max_total_tokens": 104,
        "max_input_tokens": 100,
        "num_slots": 60,
    },
    "overlapping": {
        "num_blocks": 26,
        "max_total_tokens": 104,
        "max_input_tokens": 100,
        "overlaps": True,
    },
    "recorded": {"recorded": (2, 3, 8), "overlaps": True},
}


def _jobs(count: int, seed: int, longest_prompt: int = 60) -> list[Job]:
    rnd = random.Random(seed)
    jobs = []
    for _ in range(count):
        prompt = [
            rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, longest_prompt))
        ]
        params = SamplingParams(max_new_tokens=rnd.randint(1, 40))
        jobs.append(Job(prompt, params, at_step=rnd.randrange(30)))
    return jobs


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_greedy_output_equals_generate(name: str, schedule: str) -> None:
    _assert_equal_to_generate(name, schedule)


@pytest.mark.parametrize("schedule", ["one_token_budget", "swapping", "overlapping"])
@pytest.mark.parametrize("name", tiny_models.FURTHER_CONFIGS)
def test_greedy_output_of_further_models_equals_generate(name: str, schedule: str) -> None:
    _assert_equal_to_generate(name, schedule)


def _assert_equal_to_generate(name: str, schedule: str) -> None:
    jobs = _jobs(12, seed=3)
    engine = torch_engine(name, shares_model=True, **SCHEDULES[schedule])
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected, f"request {index}"
    if SCHEDULES[schedule].get("num_blocks") == 26:
        assert engine.load.preemptions > 0
    if schedule == "swapping":
        assert engine.load.restored_tokens > 0


def test_an_end_token_ends_the_sequence() -> None:
    prompt = [5, 6, 7]
    expected = tiny_models.reference("llama", tuple(prompt), 20)
    end = expected[4]
    engine = torch_engine("llama", end_token_ids=(end,))
    events = run(engine, [Job(prompt, SamplingParams(max_new_tokens=20))])[0]
    assert ids(events) == expected[: expected.index(end) + 1]
    assert events[-1].finish_reason is not None
    assert events[-1].finish_reason.value == "end_token"


@pytest.mark.parametrize("num_slots", [0, 200])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "gpt_oss"])
def test_output_does_not_depend_on_cache_hits(name: str, num_slots: int) -> None:
    rnd = random.Random(8)
    shared = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(40)]
    jobs = []
    for index in range(10):
        tail = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 12))]
        params = SamplingParams(max_new_tokens=rnd.randint(4, 20))
        jobs.append(Job(shared[: rnd.randint(10, 40)] + tail, params, at_step=4 * index))
    sizes = {"num_blocks": 30 if num_slots else 40, "num_slots": num_slots}
    engine = torch_engine(
        name, shares_model=True, max_total_tokens=120, max_input_tokens=100, **sizes
    )
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected, f"request {index}"
    assert engine.load.cached_tokens > 0
    assert (engine.load.restored_tokens > 0) == (num_slots > 0)


def test_several_sequences_of_one_greedy_request_are_equal() -> None:
    prompt = list(range(2, 40))
    engine = torch_engine("llama", max_batch_tokens=16)
    request = Submit(0, prompt, SamplingParams(max_new_tokens=12), 3)
    expected = tiny_models.reference("llama", tuple(prompt), 12)
    assert run_sequences(engine, request) == [expected] * 3
    assert engine.load.cached_tokens > 0


@pytest.mark.parametrize("schedule", ["roomy", "small_chunks", "preempting"])
def test_prompt_logprobs_are_the_models_own(schedule: str) -> None:
    rnd = random.Random(2)
    sampling_params = SamplingParams(max_new_tokens=8, prompt_logprobs=True, prompt_top_logprobs=3)
    jobs = [
        Job(
            [rnd.randrange(2, 200) for _ in range(rnd.randint(1, 50))],
            sampling_params,
            at_step=index,
        )
        for index in range(6)
    ]
    got = run(torch_engine("llama", **SCHEDULES[schedule]), jobs * 2)
    for index, job in enumerate(jobs * 2):
        stats = got[index][0].prompt
        assert stats is not None
        assert stats.logprobs == pytest.approx(
            tiny_models.prompt_logprobs("llama", job.prompt), abs=1e-3
        )
        values = [[value for _, value in top] for top in stats.tops]
        assert values == [
            pytest.approx(best, abs=1e-3)
            for best in tiny_models.prompt_top_logprobs("llama", job.prompt, 3)
        ]
