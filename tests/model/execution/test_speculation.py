"""Drafts change no token and no bit of a log-probability; they only save steps."""

import random

import pytest
import torch

from container.engine.ngram_proposer import NgramProposer
from container.messages.engine import LogprobMode, SamplingParams, TokenEvent
from tests.support.engines import Job, ids, run
from tests.support.models import tiny_models
from tests.support.torch_engines import torch_engine


def _jobs(count: int, **params: object) -> list[Job]:
    rnd = random.Random(6)
    jobs = []
    for index in range(count):
        prompt = [rnd.randrange(2, 200) for _ in range(rnd.randint(1, 40))]
        sampling_params = SamplingParams(max_new_tokens=rnd.randint(1, 40), seed=index, **params)
        jobs.append(Job(prompt, sampling_params, at_step=rnd.randrange(20)))
    return jobs


@pytest.fixture
def draft_well(monkeypatch: pytest.MonkeyPatch):
    """Guess what another run said, and now and then something else: tiny models do not repeat."""

    def know(jobs: list[Job], completion: dict[int, list[TokenEvent]]) -> None:
        rnd = random.Random(1)
        known = [job.prompt + ids(completion[index]) for index, job in enumerate(jobs)]

        def propose(_: object, token_ids: list[int], count: int) -> tuple[int, ...]:
            [whole] = [one for one in known if one[: len(token_ids)] == token_ids][:1]
            right = whole[len(token_ids) : len(token_ids) + rnd.randint(0, count)]
            return (*right, *(rnd.randrange(200) for _ in range(count - len(right))))

        monkeypatch.setattr(NgramProposer, "propose", propose)

    return know


def _tokens_with_logprobs(
    events: dict[int, list[TokenEvent]],
) -> list[list[tuple[int, object, object]]]:
    return [
        [(event.token_id, event.logprob, event.finish_reason) for event in events[index]]
        for index in sorted(events)
    ]


def _token_ids(events: dict[int, list[TokenEvent]]) -> list[list[int]]:
    return [ids(events[index]) for index in sorted(events)]


@pytest.mark.parametrize("speculate", [1, 5])
@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_greedy_output_equals_generate(name: str, speculate: int, draft_well) -> None:
    jobs = _jobs(8)
    draft_well(jobs, run(torch_engine(name, num_blocks=60), jobs))
    engine = torch_engine(name, num_blocks=60, speculate=speculate)
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected, f"request {index}"
    assert engine.load.drafted_tokens > engine.load.accepted_tokens > 0


def test_sampling_with_drafts_equals_sampling_without(draft_well) -> None:
    # The same tokens for every seed, to the bit, is more than the same distribution.
    jobs = _jobs(12, temperature=1.2, top_k=40, logprobs=LogprobMode.PROCESSED, min_tokens=5)
    sizes = {"num_blocks": 60, "block_size": 32, "max_running": 12, "max_batch_tokens": 512}
    plain = run(torch_engine("llama", torch.bfloat16, **sizes), jobs)
    draft_well(jobs, plain)
    engine = torch_engine("llama", torch.bfloat16, speculate=4, **sizes)
    assert _tokens_with_logprobs(run(engine, jobs)) == _tokens_with_logprobs(plain)
    assert engine.load.accepted_tokens > 0


def test_drafts_under_memory_pressure_lose_no_block(draft_well) -> None:
    sizes = {"num_blocks": 26, "max_total_tokens": 104, "max_input_tokens": 100}
    jobs = _jobs(10)
    plain = run(torch_engine("llama", **sizes), jobs)
    draft_well(jobs, plain)
    engine = torch_engine("llama", speculate=4, **sizes)
    assert _token_ids(run(engine, jobs)) == _token_ids(plain)
    assert engine.load.preemptions > 0
    assert engine.load.accepted_tokens > 0
    assert engine.load.blocks_used == 0


def test_text_that_repeats_itself_takes_fewer_steps() -> None:
    # A bias makes the model say the same token again and again; nothing is scripted here.
    job = Job([5, 6, 9], SamplingParams(max_new_tokens=60, logit_bias={7: 1e4}))
    plain, drafting = torch_engine("llama"), torch_engine("llama", speculate=4)
    assert ids(run(drafting, [job])[0]) == ids(run(plain, [job])[0]) == [7] * 60
    steps = [engine.load.steps.decode.done for engine in (plain, drafting)]
    assert steps[0] == 59
    assert steps[1] <= 15
    assert drafting.load.steps.decode_tokens + drafting.load.accepted_tokens == 59


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.3},
        {"context_frequency_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
    ],
    ids=str,
)
def test_no_drafts_with_params_that_depend_on_last_tokens(params: dict[str, float]) -> None:
    jobs = _jobs(4, **params)
    drafting = torch_engine("llama", speculate=4)
    assert _token_ids(run(drafting, jobs)) == _token_ids(run(torch_engine("llama"), jobs))
    assert drafting.load.drafted_tokens == 0


def test_an_end_token_within_a_draft_ends_the_sequence(draft_well) -> None:
    jobs = _jobs(1)
    plain = run(torch_engine("llama"), jobs)
    draft_well(jobs, plain)
    completion = ids(plain[0])
    for end in set(completion):
        engine = torch_engine("llama", end_token_ids=(end,), speculate=6)
        events = run(engine, jobs)[0]
        assert ids(events) == completion[: completion.index(end) + 1]
        assert events[-1].finish_reason is not None
        assert all(event.finish_reason is None for event in events[:-1])
