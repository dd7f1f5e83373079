"""Halves of surrogate pairs, very long and deeply nested values in any string of any route.

Each is the client's fault: a 4xx of less than 1 KB that shows nothing of the server.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support.servers import Server

MARK = "MARK"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "The weather", "parameters": WEATHER}
CHAT = {
    "model": "tgi",
    "messages": [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"},
    ],
    "stop": ["x"],
    "tools": [{"type": "function", "function": FUNCTION}],
    "chat_template_kwargs": {"a": "b"},
    "response_format": {"type": "json_object", "value": WEATHER},
    "user": "u",
    "max_tokens": 1,
}
GENERATE = {
    "inputs": "Hi",
    "parameters": {
        "stop": ["x"], "adapter_id": "a", "grammar": {"type": "regex", "value": "a"},
        "max_new_tokens": 1,
    },
}  # fmt: skip
PROMPT = {"prompt": ["Hi"], "stop": "x", "model": "m", "max_tokens": 1}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", GENERATE),
    ("/generate_stream", GENERATE),
    ("/", GENERATE),
    ("/invocations", GENERATE),
    ("/tokenize", GENERATE),
    ("/v1/chat/completions", CHAT),
    ("/invocations", CHAT),
    ("/chat/completions", CHAT),
    ("/chat_tokenize", CHAT),
    ("/v1/completions", PROMPT),
    ("/invocations", PROMPT),
    ("/v1/responses", {"input": "Hi", "instructions": "x", "model": "m", "max_output_tokens": 1}),
    ("/v1/embeddings", {"input": ["a"], "model": "m"}),
    ("/embed", {"inputs": "a", "prompt_name": "p"}),
    ("/rerank", {"query": "a", "texts": ["b"]}),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ("/adapters", {"name": "a", "src": "/b"}),
]


def _each_string_marked(value: Any) -> Iterator[Any]:
    """A copy of a body for each string in it, keys too, with a mark in that string."""
    if isinstance(value, str):
        yield f"{value}{MARK}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for changed in _each_string_marked(item):
                yield [*value[:index], changed, *value[index + 1 :]]
    elif isinstance(value, dict):
        yield value | {f"more{MARK}": 1}
        for key, item in value.items():
            for changed in _each_string_marked(item):
                yield value | {key: changed}


def _with_halves(body: Any) -> Iterator[bytes]:
    text = json.dumps(body)
    yield text.encode().replace(MARK.encode(), b"\xed\xa0\x80")
    yield text.replace(MARK, "\\ud800").encode()
    yield text.replace(MARK, "\\uDFFF").encode("utf-16")
    yield text.encode("utf-16-le").replace(MARK.encode("utf-16-le"), b"\x00\xd8")
    yield codecs.BOM_UTF8 + text.encode().replace(MARK.encode(), b"\xed\xbf\xbf")


def _check(answer: requests.Response, subject: object) -> None:
    shown = f"{subject!r:.200}: {answer.status_code} {answer.text[:300]}"
    assert 400 <= answer.status_code < 500, shown
    assert len(answer.content) < 1024, shown
    assert "Traceback" not in answer.text, shown
    assert ".py" not in answer.text, shown


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_half_a_character_in_any_string_is_refused(server: Server, path: str, body: dict) -> None:
    with requests.Session() as session:
        for marked in _each_string_marked(body):
            for data in _with_halves(marked):
                headers = {"Content-Type": "application/json"}
                _check(session.post(f"{server.url}{path}", data, headers=headers, timeout=60), data)


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_values_of_any_depth_are_no_fault_of_the_server(
    server: Server, path: str, body: dict
) -> None:
    """Near Python's limit of recursion the parser still reads what later code cannot write."""
    with requests.Session() as session:
        for marked in _each_string_marked(body):
            for depth in (300, 900, 930, 950, 970, 990):
                deep = "[" * depth + "]" * depth
                data = re.sub(f'"[^"]*{MARK}"', deep, json.dumps(marked))
                headers = {"Content-Type": "application/json"}
                answer = session.post(f"{server.url}{path}", data, headers=headers, timeout=60)
                shown = f"{marked!r:.300} {depth}: {answer.status_code} {answer.text[:300]}"
                assert answer.status_code < 500, shown
                assert answer.ok or len(answer.content) < 1024, shown


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", b"a\xed\xa0\x80"),
        ("text/plain", "a".encode("utf-16")),
        ("text/csv", b"inputs\n\xed\xa0\x80\n"),
        ("text/csv", b'inputs\n"a\rb\x00'),
        ("text/csv", b"question\na\n"),
    ],
)
def test_other_bodies_that_are_no_text_are_refused(server: Server, kind: str, body: bytes) -> None:
    url, headers = f"{server.url}/invocations", {"Content-Type": kind}
    answer = requests.post(url, body, headers=headers, timeout=60)
    if b"\x00" in body:
        assert answer.status_code < 500
    else:
        _check(answer, body)


def test_half_a_character_in_a_record_is_that_records_error(server: Server) -> None:
    lines = [b'{"inputs": "a", "parameters": {"max_new_tokens": 1}}', b'{"inputs": "\xed\xa0\x80"}']
    lines += [b'{"inputs": "\\ud800"}', b'"\\ud800"']
    headers = {"Content-Type": "application/jsonlines"}
    url = f"{server.url}/invocations"
    answer = requests.post(url, b"\n".join(lines), headers=headers, timeout=60)
    assert answer.status_code == 200
    first, *others = answer.text.splitlines()
    assert "generated_text" in first
    assert all("error" in json.loads(other) for other in others)


LONG = "ä\x01" * 3000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"chat_template_kwargs": {"a": "b"}, LONG: 1, "n": LONG}),
        ("/v1/chat/completions", CHAT | {"logit_bias": {LONG: 1}}),
        ("/v1/chat/completions", CHAT | {"tool_choice": LONG}),
        ("/v1/chat/completions", CHAT | {"reasoning_effort": {LONG: LONG}}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": LONG, "content": {LONG: 1}}]}),
        ("/v1/completions", PROMPT | {"prompt": "a", "n": 10**4000}),
        ("/generate", GENERATE | {"parameters": {"grammar": {"type": LONG}}}),
        ("/generate", GENERATE | {"parameters": {"adapter_id": LONG}}),
        ("/generate", GENERATE | {"parameters": {"seed": 10**4000}}),
        ("/v1/responses", {"input": [{"type": LONG, "role": LONG}]}),
        ("/" + LONG, GENERATE),
    ],
)
def test_long_texts_do_not_come_back(server: Server, path: str, body: dict) -> None:
    _check(requests.post(f"{server.url}{path}", json=body, timeout=60), path)


def test_long_headers_do_not_come_back(server: Server) -> None:
    long = "x" * 8000
    for name in ("Content-Type", "Accept", "X-Amzn-SageMaker-Adapter-Identifier"):
        body, headers = json.dumps(GENERATE), {"Content-Type": "application/json"} | {name: long}
        _check(requests.post(f"{server.url}/invocations", body, headers=headers, timeout=60), name)
