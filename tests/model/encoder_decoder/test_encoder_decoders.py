"""Encoder-decoders with paged decoders: greedy output equals that of `generate` in any schedule.

Several sequences share a step here, each beside the outputs of its own encoder.
"""

import random

import pytest
import torch
from transformers import PreTrainedModel

from container.engine.engine import Engine
from container.errors import ConfigError, InvalidParameter, PromptTooLong
from container.messages.engine import SamplingParams, Submit
from container.model import encoder_outputs
from container.model.encoder_decoder import prompt_encoder
from container.model.encoder_decoder.decoder import encode
from container.model.execution.model_runner import TorchModelRunner
from container.model.paged_decoder import probe
from tests.support.engines import Job, ids, run, run_sequences
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare
from tests.support.torch_engines import torch_engine

CPU = torch.device("cpu")
SCHEDULES = {
    "roomy": {"num_blocks": 400, "max_batch_tokens": 512},
    "one_token_budget": {"num_blocks": 400, "max_batch_tokens": 1},
    "tiny_blocks": {"block_size": 1, "num_blocks": 400},
    "large_blocks": {"block_size": 32, "num_blocks": 60},
    "preempting": {"num_blocks": 28, "max_total_tokens": 104, "max_input_tokens": 100},
    "swapping": {
        "num_blocks": 28, "max_total_tokens": 104, "max_input_tokens": 100, "num_slots": 60,
    },
    "speculating": {"num_blocks": 400, "speculate": 3},
}  # fmt: skip
FURTHER = [("roomy", name) for name in tiny_models.FURTHER_ENCODER_DECODER_CONFIGS]


def _jobs(count: int, seed: int = 3) -> list[Job]:
    rnd = random.Random(seed)
    jobs = []
    for _ in range(count):
        prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 60))]
        params = SamplingParams(max_new_tokens=rnd.randint(1, 40))
        jobs.append(Job(prompt, params, at_step=rnd.randrange(20)))
    return jobs


def _engine(name: str = "t5", **sizes: int) -> Engine:
    return torch_engine(name, shares_model=True, **sizes)


def _assert_equal_to_generate(name: str, engine: Engine, jobs: list[Job]) -> None:
    assert isinstance(engine.runner, TorchModelRunner)
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected, f"request {index}"


