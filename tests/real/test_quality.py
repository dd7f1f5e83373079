"""How well the served model predicts real prose, in every format, beside transformers' own pass."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from container.messages.engine import SamplingParams
from tests.support.engines import Job, run
from tests.support.models import real_models
from tests.support.models.real_models import GEMMA3, SMOLLM2, RealModel

PROSE = Path(__file__).parent / "data" / "prose.txt"
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Case:
    """A trained model and the prose it is measured on, in tokens; None: all of it, by passages.

    `cache_loss` is what a cache in e4m3 may cost: in exact arithmetic it costs Gemma 1.3 %.
    """

    model: RealModel
    num_tokens: int | None = None
    cache_loss: float = 0.01


CASES = {
    "smollm2": Case(SMOLLM2),
    # one passage, longer than the window of 512 tokens
    "gemma3": Case(GEMMA3, num_tokens=560, cache_loss=0.02),
}
every_model = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cache
def _passages(case: Case) -> list[list[int]]:
    tokenizer = real_models.tokenizer(case.model)
    if case.num_tokens is not None:
        return [tokenizer(PROSE.read_text())["input_ids"][: case.num_tokens]]
    return [tokenizer(passage.strip())["input_ids"] for passage in PROSE.read_text().split("\n\n")]


def _perplexity(logprobs: list[float]) -> float:
    return math.exp(-sum(logprobs) / len(logprobs))


def _served(case: Case, dtype: torch.dtype, **options: Any) -> list[float]:
    """Return the log-probabilities that the engine reports for all passages, batched."""
    params = SamplingParams(1, prompt_logprobs=True)
    jobs = [Job(ids, params) for ids in _passages(case)]
    served = real_models.prepared(dtype, case.model, **options)
    events = run(real_models.engine(served, max_batch_tokens=384), jobs)
    logprobs: list[float] = []
    for index in range(len(jobs)):
        prompt = events[index][0].prompt
        assert prompt is not None
        assert prompt.logprobs is not None
        logprobs += prompt.logprobs
    return logprobs


@cache
def _expected(case: Case, dtype: torch.dtype) -> list[float]:
    """Return the log-probabilities of transformers' own forward pass."""
    logprobs: list[float] = []
    for ids in _passages(case):
        with torch.inference_mode():
            model = real_models.reference(dtype, case.model)
            logits = model(torch.tensor([ids])).logits[0, :-1]
        scores = logits.float().log_softmax(-1)
        logprobs += scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return logprobs


@cache
def _bfloat16(case: Case) -> float:
    return _perplexity(_served(case, torch.bfloat16))


@every_model
def test_logprobs_of_prose_equal_transformers(case: Case) -> None:
    served = _served(case, torch.float32)
    expected = _expected(case, torch.float32)
    assert len(served) > (case.num_tokens or 1500) - 10
    assert served == pytest.approx(expected, abs=2e-3)
    assert _perplexity(served) == pytest.approx(_perplexity(expected), rel=1e-5)


@every_model
def test_bfloat16_predicts_as_well_as_transformers_bfloat16(case: Case) -> None:
    assert _bfloat16(case) == pytest.approx(_perplexity(_expected(case, torch.bfloat16)), rel=0.002)


@every_model
def test_weights_of_eight_bits_cost_at_most_one_percent(case: Case) -> None:
    served = _perplexity(_served(case, torch.bfloat16, quantize="int8"))
    assert served == pytest.approx(_bfloat16(case), rel=0.01)


def test_weights_of_four_bits_cost_at_most_two_percent() -> None:
    """These weights were once of four bits in the same groups: of others it costs more."""
    case = CASES["smollm2"]
    served = _perplexity(_served(case, torch.float32, quantize="int4"))
    assert served == pytest.approx(_bfloat16(case), rel=0.02)


@every_model
def test_a_cache_of_eight_bits_costs_little(case: Case) -> None:
    served = _perplexity(_served(case, torch.bfloat16, cache_dtype=FP8))
    assert served == pytest.approx(_bfloat16(case), rel=case.cache_loss)
