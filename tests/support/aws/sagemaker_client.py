"""A client that behaves as SageMaker's platform does towards a container.

It gives a connection 250 ms to be accepted and a ping 2 s, sends the platform's headers with
everything, keeps connections, and reads answers in pieces of its own choosing.
"""

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing

ACCEPT_S = 0.25
PING_S = 2.0
ANSWER_S = 60.0
PIECE = 7  # bytes: PayloadParts end where they like

# What the platform adds beside what the caller of InvokeEndpoint gave.
PLATFORM_HEADERS = {
    "User-Agent": "AHC/2.0",
    "Accept": "*/*",
    "X-Amzn-SageMaker-Forwarded-Api": "InvokeEndpoint",
    "X-Amzn-SageMaker-Target-Variant": "AllTraffic",
}


class Answer:
    """A status, headers (case does not matter) and a body read in small pieces."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.pieces = list(_pieces(response))

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def ping(port: int) -> int:
    with closing(_connect(port, PING_S)) as connection:
        connection.request("GET", "/ping", headers={"User-Agent": "AHC/2.0"})
        return connection.getresponse().status


def call(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout_s: float = ANSWER_S,
) -> Answer:
    with closing(_connect(port, timeout_s)) as connection:
        connection.request(method, path, body, PLATFORM_HEADERS | (headers or {}))
        return Answer(connection.getresponse())


def invoke(
    port: int, body: bytes, content_type: str = "application/json", **headers: str
) -> Answer:
    """POST /invocations; `session_id="x"` becomes X-Amzn-SageMaker-Session-Id and so on."""
    own = {"Content-Type": content_type}
    if "accept" in headers:
        own["Accept"] = headers.pop("accept")
    for name, value in headers.items():
        own["X-Amzn-SageMaker-" + name.replace("_", "-").title()] = value
    return call(port, "POST", "/invocations", body, own)


def _connect(port: int, timeout_s: float) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    connection.sock = socket.create_connection(("127.0.0.1", port), timeout=ACCEPT_S)
    connection.sock.settimeout(timeout_s)
    return connection


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := response.read(PIECE):
        yield piece
