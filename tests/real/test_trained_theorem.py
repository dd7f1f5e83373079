"""The theorem on trained weights: whatever the schedule, greedy float32 output is `generate`'s."""

from pathlib import Path

import pytest
import torch

from container.messages.engine import SamplingParams
from tests.support.engines import Job, ids, run
from tests.support.models import real_models
from tests.support.models.real_models import GEMMA3, MODELS, QUESTIONS, SMOLLM2, RealModel, chat_ids

PROSE = Path(__file__).parent / "data" / "prose.txt"
SCHEDULES = {
    "alone": {"max_running": 1},
    "batched": {},
    "small_chunks": {"max_batch_tokens": 13},
    "tiny_blocks": {"block_size": 1, "num_blocks": 2000},
    "preempting": {"num_blocks": 14, "max_input_tokens": 100, "max_total_tokens": 140},
    "swapping": {
        "num_blocks": 14,
        "max_input_tokens": 100,
        "max_total_tokens": 140,
        "num_slots": 40,
    },
    "overlapping": {"overlaps": True},
}


# Gemma has the largest output layer, so it runs under those that compute most differently.
RUNS = [
    *((SMOLLM2, schedule) for schedule in SCHEDULES),
    *((GEMMA3, schedule) for schedule in ("batched",)),
]
NAMES = {model: name for name, model in MODELS.items()}


def _questions(model: RealModel) -> tuple[str, ...]:
    return QUESTIONS[: model.num_questions]


def _expected(model: RealModel, question: str) -> list[int]:
    return real_models.greedy(question, model.max_new_tokens, model)


def _jobs(model: RealModel, steps_apart: int) -> list[Job]:
    params = SamplingParams(model.max_new_tokens)
    return [
        Job(chat_ids(question, model), params, at_step=index * steps_apart)
        for index, question in enumerate(_questions(model))
    ]


@pytest.mark.parametrize(
    ("model", "schedule"), RUNS, ids=[f"{NAMES[model]}-{schedule}" for model, schedule in RUNS]
)
def test_greedy_answers_to_real_questions_equal_generate(model: RealModel, schedule: str) -> None:
    sizes = SCHEDULES[schedule]
    if model is GEMMA3 and schedule == "preempting":  # its prompts have no system message
        sizes = {"block_size": 4, "num_blocks": 10, "max_input_tokens": 30, "max_total_tokens": 40}
    served = real_models.prepared(torch.float32, model)
    engine = real_models.engine(served, end=model.end, **sizes)
    got = run(engine, _jobs(model, steps_apart=2))
    for index, question in enumerate(_questions(model)):
        assert ids(got[index]) == _expected(model, question), question
    if model is SMOLLM2:
        assert engine.load.cached_tokens > 0, "every question begins with the same system message"
    if "max_input_tokens" in sizes:
        assert engine.load.preemptions > 0
    if schedule == "swapping":
        assert engine.load.restored_tokens > 0


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_repeated_questions_hit_the_cache(model: RealModel) -> None:
    served = real_models.prepared(torch.float32, model)
    engine = real_models.engine(served, end=model.end, num_blocks=600, block_size=4)
    run(engine, _jobs(model, steps_apart=0))
    again = run(engine, _jobs(model, steps_apart=0))
    for index, question in enumerate(_questions(model)):
        prompt = again[index][0].prompt
        assert prompt is not None
        assert prompt.cached_tokens >= (len(chat_ids(question, model)) - 1) // 4 * 4
        assert ids(again[index]) == _expected(model, question), question


def test_prompts_over_the_window_are_continued_as_by_generate() -> None:
    """Gemma's window is 512 tokens; a prompt in chunks, and then decodes, leave it behind."""
    prose = real_models.tokenizer(GEMMA3)(PROSE.read_text())["input_ids"][:560]
    served = real_models.prepared(torch.float32, GEMMA3)
    engine = real_models.engine(served, end=GEMMA3.end, max_batch_tokens=250)
    count = GEMMA3.max_new_tokens
    got = run(engine, [Job(prose, SamplingParams(count))])[0]
    expected = real_models.generate(real_models.reference(torch.float32, GEMMA3), prose, count)
    assert ids(got) == expected


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_weights_are_those_of_a_model_that_answers(model: RealModel) -> None:
    answer = real_models.tokenizer(model).decode(_expected(model, QUESTIONS[0]))
    assert "Paris" in answer
