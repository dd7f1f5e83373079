"""The request context: the facts of an HTTP request that apply to each prompt in it.

A view builds it, and it is a parameter of every call from there to the engine client.
"""

import math
import socket
import time
from dataclasses import dataclass, field, replace

from container.frontend.clients.admission import Preparation, deadline_exceeded
from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.sessions import Session

# Less than this a request may not ask for: many have no token by then.
MIN_DEADLINE_S = 1.0


@dataclass(slots=True)
class RequestTrace:
    """Collects the running requests of an HTTP request, for its headers and its spans."""

    route: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    inference_id: str | None = None
    started_ns: int = field(default_factory=time.time_ns)
    running: list[RunningRequest] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that an answer may take, whole or as a stream; infinite without a limit."""

    whole_s: float = math.inf
    stream_s: float = math.inf

    def at_most(self, seconds: float) -> "Deadlines":
        """Shorten both, unless they are shorter already."""
        return Deadlines(min(self.whole_s, seconds), min(self.stream_s, seconds))


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The adapter that generates, the session that keeps the prefix, the deadline, and the trace.

    `adapter` is empty for the base model. `connection` is the client's, to notice that it has
    closed. `received_at` and `deadline_at` are monotonic seconds; the deadline follows from
    `deadlines` once a view knows whether it answers with a stream. `is_batch`: a record of a batch
    body. `preparation` counts the request until it is submitted.
    """

    adapter: str = ""
    session: Session | None = None
    trace: RequestTrace = field(default_factory=RequestTrace)
    connection: socket.socket | None = None
    received_at: float = field(default_factory=time.monotonic)
    deadlines: Deadlines = Deadlines()
    deadline_at: float = math.inf
    is_batch: bool = False
    preparation: Preparation | None = None

    def with_deadline(
        self, requested_s: float | None = None, *, streams: bool = False
    ) -> "RequestContext":
        """Set the deadline: the earliest of the server's and the request's own."""
        deadlines = self.deadlines.at_most(math.inf if requested_s is None else requested_s)
        seconds = deadlines.stream_s if streams else deadlines.whole_s
        return replace(self, deadline_at=self.received_at + seconds)

    def end_preparation(self) -> None:
        """Stop counting the request here, since the engine's client counts it now."""
        if self.preparation is not None:
            self.preparation.end()

    def check_deadline(self) -> None:
        """Raise DeadlineExceeded if the deadline has passed."""
        if time.monotonic() >= self.deadline_at:
            raise deadline_exceeded()

    def for_record(self) -> "RequestContext":
        """Copy the context for one record of a batch body, with a new trace."""
        return replace(self, trace=RequestTrace(), is_batch=True)
