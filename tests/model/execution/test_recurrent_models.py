"""Models with convolution and recurrent states: the theorem, seeds, and what shares a pass."""

import random

import pytest
import torch

from container.engine.engine import Engine
from container.messages.engine import LogprobMode, SamplingParams, Submit
from container.model.loading.paged_trial import PagedTrial
from container.model.reference_check import Mismatch
from container.model.states.slot_view import SlotView
from tests.support.engines import Job, ids, run, run_sequences
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare
from tests.support.torch_engines import torch_engine

CPU = torch.device("cpu")
SMALL = {"num_blocks": 26, "max_total_tokens": 104, "max_input_tokens": 100}
SCHEDULES = {
    "roomy": {"num_blocks": 400, "max_batch_tokens": 512},
    "small_chunks": {"num_blocks": 400, "max_batch_tokens": 7},
    "one_token_budget": {"num_blocks": 400, "max_batch_tokens": 1},
    "tiny_blocks": {"block_size": 1, "num_blocks": 400},
    "few_slots": {"num_blocks": 400, "num_state_slots": 3},
    "preempting": SMALL,
    "overlapping": SMALL | {"overlaps": True},
}
# The other models have the mixers of these.
FIRST_OF_A_KIND = ("qwen3_next", "bamba")


def _jobs(count: int, longest: int = 60) -> list[Job]:
    rnd = random.Random(9)
    jobs = []
    for _ in range(count):
        prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, longest))]
        params = SamplingParams(max_new_tokens=rnd.randint(1, 40))
        jobs.append(Job(prompt, params, at_step=rnd.randrange(20)))
    return jobs


def _check(engine: Engine, name: str, jobs: list[Job]) -> None:
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected, f"request {index}"
    assert engine.load.state_slots_used == 0


@pytest.mark.parametrize("name", tiny_models.RECURRENT_CONFIGS)
def test_they_are_batched(name: str) -> None:
    loaded = prepare(tiny_models.make(name), torch.float32, CPU)
    assert loaded.attention == "paged"
    assert loaded.mixers is not None
    assert loaded.fallbacks == ()
    assert loaded.bytes_per_sequence > 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", tiny_models.RECURRENT_CONFIGS)
def test_greedy_output_equals_generate(name: str, schedule: str) -> None:
    if name not in FIRST_OF_A_KIND and schedule not in ("small_chunks", "preempting"):
        pytest.skip("tried with another model of this kind")
    engine = torch_engine(name, **SCHEDULES[schedule])
    _check(engine, name, _jobs(10))
    if schedule in ("preempting", "overlapping"):
        assert engine.load.preemptions > 0


@pytest.mark.parametrize("name", FIRST_OF_A_KIND)
def test_an_abort_beside_it_changes_nothing(name: str) -> None:
    jobs = _jobs(6)
    engine = torch_engine(name, num_blocks=400)
    for index, job in enumerate(jobs):
        engine.submit(b"test", job.as_request(index))
    got: dict[int, list[int]] = {}
    for step in range(1000):
        if not engine.has_work:
            break
        for _, event in engine.step():
            got.setdefault(event.request_id, []).append(event.token_id)
        if step in (1, 4, 6):
            engine.abort(b"test", step % 4)
        engine.scheduler.check_invariants()
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        tokens = got.get(index, [])
        assert tokens == (expected[: len(tokens)] if index in (0, 1, 2) else expected)


@pytest.mark.parametrize("name", FIRST_OF_A_KIND)
def test_several_sequences_of_one_request(name: str) -> None:
    prompt = list(range(2, 30))
    engine = torch_engine(name, max_batch_tokens=16)
    request = Submit(0, prompt, SamplingParams(max_new_tokens=9), 3)
    expected = tiny_models.reference(name, tuple(prompt), 9)
    assert run_sequences(engine, request) == [expected] * 3


