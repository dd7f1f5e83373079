"""What /invocations and the server as a whole refuse, and how."""

import contextlib
import http.client
import json
import re
import socket
from pathlib import Path

import pytest
import requests

from tests.support.servers import Server, serving, wait_for

MESSAGES = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
GENERATE = {"inputs": "Hello", "parameters": {"max_new_tokens": 5}}


def _send(server: Server, body: bytes, content_type: str | None) -> requests.Response:
    headers = {"Content-Type": content_type} if content_type else {}
    return requests.post(f"{server.url}/invocations", data=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/json; charset=utf-8", "application/vnd.x+json"],
)
def test_json_content_types_are_read(server: Server, content_type: str | None) -> None:
    assert _send(server, json.dumps(GENERATE).encode(), content_type).status_code == 200


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b"", "application/json", 400, "empty"),
        (b"{", "application/json", 400, "not valid JSON"),
        (b"\xff\xfe\x00", "application/json", 400, "not valid JSON"),
        (b"[" * 100_000, "application/json", 400, "not valid JSON"),
        (b'{"inputs": "\\ud800"}', "application/json", 400, "lone surrogate"),
        (b'{"messages": [], "model": "\\uD83D"}', "application/json", 400, "lone surrogate"),
        (b"[1]", "application/json", 400, "must be a JSON object"),
        (b"{}", "application/json", 400, "none of `inputs`, `messages` and `prompt`"),
        (b"a,b", "application/zip", 415, "application/zip"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "Content-Type: application/json"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_bodies(server: Server, body: bytes, content_type: str, status: int, text: str) -> None:
    response = _send(server, body, content_type)
    assert response.status_code == status
    assert text in response.json()["error"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/invocations")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "26214401")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert b"PAYLOAD_LIMIT allows: 26214400 bytes" in answer.read()


def test_a_chunked_body_over_the_limit_is_refused(server: Server) -> None:
    chunks = (b"x" * 100_000 for _ in range(270))
    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{server.url}/generate", data=chunks, headers=headers, timeout=60)
    assert response.status_code == 413


def test_a_broken_chunked_body_is_a_400(server: Server) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head + b"zz\r\n{}\r\n0\r\n\r\n")
        assert b" 400 " in raw.recv(100)


def test_health_answers_get_and_post(server: Server) -> None:
    assert requests.get(f"{server.url}/ping", timeout=10).status_code == 200
    assert requests.post(f"{server.url}/ping", timeout=10).status_code == 200


def test_whole_surrogate_pairs_are_text(server: Server) -> None:
    body = b'{"inputs": "\\ud83c\\udf89", "parameters": {"max_new_tokens": 1}}'
    assert _send(server, body, "application/json").status_code == 200


def test_unknown_fields_are_ignored(server: Server) -> None:
    assert requests.post(
        f"{server.url}/invocations", json=GENERATE | {"extra": 1}, timeout=60
    ).status_code == 200  # fmt: skip


def test_a_body_with_both_shapes_is_a_generate_request(server: Server) -> None:
    answer = requests.post(f"{server.url}/invocations", json=GENERATE | MESSAGES, timeout=60)
    assert "generated_text" in answer.json()[0]


def test_routing_problems_are_json_in_the_paths_dialect(server: Server) -> None:
    missing = requests.get(f"{server.url}/nope", timeout=5)
    assert (missing.status_code, missing.json()["error_type"]) == (404, "not_found")
    wrong = requests.get(f"{server.url}/v1/chat/completions", timeout=5)
    assert wrong.status_code == 405
    assert wrong.json()["error"]["type"] == "invalid_request_error"
    assert "POST" in wrong.headers["Allow"]


def test_garbage_on_the_socket_does_not_hurt(server: Server) -> None:
    for garbage in (
        b"\x00\x01\x02\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.sendall(garbage)
            raw.recv(1000)
    assert server.ping().status_code == 200


def test_open_routes(server: Server) -> None:
    assert server.ping().content == b""
    assert requests.get(f"{server.url}/health", timeout=5).status_code == 200
    info = requests.get(f"{server.url}/info", timeout=5).json()
    assert info["max_total_tokens"] == 2048
    assert info["model_dtype"] == "float32"
    metrics = requests.get(f"{server.url}/metrics", timeout=5)
    assert metrics.headers["content-type"].startswith("text/plain")
    for name in ("tgi_request_count", "tgi_request_duration_bucket", "tgi_queue_size"):
        assert re.search(rf"^{name}[ {{]", metrics.text, re.M), name


def test_messages_only_mode_with_key_and_two_frontends(tmp_path: Path) -> None:
    settings = {"MESSAGES_API_ENABLED": "true", "API_KEY": "s3cret", "WORKERS": "2"}
    with serving(tmp_path / "log", **settings) as server:
        url, key = f"{server.url}/invocations", {"Authorization": "Bearer s3cret"}
        assert server.ping().status_code == 200
        assert requests.post(url, json=MESSAGES, timeout=60).status_code == 401
        for _ in range(6):
            answer = requests.post(url, json=MESSAGES, headers=key, timeout=60)
            assert answer.json()["object"] == "chat.completion"
        refused = requests.post(url, json=GENERATE, headers=key, timeout=60)
        assert refused.status_code == 400
        assert "MESSAGES_API_ENABLED" in refused.json()["error"]["message"]
        assert len(server.frontends()) == 2
        wait_for(lambda: server.metric("tgi_request_success") == 6, 20)
        assert "s3cret" not in server.log


def test_generate_only_mode_and_limits(tmp_path: Path) -> None:
    settings = {"MESSAGES_API_ENABLED": "false", "MAX_TOTAL_TOKENS": "40", "MAX_INPUT_TOKENS": "20"}
    with serving(tmp_path / "log", **settings) as server:
        url = f"{server.url}/invocations"
        refused = requests.post(url, json=MESSAGES, timeout=60)
        assert refused.status_code == 422
        assert "MESSAGES_API_ENABLED" in refused.json()["error"]
        assert requests.post(url, json=GENERATE, timeout=60).status_code == 200
        long = requests.post(url, json={"inputs": "word " * 30}, timeout=60)
        assert "`inputs` must have less than 20 tokens" in long.json()["error"]
        much = {"inputs": "Hello", "parameters": {"max_new_tokens": 40}}
        assert "must be <= 40" in requests.post(url, json=much, timeout=60).json()["error"]


ROUTED: list[tuple[str, dict, str]] = [
    ("route=/v1/chat/completions", MESSAGES, "choices"),
    ("route=/v1/completions", {"prompt": "a", "max_tokens": 2}, "choices"),
    ("trace=1,route=/v1/responses", {"input": "a", "max_output_tokens": 2}, "output"),
    ("route=/v1/messages;x=2", MESSAGES, "stop_reason"),
    ("route=/v1/messages/count_tokens", MESSAGES, "input_tokens"),
    ("route=/generate", GENERATE, "generated_text"),
]


@pytest.mark.parametrize(("attributes", "body", "key"), ROUTED)
def test_a_custom_attribute_chooses_the_route(
    server: Server, attributes: str, body: dict, key: str
) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": attributes}
    response = requests.post(f"{server.url}/invocations", json=body, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    assert key in response.json()
    assert response.headers["X-Amzn-SageMaker-Custom-Attributes"] == attributes


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/invocations", "/adapters", "/v1/models", "/ping", "/../v1/x"]
)
def test_a_route_that_takes_no_body_is_refused(server: Server, path: str) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": f"route={path}"}
    response = requests.post(
        f"{server.url}/invocations", json=MESSAGES, headers=headers, timeout=60
    )
    assert response.status_code == 400
    assert f"route={path}" in response.text


def test_errors_of_a_chosen_route_have_its_form(server: Server) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "route=/v1/messages"}
    response = requests.post(f"{server.url}/invocations", json={}, headers=headers, timeout=60)
    assert (response.status_code, response.json()["type"]) == (400, "error")


def test_other_custom_attributes_choose_nothing(server: Server) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "route=blue,en-route=/v1/x"}
    response = requests.post(
        f"{server.url}/invocations", json=GENERATE, headers=headers, timeout=60
    )
    assert response.status_code == 200
