"""The requests of lm-evaluation-harness's `local-completions`, read as it reads the answers.

It sends token ids in batches: `echo` with `logprobs` for the likelihood of a continuation (and
whether it is greedy), stop strings for a generation. The likelihoods are checked with transformers.
"""

import math
from functools import cache
from typing import Any

import pytest
import requests
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.support.servers import DEMO_MODEL, Server

CONTEXT = "<|im_start|>user\nWhat is deep learning?<|im_end|>\n<|im_start|>assistant\n"
# Contexts and continuations of several lengths; among them tokens that are parts of a letter.
PAIRS = [
    (CONTEXT, "Deep learning is a"),
    (CONTEXT, "A colour is red"),
    ("deep", " learning"),
    ("The word", " is Малмё 🎉 东京"),
]
SEED = 1234


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


@cache
def _model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)


def _ids(text: str) -> list[int]:
    ids: list[int] = _tokenizer()(text, add_special_tokens=False).input_ids
    return ids


def _ask(server: Server, prompts: list[list[int]], fields: dict[str, Any]) -> list[dict[str, Any]]:
    body = {"model": "demo", "prompt": prompts, "temperature": 0, "seed": SEED} | fields
    answer = requests.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    choices: list[dict[str, Any]] = answer.json()["choices"]
    return sorted(choices, key=lambda choice: choice["index"])


def _read(choice: dict[str, Any], context_length: int) -> tuple[float, bool]:
    """Return the likelihood of the continuation, and whether it is greedy, as the harness does."""
    logprobs = choice["logprobs"]
    scores = logprobs["token_logprobs"][context_length:-1]
    tops = logprobs["top_logprobs"][context_length:-1]
    return sum(scores), all(
        score == max(top.values()) for score, top in zip(scores, tops, strict=True)
    )


def _expected(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        logits = _model()(ids).logits[0, len(context) - 1 : -1].float()
    scores = logits.log_softmax(-1)
    target = torch.tensor(continuation)
    total = scores.gather(1, target[:, None]).sum().item()
    return total, bool((scores.argmax(-1) == target).all())


@pytest.mark.parametrize("batch", [1, 3])
def test_likelihoods_are_the_models(server: Server, batch: int) -> None:
    pairs = [(_ids(context), _ids(text)) for context, text in PAIRS]
    params = {"max_tokens": 1, "logprobs": 1, "echo": True}
    results: list[tuple[float, bool]] = []
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        choices = _ask(server, [context + text for context, text in part], params)
        results += [
            _read(choice, len(context)) for choice, (context, _) in zip(choices, part, strict=True)
        ]
    for (context, text), (total, is_greedy) in zip(pairs, results, strict=True):
        expected, is_expected_greedy = _expected(context, text)
        assert math.isclose(total, expected, rel_tol=1e-3, abs_tol=1e-2)
        assert is_greedy == is_expected_greedy
    assert {is_greedy for _, is_greedy in results} == {True, False}


def test_generation_stops_at_the_tasks_stop_strings(server: Server) -> None:
    prompt = [_ids(CONTEXT)]
    [free] = _ask(server, prompt, {"max_tokens": 256, "stop": ["</s>"]})
    word = free["text"].split()[3]
    [cut] = _ask(server, prompt, {"max_tokens": 256, "stop": [word, "</s>"]})
    assert cut["text"] == free["text"].partition(word)[0]
