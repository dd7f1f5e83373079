"""Anthropic's messages over the wire; tests/sdk has their own client."""

import json
from typing import Any

import pytest
import requests

from tests.support.chats.anthropic_tools import WEATHER
from tests.support.servers import Server

QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is deep learning?"}],
    "max_tokens": 60,
    "temperature": 0,
}
CALL = QUESTION | {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 200}


def _ask(server: Server, path: str = "/v1/messages", **body: Any) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


def _events(response: requests.Response) -> list[dict[str, Any]]:
    events = []
    for block in response.text.split("\n\n")[:-1]:
        head, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        events.append(event)
    return events


def _assembled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a client puts together of a stream's events."""
    blocks: list[dict[str, Any]] = []
    partial = ""
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
            partial = ""
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "input_json_delta":
                partial += delta["partial_json"]
            else:
                key = delta["type"].removesuffix("_delta")
                blocks[-1][key] += delta[key]
        elif event["type"] == "content_block_stop" and partial:
            blocks[-1]["input"] = json.loads(partial)
    return blocks


def _without_ids(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in block.items() if key != "id"} for block in blocks]


def test_a_whole_answer(server: Server) -> None:
    answer = _ask(server, **QUESTION, model="claude-sonnet").json()
    assert (answer["type"], answer["role"], answer["model"]) == (
        "message", "assistant", "claude-sonnet",
    )  # fmt: skip
    [block] = answer["content"]
    assert block["type"] == "text"
    assert block["text"].startswith("Deep learning")
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    usage = answer["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] > 5
    assert usage["output_tokens"] > 5


@pytest.mark.parametrize("body", [QUESTION, CALL], ids=["text", "call"])
def test_a_stream_has_the_same_content(server: Server, body: dict[str, Any]) -> None:
    whole = _ask(server, **body).json()
    response = _ask(server, **body, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = _events(response)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert _without_ids(_assembled(events)) == _without_ids(whole["content"])
    assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"]
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_a_call_and_its_result(server: Server) -> None:
    answer = _ask(server, **CALL).json()
    assert answer["stop_reason"] == "tool_use"
    call = answer["content"][-1]
    assert (call["type"], call["name"]) == ("tool_use", "get_weather")
    assert "location" in call["input"]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "21 degrees"}
    turns = [
        *QUESTION["messages"],
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    following = _ask(server, **QUESTION | {"messages": turns}, tools=[WEATHER])
    assert following.status_code == 200, following.text


def test_a_named_tool_alone(server: Server) -> None:
    choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    answer = _ask(server, **CALL | {"tool_choice": choice}).json()
    assert [block["name"] for block in answer["content"]] == ["get_weather"]


def test_a_cut_call_is_an_object(server: Server) -> None:
    answer = _ask(server, **CALL | {"max_tokens": 9}).json()
    assert answer["stop_reason"] == "max_tokens"
    assert all(isinstance(block["input"], dict) for block in answer["content"])


def test_the_stop_sequence_is_named(server: Server) -> None:
    answer = _ask(server, **QUESTION, stop_sequences=["zzz", "learning"]).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "learning")
    assert answer["content"][0]["text"] == "Deep "


def test_more_tokens_than_fit_fill_the_context(shared_servers, endless_model) -> None:
    server = shared_servers.get(endless_model, MAX_TOTAL_TOKENS="64", MAX_INPUT_TOKENS="40")
    answer = _ask(server, **QUESTION | {"max_tokens": 32000}).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert answer["usage"]["output_tokens"] + answer["usage"]["input_tokens"] == 64


def test_tokens_are_counted_as_they_are_used(server: Server) -> None:
    system = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
    body = QUESTION | {"system": system, "tools": [WEATHER]}
    counted = _ask(server, "/v1/messages/count_tokens", **body).json()
    usage = _ask(server, **body).json()["usage"]
    used = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert counted == {"input_tokens": used}


def test_the_last_assistant_turn_is_continued(server: Server) -> None:
    whole = _ask(server, **QUESTION).json()["content"][0]["text"]
    start = "Deep learning is a"
    turns = [*QUESTION["messages"], {"role": "assistant", "content": start}]
    rest = _ask(server, **QUESTION | {"messages": turns}).json()["content"][0]["text"]
    assert start + rest == whole


def test_output_config_holds_a_schema(server: Server) -> None:
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
    form = {"type": "json_schema", "schema": schema}
    answer = _ask(server, **QUESTION, output_config={"format": form}).json()
    assert "legs" in json.loads(answer["content"][0]["text"])


@pytest.mark.parametrize(
    "shape",
    [
        {"system": "Be short."},
        {"anthropic_version": "bedrock-2023-05-31"},
        {"stop_sequences": ["zzz"]},
        {"tools": [WEATHER]},
        {"thinking": {"type": "disabled"}},
    ],
)
def test_invocations_knows_the_shape(server: Server, shape: dict[str, Any]) -> None:
    assert _ask(server, "/invocations", **QUESTION, **shape).json()["type"] == "message"
    events = _events(_ask(server, "/invocations", **QUESTION, **shape, stream=True))
    assert events[-1]["type"] == "message_stop"


def test_invocations_answers_errors_in_the_shape(server: Server) -> None:
    response = _ask(server, "/invocations", **QUESTION, system=[{"type": "image"}])
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": {}}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [PDF]}]}, "messages[0].content[0].source.type"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].source.url"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "content[0].type"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice"),
    ({"thinking": {"type": "enabled", "budget_tokens": 60}}, "thinking.budget_tokens"),
    ({"container": "c"}, "container"),
]


@pytest.mark.parametrize(("change", "field"), BAD)
def test_an_invalid_field_is_named(server: Server, change: dict[str, Any], field: str) -> None:
    response = _ask(server, **QUESTION | change)
    assert response.status_code == 400
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert field in body["error"]["message"]


def test_an_error_of_the_route_has_the_form_too(server: Server) -> None:
    answer = requests.get(f"{server.url}/v1/messages", timeout=10)
    assert answer.status_code == 405
    assert answer.json()["type"] == "error"
