"""Models whose attention cannot be paged: the theorem holds for them, too."""

import random

import pytest
import torch

from container.errors import ModelLoadError
from container.messages.engine import SamplingParams, Submit
from container.model.checks.layer_probe import NotPageable
from container.model.execution.hf_cache_runner import HFCacheRunner, Progress
from container.model.loading import prepare as preparation
from tests.support.engines import Job, ids, run, run_sequences
from tests.support.models import tiny_models
from tests.support.models.prepared import prepare
from tests.support.torch_engines import torch_engine

# Decoders that would be paged; here they are served through their own cache.
DECODERS = ("bloom", "qwen3_next", "mamba2")
SCHEDULES = {
    "small_chunks": {"num_blocks": 400, "max_batch_tokens": 7},
    "preempting": {"num_blocks": 26, "max_total_tokens": 104, "max_input_tokens": 100},
}


@pytest.fixture
def unpaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve every model through its own cache."""

    def refuse(*_: object, **__: object) -> None:
        raise NotPageable("the test says so")

    monkeypatch.setattr(preparation, "convert_to_paged", refuse)
    monkeypatch.setattr(preparation, "convert_decoder", refuse)


def _jobs(count: int) -> list[Job]:
    rnd = random.Random(9)
    jobs = []
    for _ in range(count):
        prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 40))]
        params = SamplingParams(max_new_tokens=rnd.randint(1, 30))
        jobs.append(Job(prompt, params, at_step=rnd.randrange(20)))
    return jobs


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.usefixtures("unpaged")
@pytest.mark.parametrize("name", [*tiny_models.OWN_CACHE_CONFIGS, "t5", *DECODERS, "bamba"])
def test_greedy_output_equals_generate(name: str, schedule: str) -> None:
    jobs = _jobs(8)
    engine = torch_engine(name, **SCHEDULES[schedule])
    got = run(engine, jobs)
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert ids(got[index]) == expected, f"request {index}"
    if schedule == "preempting":
        assert engine.load.preemptions > 0


@pytest.mark.parametrize("name", tiny_models.OWN_CACHE_CONFIGS)
def test_no_unpageable_model_is_paged(name: str) -> None:
    cpu = torch.device("cpu")
    assert prepare(tiny_models.make(name), torch.float32, cpu).attention == "own"


@pytest.mark.usefixtures("unpaged")
@pytest.mark.parametrize("name", ["t5", "qwen3_next"])
def test_several_sequences_of_one_request(name: str) -> None:
    prompt = list(range(2, 30))
    engine = torch_engine(name, max_batch_tokens=16)
    request = Submit(0, prompt, SamplingParams(max_new_tokens=9), 3)
    expected = tiny_models.reference(name, tuple(prompt), 9)
    assert run_sequences(engine, request) == [expected] * 3


@pytest.mark.usefixtures("unpaged")
@pytest.mark.parametrize("name", ["bloom", "mamba2"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prompt_logprobs_are_the_models_own(name: str, schedule: str) -> None:
    rnd = random.Random(2)
    sampling_params = SamplingParams(max_new_tokens=20, prompt_logprobs=True)
    jobs = [
        Job(
            [rnd.randrange(2, 200) for _ in range(rnd.randint(1, 50))],
            sampling_params,
            at_step=index,
        )
        for index in range(5)
    ]
    got = run(torch_engine(name, **SCHEDULES[schedule]), jobs)
    for index, job in enumerate(jobs):
        stats = got[index][0].prompt
        assert stats is not None
        assert stats.logprobs == pytest.approx(
            tiny_models.prompt_logprobs(name, job.prompt), abs=1e-3
        )


@pytest.mark.usefixtures("unpaged")
def test_a_seed_gives_the_same_ids_alone_and_among_others() -> None:
    job = Job([9, 8, 7, 6, 5], SamplingParams(20, temperature=1.3, seed=4), at_step=3)
    others = [Job([3 + i] * (i + 1), SamplingParams(20, temperature=1.1, seed=i)) for i in range(5)]
    for name in ("t5", "mamba2"):
        alone = ids(run(torch_engine(name), [job])[0])
        assert ids(run(torch_engine(name), [job, *others])[0]) == alone


@pytest.mark.usefixtures("unpaged")
@pytest.mark.parametrize("name", ["t5", "bloom"])
def test_a_cache_that_computes_something_else_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = HFCacheRunner._forward

    def forget(self: HFCacheRunner, progress: Progress, *args: int, **ids: torch.Tensor) -> object:
        logits = forward(self, progress, *args, **ids)
        progress.model_kwargs.clear()
        return logits

    monkeypatch.setattr(HFCacheRunner, "_forward", forget)
    with pytest.raises(ModelLoadError, match=rf"{name}.*own cache is off by"):
        prepare(tiny_models.make(name), torch.float32, torch.device("cpu"))
