"""Answers of a model's server that is lost, or whose client leaves, while they are forwarded."""

import http.client
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from container.frontend.multi_model.model_server import ModelServer
from container.frontend.multi_model.proxied_response import ProxiedResponse
from container.frontend.web.error_responses import ClientDisconnected

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def _model(sent: bytes | None) -> Iterator[ModelServer]:
    """A model's server that sends this and closes; None: nothing until its client goes."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                if sent is None:
                    assert connection.recv(4096) == b""
                else:
                    connection.sendall(sent)

        answered = thread.submit(answer)
        process = SimpleNamespace(poll=lambda: None)
        yield ModelServer("m", "", listener.getsockname()[1], process, None)
        answered.result(10)


def _ask(model: ModelServer, client: socket.socket | None = None) -> ProxiedResponse:
    return ProxiedResponse(model, "POST", "/invocations", b"", {}, client)


def test_a_stream_whose_server_is_lost_ends_with_an_error() -> None:
    with _model(HEAD % b"text/event-stream" + b"3\r\nabc\r\n") as model:
        first, *rest = _ask(model).chunks()
    assert first == b"abc"
    assert b"".join(rest).startswith(b'\n\ndata: {"error":"model \'m\' does not answer')


def test_a_lost_answer_that_is_no_stream_is_cut() -> None:
    with _model(HEAD % b"application/json" + b"3\r\nabc\r\n") as model:
        chunks = _ask(model).chunks()
        assert next(chunks) == b"abc"
        with pytest.raises(http.client.IncompleteRead):
            next(chunks)


def test_a_client_that_leaves_ends_the_models_work() -> None:
    client, other_end = socket.socketpair()
    other_end.close()
    with client, _model(None) as model, pytest.raises(ClientDisconnected):
        _ask(model, client)
