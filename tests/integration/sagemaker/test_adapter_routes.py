"""Every route that takes `model`, `adapter_id` or the adapter header follows one rule."""

import json
from typing import Any

import pytest
import requests

from tests.support.servers import Server

HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
PROMPT = "Deep learning is"
# Each route that takes `model` or `adapter_id`: its body, and the field that names an adapter.
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
ITEMS = {"input": "Hi", "max_output_tokens": 8, "temperature": 0}
TEXT = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
GENERATE = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
ROUTES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", CHAT, "model"),
    ("/v1/chat/completions", CHAT | {"stream": True}, "model"),
    ("/openai/v1/chat/completions", CHAT, "model"),
    ("/chat/completions", CHAT, "model"),
    ("/v1/completions", TEXT, "model"),
    ("/v1/responses", ITEMS, "model"),
    ("/v1/responses", ITEMS | {"stream": True}, "model"),
    ("/chat_tokenize", CHAT, "model"),
    ("/generate", GENERATE, "adapter_id"),
    ("/generate_stream", GENERATE, "adapter_id"),
    ("/", GENERATE, "adapter_id"),
    ("/tokenize", GENERATE, "adapter_id"),
    ("/invocations", GENERATE, "adapter_id"),
    ("/invocations", CHAT, "model"),
    ("/invocations", TEXT, "model"),
]
# Tokens do not depend on the adapter.
TOKENS = ("/chat_tokenize", "/tokenize")
ROUTE_IDS = [
    f"{path} {'stream ' if body.get('stream') else ''}{field}" for path, body, field in ROUTES
]


def _post(
    server: Server, path: str, body: dict, field: str, name: str | None = None, header: str = ""
) -> requests.Response:
    if name is not None and field == "adapter_id":
        body = body | {"parameters": body["parameters"] | {field: name}}
    elif name is not None:
        body = body | {field: name}
    headers = {HEADER: header} if header else {}
    return requests.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)


def _texts(answer: requests.Response) -> list[object]:
    """The texts in an answer, without the ids and times that differ between two requests."""
    assert answer.ok, answer.text
    lines = answer.text.splitlines()
    events = [line.removeprefix("data:") for line in lines if line.startswith("data:")]
    bodies = [json.loads(event) for event in events if "[DONE]" not in event]
    return _strings(bodies or [answer.json()])


def _strings(value: object) -> list[object]:
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    if isinstance(value, dict):
        return [
            text
            for key, item in value.items()
            for text in ([item] if isinstance(item, str) and key in TEXT_KEYS else _strings(item))
        ]
    return []


TEXT_KEYS = ("content", "text", "delta", "generated_text", "templated_text")


@pytest.mark.parametrize(("path", "body", "field"), ROUTES, ids=ROUTE_IDS)
def test_a_route_uses_the_adapter_of_its_body_or_of_the_header(
    lora: Server, path: str, body: dict, field: str
) -> None:
    base = _texts(_post(lora, path, body, field))
    red = _texts(_post(lora, path, body, field, "red"))
    assert red == _texts(_post(lora, path, body, field, header="red"))
    assert red == _texts(_post(lora, path, body, field, "red", header="red"))
    blue = _texts(_post(lora, path, body, field, "blue"))
    assert (base == red == blue) if path in TOKENS else base != red != blue != base


@pytest.mark.parametrize(("path", "body", "field"), ROUTES, ids=ROUTE_IDS)
def test_a_route_refuses_an_unknown_adapter(
    lora: Server, path: str, body: dict, field: str
) -> None:
    refusals = [_post(lora, path, body, field, name, header="green") for name in (None, "green")]
    if field != "model":
        refusals.append(_post(lora, path, body, field, "green"))
    for refused in refusals:
        assert refused.status_code == 404
        assert "'green' is not known" in refused.text
        assert "red, blue" in refused.text


MODEL_ROUTES = [route for route in ROUTES if route[2] == "model"]


@pytest.mark.parametrize(
    ("path", "body", "field"), MODEL_ROUTES, ids=[path for path, _, _ in MODEL_ROUTES]
)
def test_a_model_name_that_no_adapter_has_means_the_served_model(
    lora: Server, path: str, body: dict, field: str
) -> None:
    base = _texts(_post(lora, path, body, field))
    for name in ("gpt-4o", "org/my-model", "green"):
        assert _texts(_post(lora, path, body, field, name)) == base
    for name in ("Red", "org/red", "blu", "bleu"):
        refused = _post(lora, path, body, field, name)
        assert refused.status_code == 404
        assert f"model {name!r} is not known" in refused.text
        assert "red, blue" in refused.text


@pytest.mark.parametrize(("path", "body", "field"), ROUTES, ids=ROUTE_IDS)
def test_a_route_refuses_a_header_and_a_body_that_disagree(
    lora: Server, path: str, body: dict, field: str
) -> None:
    refused = _post(lora, path, body, field, "red", header="blue")
    is_openai = field == "model" and path != "/chat_tokenize"
    assert refused.status_code == (400 if is_openai else 422)
    assert f"`{field}` is 'red', but the header {HEADER} is 'blue'" in refused.text
