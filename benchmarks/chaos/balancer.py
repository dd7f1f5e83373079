"""A tiny balancer over two servers, and a rolling restart behind it in which no request may fail.

It forwards each connection to one of its servers in turn. SIGTERM goes to a server once the
balancer no longer sends to it, as a platform does it.
"""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos.load import Clients, kinds
from benchmarks.chaos.raw_http import LOOPBACK
from benchmarks.chaos.trial import Row, counts
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


def rolling_restart(model: Path, folder: Path) -> Row:
    """Replace both servers, one after another, while clients ask."""
    balancer = Balancer()
    with _stopping(balancer):
        for number in range(2):
            balancer.servers.append(_start(model, folder / f"log-{number}"))
        requested = kinds(NUM_TOKENS)
        clients = Clients(
            balancer.url, NUM_CLIENTS, lambda number, _: (requested[number // 2], number % 2 == 0)
        )
        ping = Watch(balancer.url)
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
    leaked = "0" if codes == [0, 0] else f"exit codes {codes}"
    return Row(
        "rolling restart of two servers behind a balancer",
        counts(clients.outcomes[True]), counts(clients.outcomes[False]), counts(ping.statuses()),
        None, 0.0, clients.num_lost, 0, leaked, 0, sorted(clients.messages),
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
