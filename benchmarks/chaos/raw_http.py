"""HTTP by hand: requests as bytes, valid or not, and their answers."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; a status of 0 stands for a connection that was closed without one."""

    status: int
    body: bytes
    seconds: float


def post(path: str, body: object, headers: Mapping[str, str] | None = None) -> bytes:
    """Write a request with a JSON body, or with the bytes of one."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", path, data, headers or {})


def request(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Write a request; its own headers win over those that every request has."""
    all_headers = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    } | dict(headers)
    lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    head = f"{method} {path} HTTP/1.1\r\n{lines}\r\n"
    return head.encode("utf-8", "surrogatepass") + body


def exchange(port: int, sent: bytes, timeout_s: float, *, half_closes: bool = False) -> Answer:
    """Send bytes on a new connection and read one whole answer. Raises TimeoutError.

    `half_closes`: say that no more will be sent.
    """
    began = time.monotonic()
    with socket.create_connection((LOOPBACK, port), timeout=timeout_s) as connection:
        # If it was refused before it was read, the answer says why.
        with contextlib.suppress(OSError):
            connection.sendall(sent)
            if half_closes:
                connection.shutdown(socket.SHUT_WR)
        method = sent.partition(b" ")[0].decode("latin-1")
        status, body = read_answer(connection, method)
    return Answer(status, body, time.monotonic() - began)


def read_answer(connection: socket.socket, method: str = "POST") -> tuple[int, bytes]:
    """Read one answer; that to HEAD has no body, for any length. Raises TimeoutError."""
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        return response.status, response.read()
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        response.close()
