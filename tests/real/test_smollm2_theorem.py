"""The theorem on trained weights: whatever the schedule, greedy float32 output is `generate`'s."""

import pytest
import torch

from container.messages.engine import SamplingParams
from tests.support.engines import Job, ids, run
from tests.support.models import real_models
from tests.support.models.real_models import QUESTIONS, chat_ids

COUNT = 16
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


def _jobs(steps_apart: int) -> list[Job]:
    params = SamplingParams(COUNT)
    return [
        Job(chat_ids(question), params, at_step=index * steps_apart)
        for index, question in enumerate(QUESTIONS)
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_greedy_answers_to_real_questions_equal_generate(schedule: str) -> None:
    model = real_models.prepared(torch.float32)
    assert model.attention == "paged"
    engine = real_models.engine(model, **SCHEDULES[schedule])
    got = run(engine, _jobs(steps_apart=2))
    for index, question in enumerate(QUESTIONS):
        assert ids(got[index]) == real_models.greedy(question, COUNT), question
    assert engine.load.cached_tokens > 0, "every question begins with the same system message"
    if SCHEDULES[schedule].get("num_blocks") == 14:
        assert engine.load.preemptions > 0
    if schedule == "swapping":
        assert engine.load.restored_tokens > 0


def test_repeated_questions_hit_the_cache() -> None:
    engine = real_models.engine(real_models.prepared(torch.float32), num_blocks=600)
    run(engine, _jobs(steps_apart=0))
    again = run(engine, _jobs(steps_apart=0))
    for index, question in enumerate(QUESTIONS):
        prompt = again[index][0].prompt
        assert prompt is not None
        assert prompt.cached_tokens >= (len(chat_ids(question)) - 1) // 16 * 16
        assert ids(again[index]) == real_models.greedy(question, COUNT), question


def test_the_weights_are_those_of_a_model_that_answers() -> None:
    expected = real_models.tokenizer().decode(real_models.greedy(QUESTIONS[0], COUNT))
    assert "Paris" in expected