@pytest.mark.parametrize("num_snapshots", [2, 20])
@pytest.mark.parametrize("name", ["qwen3_next", "bamba", "mamba2", "lfm2"])
def test_output_does_not_depend_on_the_snapshots(name: str, num_snapshots: int) -> None:
    """Turns of chats beside others with the same first prompt; few blocks, so some are lost."""
    rnd = random.Random(8)
    shared = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(100)]
    jobs = []
    for index in range(9):
        prompt = shared[: 100 if index % 3 else 70]
        if index > 5:
            prompt = [*prompt, *tiny_models.reference(name, tuple(jobs[index - 6].prompt), 9)]
        tail = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 70))]
        jobs.append(Job([*prompt, *tail], SamplingParams(max_new_tokens=9), at_step=5 * index))
    sizes = {"num_blocks": 70, "max_batch_tokens": 90, "num_snapshots": num_snapshots}
    engine = torch_engine(name, **sizes)
    _check(engine, name, jobs)
    assert engine.load.cached_tokens >= 64


def test_a_repeated_prompt_has_the_same_bits() -> None:
    params = SamplingParams(12, temperature=1.2, seed=3, logprobs=LogprobMode.RAW)
    prompt = [rnd_id % 190 + 2 for rnd_id in range(7, 1100, 7)]
    engine = torch_engine("qwen3_5", torch.bfloat16, num_blocks=400, max_batch_tokens=90)
    first, second = (run(engine, [Job(prompt, params)])[0] for _ in range(2))
    assert engine.load.cached_tokens == 128
    assert [(event.token_id, event.logprob) for event in first] == [
        (event.token_id, event.logprob) for event in second
    ]


@pytest.mark.parametrize("name", ["qwen3_next", "mamba2", "lfm2"])
def test_prompt_logprobs_are_the_models_own(name: str) -> None:
    params = SamplingParams(max_new_tokens=4, prompt_logprobs=True)
    jobs = [Job(job.prompt, params, job.at_step) for job in _jobs(4)]
    got = run(torch_engine(name, num_blocks=400, max_batch_tokens=7), jobs)
    for index, job in enumerate(jobs):
        stats = got[index][0].prompt
        assert stats is not None
        assert stats.logprobs == pytest.approx(
            tiny_models.prompt_logprobs(name, job.prompt), abs=1e-3
        )


# Their mixers multiply with a weight of theirs in torch, which rounds by the number of rows.
ROUNDS_BY_ROWS = {("mamba", torch.float32), ("jamba", torch.float32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", tiny_models.RECURRENT_CONFIGS)
def test_bits_do_not_depend_on_the_schedule(name: str, dtype: torch.dtype) -> None:
    """Alone with a large budget, and among others with one that cuts the prompt in three."""
    rnd = random.Random(5)
    prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(129)]
    params = SamplingParams(20, temperature=1.3, seed=4, logprobs=LogprobMode.RAW)
    job = Job(prompt, params, at_step=3)
    others = [
        Job([3 + i] * (7 * i + 1), SamplingParams(25, temperature=1.1, seed=i)) for i in range(9)
    ]
    sizes = {"num_blocks": 400, "max_running": 12}
    alone = run(torch_engine(name, dtype, max_batch_tokens=512, **sizes), [job])[0]
    among = run(torch_engine(name, dtype, max_batch_tokens=80, **sizes), [job, *others])[0]
    assert [event.token_id for event in among] == [event.token_id for event in alone]
    error = 1e-5 if (name, dtype) in ROUNDS_BY_ROWS else 0
    assert [event.logprob for event in among] == pytest.approx(
        [event.logprob for event in alone], abs=error, rel=0
    )


def test_a_mixer_that_forgets_its_state_is_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotView, "write_back", lambda _: None)
    monkeypatch.setattr(SlotView, "update_recurrent_state", lambda _, states, *__, **___: states)
    loaded = prepare(tiny_models.make("qwen3_next"), torch.float32, CPU)
    assert loaded.attention == "own"
    assert "paged attention differs from the model's own" in loaded.fallbacks[0]


def test_the_model_is_unchanged_where_it_is_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise Mismatch("injected")

    monkeypatch.setattr(PagedTrial, "check_exact", fail)
    model = tiny_models.make("bamba")
    assert prepare(model, torch.float32, CPU).attention == "own"
    assert not any("forward" in vars(part) for part in model.modules())
