"""`/invocations` with user code: passes bodies to the handler server, and its answers back."""

import time
from collections.abc import Callable, Iterator

from flask import Request, Response, request

from container.content import EVENTS
from container.errors import ServingError
from container.frontend.clients.handler_client import HandlerClient, Invocation
from container.frontend.generation.request_context import RequestContext
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.auth import KEY_HEADERS
from container.frontend.web.error_responses import tgi_body
from container.frontend.web.http_request import request_context
from container.frontend.web.request_body import read_bytes
from container.frontend.web.responses import (
    DISCONNECT_POLL_S,
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    CountedStream,
    unbuffered,
    watch_wait,
)
from container.messages.handler import AnswerHead, AnswerPart

# Bytes of a stream that the client reads before they are acknowledged; less than its window.
ACKNOWLEDGED_EVERY = 2**20


class HandlerDialect:
    """Sends bodies to the handler server and renders its answers."""

    def __init__(self, client: HandlerClient, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics

    def invoke(self) -> Response:
        """Answer the current request."""
        context = request_context()
        invocation = self._client.invoke(
            read_bytes(request),
            content_type=request.headers.get("Content-Type", ""),
            accept=request.headers.get("Accept", ""),
            headers=_headers(request),
        )
        try:
            on_wait = watch_wait(context)
            head = _next_message(invocation, on_wait)
            assert isinstance(head, AnswerHead)
            if head.is_stream:
                return self._stream(head, invocation, context.with_deadline(streams=True))
            body = _next_message(invocation, on_wait)
            assert not isinstance(body, AnswerHead)
        except BaseException:
            invocation.close()
            raise
        self._metrics.observe_duration(time.monotonic() - context.received_at)
        return _response(head, body.data)

    def _stream(
        self, head: AnswerHead, invocation: Invocation, context: RequestContext
    ) -> Response:
        is_events = head.content_type.startswith(EVENTS)

        def chunks() -> Iterator[bytes]:
            is_whole, num_read = False, 0
            while not is_whole:
                remaining_s = context.deadline_at - time.monotonic()
                message = invocation.wait(max(0.0, min(KEEP_ALIVE_S, remaining_s)))
                context.check_deadline()
                if message is None:
                    yield KEEP_ALIVE if is_events else b""
                    continue
                assert not isinstance(message, AnswerHead)
                is_whole = message.is_last
                yield message.data
                num_read += message.size
                if num_read >= ACKNOWLEDGED_EVERY:
                    self._client.acknowledge(invocation, num_read)
                    num_read = 0
            self._metrics.observe_duration(time.monotonic() - context.received_at)

        def error_chunk(error: ServingError) -> bytes:
            """Return one more line, in the form of the stream."""
            body = error_responses.json_bytes(tgi_body(error))
            return b"data: " + body + b"\n\n" if is_events else b"\n" + body + b"\n"

        counted = CountedStream(chunks(), error_chunk, self._metrics, close=invocation.close)
        return unbuffered(_response(head, counted))


def _next_message(invocation: Invocation, on_wait: Callable[[], None]) -> AnswerHead | AnswerPart:
    """Wait for a message; calls `on_wait` during a long wait, which may raise."""
    while (message := invocation.wait(DISCONNECT_POLL_S)) is None:
        on_wait()
    return message


def _headers(incoming: Request) -> dict[str, str]:
    """Return the headers for user code: all but the key to this server."""
    lowered = ((name.lower(), value) for name, value in incoming.headers)
    return {name: value for name, value in lowered if name not in KEY_HEADERS}


def _response(head: AnswerHead, data: bytes | CountedStream) -> Response:
    response = Response(data, head.status, content_type=head.content_type)
    for name, value in head.headers.items():
        response.headers[name] = value
    return response
