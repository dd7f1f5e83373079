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
def test_a_stream_equals_the_whole_response(
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


def test_an_echo_has_top_logprobs(client: openai.OpenAI) -> None:
    """As lm-evaluation-harness asks for a text's likelihood, and whether it is greedy."""
    ask: dict[str, Any] = {"model": "tgi", "prompt": PROMPT, "temperature": 0}
    greedy = client.completions.create(max_tokens=6, **ask).choices[0].text
    ask |= {"prompt": PROMPT + greedy, "max_tokens": 1, "echo": True}
    one, none, three = [
        client.completions.create(logprobs=count, **ask).choices[0].logprobs for count in (1, 0, 3)
    ]
    assert None not in (one, none, three)
    assert one.tokens == none.tokens == three.tokens
    assert one.token_logprobs == none.token_logprobs
    assert one.top_logprobs[0] is None
    for found, most in ((one, 2), (three, 4)):
        for token, logprob, top in zip(
            found.tokens[1:], found.token_logprobs[1:], found.top_logprobs[1:], strict=True
        ):
            assert top[token] == logprob
            assert 1 <= len(top) <= most
            assert logprob <= max(top.values())
    for token, top in zip(none.tokens[1:], none.top_logprobs[1:], strict=True):
        assert list(top) == [token]
    # The places of the greedy text: its tokens are the likeliest.
    for position in range(-6, 0):
        top = one.top_logprobs[position]
        assert max(top, key=top.__getitem__) == one.tokens[position]


def test_text_offsets_of_a_stream_behind_a_stop_string(
    client: openai.OpenAI,
) -> None:
    ask: dict[str, Any] = {"model": "tgi", "prompt": PROMPT, "temperature": 0, "logprobs": 0}
    text = client.completions.create(max_tokens=30, **ask).choices[0].text
    stop = text[12:15]  # held back again and again, and matched in the middle of a token
    whole = client.completions.create(stop=[stop, text[3] + "~"], max_tokens=30, **ask)
    chunks = client.completions.create(
        stop=[stop, text[3] + "~"], max_tokens=30, stream=True, **ask
    )
    streamed = [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset]
    assert streamed == whole.choices[0].logprobs.text_offset


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
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"adapter_id": "a", "lora_path": "b"}, "lora_path"),
        ({"regex": "a", "guided_json": {}}, "regex"),
        ({"ebnf": "root ::= ("}, "ebnf"),
        ({"ebnf": ""}, "ebnf"),
        ({"ebnf": "\u00e9 \n ="}, "ebnf"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
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


def test_stream_options_need_a_stream(server: Server) -> None:
    body = {"prompt": "a", "max_tokens": 3, "stream_options": {"include_usage": True}}
    response = requests.post(f"{server.url}/v1/completions", json=body, timeout=30)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stream_options"
