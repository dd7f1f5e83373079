"""Answers of trained models in bfloat16 are the same alone and in a batch."""

import pytest
import torch

from container.messages.engine import SamplingParams
from tests.support.engines import Job, ids, run
from tests.support.models import real_models
from tests.support.models.real_models import GEMMA3, QUESTIONS, SMOLLM2, RealModel, chat_ids


def _outputs(model: RealModel, jobs: list[Job], **sizes: int) -> list[list[int]]:
    served = real_models.prepared(torch.bfloat16, model)
    events = run(real_models.engine(served, end=model.end, **sizes), jobs)
    return [ids(events[index]) for index in range(len(jobs))]


@pytest.mark.parametrize(
    ("model", "temperature"),
    [(SMOLLM2, 0.0), (SMOLLM2, 1.0), (GEMMA3, 1.0)],
    ids=["smollm2-greedy", "smollm2-seeded", "gemma3-seeded"],
)
def test_bfloat16_answers_are_the_same_alone_and_in_a_batch(
    model: RealModel, temperature: float
) -> None:
    jobs = [
        Job(
            chat_ids(question, model),
            SamplingParams(model.max_new_tokens, seed=index, temperature=temperature),
            at_step=index,
        )
        for index, question in enumerate(QUESTIONS[: min(8, model.num_questions)])
    ]
    assert _outputs(model, jobs, max_running=1) == _outputs(model, jobs)
