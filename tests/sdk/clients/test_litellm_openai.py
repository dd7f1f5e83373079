"""LiteLLM as a client of the server's OpenAI API, without SageMaker between them."""

import json
from typing import Any

import litellm
import pytest

from tests.sdk.conftest import KEY
from tests.support.servers import Server

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "maxLength": 20}},
            "required": ["location"],
        },
    },
}


def _complete(server: Server, **more: Any) -> Any:
    return litellm.completion(
        model="openai/tgi", api_base=f"{server.url}/v1", api_key=KEY, temperature=0, **more
    )


def test_chat_and_stream(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "What is deep learning?"}], "max_tokens": 60}
    whole = _complete(server, **body).choices[0].message.content
    assert whole.startswith("Deep learning")
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in _complete(server, stream=True, **body)
    ]
    assert "".join(pieces) == whole


def test_tools(server: Server) -> None:
    answer = _complete(server, messages=QUESTION, tools=[WEATHER], tool_choice="required")
    [call, *_] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_current_weather"
    assert "location" in json.loads(call.function.arguments)


def test_structured_output(server: Server) -> None:
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
    answer = _complete(
        server,
        messages=QUESTION,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": schema | {"additionalProperties": False}},
        },
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["legs"], int)


def test_errors_are_the_clients_own(server: Server) -> None:
    with pytest.raises(litellm.BadRequestError, match="messages"):
        _complete(server, messages=[])
