"""The request context: the facts of an HTTP request that apply to each prompt in it.

A view builds it, and it is a parameter of every call from there to the engine client.
"""

import socket
import time
from dataclasses import dataclass, field, replace

from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.sessions import Session


@dataclass(slots=True)
class RequestTrace:
    """Collects the running requests of an HTTP request, for its headers and its spans."""

    route: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    inference_id: str | None = None
    started_ns: int = field(default_factory=time.time_ns)
    running: list[RunningRequest] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The adapter that generates, the session that keeps the prefix, and the trace.

    `adapter` is empty for the base model. `connection` is the client's, to notice that it has
    closed.
    """

    adapter: str = ""
    session: Session | None = None
    trace: RequestTrace = field(default_factory=RequestTrace)
    connection: socket.socket | None = None

    def for_record(self) -> "RequestContext":
        """Copy it for one of many records, whose times are not those of the whole body."""
        return replace(self, trace=RequestTrace())
