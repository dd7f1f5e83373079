"""From a running request to an HTTP answer: whole, or as server-sent events."""

import logging
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gevent.monkey
import msgspec
from flask import Response

from container.errors import ServingError
from container.frontend.generation.offloading import Turns
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import Running
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.error_responses import ClientDisconnected
from container.messages.engine import FinishReason

log = logging.getLogger(__name__)

# A comment that keeps proxies from closing a stream whose next token takes long.
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b":\n\n"
# How often a waiting handler looks whether its client is still there.
DISCONNECT_POLL_S = 0.5
CLIENT_DISCONNECTED_STATUS = 499
# On a whole answer that its deadline has cut. A stream has the mark below, its headers being sent.
DEADLINE_HEADER = "X-Request-Deadline-Exceeded"

# poll as it was before gevent made it cooperative; with a time-out of 0 it never blocks.
_poll = gevent.monkey.get_original("select", "poll")
_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR

E = TypeVar("E")
RenderError = Callable[[ServingError], dict[str, Any]]


def json_response(body: object, *, headers: dict[str, str] | None = None) -> Response:
    """Answer 200 with a JSON body."""
    return Response(msgspec.json.encode(body), mimetype="application/json", headers=headers)


def written(part: object) -> msgspec.Raw:
    """Write a part of a body at once; a large body is then written in pieces."""
    return msgspec.Raw(msgspec.json.encode(part))


def answer_headers(running: Running[object]) -> dict[str, str]:
    """Return the headers of a whole answer: whether its deadline has cut it."""
    return {DEADLINE_HEADER: "true"} if running.is_cut else {}


def deadline_mark(reason: FinishReason | None) -> dict[str, Any]:
    """Return the field beside a finish reason that says that the deadline was the cause."""
    return {"deadline_exceeded": True} if reason is FinishReason.DEADLINE else {}


def sse(body: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def sse_typed(body: dict[str, Any]) -> bytes:
    """One server-sent event that has its type in a line of its own, too."""
    kind: str = body["type"]
    return b"event: " + kind.encode() + b"\n" + sse(body)


def collect(running: Running[object], metrics: Metrics, connection: socket.socket | None) -> None:
    """Wait for the last token. Raises the request's error, or ClientDisconnected."""
    next_look = time.monotonic() + DISCONNECT_POLL_S
    turns = Turns()
    try:
        while not running.is_finished:
            running.next_event(DISCONNECT_POLL_S)
            turns.give()
            if time.monotonic() > next_look:
                next_look = time.monotonic() + DISCONNECT_POLL_S
                check_client(connection)
    finally:
        running.close()
    for request in running.requests:
        metrics.observe(request)


def stream(
    running: Running[E],
    render: Callable[[E], Iterator[object]],
    render_error: RenderError,
    metrics: Metrics,
    *,
    end: bytes = b"",
    write: Callable[[Any], bytes] = sse,
    headers: dict[str, str] | None = None,
) -> Response:
    """Answer with the events that `render` makes of each token, then `end`.

    An error after the first byte becomes one more event; the stream always ends with a newline.
    """

    is_counted = False

    def chunks() -> Iterator[bytes]:
        nonlocal is_counted
        turns = Turns()
        try:
            while not running.is_finished:
                turns.give()
                event = running.next_event(KEEP_ALIVE_S)
                if event is None:
                    yield KEEP_ALIVE
                else:
                    yield b"".join(map(write, render(event)))
            is_counted = True
            metrics.count_success()
            for request in running.requests:
                metrics.observe(request)
        except Exception as error:
            client_error = error_responses.to_client_error(error)
            is_counted = True
            metrics.count_failure(client_error)
            yield write(render_error(client_error))
        yield end

    def on_close() -> None:
        # Also called for a client that left before the first chunk was asked for.
        if not is_counted:
            metrics.count_aborted()
        running.close()

    response = Response(chunks(), mimetype="text/event-stream", headers=headers)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(on_close)
    return response


def watch_wait(context: RequestContext) -> Callable[[], None]:
    """Return a check for a wait without tokens, such as for an embedding.

    It raises ClientDisconnected, or DeadlineExceeded at the deadline of a whole answer.
    """
    context = context.with_deadline()

    def check() -> None:
        context.check_deadline()
        check_client(context.connection)

    return check


def check_client(connection: socket.socket | None) -> None:
    """Raise ClientDisconnected if the client has closed its connection."""
    if connection is None:
        return
    poller = _poll()
    poller.register(connection.fileno(), _HANG_UP)
    if poller.poll(0):
        raise ClientDisconnected
