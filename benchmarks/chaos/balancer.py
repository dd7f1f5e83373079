"""A tiny balancer over two servers, and a rolling restart behind it in which no request may fail.

It forwards bytes to the servers that were healthy at its last look, one after another. SIGTERM goes
to a server once the balancer no longer sends to it, as a platform does it.
"""

import contextlib
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos.load import Call, kinds
from benchmarks.chaos.raw_http import LOOPBACK
from benchmarks.chaos.trial import Row
from benchmarks.chaos.watch import Watch
from tests.support.servers import Server, spawn

NUM_CLIENTS = 16
NUM_TOKENS = 60
NOTICED_S = 1.0


class Balancer:
    """Forwards each connection to one of the servers in turn."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self._turn = itertools.count()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=256)
        self.url = f"http://{LOOPBACK}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = self.servers[next(self._turn) % len(self.servers)]
                threading.Thread(target=self._join, args=(client, server), daemon=True).start()

    def _join(self, client: socket.socket, server: Server) -> None:
        with client, socket.create_connection((LOOPBACK, server.port)) as backend:
            back = threading.Thread(target=_copy, args=(backend, client), daemon=True)
            back.start()
            _copy(client, backend)
            back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class Clients:
    """Clients that ask again and again, and the outcomes of their requests."""

    def __init__(self, url: str) -> None:
        self.outcomes: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.messages: set[str] = set()
        self._url = url
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(NUM_CLIENTS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the running requests end."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        requested = kinds(NUM_TOKENS)
        while not self._is_over.is_set():
            is_stream = number % 2 == 0
            call = Call(self._url, requested[number // 2], is_stream=is_stream)
            call.run()
            self.outcomes[is_stream][call.outcome] += 1
            self.messages |= {call.message} - {""}


def rolling_restart(model: Path, folder: Path) -> Row:
    """Replace both servers, one after another, while clients ask."""
    balancer = Balancer()
    with _stopping(balancer):
        for number in range(2):
            balancer.servers.append(_start(model, folder / f"log-{number}"))
        clients, ping = Clients(balancer.url), Watch(balancer.url)
        clients.start()
        ping.start()
        codes = []
        for old in list(balancer.servers):
            balancer.servers.append(_start(model, folder / f"log-{old.port}"))
            balancer.servers.remove(old)
            time.sleep(NOTICED_S)
            codes.append(old.stop())
        clients.stop()
        ping.stop()
    lost = sum(n for c in clients.outcomes.values() for name, n in c.items() if name != "whole")
    pings = Counter(str(look.status or "none") for look in ping.looks)
    streams, plain = (
        ", ".join(f"{n} x {name}" for name, n in sorted(clients.outcomes[kind].items()))
        for kind in (True, False)
    )
    leaked = "0" if codes == [0, 0] else f"exit codes {codes}"
    return Row(
        "rolling restart of two servers behind a balancer", streams, plain,
        ", ".join(f"{n} x {status}" for status, n in sorted(pings.items())),
        None, 0.0, lost, 0, leaked, 0, sorted(clients.messages),
    )  # fmt: skip


def _start(model: Path, log: Path) -> Server:
    server = spawn(log, model)
    server.wait_ready()
    return server


@contextlib.contextmanager
def _stopping(balancer: Balancer) -> Iterator[None]:
    try:
        yield
    finally:
        balancer.close()
        for server in balancer.servers:
            server.stop()
