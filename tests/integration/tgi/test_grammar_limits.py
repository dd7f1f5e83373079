"""Grammars that a server must not follow: each is refused by name, and other requests go on."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support.servers import Server

CHAT = [{"role": "user", "content": "Tell me about Paris."}]
PROMPT = "<|im_start|>user\nTell me about Paris.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def limited(shared_servers: Any) -> Server:
    server: Server = shared_servers.get(GRAMMAR_TIMEOUT="2", GRAMMAR_MEMORY="128")
    return server


def _chain(length: int) -> dict[str, Any]:
    links = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "string"}}}


def _format(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def _tool(schema: object, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema} | more}


LARK = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(4000)) + 'r4000: "a"\n'
ITSELF = {"type": "object", "properties": {"x": {"$ref": "#/properties/x"}}, "required": ["x"]}
SCHEMAS = {
    "a chain of references": _chain(1000),
    "many parts": {"allOf": [{"properties": {f"a{i}": {}}} for i in range(3000)]},
    "brackets": {"type": "string", "pattern": "(" * 3000 + "a" + ")" * 3000},
    "itself": {
        "type": "object",
        "properties": {"x": {"$ref": "#/properties/x"}},
        "required": ["x"],
    },
}
GRAMMARS = {
    "a chain of rules": {"type": "lark", "value": LARK},
    "endless": {"type": "regex", "value": "a*" * 100_000},
    "long": {"type": "regex", "value": "ab?c" * 110_000},
    "states": {"type": "regex", "value": "(a?){500}a{500}"},
    "itself": {"type": "json", "value": {"$ref": "#"}},
}


def _bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    for schema in SCHEMAS.values():
        yield "/v1/chat/completions", {"messages": CHAT, "response_format": _format(schema)}
        yield "/v1/chat/completions", {"messages": CHAT, "tools": [_tool(schema)]}
        yield "/v1/completions", {"prompt": "Hi", "response_format": _format(schema)}
        text = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
        yield "/v1/responses", {"input": "Hi", "text": text}
    for grammar in GRAMMARS.values():
        yield "/generate", {"inputs": "Hi", "parameters": {"grammar": grammar}}
        yield "/invocations", {"messages": CHAT, "response_format": grammar}


class Neighbour(threading.Thread):
    """A client that streams with a harmless grammar, and notes its pauses."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.ends = False
        self.gaps: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        body = {
            "inputs": PROMPT,
            "stream": True,
            "parameters": {
                "max_new_tokens": 60,
                "grammar": {"type": "regex", "value": "[a-z ]{400}"},
            },
        }
        while not self.ends:
            last = time.monotonic()
            url = f"{self.server.url}/generate_stream"
            with requests.post(url, json=body, timeout=60, stream=True) as response:
                for line in response.iter_lines():
                    now = time.monotonic()
                    self.gaps.append(now - last)
                    last = now
                    if b'"error"' in line or response.status_code != 200:
                        self.failures.append(line.decode())


def test_no_grammar_ends_or_stops_the_server(limited: Server) -> None:
    pids = _pids(limited)
    neighbour = Neighbour(limited)
    neighbour.start()
    for path, body in _bodies():
        shortened = body | {"max_tokens": 8} if path != "/generate" else body
        response = requests.post(f"{limited.url}{path}", json=shortened, timeout=60)
        assert response.status_code in (200, 400, 422), (path, response.text[:300])
        if response.status_code != 200:
            assert len(response.content) < 1024
            assert "<state>" not in response.text
    neighbour.ends = True
    neighbour.join()
    assert not neighbour.failures
    assert max(neighbour.gaps) < 2.0  # it was 4 s in one step, or for ever
    assert _pids(limited) == pids
    assert "Traceback" not in limited.log
    for line in limited.log.splitlines():
        assert line.startswith("{"), f"not of the log: {line}"


def _pids(server: Server) -> set[int]:
    return {server.engine().pid, *(frontend.pid for frontend in server.frontends())}


def test_a_too_complex_match_is_a_400_with_the_pattern(limited: Server) -> None:
    schema = {"type": "string", "pattern": r"^(\S+\s*){1,200}$", "minLength": 1500}
    for _ in range(2):
        body = {"messages": CHAT, "max_tokens": 900, "response_format": _format(schema)}
        body |= {"temperature": 0.0, "repetition_penalty": 1.3}
        response = requests.post(f"{limited.url}/v1/chat/completions", json=body, timeout=60)
        assert response.status_code in (200, 400), response.text
        if response.status_code == 400:
            error = response.json()["error"]
            assert error["param"] == "response_format.json_schema.schema"
            assert r"\S" in error["message"]
            assert len(response.content) < 1024


def test_a_disconnect_cancels_the_compilation(limited: Server) -> None:
    with contextlib.suppress(requests.Timeout):  # or it has met its limit of memory before
        requests.post(
            f"{limited.url}/generate",
            json={"inputs": "Hi", "parameters": {"grammar": GRAMMARS["endless"]}},
            timeout=0.5,
        )
    body = {"inputs": "Hi", "parameters": {"grammar": {"type": "choice", "value": ["a", "b"]}}}
    started = time.monotonic()
    assert requests.post(f"{limited.url}/generate", json=body, timeout=60).status_code == 200
    assert time.monotonic() - started < 5


def test_strict_means_no_undeclared_keys(server: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}}
    strict = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    for seed in range(6):
        body = {"messages": CHAT, "response_format": strict, "seed": seed, "temperature": 1.5}
        response = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        content = response.json()["choices"][0]["message"]["content"]
        assert set(json.loads(content)) <= {"a"}


@pytest.mark.parametrize(
    "function",
    [
        {"name": "now"},
        {"name": "now", "description": None, "parameters": None, "strict": None},
        {"name": "now", "parameters": {"type": "object", "properties": {}}},
    ],
)
def test_a_function_without_parameters_takes_none(server: Server, function: dict[str, Any]) -> None:
    body = {
        "messages": CHAT,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 1.5,
    }
    for seed in range(4):
        response = requests.post(
            f"{server.url}/v1/chat/completions", json=body | {"seed": seed}, timeout=60
        )
        [call] = response.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {}


LOOSE = {
    "look-ahead": {"type": "string", "pattern": r"^[a-z](?!b)[a-z.]+@[a-z]+$"},
    "part of a union": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "(?=a)"}]},
    "a 64-bit number": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "an enumeration of null": {"type": "string", "enum": None},
    "any value": True,
    "an unknown target": {"$ref": "#/$defs/none"},
}


@pytest.mark.parametrize("name", LOOSE)
def test_loose_tools_ignore_unsupported_keywords(server: Server, name: str) -> None:
    schema = {"type": "object", "properties": {"a": LOOSE[name]}}
    body = {"messages": CHAT, "tools": [_tool(schema)], "max_tokens": 8}
    response = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    if name not in ("a 64-bit number", "any value"):
        body["tools"] = [_tool(schema, strict=True)]
        response = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert response.status_code == 400
        assert "tools[0].function.parameters" in response.json()["error"]["message"]
