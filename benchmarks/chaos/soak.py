"""A soak: every kind of request for a long time, among them clients that leave and that err.

Memory, files, processes and blocks at its end are compared with those after a first while.
"""

import contextlib
import socket
import threading
import time
from pathlib import Path

import psutil

from benchmarks.chaos.load import Call, Clients, kinds
from benchmarks.chaos.processes import by_role, num_files
from benchmarks.chaos.raw_http import LOOPBACK, exchange, post
from benchmarks.chaos.trial import Row, counts
from benchmarks.chaos.watch import Watch
from tests.support.servers import Server, serving

NUM_CLIENTS = 8
NUM_TOKENS = 40
# What happens at first is no leak.
WARM_UP = 0.2
BAD = post("/v1/chat/completions", {"messages": "none", "temperature": -1})


def soak(model: Path, folder: Path, seconds: float) -> Row:
    """Run it; the row has what memory and files have grown by since the first while."""
    with serving(folder / "log-soak", model) as server:
        texts, requested = _Texts(), kinds(NUM_TOKENS)
        clients = Clients(
            server.url, NUM_CLIENTS,
            lambda number, num_sent: (requested[number], num_sent % 2 == 0), texts.compare,
        )  # fmt: skip
        ping = Watch(server.url)
        parts = clients, _ErringClient(server.port), ping
        for part in parts:
            part.start()
        time.sleep(seconds * WARM_UP)
        early = _memory(server), _files(server)
        time.sleep(seconds * (1 - WARM_UP))
        late = _memory(server), _files(server)
        for part in parts:
            part.stop()
        leaked = _leaks(server, early, late)
    return Row(
        f"soak of {seconds / 60:.0f} minutes",
        counts(clients.outcomes[True]), counts(clients.outcomes[False]), counts(ping.statuses()),
        None, None, clients.num_lost, texts.num_wrong, leaked, 0, sorted(clients.messages),
    )  # fmt: skip


class _Texts:
    """The first text of each client's stream and plain request, which the next must repeat."""

    def __init__(self) -> None:
        self.num_wrong = 0
        self._texts: dict[tuple[int, bool], str] = {}

    def compare(self, number: int, call: Call) -> None:
        """Count a text that differs."""
        expected = self._texts.setdefault((number, call.is_stream), call.text)
        self.num_wrong += call.text != expected


class _ErringClient:
    """A client that leaves in the midst of a stream, and errs, again and again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._err)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _err(self) -> None:
        leaving = post("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 5000}})
        while not self._is_over.wait(0.2):
            with contextlib.suppress(OSError):
                exchange(self._port, BAD, 30)
            with (
                contextlib.suppress(OSError),
                socket.create_connection((LOOPBACK, self._port), timeout=30) as connection,
            ):
                connection.sendall(leaving)
                connection.recv(200)


def _memory(server: Server) -> int:
    total = 0
    for processes in by_role(server.process.pid).values():
        for process in processes:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _files(server: Server) -> int:
    return num_files([p for ps in by_role(server.process.pid).values() for p in ps])


def _leaks(server: Server, early: tuple[int, int], late: tuple[int, int]) -> str:
    time.sleep(2)  # the blocks of clients that left are freed within a step or two
    leaks = [f"memory {(late[0] / early[0] - 1) * 100:+.1f} %", f"files {late[1] - early[1]:+d}"]
    if blocks := server.metric("engine_blocks_used"):
        leaks.append(f"{blocks:.0f} blocks")
    return ", ".join(leaks)
