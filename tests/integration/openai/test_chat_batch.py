"""Chats in batches, in the form of vLLM's `/v1/chat/completions/batch`."""

import json
from typing import Any

import pytest
import requests
from openai.types.chat import ChatCompletion

from tests.integration.openai.test_tools import WEATHER
from tests.support.servers import Server

PATH = "/v1/chat/completions/batch"
QUESTIONS = ["What is deep learning?", "Name a colour.", "What is the weather in Paris?"]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]
ASK: dict[str, Any] = {"messages": CHATS, "temperature": 0, "max_tokens": 12}


def _post(server: Server, body: dict[str, Any], path: str = PATH) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize(
    "fields",
    [{}, {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}, {"temperature": 1.0}],
)
def test_each_conversation_has_the_answer_that_it_has_alone(
    server: Server, fields: dict[str, Any]
) -> None:
    ask = ASK | {"seed": 5} | fields
    answer = _post(server, ask)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    ChatCompletion.model_validate(whole)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    prompt_tokens = 0
    for chat, choice in zip(CHATS, whole["choices"], strict=True):
        alone = _post(server, ask | {"messages": chat}, "/v1/chat/completions").json()
        assert choice | {"index": 0} == alone["choices"][0]
        prompt_tokens += alone["usage"]["prompt_tokens"]
    assert whole["usage"]["prompt_tokens"] == prompt_tokens


def test_the_options_of_chats_hold_for_each(server: Server) -> None:
    choices = {"structured_outputs": {"choice": ["yes", "no"]}}
    answers = _post(server, ASK | choices).json()["choices"]
    assert {answer["message"]["content"] for answer in answers} <= {"yes", "no"}
    tools = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 200}
    for answer in _post(server, ASK | tools).json()["choices"]:
        json.loads(answer["message"]["tool_calls"][0]["function"]["arguments"])


def test_a_batch_is_reached_through_invocations(server: Server) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": f"route={PATH}"}
    answer = requests.post(f"{server.url}/invocations", json=ASK, headers=headers, timeout=60)
    assert len(answer.json()["choices"]) == len(CHATS)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"messages": []}, "messages"),
        ({"messages": [CHATS[0], []]}, "messages[1]"),
        ({"messages": [CHATS[0], [{"role": "user"}]]}, "messages[1][0].content"),
        ({"messages": CHATS[0]}, "messages"),
        ({"messages": CHATS[:1] * 40}, "messages"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(
    server: Server, fields: dict[str, Any], field: str
) -> None:
    answer = _post(server, ASK | fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(field)
