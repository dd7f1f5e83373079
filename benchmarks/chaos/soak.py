"""A soak: every kind of request for a long time, among them clients that leave and that err.

Memory, files, processes and blocks at its end are compared with those after a first while.
"""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
WARM_UP = 1 / 6
# When memory is looked at, as parts of the time: in an hour, at its start, after 10 and 30 minutes.
SAMPLES_AT = (0, WARM_UP, 1 / 2, 1)
# A KV cache whose blocks have all been used once after a minute: an unused one takes no memory yet.
SETTINGS = {"MAX_BATCH_TOTAL_TOKENS": "65536"}
BAD = post("/v1/chat/completions", {"messages": "none", "temperature": -1})


def soak(model: Path, folder: Path, seconds: float) -> Row:
    """Run it; the row has what memory and files have grown by since the first while."""
    with serving(folder / "log-soak", model, **SETTINGS) as server:
        texts, requested = _Texts(), kinds(NUM_TOKENS)
        clients = Clients(
            server.url, NUM_CLIENTS,
            lambda number, num_sent: (requested[number], num_sent % 2 == 0), texts.compare,
        )  # fmt: skip
        ping = Watch(server.url)
        parts = clients, _ErringClient(server.port), ping
        for part in parts:
            part.start()
        samples = list(_watch(server, seconds))
        for part in parts:
            part.stop()
        leaked = _leaks(server, samples)
    return Row(
        f"soak of {seconds / 60:.0f} minutes",
        counts(clients.outcomes[True]), counts(clients.outcomes[False]), counts(ping.statuses()),
        None, None, clients.num_lost, texts.num_wrong, leaked, 0,
        [*sorted(clients.messages), *map(str, samples)],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sample:
    """The resources of all processes of the server at a time: seconds, bytes, open files."""

    at_s: float
    memory: int
    files: int
    by_role: str

    def __str__(self) -> str:
        return (
            f"{self.at_s / 60:.0f} min: {self.memory / 2**20:.0f} MiB, {self.files} files: "
            f"{self.by_role}"
        )


def _watch(server: Server, seconds: float) -> Iterator[_Sample]:
    """Take samples at these parts of the time."""
    began = time.monotonic()
    for part in SAMPLES_AT:
        time.sleep(max(0.0, began + part * seconds - time.monotonic()))
        sample = _sample(server, part * seconds)
        print(sample, file=sys.stderr, flush=True)
        yield sample


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


def _sample(server: Server, at_s: float) -> _Sample:
    processes = by_role(server.process.pid)
    memory = {name: sum(map(_resident, each)) for name, each in processes.items()}
    written = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in sorted(memory.items()))
    files = num_files([p for each in processes.values() for p in each])
    return _Sample(at_s, sum(memory.values()), files, written)


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _leaks(server: Server, samples: list[_Sample]) -> str:
    """Compare the end with the end of the warm-up, since what happens at first is no leak."""
    time.sleep(2)  # the blocks of clients that left are freed within a step or two
    early = next(each for part, each in zip(SAMPLES_AT, samples, strict=True) if part >= WARM_UP)
    late = samples[-1]
    growth = (late.memory / early.memory - 1) * 100
    leaks = [f"memory {growth:+.1f} %", f"files {late.files - early.files:+d}"]
    if blocks := server.metric("engine_blocks_used"):
        leaks.append(f"{blocks:.0f} blocks")
    return ", ".join(leaks)
