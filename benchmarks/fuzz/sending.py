"""Sends cases to a server, and looks for what they have done to it."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.chaos.processes import by_role
from benchmarks.chaos.raw_http import Answer, exchange
from benchmarks.chaos.trial import TRANSIENT
from benchmarks.fuzz.bodies import Case
from tests.support.servers import Server, wait_for

# A client whose request is never complete is closed by the server after this time at most.
TIMEOUT_S = 90.0
NUM_SENDERS = 6


@dataclass
class FuzzReport:
    """The results: answers by status, cases that failed in words, seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    seconds: float = 0.0

    def note(self, status: int, took_s: float, failure: str | None) -> None:
        """Add the outcome of a case."""
        self.statuses[status] += 1
        self.slowest_s = max(self.slowest_s, took_s)
        if failure is not None:
            print(failure, flush=True)
            self.failures.append(failure)

    @property
    def num_sent(self) -> int:
        """Return the number of requests."""
        return sum(self.statuses.values())


def fuzz(port: int, requests: Iterator[Case], seconds: float) -> FuzzReport:
    """Send the requests over a few connections at a time, until they or the time run out."""
    report = FuzzReport()
    began = time.monotonic()
    lock = threading.Lock()

    def send_all() -> None:
        while time.monotonic() - began < seconds:
            with lock:
                case = next(requests, None)
            if case is None:
                return
            status, took_s, failure = _send(port, case)
            with lock:
                report.note(status, took_s, failure)

    senders = [threading.Thread(target=send_all) for _ in range(NUM_SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    report.seconds = time.monotonic() - began
    return report


def _send(port: int, case: Case) -> tuple[int, float, str | None]:
    """Send a case; return the status (-1: none in time), seconds and a failure in words."""
    begins = case.sent[:200]
    try:
        answer = exchange(port, case.sent, TIMEOUT_S, half_closes=case.half_closes)
    except OSError as error:
        return -1, TIMEOUT_S, f"{case.name}: {error!r} after {begins!r}"
    failure = None
    if _is_fault(answer):
        failure = f"{case.name}: {answer.status} {answer.body[:300]!r} after {begins!r}"
    return answer.status, answer.seconds, failure


def _is_fault(answer: Answer) -> bool:
    """Whether an answer shows a fault of the server's, and not one of the request's.

    As TEI does, its routes answer 424 where the model is of another kind. Any other 424 is a
    failure of the engine.
    """
    has_failed = answer.status == 424 and b'"Backend"' not in answer.body
    return answer.status >= 500 or answer.status == 0 or has_failed or b"Traceback" in answer.body


def harm(server: Server, pids: set[int]) -> list[str]:
    """Return what the requests have left behind in a server with these processes before."""
    lines = []
    if died := pids - long_lived(server):
        lines.append(f"{len(died)} processes have died")
    if "Traceback" in server.log:
        lines.append(
            "the log has a traceback: " + server.log[server.log.index("Traceback") :][:800]
        )
    for metric in ("engine_blocks_used", "tgi_batch_current_size", "tgi_queue_size"):
        try:
            wait_for(lambda name=metric: server.metric(name) == 0, 20)
        except AssertionError:
            lines.append(f"{metric} is {server.metric(metric)} after all")
    return lines


def long_lived(server: Server) -> set[int]:
    """Return the processes that no request may end: all but those for grammars and templates."""
    roles = by_role(server.process.pid)
    return {p.pid for role, ps in roles.items() if role not in TRANSIENT for p in ps}
