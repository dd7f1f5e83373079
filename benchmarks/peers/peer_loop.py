"""The loop of all peers: rounds over stdin and stdout, and clients that send prompt after prompt.

It needs only Python's own library, since each peer runs in its own environment.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Prompts = list[list[list[int]]]


@dataclass(slots=True)
class Request:
    """One prompt of one client; `token_at` are seconds, like `sent_at` from the round's start."""

    client: int
    prompt: list[int]
    sent_at: float
    token_at: list[float] = field(default_factory=list)


class Clients:
    """Closed loop: each client sends its next prompt when the last one has got all its tokens."""

    def __init__(self, prompts: Prompts, new_tokens: int) -> None:
        self._waiting = [list(reversed(client)) for client in prompts]
        self._new_tokens = new_tokens
        self._start = time.perf_counter()
        self._streams: list[dict[str, Any]] = []
        self.num_running = 0

    @property
    def now(self) -> float:
        """Seconds since the round's start."""
        return time.perf_counter() - self._start

    def first(self) -> list[Request]:
        """The prompts that all clients send at once."""
        sent = [self._send(client) for client in range(len(self._waiting))]
        return [request for request in sent if request is not None]

    def got(self, request: Request, count: int, at: float | None = None) -> bool:
        """Note new tokens of a request; return whether it has all of them now."""
        request.token_at += [self.now if at is None else at] * count
        return len(request.token_at) >= self._new_tokens

    def done(self, request: Request) -> Request | None:
        """Note that a request has ended; return what its client sends next."""
        self.num_running -= 1
        self._streams.append(
            {
                "sent_at": request.sent_at,
                "token_at": request.token_at,
                "prompt_tokens": len(request.prompt),
            }
        )
        return self._send(request.client)

    def result(self) -> dict[str, Any]:
        """The round, as the benchmark reads it."""
        return {"streams": self._streams}

    def _send(self, client: int) -> Request | None:
        if not self._waiting[client]:
            return None
        self.num_running += 1
        return Request(client, self._waiting[client].pop(), self.now)


def answer_rounds(
    start: Callable[[], tuple[dict[str, Any], Callable[[Prompts, int], dict[str, Any]]]],
) -> None:
    """Print the peer's description, then run a round for each line of stdin, until it ends.

    `start` loads the peer. Stdout is for answers only: the libraries' output goes to stderr.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    facts, run_round = start()
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        answer = run_round(wanted["prompts"], wanted["new_tokens"])
        print(json.dumps(answer), file=answers, flush=True)
