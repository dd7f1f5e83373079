"""Bodies and events are what OpenAI's own types say, checked and not only read."""

import json
from typing import Any

import pytest
import requests
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.integration.openai.test_responses import WEATHER as FLAT
from tests.integration.openai.test_tools import WEATHER
from tests.support.servers import Server

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "What is deep learning?"}]}
CHAT: dict[str, Any] = ASK | {"temperature": 0, "max_tokens": 8}
CHATS: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"n": 2, "stop": ["zzz"]},
    {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 200},
    {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 9},
    {"return_token_ids": True},
]
COMPLETIONS: list[dict[str, Any]] = [{}, {"logprobs": 0}, {"logprobs": 2}, {"echo": True, "n": 2}]
RESPONSES: list[dict[str, Any]] = [
    {},
    {"instructions": "Be short.", "metadata": {"a": "b"}, "store": False},
    {"tools": [FLAT], "tool_choice": "required", "max_output_tokens": 200},
    {"top_logprobs": 2},
]


def _check(server: Server, path: str, body: dict[str, Any], whole: Any, event: Any) -> None:
    answer = requests.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    TypeAdapter(whole).validate_python(answer.json())
    adapter = TypeAdapter(event)
    text = requests.post(f"{server.url}{path}", json=body | {"stream": True}, timeout=60).text
    lines = [line for line in text.splitlines() if line.startswith("data: {")]
    assert lines
    for line in lines:
        adapter.validate_python(json.loads(line.removeprefix("data: ")))


@pytest.mark.parametrize("fields", CHATS)
def test_chats(server: Server, fields: dict[str, Any]) -> None:
    _check(server, "/v1/chat/completions", CHAT | fields, ChatCompletion, ChatCompletionChunk)


@pytest.mark.parametrize("fields", COMPLETIONS)
def test_completions(server: Server, fields: dict[str, Any]) -> None:
    body = {"prompt": "a b", "max_tokens": 5, "temperature": 0} | fields
    answer = requests.post(f"{server.url}/v1/completions", json=body, timeout=60)
    Completion.model_validate(answer.json())


@pytest.mark.parametrize("fields", RESPONSES)
def test_responses(server: Server, fields: dict[str, Any]) -> None:
    body = {"model": "m", "input": "What is deep learning?", "temperature": 0} | fields
    _check(server, "/v1/responses", body, Response, ResponseStreamEvent)


def test_models(server: Server) -> None:
    for model in requests.get(f"{server.url}/v1/models", timeout=10).json()["data"]:
        Model.model_validate(model)
