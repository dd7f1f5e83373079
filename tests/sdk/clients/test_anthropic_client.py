"""Anthropic's own client, streams and tools as it assembles them."""

import json
from typing import Any

import anthropic
import pytest
import requests
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.sdk.conftest import KEY
from tests.support.chats.anthropic_tools import WEATHER
from tests.support.servers import Server

QUESTION: Any = {
    "model": "claude-sonnet",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "extra_body": {"temperature": 0},
}


@pytest.fixture(scope="module")
def client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)


def test_a_message_and_its_stream(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**QUESTION)
    assert whole.stop_reason == "end_turn"
    with client.messages.stream(**QUESTION) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_tools(client: anthropic.Anthropic) -> None:
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(**QUESTION, tools=[WEATHER], tool_choice=choice) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    [call] = answer.content
    assert (call.type, call.name) == ("tool_use", "get_weather")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [], "is_error": True}
    turns = [
        *QUESTION["messages"],
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(**QUESTION | {"messages": turns}, tools=[WEATHER]).usage


def test_counting_and_errors(client: anthropic.Anthropic, server: Server) -> None:
    counted = client.messages.count_tokens(model="a", messages=QUESTION["messages"])
    assert counted.input_tokens > 5
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences"):
        client.messages.create(**QUESTION, stop_sequences=[""])
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(**QUESTION)


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": {"type": "any"}}])
def test_bodies_and_events_are_of_its_types(server: Server, fields: dict[str, Any]) -> None:
    body = {"max_tokens": 200, "temperature": 0, "messages": QUESTION["messages"]} | fields
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    url = f"{server.url}/v1/messages"
    Message.model_validate(requests.post(url, json=body, headers=headers, timeout=60).json())
    text = requests.post(url, json=body | {"stream": True}, headers=headers, timeout=60).text
    events: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    lines = [line.removeprefix("data: ") for line in text.splitlines() if "data: " in line]
    kinds = [json.loads(line)["type"] for line in lines]
    assert kinds[-1] == "message_stop"
    for line, kind in zip(lines, kinds, strict=True):
        if kind != "ping":
            events.validate_json(line)
