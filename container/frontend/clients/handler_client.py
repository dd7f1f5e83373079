"""The frontend's end of the socket to the handler server: bodies out, answers in."""

import msgspec

from container.errors import ServingError
from container.frontend.clients.backend_client import BackendClient, Inbox
from container.messages.handler import (
    AnswerHead,
    AnswerPart,
    Cancel,
    HandlerStatus,
    Invoke,
    from_handler_decoder,
)


class Invocation:
    """One invocation's answer, as it comes; made by the client's `invoke` only."""

    def __init__(self, client: "HandlerClient", request_id: int) -> None:
        self._client = client
        self.request_id = request_id
        self.inbox: Inbox[AnswerHead | AnswerPart] = Inbox()

    def next(self, timeout_s: float) -> AnswerHead | AnswerPart | None:
        """Wait for the next message; None when the time is up. Raises what ended the answer."""
        return self.inbox.get(timeout_s)

    def close(self) -> None:
        """Say that nobody reads on."""
        self._client.forget(self.request_id)


class HandlerClient(BackendClient[HandlerStatus]):
    """This frontend's connection to the handler server."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "handler", from_handler_decoder, HandlerStatus)
        self._open: dict[int, Invocation] = {}

    def check_ready(self) -> None:
        """Raise Unavailable unless an invocation could be run now."""
        self._check_ready()

    def invoke(
        self, body: bytes, *, content_type: str, accept: str, headers: dict[str, str]
    ) -> Invocation:
        """Send a body; what the handler refuses is raised by the invocation."""
        self.check_ready()
        invocation = Invocation(self, next(self._ids))
        self._submit(Invoke(invocation.request_id, body, content_type, accept, headers))
        self._open[invocation.request_id] = invocation
        return invocation

    def forget(self, request_id: int) -> None:
        """Drop an invocation; the handler hears of it if it still works on it."""
        if self._open.pop(request_id, None) is not None:
            self._send_abort(Cancel(request_id))

    def _deliver(self, message: msgspec.Struct) -> None:
        assert isinstance(message, AnswerHead | AnswerPart)
        invocation = self._open.get(message.request_id)
        if invocation is None:
            return  # given up while the answer was on its way
        if isinstance(message, AnswerPart) and message.is_last:
            del self._open[message.request_id]
        invocation.inbox.put(message)

    def _fail(self, request_id: int, error: ServingError) -> None:
        invocation = self._open.pop(request_id, None)
        if invocation is not None:
            invocation.inbox.put(error)

    def _open_requests(self) -> list[int]:
        return list(self._open)
