"""Clients of the overload benchmark: one process and one thread for many, so that they cost little.

A process for each kind: `stream_all` keeps as many streams open as the server has places,
`send_all` sends requests beyond them. They read bytes, not JSON, since parsing would take the
processor from the server that they measure. The process gets its kind and its arguments as JSON,
and prints its result as JSON.
"""

import json
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.raw_http import LOOPBACK

# A client that gets no answer gives up.
TIMEOUT_S = 60.0
ROOT = Path(__file__).parents[2]
LAST_CHUNK = b"0\r\n\r\n"
EVENT = b"data:"


@dataclass(slots=True)
class _Exchange:
    """One request: its answer so far, its start, and the time of its last token."""

    socket: socket.socket
    began: float
    received: bytes = b""
    last_token_at: float = 0.0

    @property
    def status(self) -> int:
        """The status of the answer; 0 without one."""
        return int(self.received[9:12] or 0)


@dataclass(slots=True)
class StreamReport:
    """Tokens that came after others, and the seconds between the first and the last of these."""

    num_gaps: int = 0
    gaps_s: float = 0.0
    longest_s: float = 0.0
    statuses: list[int] = field(default_factory=list)


def stream_all(port: int, request: bytes, count: int, seconds: float) -> StreamReport:
    """Keep `count` streams open for a time."""
    report = StreamReport()
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            _begin(selector, port, request)
        while selector.get_map():
            for key, _ in selector.select(TIMEOUT_S):
                if _read(selector, key.data, report) and time.monotonic() < until:
                    _begin(selector, port, request)
    return report


def _read(selector: selectors.BaseSelector, stream: _Exchange, report: StreamReport) -> bool:
    """Read of a stream what has come; return whether it has ended."""
    data = _receive(stream)
    now = time.monotonic()
    if tokens := data.count(EVENT):
        if stream.last_token_at:
            report.num_gaps += tokens
            report.gaps_s += now - stream.last_token_at
            report.longest_s = max(report.longest_s, now - stream.last_token_at)
        stream.last_token_at = now
    if data and not data.endswith(LAST_CHUNK):
        return False
    report.statuses.append(stream.status)
    _end(selector, stream)
    return True


def send_all(
    port: int, request: bytes, count: int, seconds: float, pause_s: float
) -> list[tuple[int, float]]:
    """Let `count` clients ask, each `pause_s` after its last answer; return statuses, seconds."""
    responses: list[tuple[int, float]] = []
    began = time.monotonic()
    due = [began + pause_s * number / count for number in range(count)]
    with selectors.DefaultSelector() as selector:
        while due or selector.get_map():
            now = time.monotonic()
            if now - began > seconds:
                due.clear()
            while due and due[0] <= now:
                due.pop(0)
                _begin(selector, port, request)
            wait_s = max(0.0, due[0] - now) if due else TIMEOUT_S
            for key, _ in selector.select(wait_s):
                if not _receive(key.data):
                    responses.append((key.data.status, time.monotonic() - key.data.began))
                    _end(selector, key.data)
                    due.append(time.monotonic() + pause_s)
    return responses


def _begin(selector: selectors.BaseSelector, port: int, request: bytes) -> None:
    began = time.monotonic()
    connection = socket.create_connection((LOOPBACK, port), timeout=TIMEOUT_S)
    connection.sendall(request)
    connection.setblocking(False)
    selector.register(connection, selectors.EVENT_READ, _Exchange(connection, began))


def _receive(exchange: _Exchange) -> bytes:
    """Return the new bytes; the first ones stay for the status."""
    try:
        data = exchange.socket.recv(65_536)
    except OSError:
        data = b""
    if len(exchange.received) < 12:
        exchange.received += data[:12]
    return data


def _end(selector: selectors.BaseSelector, exchange: _Exchange) -> None:
    selector.unregister(exchange.socket)
    exchange.socket.close()


class Clients:
    """A process of clients; `arguments` are those after the request of the kind's function."""

    def __init__(self, kind: str, port: int, request: bytes, *arguments: float) -> None:
        job = json.dumps([kind, port, request.decode(), *arguments])
        command = [sys.executable, "-m", "benchmarks.overload.clients", job]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)

    def result(self) -> Any:
        """Wait for its end; return what it has seen."""
        return json.loads(self._process.communicate()[0])


def main() -> None:
    """Run the clients that the argument describes."""
    kind, port, request, *arguments = json.loads(sys.argv[1])
    if kind == "stream":
        print(json.dumps(asdict(stream_all(port, request.encode(), *arguments))))
    else:
        print(json.dumps(send_all(port, request.encode(), *arguments)))


if __name__ == "__main__":
    main()
