"""OpenAI's completions over the wire: prompt lists, choices, echoes, log-probabilities, streams."""

from collections import defaultdict
from typing import Any

import openai
import pytest
import requests

from tests.support.servers import Server

PROMPT = "<|im_start|>user\nWhat is deep learning?<|im_end|>\n<|im_start|>assistant\n"
OTHER = "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_is_completed_as_by_generate(client: openai.OpenAI, server: Server) -> None:
    answer = client.completions.create(model="tgi", prompt=PROMPT, max_tokens=60, temperature=0)
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 60}}
    generated = requests.post(f"{server.url}/generate", json=body, timeout=60).json()
    [choice] = answer.choices
    assert choice.text == generated["generated_text"]
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_prompt_lists_and_choices_in_order(client: openai.OpenAI) -> None:
    together = client.completions.create(
        model="tgi", prompt=[PROMPT, OTHER], n=2, max_tokens=20, seed=3, temperature=0.8
    )
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    alone = client.completions.create(
        model="tgi", prompt=OTHER, n=2, max_tokens=20, seed=3, temperature=0.8
    )
    assert [one.text for one in together.choices[2:]] == [one.text for one in alone.choices]
    assert together.usage is not None
    assert alone.usage is not None
    assert together.usage.prompt_tokens > alone.usage.prompt_tokens


def test_token_ids_as_prompts(client: openai.OpenAI, server: Server) -> None:
    pieces = requests.post(f"{server.url}/tokenize", json={"inputs": PROMPT}, timeout=30).json()
    ids = [piece["id"] for piece in pieces]
    ask: dict[str, Any] = {"model": "tgi", "max_tokens": 12, "temperature": 0}
    text = client.completions.create(prompt=PROMPT, **ask).choices[0].text
    assert client.completions.create(prompt=ids, **ask).choices[0].text == text
    twice = client.completions.create(prompt=[ids, ids], **ask)
    assert [choice.text for choice in twice.choices] == [text, text]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_stream_says_what_the_whole_answer_says(
    client: openai.OpenAI, echo: bool, logprobs: int | None
) -> None:
    ask: dict[str, Any] = {
        "model": "tgi", "prompt": [PROMPT, OTHER], "n": 2, "max_tokens": 15, "temperature": 0.7,
        "seed": 1, "echo": echo, "logprobs": logprobs,
    }  # fmt: skip
    whole = client.completions.create(**ask)
    texts: dict[int, str] = defaultdict(str)
    tokens: dict[int, list[str]] = defaultdict(list)
    offsets: dict[int, list[int]] = defaultdict(list)
    reasons = {}
    usage = None
    order = []
    stream = client.completions.create(stream=True, stream_options={"include_usage": True}, **ask)
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            order.append(choice.index)
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
            if choice.logprobs:
                tokens[choice.index] += choice.logprobs.tokens or []
                offsets[choice.index] += choice.logprobs.text_offset or []
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert order != sorted(order), "the prompts are streamed side by side"
    for choice in whole.choices:
        if choice.logprobs is not None:
            assert tokens[choice.index] == choice.logprobs.tokens
            assert offsets[choice.index] == choice.logprobs.text_offset


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tgi", prompt=PROMPT, max_tokens=5, temperature=0, logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.top_logprobs is not None
    assert found.token_logprobs is not None
    assert "".join(found.tokens) == answer.choices[0].text
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert len(top) == 3
        assert top[token] == logprob == max(top.values())


def test_an_echo_has_the_prompts_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tgi", prompt="deep learning is", max_tokens=1, echo=True, logprobs=0
    )
    [choice] = answer.choices
    assert choice.text.startswith("deep learning is")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])


def test_a_stop_string_is_dropped(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tgi", "prompt": PROMPT, "temperature": 0, "max_tokens": 60}
    text = client.completions.create(**ask).choices[0].text
    word = text.split()[3]
    cut = client.completions.create(stop=word, **ask).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.text == text[: text.index(word)]


def test_completions_follow_a_grammar(client: openai.OpenAI) -> None:
    for extra in (
        {"grammar": {"type": "choice", "value": ["blue", "green"]}},
        {"response_format": {"type": "regex", "value": "blue|green"}},
    ):
        answer = client.completions.create(model="tgi", prompt=OTHER, extra_body=extra)
        assert answer.choices[0].text in ("blue", "green")


def test_invocations_take_completions(server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 5}
    answer = requests.post(f"{server.url}/invocations", json=body, timeout=60).json()
    assert answer["object"] == "text_completion"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**7}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_a_400_that_names_the_field(
    server: Server, change: dict[str, Any], field: str, stream: bool
) -> None:
    body = {"prompt": "a", "max_tokens": 3, "stream": stream} | change
    response = requests.post(f"{server.url}/v1/completions", json=body, timeout=30)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].split("[")[0] == field
