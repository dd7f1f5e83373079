"""Prompts of real text have exactly the length that is asked for, and no common prefixes."""

import random
from pathlib import Path

import pytest

from benchmarks.load.prompts import Prose

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "examples" / "demo-model"


@pytest.fixture
def prose():
    return Prose(DEMO_MODEL)


@pytest.mark.parametrize("num_tokens", [1, 128, 6400])
def test_a_prompt_has_as_many_tokens_as_its_text_is_tokenized_to(prose, num_tokens):
    from transformers import AutoTokenizer

    ids = prose.draw(random.Random(0), num_tokens)
    assert len(ids) == num_tokens
    assert AutoTokenizer.from_pretrained(DEMO_MODEL)(prose.text(ids))["input_ids"] == ids


def test_no_two_prompts_begin_with_the_same_block(prose):
    numbers = random.Random(0)
    starts = {tuple(prose.draw(numbers, 64)[:16]) for _ in range(50)}
    assert len(starts) == 50


def test_the_same_seed_draws_the_same_prompts(prose):
    assert prose.draw(random.Random(3), 200) == prose.draw(random.Random(3), 200)
