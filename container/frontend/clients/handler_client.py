"""The socket to the handler server: sends bodies, hands each answer to its invocation."""

import msgspec

from container.frontend.clients.pending import PendingAnswer, PendingClient
from container.messages.handler import (
    Acknowledge,
    AnswerHead,
    AnswerPart,
    Cancel,
    HandlerStatus,
    Invoke,
    from_handler_decoder,
)

AnswerMessage = AnswerHead | AnswerPart
Invocation = PendingAnswer[AnswerMessage]


class HandlerClient(PendingClient[HandlerStatus, AnswerMessage]):
    """This frontend's connection to the handler server."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "handler", from_handler_decoder, HandlerStatus)

    def check_ready(self) -> None:
        """Raise Unavailable unless an invocation could be run now."""
        self._check_ready()

    def invoke(
        self, body: bytes, *, content_type: str, accept: str, headers: dict[str, str]
    ) -> Invocation:
        """Send a body; the invocation raises the handler server's refusal."""
        return self._request(
            lambda request_id: Invoke(request_id, body, content_type, accept, headers)
        )

    def acknowledge(self, invocation: Invocation, size: int) -> None:
        """Note that the client has read so many bytes of parts, so that user code makes more."""
        if invocation.request_id in self._pending:  # else nothing more comes
            self._notify(Acknowledge(invocation.request_id, size))

    def _abort_message(self, request_id: int) -> Cancel:
        return Cancel(request_id)

    def _deliver(self, message: msgspec.Struct) -> None:
        assert isinstance(message, AnswerMessage)
        invocation = self._pending.get(message.request_id)
        if invocation is None:
            return  # aborted while the answer was on its way
        if isinstance(message, AnswerPart) and message.is_last:
            del self._pending[message.request_id]
        invocation.inbox.put(message)