@pytest.mark.parametrize(
    ("schedule", "name"),
    [(s, name) for name in tiny_models.ENCODER_DECODER_CONFIGS for s in SCHEDULES] + FURTHER,
)
def test_greedy_output_equals_generate(schedule: str, name: str) -> None:
    engine = _engine(name, **SCHEDULES[schedule])
    _assert_equal_to_generate(name, engine, _jobs(10))
    if SCHEDULES[schedule].get("num_blocks") == 28:
        assert engine.load.preemptions > 0
    if schedule == "swapping":
        assert engine.load.restored_tokens > 0


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the prompts that are encoded from here on."""
    prompts: list[list[int]] = []

    def count(module: PreTrainedModel, prompt_ids: list[int]) -> torch.Tensor:
        prompts.append(prompt_ids)
        return encode(module, prompt_ids)

    monkeypatch.setattr(prompt_encoder, "encode", count)
    return prompts


@pytest.mark.parametrize("name", tiny_models.ENCODER_DECODER_CONFIGS)
def test_a_prompt_is_encoded_once_for_all_its_sequences(
    name: str, encoded: list[list[int]]
) -> None:
    prompt = list(range(2, 32))
    engine = _engine(name, max_batch_tokens=16)
    expected = tiny_models.reference(name, tuple(prompt), 12)
    assert run_sequences(engine, Submit(0, prompt, SamplingParams(12), 3)) == [expected] * 3
    assert run_sequences(engine, Submit(1, prompt, SamplingParams(12))) == [expected]
    assert encoded == [prompt]
    # The blocks of a prompt depend on all of it: one that goes on shares nothing with it.
    longer = [*prompt, 40, 41]
    expected = tiny_models.reference(name, tuple(longer), 12)
    assert run_sequences(engine, Submit(2, longer, SamplingParams(12))) == [expected]
    assert encoded == [prompt, longer]


def test_requests_of_one_prompt_at_a_time_encode_it_once(encoded: list[list[int]]) -> None:
    engine, prompt = _engine(), list(range(2, 31))
    run(engine, [Job(prompt, SamplingParams(6)), Job(prompt, SamplingParams(6))])
    assert encoded == [prompt]


def test_the_cached_tokens_are_those_of_the_prompt() -> None:
    engine, prompt = _engine(), list(range(2, 31))
    first, second = run(
        engine, [Job(prompt, SamplingParams(6)), Job(prompt, SamplingParams(6), 9)]
    ).values()
    assert (first[0].prompt.cached_tokens, second[0].prompt.cached_tokens) == (0, 29)


def test_outputs_that_no_longer_wait_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_outputs, "MAX_BYTES", 0)
    jobs = _jobs(8)
    _assert_equal_to_generate("bart", _engine("bart", **SCHEDULES["preempting"]), jobs)


@pytest.mark.parametrize("name", tiny_models.ENCODER_DECODER_CONFIGS)
def test_an_abort_beside_it_changes_nothing(name: str) -> None:
    engine, prompt = _engine(name), list(range(3, 40))
    for number, each in enumerate((prompt, prompt[:20], prompt[5:])):
        engine.submit(b"test", Submit(number, each, SamplingParams(30)))
    got: dict[int, list[int]] = {0: [], 1: [], 2: []}
    steps = 0
    while engine.has_work:
        for _, event in engine.step():
            got[event.request_id].append(event.token_id)
            steps += 1
        engine.scheduler.check_invariants()
        if steps > 12:
            engine.abort(b"test", 1)
    assert got[0] == tiny_models.reference(name, tuple(prompt), 30)
    assert got[2] == tiny_models.reference(name, tuple(prompt[5:]), 30)
    assert len(got[1]) < 30
    assert engine.load.blocks_used == 0


@pytest.mark.parametrize("name", tiny_models.ENCODER_DECODER_CONFIGS)
def test_a_seed_gives_the_same_ids_alone_and_among_others(name: str) -> None:
    job = Job([9, 8, 7, 6, 5], SamplingParams(20, temperature=1.3, seed=4), at_step=3)
    others = [Job([3 + i] * (i + 1), SamplingParams(20, temperature=1.1, seed=i)) for i in range(7)]
    alone = ids(run(_engine(name), [job])[0])
    assert ids(run(_engine(name), [job, *others])[0]) == alone


def test_penalties_look_at_the_completion_only() -> None:
    prompt = list(range(2, 40))
    params = SamplingParams(max_new_tokens=20, repetition_penalty=1.7)
    got = ids(run(_engine(), [Job(prompt, params)])[0])
    expected = tiny_models.make("t5").generate(
        torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False,
        repetition_penalty=1.7, eos_token_id=None,
    )  # fmt: skip
    assert got == expected[0, 1:].tolist()


def test_invalid_prompts_are_refused() -> None:
    engine = _engine(num_blocks=26, max_total_tokens=104, max_input_tokens=100)
    with pytest.raises(InvalidParameter, match="encoder"):
        engine.submit(b"test", Submit(0, [5, 6], SamplingParams(4, prompt_logprobs=True)))
    with pytest.raises(PromptTooLong, match="do not fit the cache of 104 tokens"):
        engine.submit(b"test", Submit(1, [5] * 97, SamplingParams(7)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", tiny_models.ENCODER_DECODER_CONFIGS)
def test_the_start_pages_it_in_each_format(name: str, dtype: torch.dtype) -> None:
    loaded = prepare(tiny_models.make(name, dtype), dtype, CPU)
    assert (loaded.attention, loaded.fallbacks) == ("paged", ())
    assert loaded.capture_obstacle == "its decoder reads the outputs of an encoder"


@pytest.mark.parametrize(
    "options",
    [
        {"quantize": "int8"},
        {"quantize": "int4"},
        {"cache_dtype": torch.float8_e5m2},
        {"compiles": True},
    ],
)
def test_options_that_it_cannot_have_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"cannot work here.*it has an encoder"):
        prepare(tiny_models.make("t5"), torch.float32, CPU, **options)


def test_a_decoder_with_other_positions_is_not_paged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.DecoderProbe, "_position_table", lambda _: None)
    loaded = prepare(tiny_models.make("bart"), torch.float32, CPU)
    assert loaded.attention == "own"
    assert "positions of its own" in loaded.fallbacks[0]


def test_a_model_with_adapters_uses_its_own_cache() -> None:
    loaded = prepare(tiny_models.make("t5"), torch.float32, CPU, takes_adapters=True)
    assert loaded.attention == "own"
    assert "LORA_ADAPTERS" in loaded.fallbacks[0]
