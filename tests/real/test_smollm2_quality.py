"""How well the served model predicts real prose, in every format, beside transformers' own pass."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from container.messages.engine import SamplingParams
from container.model.loaded_model import LoadedModel
from tests.support.engines import Job, run
from tests.support.models import real_models

PROSE = Path(__file__).parent / "data" / "prose.txt"
FP8 = torch.float8_e4m3fn


@cache
def _passages() -> list[list[int]]:
    return [
        real_models.tokenizer()(passage.strip())["input_ids"]
        for passage in PROSE.read_text().split("\n\n")
    ]


def _perplexity(logprobs: list[float]) -> float:
    return math.exp(-sum(logprobs) / len(logprobs))


def _served(model: LoadedModel) -> list[float]:
    """Return the log-probabilities that the engine reports for all passages, batched."""
    assert model.attention == "paged"
    params = SamplingParams(1, prompt_logprobs=True)
    jobs = [Job(ids, params) for ids in _passages()]
    events = run(real_models.engine(model, max_batch_tokens=384), jobs)
    logprobs: list[float] = []
    for index in range(len(jobs)):
        prompt = events[index][0].prompt
        assert prompt is not None
        assert prompt.logprobs is not None
        logprobs += prompt.logprobs
    return logprobs


@cache
def _expected(dtype: torch.dtype) -> list[float]:
    """Return the log-probabilities of transformers' own forward pass."""
    logprobs: list[float] = []
    for ids in _passages():
        with torch.inference_mode():
            logits = real_models.reference(dtype)(torch.tensor([ids])).logits[0, :-1]
        scores = logits.float().log_softmax(-1)
        logprobs += scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return logprobs


@cache
def _bfloat16() -> float:
    return _perplexity(_served(real_models.prepared(torch.bfloat16)))


def test_logprobs_of_prose_equal_transformers() -> None:
    served = _served(real_models.prepared(torch.float32))
    expected = _expected(torch.float32)
    assert len(served) > 1500
    assert served == pytest.approx(expected, abs=2e-3)
    assert _perplexity(served) == pytest.approx(_perplexity(expected), rel=1e-5)


def test_bfloat16_predicts_as_well_as_transformers_bfloat16() -> None:
    assert _bfloat16() == pytest.approx(_perplexity(_expected(torch.bfloat16)), rel=0.002)


def test_weights_of_eight_bits_cost_at_most_one_percent() -> None:
    served = _perplexity(_served(real_models.prepared(torch.bfloat16, quantize="int8")))
    assert served == pytest.approx(_bfloat16(), rel=0.01)


def test_weights_of_four_bits_cost_at_most_two_percent() -> None:
    """These weights were once of four bits in the same groups: of others it costs more."""
    served = _perplexity(_served(real_models.prepared(torch.float32, quantize="int4")))
    assert served == pytest.approx(_bfloat16(), rel=0.02)


def test_a_cache_of_eight_bits_costs_at_most_one_percent() -> None:
    served = _perplexity(_served(real_models.prepared(torch.bfloat16, cache_dtype=FP8)))
    assert served == pytest.approx(_bfloat16(), rel=0.01)
