"""A soak: every kind of request for a long time, among them clients that leave and that err.

Memory, files, processes and blocks at its end are compared with those after a first while.
"""

import contextlib
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from benchmarks.chaos.load import Call, kinds
from benchmarks.chaos.processes import by_role, num_files
from benchmarks.chaos.raw_http import LOOPBACK, exchange, post
from benchmarks.chaos.trial import Row
from benchmarks.chaos.watch import Watch
from tests.support.servers import Server, serving

NUM_CLIENTS = 8
NUM_TOKENS = 40
# What happens at first is no leak.
WARM_UP = 0.2
BAD = post("/v1/chat/completions", {"messages": "none", "temperature": -1})


def soak(model: Path, folder: Path, seconds: float) -> Row:
    """Run it; a tenth of memory more at the end counts as leaked."""
    with serving(folder / "log-soak", model) as server:
        clients, ping = _SoakClients(server), Watch(server.url)
        clients.start()
        ping.start()
        time.sleep(seconds * WARM_UP)
        early = _memory(server), _files(server)
        time.sleep(seconds * (1 - WARM_UP))
        late = _memory(server), _files(server)
        clients.stop()
        ping.stop()
        leaked = _leaks(server, early, late)
    pings = Counter(str(look.status or "none") for look in ping.looks)
    streams, plain = (
        ", ".join(f"{n} x {name}" for name, n in sorted(clients.outcomes[kind].items()))
        for kind in (True, False)
    )
    lost = sum(n for c in clients.outcomes.values() for name, n in c.items() if name != "whole")
    return Row(
        f"soak of {seconds / 60:.0f} minutes", streams, plain,
        ", ".join(f"{n} x {status}" for status, n in sorted(pings.items())),
        None, None, lost, clients.num_wrong, leaked, 0, sorted(clients.messages),
    )  # fmt: skip


class _SoakClients:
    def __init__(self, server: Server) -> None:
        self.outcomes: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.messages: set[str] = set()
        self.num_wrong = 0
        self._server = server
        self._texts: dict[tuple[int, bool], str] = {}
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(NUM_CLIENTS)]
        self._threads.append(threading.Thread(target=self._err))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        requested = kinds(NUM_TOKENS)
        is_stream = False
        while not self._is_over.is_set():
            is_stream = not is_stream
            call = Call(self._server.url, requested[number], is_stream=is_stream)
            call.run()
            self.outcomes[is_stream][call.outcome] += 1
            self.messages |= {call.message} - {""}
            expected = self._texts.setdefault((number, is_stream), call.text)
            self.num_wrong += call.text != expected

    def _err(self) -> None:
        """Be clients that leave, and clients that err."""
        leaving = post("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 5000}})
        while not self._is_over.wait(0.2):
            with contextlib.suppress(OSError):
                exchange(self._server.port, BAD, 30)
            with (
                contextlib.suppress(OSError),
                socket.create_connection((LOOPBACK, self._server.port), timeout=30) as connection,
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
    time.sleep(2)
    leaks = [f"memory {(late[0] / early[0] - 1) * 100:+.1f} %", f"files {late[1] - early[1]:+d}"]
    if blocks := server.metric("engine_blocks_used"):
        leaks.append(f"{blocks:.0f} blocks")
    return ", ".join(leaks)
