"""Answers of the server come back as history, on a template that takes little."""

from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.chats.chat_templates import TEMPLATES
from tests.support.servers import Server, SharedServers

QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "maxLength": 20}},
            "required": ["location"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def strict(shared_servers: SharedServers, tmp_path_factory: pytest.TempPathFactory) -> Server:
    path: Path = tmp_path_factory.mktemp("strict") / "template.jinja"
    path.write_text(TEMPLATES["ids of nine, turns alternate"])
    return shared_servers.get(TOKENIZER_CONFIG_PATH=str(path))


def _post(server: Server, path: str, **body: Any) -> dict[str, Any]:
    response = requests.post(f"{server.url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("max_tokens", [*range(8, 40, 4), 120])
def test_calls_that_were_cut_anywhere_are_accepted(strict: Server, max_tokens: int) -> None:
    ask: dict[str, Any] = {"messages": QUESTION, "tools": [WEATHER], "temperature": 1.2, "seed": 3}
    answer = _post(
        strict, "/v1/chat/completions", tool_choice="required", max_tokens=max_tokens, **ask
    )
    message = answer["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"sunny {index}"}
        for index, call in enumerate(message.get("tool_calls", []))
    ]
    for following in ([], [{"role": "user", "content": "And tomorrow?"}]):
        history = [*QUESTION, message, *results, *following]
        prompt = _post(strict, "/chat_tokenize", messages=history)["templated_text"]
        assert all(f"sunny {index}" in prompt for index in range(len(results)))
        _post(strict, "/v1/chat/completions", messages=history, tools=[WEATHER], max_tokens=2)


@pytest.mark.parametrize("arguments", ["null", '["Rome"]', "", "Rome", None, {"city": "Rome"}])
def test_arguments_that_are_no_object_are_accepted(strict: Server, arguments: Any) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]
    prompt = _post(strict, "/chat_tokenize", messages=messages)["templated_text"]
    assert ("Rome" in prompt) == ("Rome" in str(arguments))


def test_an_answer_that_was_cut_in_its_thoughts_is_accepted(strict: Server) -> None:
    answer = {"role": "assistant", "content": None, "reasoning_content": "Well"}
    for messages in ([*QUESTION, answer], [*QUESTION, answer, *QUESTION]):
        _post(strict, "/v1/chat/completions", messages=messages, max_tokens=2)


def test_a_developer_is_heard(strict: Server) -> None:
    messages = [{"role": "developer", "content": "be brief"}, *QUESTION]
    prompt = _post(strict, "/chat_tokenize", messages=messages)["templated_text"]
    assert "be brief" in prompt
