"""Errors below the routes: paths, methods, and what gunicorn refuses before any route is asked."""

import json
import socket

import pytest
import requests

from tests.support.servers import Server


def _raw(server: Server, request: bytes) -> tuple[int, dict[str, str], dict]:
    """Send bytes as they are; status, headers and JSON body of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(
    ("request_head", "status", "reason"),
    [
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "Line is too large"),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431, "header"),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", 400, "Bad Header"),
        (b"NONSENSE\r\n\r\n", 400, "NONSENSE"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: odd\r\n\r\n", 400, "odd"),
    ],
    ids=["a long path", "a long header", "no header", "no request", "no coding"],
)
def test_malformed_http_is_refused_in_json(
    server: Server, request_head: bytes, status: int, reason: str
) -> None:
    got, headers, body = _raw(server, request_head)
    assert got == status
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    assert body["error_type"] == "validation"
    assert reason in body["error"]


def test_a_broken_chunk_is_refused_in_json(server: Server) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    status, _, body = _raw(server, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert status == 400
    assert "chunk" in body["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", "/generate", 405, "method_not_allowed"),
        ("GET", "/generate", 405, "method_not_allowed"),
        ("DELETE", "/", 405, "method_not_allowed"),
    ],
)
def test_wrong_paths_are_404_and_wrong_methods_405(
    server: Server, method: str, path: str, status: int, kind: str
) -> None:
    answer = requests.request(method, f"{server.url}{path}", timeout=10)
    assert answer.status_code == status
    assert answer.json()["error_type"] == kind
    assert path in answer.json()["error"]
    if status == 405:
        assert "POST" in answer.headers["Allow"]


def test_a_body_that_is_no_json_object_is_refused(server: Server) -> None:
    url = f"{server.url}/generate"
    for body, reason in ((b"{", "not valid JSON"), (b"[]", "an array"), (b"", "empty")):
        answer = requests.post(url, data=body, timeout=10)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]
    answer = requests.post(url, data=b"x", headers={"Content-Type": "text/csv"}, timeout=10)
    assert answer.status_code == 415
    assert "text/csv" in answer.json()["error"]


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "Script-Name", "REMOTE_USER"])
def test_headers_named_like_wsgis_variables_are_nothing_special(server: Server, name: str) -> None:
    for value in ("/other", "/ping", "x"):
        assert requests.get(f"{server.url}/ping", headers={name: value}, timeout=10).ok


@pytest.mark.parametrize("path", ["/generate", "/invocations", "/v1/chat/completions", "/tokenize"])
def test_a_body_that_ends_too_early_is_no_whole_body(server: Server, path: str) -> None:
    body = b'{"inputs": "a", "prompt": "a"}'
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 400 " in answer.splitlines()[0]
    assert f"ended after {len(body)} bytes".encode() in answer
