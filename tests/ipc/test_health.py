"""The check of a server's health, against real sockets."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from container.ipc.health import NOT_LISTENING, is_healthy, why_unhealthy
from tests.support.services.http_servers import in_background


@contextmanager
def _server(status: int, body: bytes = b"") -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ping" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with in_background(HTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield server.server_port


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False), (500, False)])
def test_only_status_200_is_healthy(status: int, expected: bool) -> None:
    with _server(status) as port:
        assert is_healthy(port) is expected


def test_a_closed_port_is_not_healthy() -> None:
    with _server(200) as port:
        pass
    assert not is_healthy(port)


def test_the_health_check_ignores_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with _server(200) as port:
        assert is_healthy(port)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": "warming up", "error_type": "healthcheck"}', "warming up"),
        (b"a proxy's page", NOT_LISTENING),
        (b"[]", NOT_LISTENING),
        (b"", NOT_LISTENING),
    ],
)
def test_the_reason_is_the_stage_of_the_start(body: bytes, expected: str) -> None:
    with _server(503, body) as port:
        assert why_unhealthy(port) == expected
