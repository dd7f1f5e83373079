"""Anthropic's own client, streams and tools as it assembles them."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.support.servers import ROOT, Server, serving

PYTHON = ROOT / ".venv" / "bin" / "python"
KEY = "the key"
QUESTION: Any = {
    "model": "claude-sonnet",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "extra_body": {"temperature": 0},
}
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather",
    "input_schema": {
        "type": "object",
        "properties": {"location": {"type": "string", "maxLength": 20}},
        "required": ["location"],
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "log", python=PYTHON, API_KEY=KEY) as running:
        yield running


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
