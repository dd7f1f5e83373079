"""From a running request to an HTTP answer: whole, or as server-sent events."""

import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import gevent.monkey
import msgspec
from flask import Response

from container import content
from container.errors import ServingError
from container.frontend.generation.offloading import TimeSlice
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import Running
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.error_responses import ClientDisconnected
from container.messages.engine import FinishReason

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
    """Encode a part of a body; encoding it part by part keeps each pause short."""
    return msgspec.Raw(msgspec.json.encode(part))


def answer_headers(*, is_cut: bool) -> dict[str, str]:
    """Return the headers of a whole answer, which mark one that its deadline has cut."""
    return {DEADLINE_HEADER: "true"} if is_cut else {}


def deadline_mark(reason: FinishReason | None) -> dict[str, Any]:
    """Return the field next to a finish reason that names the deadline as its cause."""
    return {"deadline_exceeded": True} if reason is FinishReason.DEADLINE else {}


def sse(body: object) -> bytes:
    """Encode a server-sent event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def sse_typed(body: dict[str, Any]) -> bytes:
    """Encode a server-sent event with its type in an `event:` line, too."""
    kind: str = body["type"]
    return b"event: " + kind.encode() + b"\n" + sse(body)


def collect(running: Running[object], metrics: Metrics, connection: socket.socket | None) -> None:
    """Wait for the last token. Raises the request's error, or ClientDisconnected."""
    next_poll = time.monotonic() + DISCONNECT_POLL_S
    time_slice = TimeSlice()
    try:
        while not running.is_finished:
            running.next_event(DISCONNECT_POLL_S)
            time_slice.yield_if_over()
            if time.monotonic() > next_poll:
                next_poll = time.monotonic() + DISCONNECT_POLL_S
                check_client(connection)
    finally:
        running.close()
    for request in running.requests:
        metrics.observe(request)


def stream(
    running: Running[E],
    render: Callable[[E], Iterable[object]],
    render_error: RenderError,
    metrics: Metrics,
    *,
    end: bytes = b"",
    write: Callable[[Any], bytes] = sse,
    headers: dict[str, str] | None = None,
) -> Response:
    """Answer with a stream of the events that `render` yields for each token, then `end`.

    An error after the first byte becomes one more event; the stream always ends with a newline.
    """

    def chunks() -> Iterator[bytes]:
        time_slice = TimeSlice()
        while not running.is_finished:
            time_slice.yield_if_over()
            event = running.next_event(KEEP_ALIVE_S)
            yield KEEP_ALIVE if event is None else b"".join(map(write, render(event)))
        for request in running.requests:
            metrics.observe(request)

    def error_chunk(error: ServingError) -> bytes:
        return write(render_error(error))

    counted = CountedStream(chunks(), error_chunk, metrics, close=running.close, end=end)
    return unbuffered(Response(counted, mimetype=content.EVENTS, headers=headers))


class CountedStream:
    """The chunks of a response, then `end`; counts the outcome of its request once.

    An error becomes a last chunk. werkzeug closes it with its response, also if the client has
    disconnected before the first chunk.
    """

    def __init__(
        self,
        chunks: Iterator[bytes],
        error_chunk: Callable[[ServingError], bytes],
        metrics: Metrics,
        *,
        close: Callable[[], None],
        end: bytes = b"",
    ) -> None:
        self._chunks = chunks
        self._error_chunk = error_chunk
        self._metrics = metrics
        self._close = close
        self._end = end
        self._is_counted = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._chunks
            self._is_counted = True
            self._metrics.count_success()
        except Exception as error:
            client_error = error_responses.to_client_error(error)
            self._is_counted = True
            self._metrics.count_failure(client_error)
            yield self._error_chunk(client_error)
        yield self._end

    def close(self) -> None:
        """Abort the work behind the stream unless it has ended."""
        if not self._is_counted:
            self._metrics.count_aborted()
            self._is_counted = True
        self._close()


def unbuffered(response: Response) -> Response:
    """Keep proxies from caching or buffering a stream."""
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
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
