"""Fields of vLLM and SGLang on OpenAI's routes."""

import json
from typing import Any

import openai
import pytest
import requests

from tests.support.servers import Server

QUESTION = [{"role": "user", "content": "What is deep learning?"}]


def _chunks(server: Server, **fields: object) -> list[dict]:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 60, "stream": True} | fields
    answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_every_delta_of_a_text_can_be_printed(server: Server) -> None:
    choices = [chunk["choices"][0] for chunk in _chunks(server)]
    assert all(isinstance(choice["delta"]["content"], str) for choice in choices)
    assert choices[0]["delta"]["role"] == "assistant"
    assert choices[-1]["delta"] == {"content": ""}
    assert choices[-1]["finish_reason"] == "stop"


def test_a_forced_call_opens_without_content(server: Server) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    chunks = _chunks(server, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert (deltas[0]["role"], deltas[0]["content"]) == ("assistant", None)
    assert not any("content" in delta for delta in deltas[1:])


def test_token_ids_and_running_usage(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = _chunks(server, return_token_ids=True, stream_options=options, request_id="mine")
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 60, "return_token_ids": True}
    whole = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    streamed = [i for chunk in chunks[:-1] for i in chunk["choices"][0]["token_ids"]]
    assert streamed == whole["choices"][0]["token_ids"]
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks][-1] == len(streamed)
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-mine"}


def test_fields_of_vllm(client: openai.OpenAI) -> None:
    def ask(**extra: object) -> openai.types.chat.ChatCompletion:
        return client.chat.completions.create(
            model="tgi", messages=QUESTION, temperature=0, max_tokens=60, extra_body=extra
        )

    stopped = ask(stop=["learning"], include_stop_str_in_output=True)
    assert stopped.choices[0].message.content == "Deep learning"
    chosen = ask(structured_outputs={"choice": ["blue", "green"]})
    assert chosen.choices[0].message.content in ("blue", "green")
    cut = ask(truncate_prompt_tokens=5, prompt_logprobs=0)
    assert cut.usage.prompt_tokens == len(cut.model_dump()["prompt_logprobs"]) == 5
    assert "learning" not in ask(bad_words=["learning"]).choices[0].message.content


@pytest.mark.parametrize(
    "fields",
    [
        {"use_beam_search": True},
        {"skip_special_tokens": False},
        {"cache_salt": "a"},
        {"chat_template": "{{ messages }}"},
        {"priority": 1},
        {"stop_regex": "a"},
        {"documents": [{"text": "a"}]},
        {"stream_options": {"include_usage": True}},
        {"adapter_id": "unknown"},
    ],
)
def test_fields_without_effect_are_refused_by_name(server: Server, fields: dict) -> None:
    body = {"messages": QUESTION, "max_tokens": 3} | fields
    answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code in (400, 404)
    [name] = fields
    assert name.removesuffix("_id") in answer.json()["error"]["message"]


PROMPT = "<|im_start|>user\nWhat is deep learning?<|im_end|>\n<|im_start|>assistant\n"


def _complete(server: Server, **fields: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12} | fields
    response = requests.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def test_token_ids_come_back(server: Server) -> None:
    whole = _complete(server, return_token_ids=True)["choices"][0]
    assert len(whole["token_ids"]) == 12
    again = _complete(server, prompt=whole["prompt_token_ids"])["choices"][0]
    assert again["text"] == whole["text"]
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "stream": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body |= {"return_token_ids": True, "stream_options": options, "stop": ["zzz"]}
    lines = requests.post(f"{server.url}/v1/completions", json=body, timeout=60).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert [i for choice in choices for i in choice["token_ids"]] == whole["token_ids"]
    assert choices[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks][-1] == 12
    shown = _complete(server, logprobs=0, return_tokens_as_token_ids=True)["choices"][0]
    names = [f"token_id:{token_id}" for token_id in whole["token_ids"]]
    assert shown["logprobs"]["tokens"] == names


def test_allowed_tokens_and_bad_words(server: Server) -> None:
    whole = _complete(server, return_token_ids=True)["choices"][0]
    allowed = sorted(set(whole["token_ids"][:3]))
    allowed_choice = _complete(server, allowed_token_ids=allowed, return_token_ids=True)["choices"][
        0
    ]
    assert set(allowed_choice["token_ids"]) <= set(allowed)
    words = whole["text"].split()
    assert words[1] not in _complete(server, bad_words=[words[1]])["choices"][0]["text"].split()
    both = " ".join(words[1:3])
    without = _complete(server, bad_words=[both])["choices"][0]["text"]
    assert both not in without


def test_the_prompt_is_cut_and_has_log_probabilities(server: Server) -> None:
    cut = _complete(server, truncate_prompt_tokens=2, prompt_logprobs=1, return_token_ids=True)
    [choice] = cut["choices"]
    assert cut["usage"]["prompt_tokens"] == len(choice["prompt_token_ids"]) == 2
    first, second = choice["prompt_logprobs"]
    assert first is None
    assert str(choice["prompt_token_ids"][1]) in second
    assert _complete(server, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] > 2


def test_a_request_names_itself_and_keeps_its_stop(server: Server) -> None:
    text = _complete(server)["choices"][0]["text"]
    word = text.split()[2]
    with_stop = _complete(server, stop=word, include_stop_str_in_output=True, request_id="mine")
    assert with_stop["id"] == "cmpl-mine"
    assert with_stop["choices"][0]["text"] == text[: text.index(word) + len(word)]
    assert _complete(server, stop=word, no_stop_trim=True)["choices"] == with_stop["choices"]


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "blue|green"}},
        {"structured_outputs": {"grammar": 'root ::= "blue" | "green"'}},
        {"guided_choice": ["blue", "green"]},
        {"guided_regex": "blue|green"},
        {"guided_grammar": 'start: "blue" | "green"'},
        {"regex": "blue|green"},
        {"ebnf": 'root ::= color\ncolor ::= "blue" | "green"'},
    ],
)
def test_structured_output_under_other_names(server: Server, fields: dict[str, Any]) -> None:
    assert _complete(server, **fields)["choices"][0]["text"] in ("blue", "green")


ONE = {
    "type": "object",
    "properties": {"a": {"const": 1}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": ONE}},
        {"structured_outputs": {"json": json.dumps(ONE)}},
        {"guided_json": ONE},
        {"json_schema": json.dumps(ONE)},
    ],
)
def test_a_schema_under_other_names(server: Server, fields: dict[str, Any]) -> None:
    assert json.loads(_complete(server, **fields)["choices"][0]["text"]) == {"a": 1}


def test_any_object(server: Server) -> None:
    fields = {"structured_outputs": {"json_object": True}}
    assert _complete(server, **fields)["choices"][0]["text"].startswith("{")
