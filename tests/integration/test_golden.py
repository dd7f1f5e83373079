"""The wire format of each shape, as a file: which keys come, in which order, with which types.

Words of the format (`object`, `role`, `finish_reason`, ...) stay; values that vary become
its type, and chunks that look alike are told once. After a change that is meant, run this file with
`UPDATE_GOLDEN=1` in the environment, which writes the files again, and read the diff.
"""

import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.integration.openai.test_tools import WEATHER
from tests.support.servers import Server

GOLDEN = Path(__file__).with_name("golden")
WORDS = {
    "object", "role", "type", "finish_reason", "status", "error_type", "code", "param",
    "truncation", "tool_choice", "effort",
}  # fmt: skip
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}]}
SHORT: dict[str, Any] = ASK | {"max_tokens": 4, "temperature": 0}
CALL: dict[str, Any] = ASK | {"tools": [WEATHER], "tool_choice": "required", "temperature": 0}
CALL["parallel_tool_calls"] = False
GENERATE: dict[str, Any] = {"inputs": "What is", "parameters": {"max_new_tokens": 4}}
DETAILS: dict[str, Any] = {
    "inputs": "What is",
    "parameters": {"max_new_tokens": 4, "details": True, "top_n_tokens": 2},
}
BEST_OF = {"max_new_tokens": 1, "details": True, "best_of": 2, "do_sample": True}
PROMPT: dict[str, Any] = {"prompt": "a", "max_tokens": 3, "temperature": 0}
RESPONSE: dict[str, Any] = {"input": "What is deep learning?", "temperature": 0}
FLAT = {"type": "function"} | WEATHER["function"]
STREAM = {"stream": True}
USAGE = {"stream_options": {"include_usage": True}}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("/generate", GENERATE),
    "generate-details": (
        "/generate",
        {"inputs": "a b", "parameters": DETAILS["parameters"] | {"decoder_input_details": True}},
    ),
    "generate-best-of": (
        "/generate",
        {"inputs": "a", "parameters": BEST_OF},
    ),
    "generate-stream": ("/generate_stream", DETAILS),
    "generate-error": ("/generate", {"inputs": "a", "parameters": {"top_p": 2}}),
    "invocations": ("/invocations", GENERATE),
    "chat": ("/v1/chat/completions", SHORT),
    "chat-logprobs": ("/v1/chat/completions", SHORT | {"logprobs": True, "top_logprobs": 2}),
    "chat-stream": ("/v1/chat/completions", SHORT | STREAM | USAGE),
    "chat-tools": ("/v1/chat/completions", CALL),
    "chat-tools-stream": ("/v1/chat/completions", CALL | STREAM),
    "chat-error": ("/v1/chat/completions", SHORT | {"top_p": 2}),
    "completions": ("/v1/completions", PROMPT | {"logprobs": 1}),
    "completions-stream": ("/v1/completions", PROMPT | STREAM | USAGE),
    "responses": ("/v1/responses", RESPONSE),
    "responses-stream": ("/v1/responses", RESPONSE | STREAM),
    "responses-tools-stream": (
        "/v1/responses",
        RESPONSE | STREAM | {"tools": [FLAT], "tool_choice": "required"},
    ),
    "responses-error": ("/v1/responses", RESPONSE | {"background": True}),
    "tokenize": ("/tokenize", {"inputs": "What is"}),
    "chat-tokenize": ("/chat_tokenize", ASK),
}


def _shape(value: Any, key: str = "") -> Any:
    """Return the part of a value that the format fixes."""
    if isinstance(value, dict):
        if key in ("parameters", "top_logprobs"):  # a schema of ours, a map by token
            return "object"
        return {name: _shape(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [one for one, _ in groupby(_shape(inner, key) for inner in value)]
    if key in WORDS or value is None or isinstance(value, bool):
        return value
    return type(value).__name__


def _read(response: requests.Response) -> Any:
    if not response.headers["content-type"].startswith("text/event-stream"):
        return {"status": response.status_code, "body": _shape(response.json())}
    blocks = [block for block in response.text.split("\n\n") if block]
    events = [_event(block) for block in blocks]
    return {"status": response.status_code, "events": [one for one, _ in groupby(events)]}


def _event(block: str) -> Any:
    *head, data = block.split("\n")
    text = data.removeprefix("data: ")
    event = text if text == "[DONE]" else _shape(json.loads(text))
    return {"head": head, "data": event} if head else event


def test_every_file_has_its_shape() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_the_wire_format_is_as_written(server: Server, name: str) -> None:
    path, body = SHAPES[name]
    response = requests.post(f"{server.url}{path}", json=body, timeout=60)
    got = json.dumps(_read(response), indent=1) + "\n"
    golden = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(got)
    assert got == golden.read_text()
