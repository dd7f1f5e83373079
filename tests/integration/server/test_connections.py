"""Many connections, slow bodies and slow headers: the server goes on, and /ping answers."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from container.frontend.web.connections import SLOW_BODY_S
from tests.support.servers import Server, SharedServers, wait_for

LIMIT = 16
SHORT = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}
LONG = {"inputs": "Tell me", "parameters": {"max_new_tokens": 90_000}}
SLOW_POST = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture
def small(shared_servers: SharedServers, endless_model: Path) -> Server:
    return shared_servers.get(endless_model, MAX_CONNECTIONS=str(LIMIT))


@contextlib.contextmanager
def _sockets(server: Server, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))
            opened[-1].sendall(sent)
        yield opened


def _post(server: Server) -> requests.Response:
    return requests.post(f"{server.url}/generate", json=SHORT, timeout=30)


def _is_served(server: Server) -> bool:
    try:
        return _post(server).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize("sent", [b"", b"GET /ping HT", b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_idle_connections_are_closed_for_new_ones(small: Server, sent: bytes) -> None:
    with _sockets(small, 3 * LIMIT, sent) as opened:
        assert small.ping().status_code == 200
        assert _post(small).status_code == 200
        opened[0].settimeout(10)
        while opened[0].recv(4096):  # what was answered comes before the end
            pass


def test_slow_bodies_hold_up_neither_health_nor_for_long_others(small: Server) -> None:
    with _sockets(small, LIMIT, SLOW_POST):
        time.sleep(0.5)
        assert small.ping().status_code == 200
        refused = _post(small)
        assert refused.status_code == 503
        assert "MAX_CONNECTIONS" in refused.json()["error"]
        wait_for(lambda: _is_served(small), SLOW_BODY_S + 20)


def test_busy_connections_are_kept_and_health_answers(small: Server) -> None:
    url = f"{small.url}/generate_stream"
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(requests.post(url, json=LONG, stream=True, timeout=60))
            for _ in range(LIMIT)
        ]
        lines = [stream.iter_lines(chunk_size=1) for stream in streams]
        assert all(next(line) for line in lines)
        for _ in range(3):
            assert small.ping().status_code == 200
        assert _post(small).status_code == 503
        for line in lines:
            next(line)
            assert next(line).startswith(b"data: {")
    wait_for(lambda: _is_served(small), 20)
