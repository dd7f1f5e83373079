"""Faults of clients: connections that are opened and then neglected, or used at odds."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from benchmarks.chaos.raw_http import LOOPBACK, post
from benchmarks.chaos.trial import Effect, Fault
from tests.support.servers import Server

HEAD = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n"
NUM_MANY = 4096
NUM_SLOW = 200
PIPELINED = post("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2}},
                 {"Connection": "keep-alive"})  # fmt: skip


def network_faults() -> list[Fault]:
    """Return the faults of clients."""
    return [
        Fault(
            "200 half-open connections", lambda server: _keep_open(server, NUM_SLOW, b"", half=True)
        ),
        Fault(
            "200 bodies never sent", lambda server: _keep_open(server, NUM_SLOW, HEAD + b"\r\n{")
        ),
        Fault("200 headers, a byte a second (slowloris)", _slowloris),
        Fault("400 requests pipelined on 8 connections", _pipeline),
        Fault("4096 idle sockets", lambda server: _keep_open(server, NUM_MANY, b"")),
        Fault(
            "4096 sockets with half a request", lambda server: _keep_open(server, NUM_MANY, HEAD)
        ),
        Fault("200 clients that leave in the middle", _leave),
    ]


def _connect(server: Server) -> socket.socket:
    return socket.create_connection((LOOPBACK, server.port), timeout=30)


def _keep_open(server: Server, count: int, sent: bytes, *, half: bool = False) -> Effect:
    """Open connections, send the same on each, and keep them."""
    sockets = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            connection = _connect(server)
            sockets.append(connection)
            connection.sendall(sent)
            if half:
                connection.shutdown(socket.SHUT_WR)
    return Effect(lambda: _close(sockets))


def _close(sockets: list[socket.socket]) -> None:
    for connection in sockets:
        connection.close()


def _slowloris(server: Server) -> Effect:
    sockets = [_connect(server) for _ in range(NUM_SLOW)]
    is_over = threading.Event()

    def trickle() -> None:
        for number in range(len(HEAD)):
            for connection in sockets:
                with contextlib.suppress(OSError):
                    connection.sendall(HEAD[number : number + 1])
            if is_over.wait(1.0):
                return

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()

    def undo() -> None:
        is_over.set()
        thread.join()
        _close(sockets)

    return Effect(undo)


def _pipeline(server: Server) -> Effect:
    """Send 50 requests at once on each of 8 connections; all answers must come."""
    threads = [threading.Thread(target=_pipeline_one, args=(server, 50)) for _ in range(8)]
    for thread in threads:
        thread.start()
    return Effect(lambda: _join(threads))


def _pipeline_one(server: Server, count: int) -> None:
    with _connect(server) as connection:
        connection.sendall(PIPELINED * count)
        connection.settimeout(120)
        received = b""
        while received.count(b"HTTP/1.1 200") < count:
            data = connection.recv(65_536)
            if not data:
                missing = count - received.count(b"HTTP/1.1 200")
                print(f"pipelining: {missing} of {count} answers are missing")
                return
            received += data


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def _leave(server: Server) -> None:
    """Send a request, read a little of the stream, and leave without a word."""
    sent = post("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 5000}})
    leaving: list[Callable[[], None]] = []
    for number in range(NUM_SLOW):
        with contextlib.suppress(OSError):
            connection = _connect(server)
            connection.sendall(sent[: len(sent) - number % 3])
            leaving.append(connection.close)
        if number % 20 == 19:
            time.sleep(0.1)
            while leaving:
                leaving.pop()()
